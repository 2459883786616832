"""What a run will do, found out before anything is done: what is measured, who is asked for what, what appears where.

Sealed directories are checked here (signature, names, sizes), and nothing is opened: that takes keys, and keys take
evidence over what is planned here. ``cloister run``, ``--explain`` and ``cloister measure run`` make the same plan.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.appraisal.policy import Policy
from cloister.errors import UsageError
from cloister.evidence.eventlog import LaunchEvent
from cloister.sealing.index import Index, open_index
from cloister.workload.broker_session import broker_policies
from cloister.workload.configuration import WorkloadConfiguration
from cloister.workload.environment import PrivateFolders, program_environment, search_path
from cloister.workload.measured import Launch, launch_document, workload_events
from cloister.workload.namespaces import TEMPORARY
from cloister.workload.program import MeasuredProgram, measure_program

ROOT_FOLDER: Final = Path("/run/cloister")
"""Where root's private tmpfs is mounted. Each run has a mount namespace of its own, so that all can have the same."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A run that was planned; its launch is measured by :attr:`events`."""

    configuration: WorkloadConfiguration
    program: MeasuredProgram
    launch: Launch
    policies: tuple[Policy, ...]
    """One of these the broker must meet."""
    indexes: Mapping[str, Index]
    """Of every sealed directory, by the path at which it appears."""
    events: tuple[LaunchEvent, ...]
    folders: PrivateFolders
    directory: Path

    def steps(self) -> Iterator[tuple[str, str]]:
        """(what, how) in order, for people."""
        file = self.configuration.file
        yield "program", " ".join(self.program.argv)
        yield "in", str(self.directory)
        for path, digest in self.program.files.items():
            yield "measured", f"{path}  {digest[:16]}…, and a private copy of it is used"
        if self.program.loose:
            yield "not measured", self.loose_words
        for event in self.events:
            yield "launch event", f"{event.name}  {event.payload.hex()}"
        yield (
            "broker",
            f"{file.broker.url}, if it meets policy "
            + " or ".join(policy.digest[:16] + "…" for policy in self.policies),
        )
        for restored in file.restore:
            index = self.indexes[restored.path]
            yield "in memory", f"{restored.path}: {self._described(index)} of {restored.source}"
        for mount in file.mount:
            if mount.write:
                yield "read and write", f"{mount.path}: sealed tree {mount.source}, key {mount.key}"
            else:
                yield "read", f"{mount.path}: {self._described(self.indexes[mount.path])} of {mount.source}"
        for secret in file.secret:
            yield "secret", f"{secret.env} names a file with {secret.resource}"
        for key in file.gramine:
            yield "Gramine key", f"{key.name} from {key.key}"
        if file.identity is not None:
            yield "mesh identity", f"{file.identity.workload} of {file.identity.application}"
        if file.program.optimize != "off":
            yield (
                "optimised",
                f"models of transformers that it does not train compute in {file.program.optimize}",
            )
        yield "network", _network_words(self)
        yield "may write", ", ".join(self.writable)
        yield "user", file.program.user or "as started"

    @property
    def loose_words(self) -> str:
        """What is to be known of the folder of :attr:`MeasuredProgram.loose`."""
        safe = self.launch.environment.get("PYTHONSAFEPATH")
        python = "Python imports nothing from there" if safe else "PYTHON IMPORTS WHAT LIES THERE"
        return f"{self.program.loose}: {python}; for what other interpreters load, name it in [program] files"

    @property
    def writable(self) -> tuple[str, ...]:
        """Below these the program may write: what is sealed on the way, what is private, what was named."""
        file = self.configuration.file
        trees = tuple(tree.path for tree in file.trees)
        folders = (self.folders.home, self.folders.temporary, self.folders.opened, *self.temporary)
        return (*trees, *map(str, folders), *file.isolation.write)

    @property
    def temporary(self) -> tuple[Path, ...]:
        """Common places for temporary files that this run can have for itself, as it needs nothing that lies there."""
        places = (Path(place) for place in TEMPORARY)
        return tuple(
            place
            for place in places
            if place.is_dir() and not place.is_symlink() and not self.needs_below(place)
        )

    def needs_below(self, folder: Path) -> bool:
        """Whether the run reads anything of the machine below ``folder`` once its places are made."""
        file = self.configuration.file
        sources = [
            *(self.configuration.path(one.source) for one in file.restore),
            *(self.configuration.path(one.source) for one in file.mount),
        ]
        # This interpreter too: the processes that mount, and the one that becomes the program, begin as it.
        own = (
            sys.executable,
            sys.prefix,
            sys.base_prefix,
            *sys.path,
            self.program.argv[0],
            self.program.file,
        )
        needed = (self.directory, *map(Path, own), *map(Path, self.program.files), *sources)
        return any(path.absolute().is_relative_to(folder) for path in needed)

    def _described(self, index: Index) -> str:
        files = "1 file" if len(index.files) == 1 else f"{len(index.files)} files"
        return f"{files}, {index.size:,} bytes, version {index.version}"


def make_plan(
    configuration: WorkloadConfiguration, argv: Sequence[str], *, directory: Path, root: Path | None = None
) -> Plan:
    """Find out. ``directory`` is where the program starts, ``root`` where its private tmpfs will be.

    Raises :class:`~cloister.errors.UsageError`, and what reading policies and indexes raises.
    """
    file = configuration.file
    folders = PrivateFolders(root or private_root())
    policies = broker_policies(file.broker, configuration.base)
    indexes, pinned = {}, {}
    for one in file.inputs:
        index = open_index(
            configuration.path(one.source),
            signers=configuration.signers,
            minimum_version=one.minimum_version,
        )
        indexes[one.path] = index
        if one.index == "measured":
            pinned[one.path] = index.digest
    program = measure_program(
        argv,
        files=[configuration.path(name) for name in file.program.files],
        directory=directory,
        search=search_path(),
    )
    launch = launch_document(
        file,
        program,
        directory=str(directory),
        policies=policies,
        environment=program_environment(file, folders, loose=bool(program.loose)),
    )
    return Plan(
        configuration=configuration,
        program=program,
        launch=launch,
        policies=policies,
        indexes=indexes,
        events=workload_events(launch, pinned),
        folders=folders,
        directory=directory,
    )


def private_root(user: int | None = None, environment: Mapping[str, str] = os.environ) -> Path:
    """Where the private tmpfs goes: root's place, or the user's own runtime folder. Raises UsageError."""
    if (os.getuid() if user is None else user) == 0:
        return ROOT_FOLDER
    runtime = environment.get("XDG_RUNTIME_DIR")
    if not runtime or not Path(runtime).is_absolute():
        raise UsageError(
            "there is no XDG_RUNTIME_DIR for the private files", todo="run as root, or in a login session"
        )
    return Path(runtime) / "cloister"


def _network_words(plan: Plan) -> str:
    network = plan.configuration.file.network
    if network.access == "ports":
        to = ", ".join(map(str, network.connect)) or "none"
        at = ", ".join(map(str, network.bind)) or "none"
        return f"TCP to ports {to}; listens on ports {at}; UDP {'allowed' if network.udp else 'refused'}"
    return {"none": "none but its own loopback", "any": "ANY: what it reads it can send anywhere"}[
        network.access
    ]
