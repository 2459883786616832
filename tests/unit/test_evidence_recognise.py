"""What a file is, told by its content: every captured vector, every encoding, and what is refused."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from cloister.endorsements.amd import SnpEndorsements, encode_snp_endorsements
from cloister.endorsements.nvidia import NvidiaEndorsements, encode_nvidia_endorsements
from cloister.endorsements.tpm import TpmEndorsements, encode_tpm_endorsements
from cloister.errors import CloisterError, EvidenceError, FormatError
from cloister.evidence.bundle import EvidenceBundle, NonceProof, encode_bundle
from cloister.evidence.eventlog import encode_event_log
from cloister.evidence.recognise import MAX_INPUT, WORDS, Recognised, recognise
from intel_vectors import quote
from shared_data import SHARED, vectors
from simulated_evidence import LAUNCH, honest
from vector_kinds import VECTORS


@pytest.mark.parametrize("name", VECTORS)
def test_every_captured_file_is_recognised_by_its_content(name: str) -> None:
    data = vectors(name).read_bytes()
    expected = VECTORS[name]
    if expected is None:
        with pytest.raises(EvidenceError, match="of no format that is known here"):
            recognise(data)
    else:
        assert recognise(data).kind == expected


def test_the_table_names_every_captured_file() -> None:
    root = vectors("")
    found = {path.relative_to(root).as_posix() for path in Path(root).rglob("*") if path.is_file()}
    papers = {name for name in found if name.rpartition("/")[2].startswith(("LICENSE", "SOURCE", "README"))}
    assert found - papers == set(VECTORS), f"below {SHARED}"


def test_papers_beside_the_vectors_are_no_evidence() -> None:
    for path in Path(vectors("")).rglob("SOURCE.md"):
        with pytest.raises(EvidenceError, match="read are quotes"):
            recognise(path.read_bytes())


def _quote() -> bytes:
    return honest().quote


ENCODINGS = {
    "raw": lambda data: data,
    "hexadecimal": lambda data: data.hex().encode(),
    "upper-case hexadecimal with 0x": lambda data: b"0x" + data.hex().upper().encode() + b"\n",
    "hexadecimal in lines": lambda data: "\n".join(
        data.hex()[at : at + 64] for at in range(0, 2 * len(data), 64)
    ).encode(),
    "base64": base64.b64encode,
    "base64 in lines": base64.encodebytes,
    "base64url without padding": lambda data: base64.urlsafe_b64encode(data).rstrip(b"="),
    "text with a byte order mark": lambda data: b"\xef\xbb\xbf" + data.hex().encode(),
    "JSON with hexadecimal": lambda data: json.dumps({"quote": data.hex()}).encode(),
    "JSON with base64": lambda data: json.dumps({"quote": base64.b64encode(data).decode()}).encode(),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_quote_is_unwrapped_to_the_same_bytes_from_every_encoding(encoding: str) -> None:
    found = recognise(ENCODINGS[encoding](_quote()))
    assert (found.kind, found.data) == ("intel-quote", _quote())


def test_what_is_wrapped_twice_is_not_read() -> None:
    twice = base64.b64encode(_quote().hex().encode())
    with pytest.raises(EvidenceError, match="no format that is known"):
        recognise(twice)


def test_a_quote_report_keeps_its_companions() -> None:
    found = recognise(vectors("dstack/quote-report.json").read_bytes())
    assert found.data == quote("dstack/quote-report.json")
    assert json.loads(found.parts["event_log"])[0]["imr"] == 0
    assert found.parts["report_data"].startswith(b"\x12\x34")


def test_a_trustee_request_is_unwrapped_and_its_claim_is_kept() -> None:
    found = recognise(vectors("coco-trustee/request.json").read_bytes())
    assert (found.kind, found.source_tee) == ("intel-quote", "sgx")
    assert found.data == vectors("coco-trustee/occlum_quote.dat").read_bytes()[: len(found.data)]


def _bundle() -> bytes:
    return encode_bundle(
        EvidenceBundle(
            tee="tdx", quote=_quote(), key_material=b"{}", nonce_proof=NonceProof(index=0, size=1, path=())
        )
    )


def _key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


OWN: dict[str, tuple[Any, str]] = {
    "bundle": (_bundle, "bundle"),
    "launch log": (lambda: encode_event_log(LAUNCH), "launch-log"),
    "SNP endorsements": (
        lambda: encode_snp_endorsements(SnpEndorsements(signing_key=b"a", intermediate=b"b", root=b"c")),
        "snp-endorsements",
    ),
    "NVIDIA endorsements": (lambda: encode_nvidia_endorsements(NvidiaEndorsements()), "nvidia-endorsements"),
    "TPM endorsements": (
        lambda: encode_tpm_endorsements(TpmEndorsements(ak_chain=(b"a",))),
        "tpm-endorsements",
    ),
    "exported endorsements": (
        lambda: b'{"format":"cloister/endorsements-bundle/v1","created_at":1,"entries":[]}',
        "endorsement-bundle",
    ),
    "TPM quote": (lambda: b'{"format":"cloister/tpm-quote/v1"}', "tpm-quote"),
    "Azure evidence": (lambda: b'{"format":"cloister/azure-snp-vtpm/v1"}', "azure-evidence"),
    "device evidence": (lambda: b'{"format":"cloister/device-evidence/v1","devices":[]}', "nvidia-evidence"),
    "policy": (lambda: b'# mine\nformat = "cloister/policy/v1"\nmax_age_seconds = 1\n', "policy"),
    "token": (lambda: b"eyJhbGciOiJFUzM4NCJ9.e30.AAAA", "ear-token"),
    "dstack log": (
        lambda: b'[{"imr":0,"event_type":1,"digest":"","event":"","event_payload":""}]',
        "dstack-log",
    ),
    "one device of the SDK": (
        lambda: b'{"certificate":"","evidence":"","arch":"HOPPER","nonce":""}',
        "nvidia-evidence",
    ),
    "public key": (
        lambda: _key().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        "public-key",
    ),
    "public JWK": (lambda: b'{"kty":"EC","crv":"P-384","x":"","y":""}', "public-key"),
    "OCSP response": (lambda: b"\x30\x03\x0a\x01\x00", "ocsp"),
}


@pytest.mark.parametrize("name", OWN)
def test_documents_of_our_own_are_recognised(name: str) -> None:
    make, kind = OWN[name]
    assert recognise(make()).kind == kind


REFUSED: dict[str, tuple[bytes, type[CloisterError], str]] = {
    "nothing": (b"", EvidenceError, "empty"),
    "white space": (b" \n\t ", EvidenceError, "empty"),
    "over a MiB": (b"a" * (MAX_INPUT + 1), EvidenceError, "over 1048576 bytes"),
    "two formats in one object": (
        b'{"format":"cloister/evidence/v1","tcb_info":"","qe_identity":"","pck_crl":"","root_ca_crl":""}',
        EvidenceError,
        "could be each of: Cloister evidence bundle and Intel collateral",
    ),
    "a quote at which an SNP report ends": (
        b"\x03" + bytes(11) + bytes.fromhex("939a7233f79c4ca9940a0db3957f0607") + bytes(1156),
        EvidenceError,
        "could be each of: Intel quote and SEV-SNP",
    ),
    "a field twice": (
        b'{"format":"cloister/evidence/v1","format":"cloister/evidence/v1"}',
        FormatError,
        "twice",
    ),
    "deep JSON": (b"[" * 5000 + b"]" * 5000, FormatError, "nested deeper"),
    "an unfinished object": (b'{"quote":', FormatError, "not JSON"),
    "an unknown format of ours": (b'{"format":"cloister/unheard-of/v1"}', EvidenceError, "no format"),
    "several requests": (
        b'{"verification_requests":[{},{}]}',
        EvidenceError,
        "holds 2 verification requests",
    ),
    "a request of an unread kind": (
        b'{"verification_requests":[{"tee":"cca","evidence":"e30"}]}',
        EvidenceError,
        "'cca' evidence in a form that is not read",
    ),
    "damaged PEM": (
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        EvidenceError,
        "damaged or of a kind",
    ),
    "PEM without an end": (b"-----BEGIN CERTIFICATE-----\nAAAA\n", EvidenceError, "0 blocks"),
    "a private JWK": (b'{"kty":"EC","d":"c2VjcmV0"}', EvidenceError, "private key"),
    "HTML": (b"<!doctype html><html><body>not found</body></html>", EvidenceError, "no format"),
    "XML of another root": (b'<?xml version="1.0"?><svg xmlns="x"/>', EvidenceError, "no format"),
    "a long list of numbers": (b"[" + b"1," * 100_000 + b"1]", EvidenceError, "no format"),
    "a JSON bomb": (b"[" + b"{}," * 300_000 + b"{}]", EvidenceError, "no format"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_evidence_is_refused_in_one_line(name: str) -> None:
    data, error, part = REFUSED[name]
    with pytest.raises(error) as caught:
        recognise(data)
    assert part in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_private_key_is_refused_without_showing_it() -> None:
    pem = _key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with pytest.raises(EvidenceError, match="private key") as caught:
        recognise(pem)
    assert pem.decode().splitlines()[1] not in str(caught.value)


def test_every_kind_has_words() -> None:
    assert all(WORDS.values())
    assert Recognised("bundle", b"").what == "Cloister evidence bundle"
