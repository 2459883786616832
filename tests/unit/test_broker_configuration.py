"""What a broker measures of itself is what the specification shows."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from cloister.broker.configuration import BrokerConfiguration, broker_events, owners_configuration
from cloister.encoding import encode_json
from cloister.errors import UsageError

SPEC = Path(__file__).parents[2] / "docs/spec/kbs.md"


def test_the_measured_configuration_is_the_documented_one() -> None:
    document = encode_json(BrokerConfiguration())
    assert document.decode() in SPEC.read_text().splitlines()


def test_who_may_sign_the_first_manifest_is_measured() -> None:
    measured = {
        next(event.payload for event in broker_events(one) if event.name == "cloister.config")
        for one in (BrokerConfiguration(), owners_configuration("ab" * 32), owners_configuration("cd" * 32))
    }
    assert len(measured) == 3


@pytest.mark.parametrize("origin", ["", "ab" * 31, "AB" * 32, "zz" * 32, "ab" * 33])
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(UsageError):
        owners_configuration(origin)


def test_configuration_and_program_are_measured() -> None:
    events = {event.name: event.payload for event in broker_events()}
    assert set(events) == {"cloister.config", "cloister.program"}
    assert events["cloister.config"] == hashlib.sha256(encode_json(BrokerConfiguration())).digest()
