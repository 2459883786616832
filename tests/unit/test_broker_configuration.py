"""What a broker measures of itself is what the specification shows."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cloister.broker.configuration import BrokerConfiguration, broker_events
from cloister.encoding import encode_json

SPEC = Path(__file__).parents[2] / "docs/spec/kbs.md"


def test_the_measured_configuration_is_the_documented_one() -> None:
    document = encode_json(BrokerConfiguration())
    assert document.decode() in SPEC.read_text().splitlines()


def test_configuration_and_program_are_measured() -> None:
    events = {event.name: event.payload for event in broker_events()}
    assert set(events) == {"cloister.config", "cloister.program"}
    assert events["cloister.config"] == hashlib.sha256(encode_json(BrokerConfiguration())).digest()
