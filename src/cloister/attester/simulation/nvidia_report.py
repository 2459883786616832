"""What simulated GPUs and switches measure, their SPDM reports, and the reference manifests that match them.

Laid out as hardware does it: 64 measurements of which firmware and driver vouch for some, the versions among the
opaque fields. The values are derived from labels and the versions begin with zeros, so that none can be mistaken for
one of real hardware. Refuses nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Final

from cloister.attester.simulation.chain import Signer
from cloister.attester.simulation.nvidia_chain import RimAuthority
from cloister.encoding import labelled_hash

LABEL: Final = "cloister/simulated-gpu/v1"
BLOCKS: Final = 64
DRIVER_VERSION: Final = "000.00.01"
VBIOS_VERSION: Final = "00.00.00.00.01"
SWITCH_VERSION: Final = "00.00.00.00.02"
_VBIOS_INDICES: Final = (0, 1, 2, 3, 4, 5, 6, 9, 12, 14, 15)
_DRIVER_INDICES: Final = (7, 21, 22, 23, 26, 30, 35, 47)
_SWITCH_INDICES: Final = tuple(range(16))


def measurement(chip: str, index: int) -> bytes:
    """What a simulated chip measures at ``index`` (from 0), 48 bytes."""
    return labelled_hash(LABEL, chip.encode(), index.to_bytes(2, "big"), algorithm="sha384")


def measurements(chip: str) -> dict[int, bytes]:
    """Everything that a simulated chip measures."""
    return {index: measurement(chip, index) for index in range(BLOCKS)}


def firmware_digest(chip: str) -> bytes:
    """The FWID of the simulated firmware, 48 bytes."""
    return labelled_hash(LABEL, chip.encode(), b"fwid", algorithm="sha384")


def gpu_fields(*, fwid: bytes, switch_pdis: Sequence[bytes], protected_pcie: bool) -> dict[int, bytes]:
    """A GPU's opaque fields by id."""
    vbios = bytes(int(part, 16) for part in VBIOS_VERSION.split("."))
    fields = {
        6: vbios[3::-1] + vbios[4:] + bytes(3),
        15: b"000\0",
        17: b"0000\0",
        18: b"0000\0",
        3: DRIVER_VERSION.encode() + b"\0",
        11: b"\xaa",
        20: fwid,
        21: b"\xaa" if protected_pcie else b"\x55",
        34: b"\x01\x00",
        36: b"\x02\x00" if protected_pcie else b"\x00\x00",
    }
    if switch_pdis:
        fields[22] = b"".join(pdi[::-1] for pdi in switch_pdis)
    return fields


def switch_fields(*, pdi: bytes, gpu_pdis: Sequence[bytes]) -> dict[int, bytes]:
    """A switch's opaque fields by id."""
    wired = [gpu_pdis[number % len(gpu_pdis)] for number in range(8)]
    return {6: SWITCH_VERSION.encode(), 22: pdi, 26: b"".join(wired) + bytes(64), 25: b"\x01\x00"}


def encode_report(
    nonce: bytes, values: Mapping[int, bytes], fields: Mapping[int, bytes], *, response_nonce: bytes
) -> bytes:
    """Request and response without the signature."""
    record = b"".join(
        struct.pack("<BBHBH", index + 1, 1, len(value) + 3, 1, len(value)) + value
        for index, value in values.items()
    )
    opaque = b"".join(struct.pack("<HH", field, len(value)) + value for field, value in fields.items())
    request = b"\x11\xe0\x01\xff" + nonce + b"\x00"
    head = b"\x11\x60\x00\x00" + bytes([len(values)]) + len(record).to_bytes(3, "little")
    return request + head + record + response_nonce + struct.pack("<H", len(opaque)) + opaque


def rim_documents(authority: RimAuthority, *, switches: bool) -> tuple[bytes, ...]:
    """Signed manifests of the simulated driver and VBIOS, and of the switch's BIOS where there are switches."""
    documents = [
        sign_rim(
            rim_document("GH100", "GPU", DRIVER_VERSION, golden("GH100", _DRIVER_INDICES)), authority.chain
        ),
        sign_rim(
            rim_document("GH100", "GPU", VBIOS_VERSION, golden("GH100", _VBIOS_INDICES)), authority.chain
        ),
    ]
    if switches:
        document = rim_document("LS10", "SWITCH", SWITCH_VERSION, golden("LS_10", _SWITCH_INDICES))
        documents.append(sign_rim(document, authority.chain))
    return tuple(documents)


def golden(chip: str, indices: Sequence[int]) -> dict[int, tuple[bytes, ...]]:
    """The accepted values at ``indices``; all zeros are accepted too at the last of them."""
    values: dict[int, tuple[bytes, ...]] = {index: (measurement(chip, index),) for index in indices}
    values[indices[-1]] = (bytes(48), *values[indices[-1]])
    return values


def rim_document(product: str, edition: str, version: str, values: Mapping[int, tuple[bytes, ...]]) -> bytes:
    """An unsigned manifest in NVIDIA's form."""
    resources: list[str] = []
    for index in range(BLOCKS):
        accepted = values.get(index, (bytes(48),))
        hashes = " ".join(f'ns2:Hash{number}="{value.hex()}"' for number, value in enumerate(accepted))
        resources.append(
            f'<ns0:Resource type="Measurement" index="{index}" active="{index in values}" '
            f'alternatives="{len(accepted)}" {hashes} name="Measurement_{index}" size="48"/>'
        )
    tag = labelled_hash(LABEL, product.encode(), version.encode()).hex()
    return (
        '<SoftwareIdentity xmlns="http://standards.iso.org/iso/19770/-2/2015/schema.xsd" '
        'xmlns:ns0="http://standards.iso.org/iso/19770/-2/2015/schema.xsd" '
        f'xmlns:ns2="http://www.w3.org/2001/04/xmlenc#sha384" corpus="false" name="{product}" patch="false" '
        f'supplemental="false" tagId="{tag}" version="1.0" tagVersion="0">\n'
        '<ns0:Entity name="Cloister simulated GPUs" role="softwareCreator tagCreator"/>\n'
        f'<ns0:Meta colloquialVersion="{version}" edition="{edition}" product="{product}" revision="r1"/>\n'
        f"<ns0:Payload>\n{chr(10).join(resources)}\n</ns0:Payload>\n</SoftwareIdentity>"
    ).encode()


def sign_rim(document: bytes, chain: Sequence[Signer]) -> bytes:
    """``document`` with the signature of the first of ``chain`` inside, as NVIDIA places it."""
    from lxml import etree  # noqa: PLC0415 -- 130 ms that only simulated GPUs need
    from signxml.algorithms import (  # noqa: PLC0415
        CanonicalizationMethod,
        DigestAlgorithm,
        SignatureConstructionMethod,
        SignatureMethod,
    )
    from signxml.signer import XMLSigner  # noqa: PLC0415

    signer = XMLSigner(
        method=SignatureConstructionMethod.enveloped,
        signature_algorithm=SignatureMethod.ECDSA_SHA384,
        digest_algorithm=DigestAlgorithm.SHA384,
        c14n_algorithm=CanonicalizationMethod.CANONICAL_XML_1_1,
    )
    certificates = [one.certificate for one in chain]
    signed = signer.sign(etree.fromstring(document), key=chain[0].key, cert=certificates)
    return bytes(etree.tostring(signed))
