"""SEV-SNP: whatever bytes come, only our own errors; whatever is written reads back; whatever is altered is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from cloister.appraisal.reference_snp import parse_version
from cloister.attester.simulation.snp_report import encode_signed
from cloister.endorsements.amd import (
    MAX_ENDORSEMENTS,
    encode_snp_endorsements,
    endorsements_for,
    parse_cert_chain,
    parse_snp_endorsements,
)
from cloister.endorsements.amd_table import MAX_TABLE, parse_certificate_table
from cloister.endorsements.roots import simulated_root
from cloister.endorsements.x509 import (
    MAX_CERTIFICATE,
    MAX_LIST,
    read_certificate,
    read_pem_certificates,
    read_revocation_list,
)
from cloister.errors import CloisterError, EndorsementError, EvidenceError, FormatError
from cloister.evidence.snp import REPORT_SIZE, TcbVersion, parse_report
from cloister.verifier.amd_chain import read_chain, read_signing_key
from cloister.verifier.certificates import verify_issued
from cloister.verifier.snp import verify
from simulated_snp import NOW, Shown, platform

PARSERS: dict[str, Callable[[bytes], object]] = {
    "report": parse_report,
    "endorsements": parse_snp_endorsements,
    "certificate": read_certificate,
    "revocation list": read_revocation_list,
    "PEM": lambda data: read_pem_certificates(data, what="PEM"),
    "certificate chain": parse_cert_chain,
    "certificate table": parse_certificate_table,
    "bare key": endorsements_for,
    "issued": lambda data: verify_issued(data, data),
}


@pytest.mark.parametrize("name", PARSERS)
@given(data=st.binary(max_size=2048))
def test_any_bytes_are_read_or_refused_by_our_own_error(name: str, data: bytes) -> None:
    try:
        PARSERS[name](data)
    except CloisterError:
        return


@pytest.mark.parametrize("name", PARSERS)
@pytest.mark.parametrize(
    "first", [b"\0", b"0", b"-----BEGIN CERTIFICATE-----\n", b"\x30\x84\x00\x0f\xff\xff"]
)
def test_a_mebibyte_of_anything_is_refused_at_once(name: str, first: bytes) -> None:
    with pytest.raises(CloisterError):
        PARSERS[name](first * ((1 << 20) // len(first) + 1))


@cache
def genuine() -> tuple[bytes, bytes]:
    shown = Shown()
    return shown.quote(), encode_snp_endorsements(shown.endorsed())


def judged(quote: bytes, endorsements: bytes) -> object:
    roots = [simulated_root(platform().root_sha256)]
    return verify(quote, endorsements, roots=roots, now=NOW, revocation_required=True)


@given(bit=st.integers(0, 8 * REPORT_SIZE - 1))
def test_a_flipped_bit_in_a_report_is_refused(bit: int) -> None:
    quote, endorsements = genuine()
    altered = bytearray(quote)
    altered[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CloisterError):
        judged(bytes(altered), endorsements)


@given(length=st.integers(0, REPORT_SIZE - 1))
def test_a_prefix_of_a_report_is_refused(length: int) -> None:
    quote, endorsements = genuine()
    with pytest.raises(EvidenceError):
        judged(quote[:length], endorsements)


@given(
    part=st.sampled_from(["signing_key", "intermediate", "root", "crl"]),
    bit=st.integers(0, 1 << 20),
)
def test_a_flipped_bit_in_a_certificate_or_list_is_refused(part: str, bit: int) -> None:
    shown = Shown()
    data = bytearray(getattr(shown.endorsed(), part))
    bit %= 8 * len(data)
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CloisterError):
        judged(
            genuine()[0], encode_snp_endorsements(replace(shown, endorsements={part: bytes(data)}).endorsed())
        )


def _signing_key(der: bytes) -> object:
    document = structs.replace(Shown().endorsed(), signing_key=der)
    return read_signing_key(read_chain(document))


MUTATED: dict[str, Callable[[bytes], object]] = {
    "signing_key": _signing_key,
    "intermediate": lambda der: verify_issued(der, Shown().endorsed().root),
    "root": lambda der: verify_issued(der, der),
    "crl": read_revocation_list,
}
EDITS = st.lists(
    st.tuples(st.integers(0, 1 << 12), st.integers(0, 8), st.binary(max_size=8)), min_size=1, max_size=4
)


@pytest.mark.parametrize("part", MUTATED)
@given(edits=EDITS)
def test_a_genuine_document_with_edits_is_read_or_refused_by_our_own_error(
    part: str, edits: list[tuple[int, int, bytes]]
) -> None:
    """Bytes exchanged, removed and added inside the structure, where random bytes never get."""
    data = getattr(Shown().endorsed(), part)
    for at, removed, added in edits:
        place = at % (len(data) + 1)
        data = data[:place] + added + data[place + removed :]
    try:
        MUTATED[part](data)
    except CloisterError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017 -- most edits are refused, some change nothing


BYTES = st.integers(0, 255)
TRIPLES = st.tuples(BYTES, BYTES, BYTES)


@given(
    data=st.data(),
    version=st.sampled_from([2, 3, 5]),
    product=st.sampled_from(["milan", "genoa", "turin"]),
)
def test_whatever_a_report_says_reads_back(data: st.DataObject, version: int, product: str) -> None:
    fmc = BYTES if product == "turin" else st.none()
    tcbs = st.builds(TcbVersion, bootloader=BYTES, tee=BYTES, snp=BYTES, microcode=BYTES, fmc=fmc)
    honest = platform(product).report(data.draw(st.binary(min_size=64, max_size=64)), version=version)
    report = replace(
        honest,
        guest_svn=data.draw(st.integers(0, 0xFFFFFFFF)),
        policy=data.draw(st.integers(0, (1 << 26) - 1)) | 1 << 17,
        vmpl=data.draw(st.integers(0, 3)),
        current_tcb=data.draw(tcbs),
        reported_tcb=data.draw(tcbs),
        committed_tcb=data.draw(tcbs),
        launch_tcb=data.draw(tcbs),
        current_version=data.draw(TRIPLES),
        committed_version=data.draw(TRIPLES),
        measurement=data.draw(st.binary(min_size=48, max_size=48)),
        host_data=data.draw(st.binary(min_size=32, max_size=32)),
        author_key_enabled=data.draw(st.booleans()),
        mask_chip_key=data.draw(st.booleans()),
        signing_key=data.draw(st.sampled_from(["vcek", "vlek"])),
    )
    found = parse_report(encode_signed(report).ljust(REPORT_SIZE, b"\0"), product=product)
    assert replace(found, signature=b"", signed=b"") == report


@given(text=st.text(max_size=12))
def test_a_version_is_one_to_three_bytes_in_one_spelling(text: str) -> None:
    try:
        numbers = parse_version("min_abi", text, 2)
    except FormatError:
        return
    assert ".".join(map(str, numbers)) == text


def test_what_is_over_its_bound_is_refused_for_its_size() -> None:
    for parser, limit in (
        (read_certificate, MAX_CERTIFICATE),
        (read_revocation_list, MAX_LIST),
        (parse_certificate_table, MAX_TABLE),
        (parse_snp_endorsements, MAX_ENDORSEMENTS),
    ):
        with pytest.raises(EndorsementError, match="over its bound"):
            parser(bytes(limit + 1))
