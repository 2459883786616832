"""Intel's Provisioning Certification Service (API version 4) and PCCS mirrors: what to ask, how answers become collateral.

Pure: no I/O. Source: Intel, "Provisioning Certification Service for ECDSA Attestation API", version 4. The two
signed bodies (TCB info, enclave identity) are cut out of the reply as they stand, because their signature covers
those bytes: parsed and written again they would be other bytes. Issuer chains come percent-encoded in headers.
Nothing is verified; that the answer is the one that was asked for (FMSPC, kind of TEE) is, so that a wrong one is
named here and not kept.
"""

from __future__ import annotations

import json
import re
from functools import partial
from typing import Final, Literal, TypeVar
from urllib.parse import unquote

from cloister.encoding import Record, decode_json, encode_json, parse_json
from cloister.endorsements.asking import (
    DER_TYPES,
    JSON_TYPES,
    Asking,
    Part,
    Reply,
    certificates_end,
    crl_ends,
    pem_of,
    seconds_of,
)
from cloister.endorsements.intel import Collateral, parse_collateral
from cloister.endorsements.pck import PckIdentity, read_pck
from cloister.endorsements.services import INTEL_PCS, INTEL_ROOT_CRL, Services
from cloister.endorsements.x509 import read_pem_certificates
from cloister.errors import EndorsementError, FormatError
from cloister.evidence.quote import parse_quote

MAX_SIGNED: Final = 160 * 1024
MAX_CRL: Final = 96 * 1024
MAX_CONTENT: Final = 256 * 1024
DAY: Final = 86_400
_CRL_TYPES: Final = DER_TYPES | {"text/plain", "text/html"}
"""A PCCS sends the root's list as hexadecimal with the type its web framework gives to any text."""
_HEX: Final = re.compile(rb"(?:[0-9a-fA-F]{2})+")
_SIGNATURE: Final = re.compile(r"[0-9a-fA-F]{128}")
_SPACE: Final = " \t\r\n"
_CHAIN_HEADERS: Final = {
    "tcb": ("tcb-info-issuer-chain", "sgx-tcb-info-issuer-chain"),
    "qe": ("sgx-enclave-identity-issuer-chain",),
    "pckcrl": ("sgx-pck-crl-issuer-chain",),
}
Tee = Literal["tdx", "sgx"]
R = TypeVar("R", bound=Record)


class SignedText(Record, frozen=True, kw_only=True):
    """Content of a part: a document that Intel signed, with its signature (hexadecimal) and the signer's chain (PEM)."""

    text: str
    signature: str
    issuer_chain: str


class PckCrl(Record, frozen=True, kw_only=True):
    """Content of a part: the list of a PCK authority (DER) and that authority's chain (PEM)."""

    crl: bytes
    issuer_chain: str


def identify(quote: bytes) -> tuple[Tee, PckIdentity]:
    """Whose collateral ``quote`` needs. Raises :class:`~cloister.errors.CloisterError`."""
    parsed = parse_quote(quote)
    return ("tdx" if parsed.tee == "tdx" else "sgx"), read_pck(parsed.signature.certificates[0])


def ask_intel(quote: bytes, services: Services) -> Asking:
    """Collateral for the platform of ``quote``, in dcap-qvl's JSON form."""
    tee, pck = identify(quote)
    tcb, identity, pck_crl, root_crl = yield intel_parts(tee, pck, services)
    if tcb is None or identity is None or pck_crl is None or root_crl is None:
        raise EndorsementError("a part of the collateral is missing")
    return assemble(tcb, identity, pck_crl, root_crl)


def intel_parts(tee: Tee, pck: PckIdentity, services: Services) -> tuple[Part, Part, Part, Part]:
    """TCB info, QE identity, the PCK authority's list and the root's list."""
    base = f"{services.intel}/{tee}/certification/v4"
    choice = _choice(services)
    root_crl = services.intel_root_crl or (
        INTEL_ROOT_CRL if services.intel == INTEL_PCS else f"{services.intel}/sgx/certification/v4/rootcacrl"
    )
    fmspc = pck.fmspc
    which = f"-{choice.partition('=')[2]}" if choice else ""
    return (
        Part(
            vendor="intel",
            key=f"tcb/{tee}/{fmspc}{which}",
            what=f"{tee.upper()} TCB info of FMSPC {fmspc}",
            url=f"{base}/tcb?fmspc={fmspc}{'&' + choice if choice else ''}",
            types=JSON_TYPES,
            limit=MAX_SIGNED,
            read=partial(_read_signed, kind="tcb", field="tcbInfo", expected={"fmspc": fmspc, "id": tee}),
            max_age=DAY,
            unknown=f"Intel has no {tee.upper()} TCB info for a platform of FMSPC {fmspc}",
        ),
        Part(
            vendor="intel",
            key=f"qe/{tee}{which}",
            what=f"identity of the {tee.upper()} quoting enclave",
            url=f"{base}/qe/identity{'?' + choice if choice else ''}",
            types=JSON_TYPES,
            limit=MAX_SIGNED,
            read=partial(
                _read_signed,
                kind="qe",
                field="enclaveIdentity",
                expected={"id": "td_qe" if tee == "tdx" else "qe"},
            ),
            max_age=DAY,
            unknown=f"the service has no identity of the {tee.upper()} quoting enclave",
        ),
        Part(
            vendor="intel",
            key=f"pckcrl/{pck.ca}",
            what=f"revocation list of Intel's PCK {pck.ca} CA",
            url=f"{services.intel}/sgx/certification/v4/pckcrl?ca={pck.ca}&encoding=der",
            types=_CRL_TYPES,
            limit=2 * MAX_CRL,
            read=_read_pck_crl,
            max_age=DAY,
            unknown=f"the service has no list of the PCK {pck.ca} CA",
        ),
        Part(
            vendor="intel",
            key="rootcrl",
            what="revocation list of Intel's root",
            url=root_crl,
            types=_CRL_TYPES,
            limit=2 * MAX_CRL,
            read=_read_root_crl,
            max_age=DAY,
            unknown="there is no list of Intel's root at that address",
        ),
    )


def assemble(tcb: bytes, identity: bytes, pck_crl: bytes, root_crl: bytes) -> bytes:
    """Contents of the four parts to dcap-qvl's JSON. Raises :class:`~cloister.errors.EndorsementError`."""
    tcb_info = _decode(tcb, SignedText)
    qe_identity = _decode(identity, SignedText)
    revoked = _decode(pck_crl, PckCrl)
    document = encode_json(
        Collateral(
            pck_crl_issuer_chain=revoked.issuer_chain,
            root_ca_crl=root_crl.hex(),
            pck_crl=revoked.crl.hex(),
            tcb_info_issuer_chain=tcb_info.issuer_chain,
            tcb_info=tcb_info.text,
            tcb_info_signature=tcb_info.signature.lower(),
            qe_identity_issuer_chain=qe_identity.issuer_chain,
            qe_identity=qe_identity.text,
            qe_identity_signature=qe_identity.signature.lower(),
        )
    )
    parse_collateral(document)
    return document


def intel_part_ends(key: str, content: bytes) -> int:
    """Unix seconds at which the content of a part stops to hold. Raises :class:`~cloister.errors.EndorsementError`."""
    kind = key.partition("/")[0]
    if kind in ("tcb", "qe"):
        signed = _decode(content, SignedText)
        return min(_text_ends(signed.text), _chain_ends(signed.issuer_chain))
    if kind == "pckcrl":
        listed = _decode(content, PckCrl)
        return min(crl_ends(listed.crl), _chain_ends(listed.issuer_chain))
    if kind == "rootcrl":
        return crl_ends(content)
    raise EndorsementError("there is no such endorsement of Intel's")


def intel_document_ends(document: bytes) -> int:
    """Unix seconds at which collateral stops to hold: the earliest end in it. Raises :class:`EndorsementError`."""
    parts = parse_collateral(document)
    return min(
        _text_ends(parts.tcb_info),
        _text_ends(parts.qe_identity),
        crl_ends(bytes.fromhex(parts.pck_crl)),
        crl_ends(bytes.fromhex(parts.root_ca_crl)),
        _chain_ends(parts.pck_crl_issuer_chain),
        _chain_ends(parts.tcb_info_issuer_chain),
        _chain_ends(parts.qe_identity_issuer_chain),
    )


def raw_members(text: str, *, what: str) -> dict[str, str]:
    """The members of a JSON object as the very text that stands in ``text``. Raises :class:`EndorsementError`."""
    try:
        parse_json(text, what=what, limit=MAX_SIGNED)  # strict, depth bounded: what follows only cuts
        decoder = json.JSONDecoder()
        members: dict[str, str] = {}
        at = _skip(text, _skip(text, 0, "{"))
        while text[at] != "}":
            name, at = decoder.raw_decode(text, at)
            at = _skip(text, _skip(text, at, ":"))
            _, end = decoder.raw_decode(text, at)
            members[name] = text[at:end]
            at = _skip(text, end)
            if text[at] == ",":
                at = _skip(text, at + 1)
    except (FormatError, ValueError, IndexError, RecursionError) as error:
        reason = error.what if isinstance(error, FormatError) else f"{what} is not a JSON object"
        raise EndorsementError(
            reason, todo="the service, or something between, sent something else"
        ) from None
    return members


def _choice(services: Services) -> str:
    if services.intel_evaluation_number is not None:
        return f"tcbEvaluationDataNumber={services.intel_evaluation_number}"
    return "update=early" if services.intel_update == "early" else ""


def _skip(text: str, at: int, mark: str = "") -> int:
    while text[at] in _SPACE:
        at += 1
    if mark and text[at] != mark:
        raise ValueError
    return at + len(mark)


def _read_signed(reply: Reply, *, kind: str, field: str, expected: dict[str, str]) -> bytes:
    try:
        text = reply.body.decode("utf-8")
    except UnicodeDecodeError:
        raise EndorsementError(f"the reply with {field} is not UTF-8") from None
    members = raw_members(text, what=f"the reply with {field}")
    signed, signature = members.get(field, ""), members.get("signature", "").strip('"')
    if not signed.startswith("{") or not _SIGNATURE.fullmatch(signature):
        raise EndorsementError(f"the reply has no signed {field}")
    document = json.loads(signed)
    for name, value in expected.items():
        found = document.get(name)
        if not isinstance(found, str) or found.lower() != value:
            raise EndorsementError(f"the service sent {field} of another {name}", todo=f"asked was {value}")
    _text_ends(signed)
    return encode_json(SignedText(text=signed, signature=signature, issuer_chain=_chain(reply, kind)))


def _read_pck_crl(reply: Reply) -> bytes:
    return encode_json(PckCrl(crl=_crl(reply, "the PCK CRL"), issuer_chain=_chain(reply, "pckcrl")))


def _read_root_crl(reply: Reply) -> bytes:
    return _crl(reply, "the root's CRL")


def _crl(reply: Reply, what: str) -> bytes:
    body = reply.body.strip()
    der = bytes.fromhex(body.decode("ascii")) if _HEX.fullmatch(body) else reply.body
    if len(der) > MAX_CRL:
        raise EndorsementError(f"{what} is {len(der)} bytes long, over its bound of {MAX_CRL}")
    crl_ends(der)
    return der


def _chain(reply: Reply, kind: str) -> str:
    for name in _CHAIN_HEADERS[kind]:
        if value := reply.headers.get(name, ""):
            return pem_of(read_pem_certificates(unquote(value).encode(), what=f"the header {name}"))
    raise EndorsementError(f"the reply has no header {_CHAIN_HEADERS[kind][0]}", todo="it is no PCS or PCCS")


def _chain_ends(pem: str) -> int:
    return certificates_end(read_pem_certificates(pem.encode(), what="an issuer chain"))


def _text_ends(text: str) -> int:
    try:
        document = parse_json(text, what="a document of Intel's", limit=MAX_SIGNED)
    except FormatError as error:
        raise EndorsementError(error.what) from None
    ends = document.get("nextUpdate") if isinstance(document, dict) else None
    return seconds_of(ends, what="nextUpdate")


def _decode(content: bytes, kind: type[R]) -> R:
    try:
        return decode_json(content, kind, what="an endorsement of Intel's", limit=MAX_CONTENT)
    except FormatError as error:
        raise EndorsementError(error.what, todo="fetch it again") from None
