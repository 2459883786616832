"""Whatever bit of simulated evidence is flipped or cut: it is refused, or nothing that is believed has changed."""

from __future__ import annotations

from functools import cache

from hypothesis import given
from hypothesis import strategies as st

from cloister.attester.simulation.quote import Layout
from cloister.endorsements.roots import simulated_root
from cloister.errors import CloisterError
from cloister.verifier.claims import Claims
from cloister.verifier.intel import verify
from cloister.verifier.rules import IntelRules
from simulated_evidence import LAUNCH, NOW, REPORT_DATA, honest, platform

LAYOUTS = st.sampled_from(list(Layout))


def claims(quote: bytes, collateral: bytes) -> Claims:
    return verify(
        quote,
        collateral,
        root=simulated_root(platform().root_sha256),
        now=NOW,
        rules=IntelRules(min_tcb_evaluation_number=1),
    )


@cache
def genuine(layout: Layout) -> tuple[bytes, bytes, Claims]:
    shown = honest(layout)
    collateral = shown.collateral.encode()
    return shown.quote, collateral, claims(shown.quote, collateral)


def _flip(data: bytes, bit: int) -> bytes:
    bit %= 8 * len(data)
    altered = bytearray(data)
    altered[bit // 8] ^= 1 << bit % 8
    return bytes(altered)


@given(layout=LAYOUTS, bit=st.integers(min_value=0, max_value=1 << 16))
def test_a_flipped_bit_in_a_quote_is_refused(layout: Layout, bit: int) -> None:
    quote, collateral, _ = genuine(layout)
    try:
        claims(_flip(quote, bit), collateral)
    except CloisterError:
        return
    raise AssertionError(f"bit {bit} of a {layout.name} quote was not noticed")


@given(layout=LAYOUTS, bit=st.integers(min_value=0, max_value=1 << 18))
def test_a_flipped_bit_in_collateral_changes_nothing_that_is_believed(layout: Layout, bit: int) -> None:
    quote, collateral, believed = genuine(layout)
    try:
        found = claims(quote, _flip(collateral, bit))
    except CloisterError:
        return
    assert found == believed  # the case of a hexadecimal digit, say


@given(layout=LAYOUTS, length=st.integers(min_value=0, max_value=1 << 13))
def test_a_prefix_of_a_quote_is_refused(layout: Layout, length: int) -> None:
    quote, collateral, _ = genuine(layout)
    try:
        claims(quote[: length % len(quote)], collateral)
    except CloisterError:
        return
    raise AssertionError(f"{length % len(quote)} bytes of a {layout.name} quote were enough")


@given(report_data=st.binary(min_size=64, max_size=64), layout=LAYOUTS)
def test_report_data_comes_out_of_the_verifier_as_it_went_in(report_data: bytes, layout: Layout) -> None:
    tee = platform().tee(layout.kind, launch=LAUNCH, layout=layout, clock=lambda: NOW)
    evidence = tee.quote(report_data)
    found = claims(evidence.quote, evidence.endorsements)
    assert found.report_data == report_data
    assert {name: found.measurements[name] for name in tee.measurements} == dict(tee.measurements)
    assert (report_data == REPORT_DATA) == (found == genuine(layout)[2])
