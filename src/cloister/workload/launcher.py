"""``cloister run``: measure, attest, get the keys, make everything ready, start the program, wait, wipe.

The order is the point. The launch is measured before the first quote; the broker is verified before it is asked; the
program starts when all it was promised is there, or not at all. What was made is undone in reverse, whatever happened:
leftover processes are ended first, then trees are synced and recorded, then private files are erased and unmounted.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, TypeAlias

from cloister.attester import Attester, DeviceAttester
from cloister.evidence.bundle import TeeKind
from cloister.evidence.eventlog import LaunchEvent
from cloister.workload import gramine
from cloister.workload.agent import VARIABLE, AccessFile, KeyAgent, write_access_file
from cloister.workload.broker_session import BrokerSession, open_session
from cloister.workload.enter import Entry, start
from cloister.workload.environment import inherited
from cloister.workload.explain import confinement
from cloister.workload.hardening import harden_launcher
from cloister.workload.isolation import User, check
from cloister.workload.linux import Finding, look
from cloister.workload.plan import Plan
from cloister.workload.private_files import IdentityFiles, identity_environment, write_private
from cloister.workload.private_places import make_private
from cloister.workload.sealed_places import SealedPlaces
from cloister.workload.supervision import (
    adopt_orphans,
    block_signals,
    end_leftovers,
    require_unasked,
    supervise,
    unblock_signals,
)

_UMASK: Final = 0o022
"""Also the program's: what it makes is not as open as whoever starts it likes."""
Launch: TypeAlias = Callable[[Sequence[LaunchEvent]], Attester]
Progress: TypeAlias = Callable[[str, str], None]
"""Called with (step, fact) as each step is done."""


def run(
    plan: Plan,
    launch: Launch,
    *,
    tee: TeeKind = "tdx",
    devices: DeviceAttester | None = None,
    progress: Progress = lambda _step, _fact: None,
) -> int:
    """Do what was planned; the program's exit code. Raises what its parts raise; nothing is left behind then.

    ``tee`` is what ``launch`` launches in, as the broker is told before it sees evidence of it.
    This process is changed for good (namespaces, limits, signals): it is to do nothing else.
    """
    isolation = confinement(plan)
    if plan.program.loose:
        progress("not measured", plan.loose_words)
    user = isolation.user or User(uid=os.geteuid(), gid=os.getegid())
    gramine.require_no_gramine_keys(plan.configuration.file)
    os.umask(_UMASK)
    block_signals()
    adopt_orphans()

    def step(what: str, fact: str) -> None:
        progress(what, fact)
        require_unasked()

    def tell(findings: Iterable[Finding]) -> None:
        for finding in findings:
            if finding.state != "ok":
                todo = f"; {finding.todo}" if finding.todo else ""
                progress(finding.check, finding.found + todo)

    tell(check(isolation, look()))
    with ExitStack() as undo:
        tell(make_private(plan, user, undo))
        tell(harden_launcher())
        attester = launch(plan.events)
        step("measured", f"{len(plan.events)} events")
        file = plan.configuration.file
        session = open_session(file.broker.url, plan.policies, attester, tee=tee, devices=devices)
        undo.callback(session.close)
        step("broker", f"verified at {file.broker.url}")
        places = SealedPlaces(plan, session, user=user, undo=undo, progress=step)
        places.open()
        environment = _private_content(plan, session, user, undo, step)
        entry = Entry(
            program=plan.program.file,
            argv=plan.program.argv,
            environment={**inherited(file, os.environ), **plan.launch.environment, **environment},
            directory=str(plan.directory),
            isolation=isolation,
            parent=os.getpid(),
        )
        require_unasked()
        program = start(entry)
        undo.callback(end_leftovers, places.processes)
        progress("started", f"process {program.pid}")
        return supervise(program, places.broken, ours=places.processes)


def _private_content(
    plan: Plan, session: BrokerSession, user: User, undo: ExitStack, progress: Progress
) -> dict[str, str]:
    """Secrets, the mesh identity, and the socket that the program's libraries ask for keys."""
    file, folders = plan.configuration.file, plan.folders
    for secret in file.secret:
        content = session.keys.resource(secret.resource)
        write_private(folders.secrets / secret.file, content, user=user.uid)
        progress("secret", f"{secret.env} names a private file")
    environment: dict[str, str] = {}
    if file.identity is not None:
        identity = IdentityFiles(folders.identity, session.identity(file.identity), user=user.uid)
        undo.callback(identity.close)
        environment |= identity_environment(identity.current, file.identity.profiles)
        progress("mesh identity", f"{file.identity.workload} of {file.identity.application}")
    outputs = file.outputs
    uris = plan.configuration.key_uris | (set() if outputs is None else {outputs.signing_key})
    agent = KeyAgent(folders.socket, session.held, uris, user=user.uid)
    undo.callback(agent.close)
    found = AccessFile(
        socket=str(folders.socket),
        signers=file.signers,
        output_key=None if outputs is None else outputs.key,
        signing_key=None if outputs is None else outputs.signing_key,
    )
    write_access_file(folders.access, found)
    return environment


def run_in_gramine(
    plan: Plan,
    launch: Launch,
    *,
    tee: TeeKind = "sgx",
    keys_folder: Path = gramine.KEYS,
    devices: DeviceAttester | None = None,
    progress: Progress = lambda _step, _fact: None,
) -> int:
    """The same in an SGX enclave: no mounts and no isolation of ours, as the enclave is both. The program's exit code.

    The program gets the keys of the manifest's encrypted mounts and nothing else: a tmpfs is each process's own there.
    ``keys_folder`` is where Gramine takes them.
    """
    file = plan.configuration.file
    gramine.require_gramine_form(file)
    os.umask(_UMASK)
    block_signals()
    with ExitStack() as undo:
        attester = launch(plan.events)
        session = open_session(file.broker.url, plan.policies, attester, tee=tee, devices=devices)
        undo.callback(session.close)
        progress("broker", f"verified at {file.broker.url}")
        gramine.set_keys(file.gramine, session.held, folder=keys_folder)
        progress("Gramine", f"has {len(file.gramine)} keys")
        # Without the file that it names, the hooks would end every Python process: there is no launcher to ask here.
        found = {name: value for name, value in plan.launch.environment.items() if name != VARIABLE}
        program = subprocess.Popen(  # noqa: S603 -- what was measured
            plan.program.argv,
            env={**inherited(file, os.environ), **found},
            cwd=plan.directory,
            preexec_fn=unblock_signals,  # noqa: PLW1509 -- this process has one thread
        )
        progress("started", f"process {program.pid}")
        return supervise(program, lambda: None)
