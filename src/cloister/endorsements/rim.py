"""Reference integrity manifests: what NVIDIA says that firmware and drivers measure to, as signed XML (SWID tags).

Read here, believed nowhere: verifier/rim.py checks the signature, and then reads the *signed* bytes by the same
function. The XML has exactly the form that NVIDIA writes. Refused before anything is parsed: more than 1 MiB, another
encoding than UTF-8, any document type or entity; after it: comments, processing instructions, elements or signature
algorithms that NVIDIA does not use, a second signature, depth over eight.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from cloister.errors import EndorsementError

if TYPE_CHECKING:
    from lxml import etree

MAX_RIM: Final = 1 << 20
MAX_ELEMENTS: Final = 4096
MAX_DEPTH: Final = 8
MAX_ATTRIBUTES: Final = 96
MAX_NAMESPACES: Final = 16
MAX_MEASUREMENTS: Final = 256
MAX_ALTERNATIVES: Final = 64
MAX_CHAIN: Final = 6
DIGEST_SIZE: Final = 48

_SWID: Final = "{http://standards.iso.org/iso/19770/-2/2015/schema.xsd}"
_DS: Final = "{http://www.w3.org/2000/09/xmldsig#}"
_HASH: Final = "{http://www.w3.org/2001/04/xmlenc#sha384}Hash"
_C14N: Final = "http://www.w3.org/2006/12/xml-c14n11"
_SIGNED_INFO: Final = (
    ("CanonicalizationMethod", _C14N),
    ("SignatureMethod", "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"),
    ("Reference", ""),
)
_REFERENCE: Final = (
    ("Transforms", None),
    ("DigestMethod", "http://www.w3.org/2001/04/xmldsig-more#sha384"),
    ("DigestValue", None),
)
_TRANSFORMS: Final = (
    ("Transform", "http://www.w3.org/2000/09/xmldsig#enveloped-signature"),
    ("Transform", _C14N),
)


@dataclass(frozen=True, slots=True)
class Golden:
    """The accepted values of one measurement."""

    index: int
    """From 0, one less than SPDM's."""
    name: str
    values: tuple[bytes, ...]
    """48 bytes each."""


@dataclass(frozen=True, slots=True)
class Rim:
    """What one manifest says. Unverified, unless verifier/rim.py read it."""

    product: str
    """``GH100``, ``GB100``, ``LS10``."""
    edition: str
    """``GPU`` or ``SWITCH``."""
    version: str
    """Of the driver (``550.144.03``) or VBIOS (``96.00.5E.00.01``), upper case."""
    tag_id: str
    measurements: tuple[Golden, ...]
    """The active ones alone, by index."""

    @property
    def label(self) -> str:
        """For people, such as ``GH100 driver 550.144.03``."""
        part = "BIOS" if self.edition == "SWITCH" else "VBIOS" if self.is_vbios else "driver"
        return f"{self.product} {part} {self.version}"

    @property
    def is_vbios(self) -> bool:
        """Its version has the five parts of a VBIOS; a driver's has two or three."""
        return self.version.count(".") == 4


@lru_cache(maxsize=16)
def read_rim(data: bytes) -> Rim:
    """Read a manifest that carries its signature; what it says is unverified.

    Raises :class:`~cloister.errors.EndorsementError`.
    """
    root = parse_xml(data)
    signature = signature_of(root)
    return _rim(root, [child for child in root if child is not signature])


def read_signed(data: bytes) -> Rim:
    """Read the bytes that a signature covered: the document without its signature.

    Raises :class:`~cloister.errors.EndorsementError`.
    """
    root = parse_xml(data)
    return _rim(root, list(root))


@lru_cache(maxsize=16)
def rim_certificates(data: bytes) -> tuple[bytes, ...]:
    """The certificates (DER) that a manifest carries, its signer's first. Unverified.

    Raises :class:`~cloister.errors.EndorsementError`.
    """
    signature = signature_of(parse_xml(data))
    found: list[bytes] = []
    for element in signature[2][0]:
        try:
            found.append(base64.b64decode("".join((element.text or "").split()), validate=True))
        except (binascii.Error, ValueError):
            raise _malformed("a certificate in it is not base64") from None
    return tuple(found)


def parse_xml(data: bytes) -> etree._Element:
    """The root of a bounded, plain XML document. Raises :class:`~cloister.errors.EndorsementError`."""
    from lxml import etree  # noqa: PLC0415 -- 40 ms that only GPUs need

    if len(data) > MAX_RIM:
        raise EndorsementError(f"a reference manifest is {len(data)} bytes long, over its bound of {MAX_RIM}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise _malformed("it is not UTF-8") from None
    # Before libxml sees it: a document type could define entities, an encoding could hide one.
    if (
        text.startswith("\ufeff")
        or "<!" in text
        or "\0" in text
        or re.match(r"\s*<\?xml[^>]*encoding\s*=\s*[\"'](?!utf-8)", text, re.IGNORECASE)
    ):
        raise _malformed("it has a document type, entities, comments, CDATA or another encoding")
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, dtd_validation=False, huge_tree=False
    )
    try:
        root = etree.fromstring(data, parser)
    except (etree.LxmlError, ValueError, RecursionError, MemoryError) as error:
        raise _malformed(f"it is not XML ({type(error).__name__})") from None
    if root.getroottree().docinfo.doctype or root.getprevious() is not None or root.getnext() is not None:
        raise _malformed("something stands around its root")
    _check_tree(root)
    return root


def signature_of(root: etree._Element) -> etree._Element:
    """The one enveloped signature of a manifest, in exactly NVIDIA's form: the whole document, nothing else.

    Raises :class:`~cloister.errors.EndorsementError`.
    """
    signatures = [element for element in root.iter() if str(element.tag).endswith("}Signature")]
    if (
        len(signatures) != 1
        or signatures[0].getparent() is not root
        or signatures[0].tag != f"{_DS}Signature"
    ):
        raise _malformed(f"it has {len(signatures)} signatures, not one directly below its root")
    signature = signatures[0]
    names = [str(child.tag).removeprefix(_DS) for child in signature]
    if names != ["SignedInfo", "SignatureValue", "KeyInfo"] or signature.attrib or signature[2].attrib:
        raise _malformed("its signature has other parts than NVIDIA's")
    signed_info, _, key_info = signature
    _expect(signed_info, _SIGNED_INFO)
    reference = signed_info[2]
    _expect(reference, _REFERENCE)
    _expect(reference[0], _TRANSFORMS)
    data = list(key_info)
    if (
        len(data) != 1
        or data[0].tag != f"{_DS}X509Data"
        or any(child.tag != f"{_DS}X509Certificate" or len(child) or child.attrib for child in data[0])
        or not 2 <= len(data[0]) <= MAX_CHAIN
    ):
        raise _malformed("its signer is not named by a chain of certificates alone")
    return signature


def _expect(element: Any, children: Sequence[tuple[str, str | None]]) -> None:
    """``element`` has exactly these children, with these algorithms (or reference) and no other attribute."""
    found = [(str(child.tag).removeprefix(_DS), dict(child.attrib)) for child in element]
    wanted = [(name, _attributes(name, value)) for name, value in children]
    if found != wanted or (str(element.tag) != f"{_DS}Reference" and element.attrib):
        raise _malformed("its signature uses other algorithms or references than NVIDIA's")


def _attributes(name: str, value: str | None) -> dict[str, str]:
    if value is None:
        return {}
    return {"URI" if name == "Reference" else "Algorithm": value}


def _check_tree(root: Any) -> None:
    depths = {root: 1}
    for count, element in enumerate(root.iter(), 1):
        if not isinstance(element.tag, str):
            raise _malformed("it has comments, processing instructions or entities")
        parent = element.getparent()
        depths[element] = depth = 1 if parent is None else depths[parent] + 1
        if depth > MAX_DEPTH or count > MAX_ELEMENTS:
            raise _malformed(f"it is deeper than {MAX_DEPTH} or has more than {MAX_ELEMENTS} elements")
        # Canonical XML sorts them in quadratic time.
        if len(element.attrib) > MAX_ATTRIBUTES or len(element.nsmap) > MAX_NAMESPACES:
            raise _malformed("an element has too many attributes or name spaces")


def _rim(root: Any, children: Sequence[Any]) -> Rim:
    names = [str(child.tag) for child in children]
    if root.tag != f"{_SWID}SoftwareIdentity" or names != [
        f"{_SWID}{name}" for name in ("Entity", "Meta", "Payload")
    ]:
        raise _malformed("it is not a SWID tag of the form that NVIDIA writes")
    _, meta, payload = children
    product = _attribute(meta, "product")
    if product != _attribute(root, "name"):
        raise _malformed("it names two products")
    goldens: dict[int, Golden] = {}
    indices: set[int] = set()
    for resource in payload:
        index, golden = _golden(resource)
        if index in indices or len(indices) >= MAX_MEASUREMENTS:
            raise _malformed(f"it has measurement {index} twice, or too many")
        indices.add(index)
        if golden is not None:
            goldens[index] = golden
    if not goldens:
        raise _malformed("it has no measurement to compare")
    return Rim(
        product=product,
        edition=_attribute(meta, "edition"),
        version=_attribute(meta, "colloquialVersion").upper(),
        tag_id=_attribute(root, "tagId"),
        measurements=tuple(goldens[index] for index in sorted(goldens)),
    )


def _golden(resource: Any) -> tuple[int, Golden | None]:
    if resource.tag != f"{_SWID}Resource" or resource.get("type") != "Measurement" or len(resource):
        raise _malformed("its payload holds other things than measurements")
    index, alternatives = _number(resource, "index"), _number(resource, "alternatives")
    active = _attribute(resource, "active")
    if active not in ("True", "False") or not 1 <= alternatives <= MAX_ALTERNATIVES:
        raise _malformed(f"measurement {index} is neither active nor inactive, or has no values")
    if active == "False":
        return index, None
    if _number(resource, "size") != DIGEST_SIZE:
        raise _malformed(f"measurement {index} is not of {DIGEST_SIZE} bytes")
    values: list[bytes] = []
    for number in range(alternatives):
        text = resource.get(f"{_HASH}{number}", "")
        if not re.fullmatch(r"[0-9a-fA-F]{96}", text):
            raise _malformed(f"a value of measurement {index} is not a SHA-384 digest")
        values.append(bytes.fromhex(text))
    if sum(str(name).startswith(_HASH) for name in resource.attrib) != alternatives:
        raise _malformed(f"measurement {index} has other values than it counts")
    return index, Golden(index, _attribute(resource, "name"), tuple(values))


def _attribute(element: Any, name: str) -> str:
    value = element.get(name, "")
    if not re.fullmatch(r"[\w.:+ -]{1,128}", value, re.ASCII):
        raise _malformed(f"its {name} is missing or no short text")
    return str(value)


def _number(element: Any, name: str) -> int:
    value = element.get(name, "")
    if not re.fullmatch(r"[0-9]{1,3}", value, re.ASCII):
        raise _malformed(f"its {name} is no small number")
    return int(value)


def _malformed(why: str) -> EndorsementError:
    return EndorsementError(f"a reference manifest is refused: {why}", todo="fetch it again")
