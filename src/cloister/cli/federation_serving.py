"""`cloister federation aggregate | agent | work`: the processes of a federation, each in its own TEE."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli.serving import (
    CaFileOption,
    EndorsementsOption,
    NoEndorsementsOption,
    PccsOption,
    SimulatedOption,
    TeeOption,
)
from cloister.errors import UsageError

if TYPE_CHECKING:
    from cloister.federated.agreement import AgreedFederation

HostOption = Annotated[str, typer.Option("--host")]
PortOption = Annotated[int, typer.Option("--port", min=0, max=65535)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object when it listens.")]
NameOption = Annotated[
    str, typer.Option("--federation", metavar="NAME", help="In which federation: its name is measured.")
]
PreviousOption = Annotated[
    list[Path] | None,
    typer.Option("--previous", metavar="FILE", help="The versions before, from 1 on; repeat, in order."),
]


def aggregate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The federation that every party signed.")],
    model: Annotated[
        Path, typer.Option("--model", help="What training begins with: a directory, sealed or plain.")
    ],
    state: Annotated[Path, typer.Option("--state", help="Where the sealed checkpoint is kept.")],
    previous: PreviousOption = None,
    index_signer: Annotated[
        list[str] | None, typer.Option("--index-signer", metavar="HEX", help="Of a sealed model; repeat.")
    ] = None,
    key_file: Annotated[Path | None, typer.Option("--key-file", help="The key of a sealed model.")] = None,
    gather: Annotated[
        float,
        typer.Option("--gather", metavar="SECONDS", help="Then begin with who is ready, if enough are."),
    ] = 600.0,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8200,
    tunnel_port: Annotated[
        int,
        typer.Option("--tunnel-port", min=0, max=65535, help="For the parties' workloads, by mutual TLS."),
    ] = 8201,
    tunnel_address: Annotated[
        str,
        typer.Option("--tunnel-address", metavar="HOST:PORT", help="How workloads reach it, if otherwise."),
    ] = "",
    simulated_tee: SimulatedOption = None,
    tee: TeeOption = "auto",
    pccs: PccsOption = None,
    ca_file: CaFileOption = None,
    endorsements: EndorsementsOption = None,
    no_endorsements: NoEndorsementsOption = False,
    as_json: JsonOption = False,
) -> None:
    """Be the aggregator: admit attested parties, average what they learn, keep every round."""
    import time

    from cloister.cli.interruption import ended_like_ctrl_c
    from cloister.cli.serving import open_tee, run_server, take_port
    from cloister.federated.aggregator import Aggregator, Places
    from cloister.federated.configuration import federated_events
    from cloister.federated.first_model import first_model
    from cloister.federated.identity import Identity
    from cloister.federated.mesh import FederationMesh
    from cloister.federated.services import (
        OwnEvidence,
        aggregator_service,
        evidence_digest,
    )
    from cloister.sealing.key_file import KeyFile
    from cloister.workload.memory_folder import memory_folder

    agreed = agreed_files([*(previous or []), file])
    machine = open_tee(
        simulated_tee,
        asked=tee,
        pccs=pccs,
        ca_file=ca_file,
        endorsements=endorsements,
        no_endorsements=no_endorsements,
    )
    listener, tunnel = take_port(host, port), take_port(host, tunnel_port)
    attester = machine.launch(federated_events("aggregator", agreed.federation.name))
    with ended_like_ctrl_c(), locked(state), memory_folder("aggregator") as memory:
        typer.echo("model: opening what training begins with", err=True)
        initial = first_model(
            agreed,
            model,
            signers=index_signer or [],
            keys=None if key_file is None else KeyFile.load(key_file),
        )
        mesh = FederationMesh(agreed, now=int(time.time()))
        own = OwnEvidence(Identity.generate())
        aggregator = Aggregator(
            agreed, mesh, initial=initial, places=Places(memory=memory, state=state), tunnel=tunnel,
            public_tunnel=tunnel_address or f":{tunnel.getsockname()[1]}", gather=gather, evidence=evidence_digest(own),
        )  # fmt: skip
        try:
            gateway, keyring = aggregator_service(
                aggregator, agreed, own, attester=attester, shown=mesh.shown
            )
            try:
                run_server(gateway, listener, name="aggregator", as_json=as_json)
            finally:
                keyring.close()
        finally:
            aggregator.close()


def agent(
    federation: NameOption,
    aggregator: Annotated[str, typer.Option("--aggregator", metavar="URL", help="Where the aggregator is.")],
    workload: Annotated[
        str, typer.Option("--workload", metavar="URL", help="Where this party's workload is.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Where a receiver's provenance goes: its workload's --out.")
    ] = None,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8210,
    simulated_tee: SimulatedOption = None,
    tee: TeeOption = "auto",
    pccs: PccsOption = None,
    ca_file: CaFileOption = None,
    endorsements: EndorsementsOption = None,
    no_endorsements: NoEndorsementsOption = False,
    as_json: JsonOption = False,
) -> None:
    """Be a party's agent: verify everybody, then hand the party's keys to its workload. `join` tells it for whom."""
    from cloister.cli.serving import open_tee, run_server, take_port
    from cloister.federated.agent import Agent
    from cloister.federated.configuration import federated_events
    from cloister.federated.identity import Identity
    from cloister.federated.services import agent_service

    machine = open_tee(
        simulated_tee,
        asked=tee,
        pccs=pccs,
        ca_file=ca_file,
        endorsements=endorsements,
        no_endorsements=no_endorsements,
    )
    listener = take_port(host, port)
    attester = machine.launch(federated_events("agent", federation))
    made = Agent(Identity.generate(), aggregator=aggregator, workload=workload, out=out)
    gateway, keyring = agent_service(made, attester=attester)
    try:
        run_server(gateway, listener, name="agent", as_json=as_json)
    finally:
        made.close()
        keyring.close()


def work(
    federation: NameOption,
    model: Annotated[
        Path, typer.Option("--model", help="What training begins with: a directory, sealed or plain.")
    ],
    data: Annotated[Path, typer.Option("--data", help="The party's sealed directory of data.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Where the final model goes, sealed to this party if it receives it."),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            "--state", help="What has to outlive it, sealed: privacy spent, updates hidden; always the same."
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, help="That compute; default: as many as there are cores."),
    ] = None,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8220,
    simulated_tee: SimulatedOption = None,
    tee: TeeOption = "auto",
    pccs: PccsOption = None,
    ca_file: CaFileOption = None,
    endorsements: EndorsementsOption = None,
    no_endorsements: NoEndorsementsOption = False,
    as_json: JsonOption = False,
) -> None:
    """Be a party's training workload: the party's agent verifies it, then gives it keys and task."""
    # Before torch is loaded: threads that spin at barriers would take the cores from whoever else needs them.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)

    from cloister.cli.interruption import ended_like_ctrl_c
    from cloister.cli.serving import open_tee, run_server, take_port
    from cloister.federated.configuration import federated_events
    from cloister.federated.identity import Identity
    from cloister.federated.opening import Places
    from cloister.federated.services import OwnEvidence, workload_service
    from cloister.federated.workload import Workload
    from cloister.workload.memory_folder import memory_folder

    machine = open_tee(
        simulated_tee,
        asked=tee,
        pccs=pccs,
        ca_file=ca_file,
        endorsements=endorsements,
        no_endorsements=no_endorsements,
    )
    listener = take_port(host, port)
    attester = machine.launch(federated_events("workload", federation))
    with ended_like_ctrl_c(), memory_folder("workload") as memory:
        made = Workload(Identity.generate(), Places(memory=memory, data=data, model=model, state=state))
        made.warm_up()
        gateway, keyring = workload_service(
            made, OwnEvidence(made.identity), attester=attester, memory=memory, out=out
        )
        try:
            run_server(gateway, listener, name="workload", as_json=as_json)
        finally:
            made.close()
            keyring.close()


def agreed_files(paths: list[Path], *, digest: str | None = None) -> AgreedFederation:
    """The federation in the last of ``paths``, which name all versions from 1 on. Raises UsageError, ManifestError."""
    from cloister.federated.provenance import agreed_chain
    from cloister.manifest.signed import encode_signed
    from cloister.manifest.storage import read_signed

    return agreed_chain([encode_signed(read_signed(path)) for path in paths], digest=digest)


@contextlib.contextmanager
def locked(state: Path) -> Iterator[None]:
    """``state``, made where it is missing, for one aggregator at a time. Raises UsageError."""
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(state / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(f"{state} cannot be used ({error.strerror})", todo="check --state") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise UsageError(
            f"another aggregator uses {state}", todo="one run, one folder: name another --state, or stop it"
        ) from None
    try:
        yield
    finally:
        os.close(descriptor)
