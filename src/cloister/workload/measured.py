"""What a launch measures before its first quote, and how each kind of TEE holds it (docs/spec/workload.md).

The launch document has everything that decides what runs and whom it trusts: the configuration, the command line, the
digests of the program's files, the policies by which the broker is appraised. Where things lie on this machine and where
the broker listens are left out: they are the operator's business, and cannot make another program of it. What is not
measured cannot vouch for itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

from msgspec import structs

from cloister.appraisal.policy import Policy
from cloister.attester.launch import launch_events, this_program
from cloister.encoding import Record, encode_json, labelled_hash
from cloister.evidence.eventlog import LaunchEvent
from cloister.workload.configuration import Broker, WorkloadFile
from cloister.workload.program import MeasuredProgram

FORMAT: Final = "cloister/launch/v1"
INPUTS_LABEL: Final = "cloister/workload-inputs/v1"
_ELSEWHERE: Final = ""


class Launch(Record, frozen=True, kw_only=True):
    """The measured document: its canonical JSON is the launch event ``cloister.config``."""

    format: Literal["cloister/launch/v1"] = FORMAT
    workload: WorkloadFile
    """The configuration, without the places of this machine."""
    argv: tuple[str, ...]
    directory: str
    """Where the program starts."""
    executable: str
    files: dict[str, str]
    broker_policies: tuple[str, ...]
    """Digests of the policies of which the broker has to meet one."""
    environment: dict[str, str]
    """All of it that does not depend on the run."""


def launch_document(
    file: WorkloadFile,
    program: MeasuredProgram,
    *,
    directory: str,
    policies: Sequence[Policy],
    environment: Mapping[str, str],
) -> Launch:
    """What is measured of a run."""
    placeless = structs.replace(
        file,
        broker=Broker(url=_ELSEWHERE),
        restore=tuple(structs.replace(one, source=_ELSEWHERE) for one in file.restore),
        mount=tuple(structs.replace(one, source=_ELSEWHERE) for one in file.mount),
        program=structs.replace(file.program, files=(), environment={}),
    )
    return Launch(
        workload=placeless,
        argv=program.argv,
        directory=directory,
        executable=program.executable,
        files=dict(program.files),
        broker_policies=tuple(policy.digest for policy in policies),
        environment=dict(environment),
    )


def workload_events(launch: Launch, indexes: Mapping[str, bytes]) -> tuple[LaunchEvent, ...]:
    """The launch events. ``indexes`` are the digests of pinned indexes by the path at which they appear, 32 bytes each."""
    return launch_events(
        config=encode_json(launch), program=this_program(), model_index=inputs_digest(indexes)
    )


def inputs_digest(indexes: Mapping[str, bytes]) -> bytes | None:
    """One digest for all pinned indexes: of a single one its own, so that a policy shows what ``cloister seal`` printed."""
    if not indexes:
        return None
    if len(indexes) == 1:
        return next(iter(indexes.values()))
    parts = (part for path in sorted(indexes) for part in (path.encode(), indexes[path]))
    return labelled_hash(INPUTS_LABEL, *parts)
