"""Azure's HCL report: exactly its form, one attestation key, sealed by the SEV-SNP report."""

from __future__ import annotations

import hashlib
import json
import re

import pytest

from cloister.encoding import encode_json
from cloister.errors import EvidenceError
from cloister.evidence.hcl import MAX_HCL, encode_evidence, parse_evidence, parse_hcl
from handmade_hcl import hcl_report, jwk, runtime_data
from handmade_tpm import Quote, ec_key, rsa_key

AK = rsa_key("hcl ak").public_key()
REPORT = bytes(1184)
DATA = runtime_data(AK)


def test_a_report_reads_as_it_was_made() -> None:
    found = parse_hcl(hcl_report(DATA, REPORT))
    assert (found.snp_report, found.runtime_data, found.ak) == (REPORT, DATA, AK)
    assert found.digest == hashlib.sha256(DATA).digest()
    assert found.vm_configuration == {"console-enabled": "true", "secure-boot": "true", "vmUniqueId": "0-1"}
    assert found.ek_sha256 is not None


def test_evidence_is_the_report_and_a_quote() -> None:
    quote = Quote(key=rsa_key("hcl ak"), scheme="rsassa")
    wire = quote.wire
    report, parsed = parse_evidence(encode_evidence(hcl_report=hcl_report(DATA, REPORT), quote=wire))
    assert report.ak == parsed.attestation_key.key
    assert parsed.attest == wire.attest


def _without(*names: str) -> bytes:
    document = json.loads(DATA)
    for name in names:
        del document[name]
    return json.dumps(document).encode()


def _key(**changes: object) -> bytes:
    return runtime_data(AK, keys=[{**jwk(AK), **changes}])


REPORTS = {
    "another signature": (hcl_report(DATA, REPORT, signature=b"HCLB"), "not an HCL report"),
    "the padding of its NV index": (hcl_report(DATA, REPORT) + bytes(100), "100 bytes behind its end"),
    "another size in its header": (hcl_report(DATA, REPORT, size=99), "states sizes 99"),
    "another size of its data": (hcl_report(DATA, REPORT, data_size=99), "and 99, it has"),
    "data that is longer than it says": (hcl_report(DATA, REPORT, length=len(DATA) - 1), "behind its end"),
    "data that ends too soon": (hcl_report(DATA, REPORT, length=len(DATA) + 1), "in the middle of a field"),
    "a length of 4 GiB": (hcl_report(DATA, REPORT, length=0xFFFFFFFF), "in the middle of a field"),
    "a header of another version": (
        hcl_report(DATA, REPORT, header=(3, 2, 0, 0, 0, 0)),
        "version 3, request 2, status 0",
    ),
    "a report for another request": (
        hcl_report(DATA, REPORT, header=(2, 1, 0, 0, 0, 0)),
        "request 1",
    ),
    "a failed request": (hcl_report(DATA, REPORT, header=(2, 2, 7, 0, 0, 0)), "status 7"),
    "reserved fields in use": (hcl_report(DATA, REPORT, header=(2, 2, 0, 0, 1, 0)), "not zero"),
    "another version": (hcl_report(DATA, REPORT, version=2), "runtime data of version 2"),
    "a TDX report": (hcl_report(DATA, REPORT, kind=4), "type 4, not SEV-SNP"),
    "hashed with SHA-384": (hcl_report(DATA, REPORT, hash_type=2), "hashed by type 2"),
    "too long": (bytes(MAX_HCL + 1), "over its bound"),
    "empty": (b"", "ends at byte 0"),
    "no JSON": (hcl_report(b"{", REPORT), "not JSON"),
    "a list": (hcl_report(b"[]", REPORT), "no list of keys"),
    "a name twice": (hcl_report(b'{"keys":[],"keys":[]}', REPORT), "names a field twice"),
    "no keys": (hcl_report(_without("keys"), REPORT), "no list of keys"),
    "no attestation key": (hcl_report(runtime_data(AK, keys=[]), REPORT), "names no HCLAkPub"),
    "keys that are none": (hcl_report(runtime_data(AK, keys=[1, None, "x"]), REPORT), "names no HCLAkPub"),
    "two attestation keys": (
        hcl_report(runtime_data(AK, keys=[jwk(AK), jwk(AK)]), REPORT),
        "names HCLAkPub twice",
    ),
    "an elliptic key": (hcl_report(_key(kty="EC"), REPORT), "not an RSA key"),
    "a modulus that is a number": (hcl_report(_key(n=5), REPORT), "not an RSA key"),
    "a modulus that is not base64url": (
        hcl_report(_key(n="+/=="), REPORT),
        "n of HCLAkPub is not canonical base64url",
    ),
    "a short modulus": (hcl_report(_key(n="_" * 100), REPORT), "600 bits"),
    "an even exponent": (hcl_report(_key(e="Ag"), REPORT), "no RSA key"),
    "a huge exponent": (hcl_report(_key(e="_" * 400), REPORT), "no RSA key"),
}


@pytest.mark.parametrize("name", REPORTS)
def test_another_report_is_refused(name: str) -> None:
    data, reason = REPORTS[name]
    with pytest.raises(EvidenceError, match=re.escape(reason)):
        parse_hcl(data)


def test_every_prefix_of_a_report_is_refused() -> None:
    data = hcl_report(DATA, REPORT)
    for end in range(0, len(data), 7):
        with pytest.raises(EvidenceError):
            parse_hcl(data[:end])


def test_another_document_is_refused() -> None:
    wire = encode_json(Quote(key=ec_key("ak")).wire)
    for data in (b"", b"{}", wire, b" " * (1 << 20)):
        with pytest.raises(EvidenceError, match="Azure evidence"):
            parse_evidence(data)
