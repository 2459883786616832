"""Every captured Intel quote at its time, with the outcome that its source states (or that its parts allow)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path

import pytest

from cloister.endorsements.roots import (
    INTEL_ROOT,
    INTEL_SGX_ROOT_SHA256,
    simulated_root,
    vendor_certificate,
)
from cloister.errors import (
    AppraisalRefused,
    CloisterError,
    EndorsementError,
    EvidenceError,
    VerificationError,
)
from cloister.evidence.quote import parse_quote
from cloister.evidence.sgx import SgxReport
from cloister.evidence.tdx import TdReport
from cloister.verifier.intel import verify
from cloister.verifier.rules import IntelRules
from intel_vectors import SERVER, at, collateral, quote
from shared_data import vectors

CLIENT = dataclasses.replace(
    SERVER, accepted_statuses=frozenset({"UpToDate", "ConfigurationAndSWHardeningNeeded"})
)
OLD = dataclasses.replace(
    SERVER, accepted_statuses=frozenset({"UpToDate", "OutOfDate"}), out_of_date_grace=10 * 365 * 86400
)
PHALA, COCO, GOOGLE = "phala-dcap-qvl", "coco-trustee", "google-go-tdx-guest"

PARSED = {
    f"{PHALA}/sgx_quote": (3, "sgx", False, b"Hello, world!".ljust(64, b"\0")),
    f"{PHALA}/tdx_quote": (4, "tdx", False, None),
    f"{PHALA}/quote_hex.txt": (4, "tdx", False, None),
    f"{PHALA}/tdx_quote_outdated": (5, "tdx", False, None),
    f"{PHALA}/quote-from-tappd.hex": (4, "tdx", False, None),
    f"{PHALA}/tdx-quote.hex": (4, "tdx", False, None),
    f"{COCO}/occlum_quote.dat": (3, "sgx", True, b"test".ljust(64, b"\0")),
    f"{COCO}/tdx_quote_5.dat": (5, "tdx", False, None),
    f"{COCO}/tdx_quote_6.dat": (4, "tdx", False, None),
    f"{GOOGLE}/without-extra-bytes": (4, "tdx", False, None),
    "dstack/quote-report.json": (4, "tdx", False, bytes.fromhex("1234").ljust(64, b"\0")),
}


@pytest.mark.parametrize("name", PARSED)
def test_every_captured_quote_is_read(name: str) -> None:
    version, tee, debug, report_data = PARSED[name]
    parsed = parse_quote(quote(name))
    assert (parsed.header.version, parsed.tee, parsed.debug) == (version, tee, debug)
    if report_data is not None:
        assert parsed.report_data == report_data
    assert quote(name).rstrip(b"\0").startswith(parsed.encoded.rstrip(b"\0"))
    assert hashlib.sha256(parsed.signature.certificates[-1]).hexdigest() == INTEL_SGX_ROOT_SHA256


ACCEPTED = {
    # name: (quote, collateral, day, rules, status, advisories, evaluation number)
    "sgx v3": (
        f"{PHALA}/sgx_quote",
        "sgx_quote_collateral",
        "2025-06-25",
        CLIENT,
        "ConfigurationAndSWHardeningNeeded",
        ("INTEL-SA-00289", "INTEL-SA-00615"),
        17,
    ),
    "tdx v4": (f"{PHALA}/tdx_quote", "tdx_quote_collateral", "2025-06-25", SERVER, "UpToDate", (), 17),
    "tdx v4, September": (
        f"{PHALA}/quote_hex.txt",
        "quote_collateral",
        "2025-09-10",
        SERVER,
        "UpToDate",
        (),
        17,
    ),
    "dstack under fmspc 90C06F": (
        "dstack/quote-report.json",
        "tdx_quote_outdated_collateral",
        "2026-03-01",
        SERVER,
        "UpToDate",
        (),
        18,
    ),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_a_genuine_quote_is_accepted_in_its_time(case: str) -> None:
    name, endorsements, day, rules, status, advisories, number = ACCEPTED[case]
    claims = verify(quote(name), collateral(endorsements), root=INTEL_ROOT, now=at(day), rules=rules)
    assert (claims.tcb_status, claims.advisory_ids, claims.tcb_evaluation_number) == (
        status,
        advisories,
        number,
    )
    assert claims.issued_at <= at(day) < claims.collateral_expires
    assert (claims.simulated, claims.debug, claims.root_sha256) == (False, False, INTEL_SGX_ROOT_SHA256)
    assert claims.report_data == parse_quote(quote(name)).report_data
    assert [check.number for check in claims.checks] == list(range(3, 12))


REFUSED = {
    # name: (quote, collateral or None, day, rules, error, part of the text)
    "sgx v3: status not in the default": (
        f"{PHALA}/sgx_quote",
        "sgx_quote_collateral",
        "2025-06-25",
        SERVER,
        AppraisalRefused,
        "ConfigurationAndSWHardeningNeeded",
    ),
    "sgx v3: a rejected advisory": (
        f"{PHALA}/sgx_quote",
        "sgx_quote_collateral",
        "2025-06-25",
        dataclasses.replace(CLIENT, rejected_advisories=frozenset({"INTEL-SA-00289"})),
        AppraisalRefused,
        "INTEL-SA-00289",
    ),
    "sgx v3: before its collateral": (
        f"{PHALA}/sgx_quote",
        "sgx_quote_collateral",
        "2025-06-18",
        CLIENT,
        EndorsementError,
        "future",
    ),
    "sgx v3: after its collateral": (
        f"{PHALA}/sgx_quote",
        "sgx_quote_collateral",
        "2025-07-20",
        CLIENT,
        EndorsementError,
        "expired",
    ),
    "tdx v4: after its collateral": (
        f"{PHALA}/tdx_quote",
        "tdx_quote_collateral",
        "2025-07-20",
        SERVER,
        EndorsementError,
        "expired",
    ),
    "tdx v4: multi-socket platform not allowed": (
        f"{PHALA}/tdx_quote",
        "tdx_quote_collateral",
        "2025-06-25",
        dataclasses.replace(SERVER, allow_dynamic_platform=False),
        AppraisalRefused,
        "allow_dynamic_platform",
    ),
    "tdx v4: cached keys not allowed": (
        f"{PHALA}/tdx_quote",
        "tdx_quote_collateral",
        "2025-06-25",
        dataclasses.replace(SERVER, allow_cached_keys=False),
        AppraisalRefused,
        "allow_cached_keys",
    ),
    "tdx v4: hyper-threading not allowed": (
        f"{PHALA}/tdx_quote",
        "tdx_quote_collateral",
        "2025-06-25",
        dataclasses.replace(SERVER, allow_smt=False),
        AppraisalRefused,
        "allow_smt",
    ),
    "tdx v4: evaluation number too low": (
        f"{PHALA}/tdx_quote",
        "tdx_quote_collateral",
        "2025-06-25",
        dataclasses.replace(SERVER, min_tcb_evaluation_number=18),
        AppraisalRefused,
        "minimum 18",
    ),
    "tdx v4: another platform's collateral": (
        f"{PHALA}/tdx_quote",
        "quote_collateral",
        "2025-09-10",
        SERVER,
        EndorsementError,
        "FMSPC",
    ),
    "tdx v4: SGX collateral": (
        f"{PHALA}/tdx_quote",
        "sgx_quote_collateral",
        "2025-06-25",
        SERVER,
        EndorsementError,
        "QE Identity",
    ),
    "tdx v4: no collateral": (
        f"{PHALA}/tdx_quote",
        None,
        "2025-06-25",
        SERVER,
        EndorsementError,
        "PCCS",
    ),
    "tdx v5: no TCB level matches": (
        f"{PHALA}/tdx_quote_outdated",
        "tdx_quote_outdated_collateral",
        "2026-03-01",
        SERVER,
        VerificationError,
        "No matching TCB level",
    ),
    "tdx v5 of trustee, same fmspc": (
        f"{COCO}/tdx_quote_5.dat",
        "tdx_quote_outdated_collateral",
        "2026-03-01",
        SERVER,
        VerificationError,
        "No matching TCB level",
    ),
    "tappd, same fmspc": (
        f"{PHALA}/quote-from-tappd.hex",
        "tdx_quote_collateral",
        "2025-06-25",
        SERVER,
        VerificationError,
        "No matching TCB level",
    ),
    "tdx-quote.hex, same fmspc": (
        f"{PHALA}/tdx-quote.hex",
        "tdx_quote_collateral",
        "2025-06-25",
        SERVER,
        VerificationError,
        "No matching TCB level",
    ),
    "trustee's tdx v4 is out of date": (
        f"{COCO}/tdx_quote_6.dat",
        "coco 2025",
        "2025-10-30",
        SERVER,
        AppraisalRefused,
        "OutOfDate",
    ),
    "trustee's tdx v4, out of date accepted without grace": (
        f"{COCO}/tdx_quote_6.dat",
        "coco 2025",
        "2025-10-30",
        dataclasses.replace(OLD, out_of_date_grace=0),
        AppraisalRefused,
        "too old",
    ),
    # Its CRLs come from February 2026: dcap-qvl alone would take a CRL from the future.
    "trustee's tdx v4 with a CRL from the future": (
        f"{COCO}/tdx_quote_6.dat",
        "coco 2025",
        "2025-10-30",
        OLD,
        EndorsementError,
        "after now",
    ),
    "occlum: a debug enclave": (
        f"{COCO}/occlum_quote.dat",
        "sgx_quote_collateral",
        "2025-06-25",
        CLIENT,
        VerificationError,
        "debug",
    ),
    "google: bytes behind the quote": (
        f"{GOOGLE}/tdx_prod_quote_SPR_E4.dat",
        "google 2023",
        "2023-06-20",
        SERVER,
        EvidenceError,
        "39 bytes behind",
    ),
    # The TCB signing chain of 2023 was not captured; the one we have starts in 2025.
    "google: the issuer chain is of 2025": (
        f"{GOOGLE}/without-extra-bytes",
        "google 2023",
        "2023-06-20",
        SERVER,
        VerificationError,
        "certificate chain",
    ),
    "google: collateral of 2023 has expired": (
        f"{GOOGLE}/without-extra-bytes",
        "google 2023",
        "2023-08-20",
        SERVER,
        EndorsementError,
        "expired",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_quote_is_refused_for_its_stated_reason(case: str) -> None:
    name, endorsements, day, rules, error, text = REFUSED[case]
    document = collateral(endorsements) if endorsements else b""
    with pytest.raises(CloisterError) as refusal:
        verify(quote(name), document, root=INTEL_ROOT, now=at(day), rules=rules)
    assert type(refusal.value) is error
    assert text in str(refusal.value)


def test_the_shipped_root_is_the_one_that_others_ship() -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    google = x509.load_pem_x509_certificate(vectors(f"{GOOGLE}/trusted_root.pem").read_bytes())
    assert vendor_certificate(INTEL_ROOT) == google.public_bytes(Encoding.DER)
    assert vendor_certificate(INTEL_ROOT) == vectors(f"{PHALA}/TrustedRootCA.der").read_bytes()


def test_genuine_hardware_is_refused_under_a_simulated_root() -> None:
    with pytest.raises(VerificationError, match="chain ends in root 44a0196b"):
        verify(
            quote(f"{PHALA}/tdx_quote"),
            collateral("tdx_quote_collateral"),
            root=simulated_root("ab" * 32),
            now=at("2025-06-25"),
            rules=SERVER,
        )


FILES = {
    # every Intel file of the captured vectors, and the test that gives its outcome
    f"{PHALA}/sgx_quote": "accepted: sgx v3",
    f"{PHALA}/sgx_quote_collateral.json": "accepted: sgx v3",
    f"{PHALA}/tdx_quote": "accepted: tdx v4",
    f"{PHALA}/tdx_quote_collateral.json": "accepted: tdx v4",
    f"{PHALA}/quote_hex.txt": "accepted: tdx v4, September",
    f"{PHALA}/quote_collateral.json": "accepted: tdx v4, September",
    f"{PHALA}/tdx_quote_outdated": "refused: tdx v5: no TCB level matches",
    f"{PHALA}/tdx_quote_outdated_collateral.json": "refused: tdx v5: no TCB level matches",
    f"{PHALA}/quote-from-tappd.hex": "refused: tappd, same fmspc",
    f"{PHALA}/tdx-quote.hex": "refused: tdx-quote.hex, same fmspc",
    f"{PHALA}/TrustedRootCA.der": "test_the_shipped_root_is_the_one_that_others_ship",
    f"{COCO}/occlum_quote.dat": "refused: occlum: a debug enclave",
    f"{COCO}/tdx_quote_5.dat": "refused: tdx v5 of trustee, same fmspc",
    f"{COCO}/tdx_quote_6.dat": "refused: trustee's tdx v4 is out of date",
    f"{COCO}/tcbInfo.json": "refused: trustee's tdx v4 is out of date",
    f"{COCO}/enclaveIdentity.json": "refused: trustee's tdx v4 is out of date",
    f"{COCO}/CCEL_data_gcp": "test_event_log_vectors.py",
    f"{GOOGLE}/tdx_prod_quote_SPR_E4.dat": "refused: google: bytes behind the quote",
    f"{GOOGLE}/sample_tcbInfo_response": "refused: google: collateral of 2023 has expired",
    f"{GOOGLE}/sample_qeIdentity_response": "refused: google: collateral of 2023 has expired",
    f"{GOOGLE}/pckcrl": "refused: google: collateral of 2023 has expired",
    f"{GOOGLE}/rootcrl.der": "refused: google: collateral of 2023 has expired",
    f"{GOOGLE}/trusted_root.pem": "test_the_shipped_root_is_the_one_that_others_ship",
    "dstack/quote-report.json": "accepted: dstack under fmspc 90C06F",
    "dstack/ccel.bin": "test_event_log_vectors.py",
}
OTHERS = ("LICENSE", "SOURCE.md", "request.json", "example.token.json", "nvidia_device_root.pem")
"""Of other kinds: licences, an EAR token, AMD's and NVIDIA's files."""


def test_no_captured_file_is_left_without_an_outcome() -> None:
    found = {
        f"{folder}/{path.name}"
        for folder in (PHALA, COCO, GOOGLE, "dstack")
        for path in vectors(folder).iterdir()
        if path.is_file() and path.name not in OTHERS and not path.name.endswith("_ask_ark_asvk.pem")
    }
    assert found == set(FILES)
    for outcome in FILES.values():
        kind, _, case = outcome.partition(": ")
        if case:
            assert case in {"accepted": ACCEPTED, "refused": REFUSED}[kind]
        else:
            assert kind in globals() or kind.endswith(".py")


ATTRIBUTES = {
    # what the sources say of attributes, and the numbers of features
    f"{GOOGLE}/without-extra-bytes": ({"PKS"}, 0x61AE7),
    f"{PHALA}/tdx_quote": ({"SEPT_VE_DISABLE"}, 0x602E7),
    f"{PHALA}/quote_hex.txt": ({"SEPT_VE_DISABLE"}, 0x207),
    f"{COCO}/tdx_quote_5.dat": ({"SEPT_VE_DISABLE"}, 0x642E7),
    "dstack/quote-report.json": ({"SEPT_VE_DISABLE"}, 0x602E7),
    f"{PHALA}/sgx_quote": ({"INIT", "MODE64BIT"}, 0xE7),
    f"{COCO}/occlum_quote.dat": ({"INIT", "DEBUG", "MODE64BIT"}, 0xE7),
}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attributes_are_named(name: str) -> None:
    names, features = ATTRIBUTES[name]
    report = parse_quote(quote(name)).report
    assert report.attribute_names == names
    value = report.xfam if isinstance(report, TdReport) else report.xfrm
    assert int.from_bytes(value, "little") == features


def test_a_real_platform_is_named_for_allow_lists() -> None:
    claims = verify(
        quote(f"{PHALA}/tdx_quote"),
        collateral("tdx_quote_collateral"),
        root=INTEL_ROOT,
        now=at("2025-06-25"),
        rules=SERVER,
    )
    assert claims.hardware == {
        "ppid": "811dca2a26b952e85bb6448b097ba4fd",
        "pck_sha256": "b58ceb26c58785275ff8fb8b54807480c1a465992d893dfa99801ce25a99a51d",
    }


@pytest.mark.parametrize(
    ("name", "endorsements", "rules"),
    [
        (f"{PHALA}/sgx_quote", "sgx_quote_collateral", CLIENT),
        (f"{PHALA}/tdx_quote", "tdx_quote_collateral", SERVER),
    ],
    ids=["sgx", "tdx"],
)
def test_a_flip_in_any_byte_of_a_quote_is_refused(name: str, endorsements: str, rules: IntelRules) -> None:
    original = quote(name)
    document = collateral(endorsements)
    for place in range(len(parse_quote(original).encoded)):
        altered = bytearray(original)
        altered[place] ^= 1 << place % 8
        with pytest.raises(CloisterError):
            verify(bytes(altered), document, root=INTEL_ROOT, now=at("2025-06-25"), rules=rules)


def test_every_bit_of_the_embedded_chain_matters() -> None:
    # dcap-qvl reads the chain leniently (it ignores the embedded root, and line ends): our parser does not.
    original = quote(f"{PHALA}/tdx_quote")
    parsed = parse_quote(original)
    start = original.index(b"-----BEGIN CERTIFICATE-----")
    same = 0
    for place in range(start, len(parsed.encoded)):
        altered = bytearray(original)
        altered[place] ^= 1 << (place % 8)
        try:
            same += parse_quote(bytes(altered)).signature.certificates == parsed.signature.certificates
        except EvidenceError:
            continue
    assert same == 0


def test_prefixes_of_a_quote_are_refused() -> None:
    for name in (f"{PHALA}/sgx_quote", f"{PHALA}/tdx_quote", f"{PHALA}/tdx_quote_outdated"):
        encoded = parse_quote(quote(name)).encoded
        for size in (*range(0, len(encoded), 37), len(encoded) - 1):
            with pytest.raises(EvidenceError):
                parse_quote(encoded[:size])


def test_a_quote_may_be_padded_with_a_few_zeros_only_where_real_ones_are() -> None:
    padded = quote(f"{PHALA}/tdx_quote")
    encoded = parse_quote(padded).encoded
    assert len(padded) - len(encoded) == 70
    assert parse_quote(encoded).encoded == encoded
    for tail in (b"\1", bytes(69) + b"\1", bytes(129)):
        with pytest.raises(EvidenceError, match="behind its end"):
            parse_quote(encoded + tail)
    sgx = quote(f"{PHALA}/sgx_quote")
    assert isinstance(parse_quote(sgx).report, SgxReport)
    with pytest.raises(EvidenceError, match="behind its end"):
        parse_quote(sgx + b"\0")


GUIDES = {
    # which captured quote a page's example runs on, with what, and when
    "intel-tdx.md": ("dstack/quote-report.json", "tdx_quote_outdated_collateral", "2026-03-01"),
    "intel-sgx.md": (f"{PHALA}/sgx_quote", "sgx_quote_collateral", "2025-06-25"),
}


@pytest.mark.parametrize("page", GUIDES)
def test_the_guides_example_runs_on_a_captured_quote(page: str) -> None:
    name, endorsements, day = GUIDES[page]
    text = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / page).read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    log = json.loads(vectors("dstack/quote-report.json").read_text())["event_log"].encode()
    printed: list[str] = []
    names = {
        "quote": quote(name),
        "collateral": collateral(endorsements),
        "event_log": log,
        "print": lambda *words: printed.append(" ".join(map(str, words))),
    }
    exec(code.replace("int(time.time())", str(at(day))), names)  # noqa: S102 -- the page's own lines
    assert any("PCK certificate of FMSPC" in words for words in printed)
    assert any(words.startswith("9 TCB status - ") for words in printed)
