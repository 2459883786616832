"""AMD's Key Distribution Service: what to ask for a report, how answers become endorsements.

Pure: no I/O. Source: AMD, "Versioned Chip Endorsement Key (VCEK) Certificate and KDS Interface Specification" (57230).
A VCEK belongs to one chip at one TCB and never changes, so it is kept for long: the service throttles who asks
often. A VLEK cannot be asked for: the cloud gets it from AMD and hands it to its guests. A report that does not name its
product (version 2) is asked for under each product in turn, newest last, at most three times.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from cloister.endorsements.amd import (
    SnpEndorsements,
    encode_snp_endorsements,
    parse_cert_chain,
    parse_snp_endorsements,
)
from cloister.endorsements.asking import (
    DER_TYPES,
    PEM_TYPES,
    Asking,
    Part,
    Reply,
    certificates_end,
    crl_ends,
    pem_of,
)
from cloister.endorsements.services import Services
from cloister.endorsements.x509 import read_certificate
from cloister.errors import EndorsementError
from cloister.evidence.snp import SnpReport, TcbVersion

PRODUCTS: Final = ("milan", "genoa", "turin")
TURIN_CHIP_ID: Final = 8
"""Bytes of a chip id from Turin on; the rest of the report's field is zero."""
MAX_CERTIFICATE: Final = 16 * 1024
MAX_CHAIN: Final = 32 * 1024
MAX_CRL: Final = 128 * 1024
DAY: Final = 86_400
QUARTER: Final = 90 * DAY
_HARDWARE_ID: Final = "1.3.6.1.4.1.3704.1.4"


def ask_amd(report: SnpReport, services: Services) -> Asking:
    """Endorsements of the chip that signed ``report`` (endorsements/amd.py)."""
    candidates = products_of(report)
    for product in candidates:
        (vcek,) = yield (vcek_part(report, product, services, optional=len(candidates) > 1),)
        if vcek is not None:
            chain, crl = yield product_parts(product, services)
            if chain is None or crl is None:
                raise EndorsementError("a part of AMD's endorsements is missing")
            return assemble(vcek, chain, crl)
    raise EndorsementError(
        f"AMD knows no chip with this id and TCB ({', '.join(name.capitalize() for name in candidates)} were asked)",
        todo="is the report whole, and the platform's firmware released?",
    )


def products_of(report: SnpReport) -> tuple[str, ...]:
    """Products under which the report's chip may be known. Raises :class:`~cloister.errors.EndorsementError`."""
    if report.signing_key != "vcek":
        raise EndorsementError(
            "the report is signed by a VLEK, which AMD gives to the cloud only: it cannot be asked for by chip",
            todo="let the workload carry it (the guest gets it from its hypervisor)",
        )
    if report.mask_chip_key or report.chip_id_masked:
        raise EndorsementError(
            "the report hides its chip's id, so AMD cannot be asked for its certificate",
            todo="let the workload carry it, or have the host turn MASK_CHIP_ID and MASK_CHIP_KEY off",
        )
    if report.product is not None:
        if report.product not in PRODUCTS:
            raise EndorsementError(f"AMD's service is not known to have a product {report.product[:20]}")
        return (report.product,)
    if report.reported_tcb.fmc is not None:
        return ("turin",)
    return ("milan", "genoa")


def vcek_part(report: SnpReport, product: str, services: Services, *, optional: bool) -> Part:
    """The certificate of the chip at the TCB that the report states."""
    chip, tcb = chip_hex(report, product), report.reported_tcb
    query, name = _levels(tcb, product)
    return Part(
        vendor="amd",
        key=f"vcek/{product}/{chip}/{name}",
        what=f"VCEK of {product.capitalize()} chip {chip[:16]}…",
        url=f"{services.amd}/vcek/v1/{product.capitalize()}/{chip}?{query}",
        types=DER_TYPES,
        limit=MAX_CERTIFICATE,
        read=partial(_read_vcek, chip=bytes.fromhex(chip)),
        max_age=QUARTER,
        unknown=f"AMD knows no {product.capitalize()} chip with this id at this TCB",
        optional=optional,
    )


def product_parts(product: str, services: Services) -> tuple[Part, Part]:
    """The product's chain and its revocation list."""
    base = f"{services.amd}/vcek/v1/{product.capitalize()}"
    unknown = f"AMD's service does not know the product {product.capitalize()}"
    return (
        Part(
            vendor="amd",
            key=f"chain/{product}",
            what=f"chain of {product.capitalize()}",
            url=f"{base}/cert_chain",
            types=PEM_TYPES,
            limit=MAX_CHAIN,
            read=_read_chain,
            max_age=QUARTER,
            unknown=unknown,
        ),
        Part(
            vendor="amd",
            key=f"crl/{product}",
            what=f"revocation list of {product.capitalize()}",
            url=f"{base}/crl",
            types=DER_TYPES,
            limit=MAX_CRL,
            read=_read_crl,
            max_age=DAY,
            unknown=unknown,
        ),
    )


def chip_hex(report: SnpReport, product: str) -> str:
    """The chip's id as the service wants it: 64 bytes, or 8 from Turin on. Raises :class:`EndorsementError`."""
    if product != "turin":
        return report.chip_id.hex()
    if report.chip_id[TURIN_CHIP_ID:].strip(b"\0"):
        raise EndorsementError("the report names Turin, but its chip id is longer than 8 bytes")
    return report.chip_id[:TURIN_CHIP_ID].hex()


def assemble(vcek: bytes, chain: bytes, crl: bytes) -> bytes:
    """Contents of the parts to the document. Raises :class:`~cloister.errors.EndorsementError`."""
    intermediate, root = parse_cert_chain(chain)
    return encode_snp_endorsements(
        SnpEndorsements(signing_key=vcek, intermediate=intermediate, root=root, crl=crl)
    )


def amd_part_ends(key: str, content: bytes) -> int:
    """Unix seconds at which the content of a part stops to hold. Raises :class:`~cloister.errors.EndorsementError`."""
    kind = key.partition("/")[0]
    if kind == "vcek":
        return certificates_end((content,))
    if kind == "chain":
        return certificates_end(parse_cert_chain(content))
    if kind == "crl":
        return crl_ends(content)
    raise EndorsementError("there is no such endorsement of AMD's")


def amd_document_ends(document: bytes) -> int:
    """Unix seconds of the earliest end in it. Raises :class:`~cloister.errors.EndorsementError`."""
    found = parse_snp_endorsements(document)
    ends = certificates_end((found.signing_key, found.intermediate, found.root))
    return min(ends, crl_ends(found.crl)) if found.crl else ends


def _levels(tcb: TcbVersion, product: str) -> tuple[str, str]:
    levels = {"blSPL": tcb.bootloader, "teeSPL": tcb.tee, "snpSPL": tcb.snp, "ucodeSPL": tcb.microcode}
    if product == "turin":
        if tcb.fmc is None:
            raise EndorsementError("the report names Turin, but its TCB has no FMC level")
        levels = {"fmcSPL": tcb.fmc, **levels}
    query = "&".join(f"{name}={value:02d}" for name, value in levels.items())
    return query, "-".join(str(value) for value in levels.values())


def _read_vcek(reply: Reply, *, chip: bytes) -> bytes:
    hardware_id = read_certificate(reply.body).extensions.get(_HARDWARE_ID)
    if (
        hardware_id is None or chip not in hardware_id.value
    ):  # kept for long, so a wrong one is not kept at all
        raise EndorsementError("AMD's service sent the certificate of another chip")
    return reply.body


def _read_chain(reply: Reply) -> bytes:
    return pem_of(parse_cert_chain(reply.body)).encode("ascii")


def _read_crl(reply: Reply) -> bytes:
    crl_ends(reply.body)
    return reply.body
