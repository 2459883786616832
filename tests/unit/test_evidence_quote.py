"""Intel quotes as bytes: one form is read, and arbitrary bytes only ever raise our own error."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

import simulated_evidence as attacks
from cloister.attester.simulation.quote import Layout
from cloister.errors import EvidenceError
from cloister.evidence import sgx, tdx
from cloister.evidence.quote import encode_chain, parse_chain, parse_quote
from cloister.evidence.reader import Reader


@cache
def honest(layout: Layout = Layout.TDX_V4) -> bytes:
    return attacks.honest(layout).quote


@pytest.mark.parametrize("layout", Layout, ids=lambda layout: layout.name)
def test_a_quote_of_every_layout_is_read(layout: Layout) -> None:
    parsed = parse_quote(honest(layout))
    assert parsed.tee == layout.kind
    assert parsed.report_data == attacks.REPORT_DATA
    assert parsed.encoded == honest(layout)
    assert len(parsed.signature.certificates) == 3


@given(st.binary(max_size=2048))
def test_arbitrary_bytes_raise_only_our_error(data: bytes) -> None:
    for parse in (parse_quote, sgx.parse_report, tdx.parse_report, parse_chain):
        with pytest.raises(EvidenceError):
            parse(data)


@given(
    st.sampled_from(list(Layout)),
    st.integers(0, 5000),
    st.binary(min_size=1, max_size=64),
    st.integers(0, 64),
)
def test_an_edited_quote_raises_only_our_error(layout: Layout, at: int, insert: bytes, drop: int) -> None:
    original = honest(layout)
    edited = original[:at] + insert + original[at + drop :]
    try:
        parse_quote(edited)
    except EvidenceError:
        return


@given(st.sampled_from(list(Layout)), st.integers(0, 5000))
def test_any_prefix_is_refused(layout: Layout, size: int) -> None:
    original = honest(layout)
    with pytest.raises(EvidenceError):
        parse_quote(original[: min(size, len(original) - 1)])


def altered(at: int, value: bytes, layout: Layout = Layout.TDX_V4) -> bytes:
    original = honest(layout)
    return original[:at] + value + original[at + len(value) :]


FORMS = {
    "empty": (b"", "ends at byte 0"),
    "too-large": (bytes(32 * 1024 + 1), "over its bound"),
    "version-2": (altered(0, b"\2\0"), "version 2"),
    "version-6": (altered(0, b"\6\0"), "version 6"),
    "epid-key": (altered(2, b"\0\0"), "key type 0"),
    "p384-key": (altered(2, b"\3\0"), "key type 3"),
    "sgx-in-version-4": (altered(4, b"\0\0\0\0"), "TEE type 0x0"),
    "tdx-in-version-3": (altered(4, b"\x81\0\0\0", Layout.SGX_V3), "TEE type 0x81"),
    "reserved-in-header": (altered(8, b"\1"), "reserved"),
    "another-vendor": (altered(12, b"\0"), "another vendor"),
    "signature-longer-than-quote": (altered(48 + 584, b"\xff\xff\xff\x7f"), "in the middle"),
    "not-a-qe-report": (altered(48 + 584 + 4 + 128, b"\7"), "type 7"),
    "body-type-4": (altered(48, b"\4\0", Layout.TDX_V5_TD15), "type 4"),
    "body-size": (altered(50, b"\0\0\0\0", Layout.TDX_V5_TD15), "0 bytes"),
    "certificates-by-identifier": (altered(48 + 584 + 4 + 128 + 6 + 384 + 64 + 2 + 32, b"\3"), "by type 3"),
    "one-byte-behind": (honest() + b"\1", "behind its end"),
    "too-many-zeros-behind": (honest() + bytes(129), "behind its end"),
    "a-zero-behind-sgx": (honest(Layout.SGX_V3) + b"\0", "behind its end"),
    "reserved-in-qe-report": (altered(48 + 584 + 4 + 128 + 6 + 20, b"\1"), "QE report has reserved"),
    "reserved-in-enclave-report": (altered(48 + 20, b"\1", Layout.SGX_V3), "SGX report has reserved"),
}


@pytest.mark.parametrize("case", FORMS)
def test_another_form_is_refused(case: str) -> None:
    data, text = FORMS[case]
    with pytest.raises(EvidenceError, match=text):
        parse_quote(data)


PEM = encode_chain([b"a" * 100, b"b" * 48, b"c" * 49])
CHAINS = {
    "two": encode_chain([b"a", b"b"]),
    "four": encode_chain([b"a"] * 4),
    "crlf": PEM.replace(b"\n", b"\r\n"),
    "no-last-line-feed": PEM[:-1],
    "two-nuls": PEM + b"\0\0",
    "text-before": b"x" + PEM,
    "text-between": PEM.replace(b"-----END CERTIFICATE-----\n", b"-----END CERTIFICATE-----\n#\n", 1),
    "long-line": PEM.replace(b"\n", b"", 2),
    "padding-bits": encode_chain([b"a", b"b", b"c"]).replace(b"YQ==", b"YR=="),
    "not-base64": PEM.replace(b"YWFh", b"YW!h", 1),
}


@pytest.mark.parametrize("case", CHAINS)
def test_a_chain_has_one_encoding(case: str) -> None:
    assert parse_chain(PEM) == parse_chain(PEM + b"\0") == (b"a" * 100, b"b" * 48, b"c" * 49)
    with pytest.raises(EvidenceError):
        parse_chain(CHAINS[case])


@given(st.lists(st.binary(min_size=1, max_size=300), min_size=3, max_size=3))
def test_a_chain_comes_back_as_it_went(certificates: list[bytes]) -> None:
    assert parse_chain(encode_chain(certificates)) == tuple(certificates)


def test_debug_is_read_from_the_attributes() -> None:
    assert parse_quote(attacks.honest(Layout.TDX_V4).quote).debug is False
    for bit in range(8):
        assert parse_quote(altered(48 + 120, bytes([1 << bit]))).debug is True
    assert parse_quote(altered(48 + 48, b"\7", Layout.SGX_V3)).debug is True


def test_a_reader_never_reads_past_the_end_nor_leaves_a_rest() -> None:
    reader = Reader(b"\1\0\2\0\0\0\0\3", "thing")
    assert (reader.u16(), reader.u32()) == (1, 2)
    reader.zeros(1)
    with pytest.raises(EvidenceError, match="the thing has 1 bytes behind its end"):
        reader.end()
    with pytest.raises(EvidenceError, match="in the middle of a field of 2"):
        reader.u16()
    assert reader.take(1) == b"\3"
    reader.end()
