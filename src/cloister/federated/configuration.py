"""What the processes of a federation measure at their launch: what they are, in which federation, this program.

Which version is in force, who is a party, which keys and which data are not measured: agents get them from their own
people, who verify them first, and everybody compares the federation's digest with what they signed.
"""

from __future__ import annotations

from typing import Final, Literal

from cloister.attester.launch import launch_events, this_program
from cloister.encoding import Record, encode_json
from cloister.evidence.eventlog import LaunchEvent
from cloister.manifest.names import check_names

FORMAT: Final = "cloister/federated-configuration/v1"
Role = Literal["aggregator", "agent", "workload"]
ROLES: Final[tuple[Role, ...]] = ("aggregator", "agent", "workload")


class FederatedConfiguration(Record, frozen=True, kw_only=True):
    """The measured document: its canonical JSON is the launch event ``cloister.config``."""

    format: Literal["cloister/federated-configuration/v1"] = FORMAT
    role: Role
    federation: str
    """Its name."""


def federated_events(role: Role, federation: str) -> tuple[LaunchEvent, ...]:
    """The launch events of this role. Raises ManifestError for a name that is none."""
    check_names([federation], "a federation")
    configuration = FederatedConfiguration(role=role, federation=federation)
    return launch_events(config=encode_json(configuration), program=this_program(), model_index=None)
