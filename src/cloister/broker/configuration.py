"""What a key broker measures at its launch: its configuration and its program (docs/spec/kbs.md).

Rules and resources are data and change while it runs; they are not measured. Who may sign the first manifest is
(``origin``), and so is where the state key comes from: a passphrase, known to whoever runs the broker, or its owners'
shares.
"""

from __future__ import annotations

from typing import Final, Literal

from cloister.attester.launch import launch_events, this_program
from cloister.broker.protocol import PROFILE, VERSION
from cloister.encoding import Record, encode_json, from_hex
from cloister.errors import UsageError
from cloister.evidence.eventlog import LaunchEvent

FORMAT: Final = "cloister/broker-configuration/v2"


class BrokerConfiguration(Record, frozen=True, kw_only=True):
    """The measured document: its canonical JSON is the launch event ``cloister.config``."""

    format: Literal["cloister/broker-configuration/v2"] = FORMAT
    protocol: str = VERSION
    profile: str = PROFILE
    state_key: Literal["passphrase", "owners"] = "passphrase"
    origin: str = ""
    """The origin of its manifest (docs/spec/manifest.md); empty in laptop mode, where the operator is the owner."""


def owners_configuration(origin: str) -> BrokerConfiguration:
    """A broker whose state its owners open. Raises :class:`UsageError`."""
    try:
        from_hex(origin, 32, what="origin")
    except Exception:
        raise UsageError(
            "an origin is 64 hexadecimal digits", todo="see `cloister manifest origin`"
        ) from None
    return BrokerConfiguration(state_key="owners", origin=origin)


def broker_events(configuration: BrokerConfiguration | None = None) -> tuple[LaunchEvent, ...]:
    """The launch events of ``cloister broker serve`` as this package is installed."""
    return launch_events(
        config=encode_json(configuration or BrokerConfiguration()), program=this_program(), model_index=None
    )
