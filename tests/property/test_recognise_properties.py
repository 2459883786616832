"""Any bytes: recognised, examined and shown, or refused by an error of our own; altered evidence is never genuine."""

from __future__ import annotations

import base64
import json
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.appraisal.asked import Asked
from cloister.appraisal.draft import draft_policy
from cloister.appraisal.examination import Examination, examine
from cloister.appraisal.given import gather
from cloister.appraisal.policy import load_policy
from cloister.cli.inspection import inspect
from cloister.cli.report_html import html_of
from cloister.cli.report_json import json_of
from cloister.cli.report_words import Origin, report_of
from cloister.errors import CloisterError
from cloister.evidence.bundle import encode_bundle
from cloister.evidence.quote import parse_quote
from cloister.evidence.recognise import MAX_INPUT, recognise
from cloister.verifier.trail import CHECKS
from examined import bundle
from intel_vectors import at
from shared_data import vectors
from simulated_evidence import LAUNCH, NONCE, NOW, honest, platform

MAGIC = (
    b"",
    bytes(12) + bytes.fromhex("939a7233f79c4ca9940a0db3957f0607"),
    b"HCLA",
    b"\x11\xe0\x01\xff" + bytes(33) + b"\x11\x60",
    bytes(32) + b"Spec ID Event03\0",
    b"\x30\x82",
    b"{",
    b"[",
    b"<SoftwareIdentity ",
    b"-----BEGIN CERTIFICATE-----\n",
    b"0x",
    b"eyJhbGciOiJFUzM4NCJ9.",
    b'{"quote":"',
    b'{"format":"cloister/evidence/v1",',
)
NAMES = [
    *(
        "quote",
        "event_log",
        "cc_eventlog",
        "report_data",
        "format",
        "tcb_info",
        "certificate",
        "evidence",
        "kty",
        "d",
    ),
    *("verification_requests", "tee", "imr", "submods", "eat_profile", "keys"),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(NAMES),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


def look(data: bytes) -> None:
    """What `cloister inspect` does with a file."""
    try:
        sections = inspect(recognise(data), full=False)
    except CloisterError:
        return
    for section in sections:
        assert section.title.isprintable()
        for line in section.lines:
            assert (line.name + line.value + line.meaning).isprintable()


@given(magic=st.sampled_from(MAGIC), rest=st.binary(max_size=3000))
def test_any_bytes_are_recognised_or_refused(magic: bytes, rest: bytes) -> None:
    look(magic + rest)
    look((magic + rest).hex().encode())
    look(base64.b64encode(magic + rest))


@given(JSON)
def test_any_json_is_recognised_or_refused(value: object) -> None:
    look(json.dumps(value).encode())


@given(st.data())
def test_any_prefix_and_any_flip_of_a_quote_is_read_or_refused(data: st.DataObject) -> None:
    quote = bytearray(honest().quote)
    at = data.draw(st.integers(0, len(quote) - 1))
    look(bytes(quote[:at]))
    quote[at] ^= 1 << data.draw(st.integers(0, 7))
    look(bytes(quote))


@pytest.mark.parametrize(
    "filler", [b"\0", b"a", b"[", b"{", b"<", b"-----BEGIN CERTIFICATE-----\n", b"A.", b"\x30\x82"]
)
def test_a_whole_mebibyte_of_anything_is_refused_in_bounded_time(filler: bytes) -> None:
    whole = (filler * (MAX_INPUT // len(filler) + 1))[:MAX_INPUT]
    look(whole)
    with pytest.raises(CloisterError, match="over 1048576 bytes"):
        recognise(whole + b"a")


HONEST = encode_bundle(bundle())
POLICY = load_policy(
    draft_policy(
        tee="tdx",
        measurements=platform().tee("tdx", launch=LAUNCH).measurements,
        events=LAUNCH,
        min_tcb_evaluation_number=1,
        simulated_root=platform().root_sha256,
    ),
    name="test",
)


def shown(data: bytes, asked: Asked) -> Examination | None:
    """What `cloister verify` shows of a file, in all its forms; None where it is no question."""
    try:
        found = examine(recognise(data), asked)
    except CloisterError:
        return None
    origin = Origin(source="file", endorsements="given", clock=NOW)
    report = report_of(found, origin)
    assert html_of(report, title="file")
    assert json.dumps(json_of(found, origin)).isascii()
    assert [row.number for row in found.rows] == list(CHECKS)
    assert sum(row.state == "failed" for row in found.rows) == (found.error is not None)
    return found


@given(st.data())
def test_any_flipped_bit_of_a_bundle_is_refused_or_says_the_same(data: st.DataObject) -> None:
    asked = Asked(now=NOW, policy=POLICY, nonce=NONCE)
    honest_one = shown(HONEST, asked)
    assert honest_one is not None
    assert honest_one.verdict == "accepted"
    altered = bytearray(HONEST)
    altered[data.draw(st.integers(0, len(altered) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    found = shown(bytes(altered), asked)
    if found is not None and found.verdict != "refused":
        assert found.claims == honest_one.claims  # a part that nothing here depends on


@given(st.sampled_from(("snp", "tdx", "device")), st.data())
def test_any_flipped_bit_of_captured_evidence_is_refused(kind: str, data: st.DataObject) -> None:
    evidence, asked = CAPTURED[kind]()
    honest_one = shown(evidence, asked)
    assert honest_one is not None
    assert honest_one.verdict == "genuine"
    altered = bytearray(evidence)
    altered[data.draw(st.integers(0, len(altered) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    found = shown(bytes(altered), asked)
    assert found is None or found.verdict == "refused", "every byte of it is signed, or must be zero"


def _snp() -> tuple[bytes, Asked]:
    given_files = [
        vectors(f"virtee-sev/{name}").read_bytes() for name in ("vcek_milan.der", "cert_chain_milan")
    ]
    report = bytes.fromhex(vectors("virtee-sev/report_milan.hex").read_text())
    return report, Asked(now=at("2025-06-01"), given=gather([recognise(one) for one in given_files]))


def _tdx() -> tuple[bytes, Asked]:
    collateral_file = recognise(vectors("phala-dcap-qvl/tdx_quote_collateral.json").read_bytes())
    quote = parse_quote(vectors("phala-dcap-qvl/tdx_quote").read_bytes()).encoded
    return quote, Asked(now=at("2025-06-25"), given=gather([collateral_file]))


def _device() -> tuple[bytes, Asked]:
    report = bytes.fromhex(vectors("coco-trustee/nvidia/hopperAttestationReport.txt").read_text())
    chain = recognise(vectors("coco-trustee/nvidia/hopper_cert_chain_case1.txt").read_bytes())
    return report, Asked(now=NOW, given=gather([chain]))


CAPTURED = {"snp": cache(_snp), "tdx": cache(_tdx), "device": cache(_device)}
