"""Whatever bytes come: parsers of TPM evidence raise their own errors alone, and what they accept is what was made."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.attester.tpm_commands import Tpm
from cloister.attester.tpm_responses import words
from cloister.encoding import encode_json
from cloister.endorsements.tpm import parse_identity, parse_tpm_endorsements
from cloister.errors import AttesterError, CloisterError, EndorsementError, EvidenceError
from cloister.evidence.hcl import encode_evidence, parse_evidence, parse_hcl
from cloister.evidence.tpm import parse_quote
from cloister.evidence.tpm_structures import parse_attest, parse_public, parse_signature
from handmade_hcl import hcl_report, runtime_data
from handmade_tpm import Quote, rsa_key

QUOTE = Quote(key=rsa_key("hcl ak"), scheme="rsassa")


@cache
def genuine() -> dict[str, tuple[Callable[[bytes], object], bytes]]:
    wire = QUOTE.wire
    hcl = hcl_report(runtime_data(rsa_key("hcl ak").public_key()), bytes(1184))
    return {
        "quote": (parse_quote, encode_json(wire)),
        "attest": (parse_attest, wire.attest),
        "public": (parse_public, wire.ak_public),
        "signature": (parse_signature, wire.signature),
        "hcl": (parse_hcl, hcl),
        "azure": (parse_evidence, encode_evidence(hcl_report=hcl, quote=wire)),
    }


NAMES = st.sampled_from(["quote", "attest", "public", "signature", "hcl", "azure"])


@given(name=NAMES, data=st.binary(max_size=4096))
def test_any_bytes_raise_own_errors_only(name: str, data: bytes) -> None:
    with pytest.raises(EvidenceError):
        genuine()[name][0](data)


@given(name=NAMES, cut=st.integers(min_value=0))
def test_any_prefix_is_refused(name: str, cut: int) -> None:
    parse, data = genuine()[name]
    with pytest.raises(EvidenceError):
        parse(data[: cut % len(data)])


@given(name=NAMES, flips=st.lists(st.integers(min_value=0), min_size=1, max_size=4))
def test_altered_bytes_raise_own_errors_only(name: str, flips: list[int]) -> None:
    parse, data = genuine()[name]
    altered = bytearray(data)
    for flip in flips:
        altered[flip // 8 % len(data)] ^= 1 << flip % 8
    try:
        parse(bytes(altered))
    except CloisterError:
        return


@pytest.mark.parametrize("name", ["quote", "attest", "public", "signature", "hcl", "azure"])
@pytest.mark.parametrize("size", [1 << 20, (1 << 20) + 1, 8 << 20])
def test_what_is_too_long_is_refused_at_once(name: str, size: int) -> None:
    for filler in (b"\0", b"[", b"\x30"):
        with pytest.raises(EvidenceError, match="bound"):
            genuine()[name][0](filler * size)


@given(data=st.binary(max_size=256))
def test_any_endorsements_raise_own_errors_only(data: bytes) -> None:
    for parse in (parse_identity, parse_tpm_endorsements):
        with pytest.raises(EndorsementError):
            parse(data)


class _Says:
    """A transport that answers everything with the same bytes."""

    def __init__(self, response: bytes) -> None:
        self._response = response

    def submit(self, command: bytes) -> bytes:
        del command
        return self._response


@given(body=st.binary(max_size=200), honest=st.booleans(), tag=st.sampled_from([0x8001, 0x8002]))
def test_whatever_a_tpm_answers_is_data_or_an_attesters_error(body: bytes, honest: bool, tag: int) -> None:
    header = tag.to_bytes(2, "big") + (10 + len(body)).to_bytes(4, "big") + bytes(4)
    tpm = Tpm(_Says(header + body if honest else body))
    for call in (
        lambda: tpm.exists(1),
        lambda: tpm.read_public(1),
        lambda: tpm.create_primary(1, b""),
        lambda: tpm.read_pcrs("sha256", (0,)),
        lambda: tpm.quote(1, b"", "sha256", (0,)),
        lambda: tpm.activate(1, 2, b"", b"", by_policy=False),
    ):
        try:
            call()
        except AttesterError:
            continue


@given(code=st.integers(min_value=0, max_value=0xFFFFFFFF))
def test_every_response_code_has_words(code: int) -> None:
    what, _ = words(code)
    assert f"({code:#05x})" in what
