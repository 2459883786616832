"""What every serving command shares: the TEE, said aloud, a port taken before anything costly, a server.

The TEE is this machine's own, or the simulated one in the directory that was named; neither ever stands in for the other.
"""

from __future__ import annotations

import errno
import json
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloister.errors import NetworkError, UsageError

if TYPE_CHECKING:
    from cloister.attester import Attester, DeviceAttester
    from cloister.attester.local import Machine
    from cloister.attester.simulated import SimulatedPlatform
    from cloister.evidence.bundle import TeeKind
    from cloister.evidence.eventlog import LaunchEvent

EXIT_TERMINATED = 143
MAX_ENDORSEMENTS = 512 * 1024
SimulatedOption = Annotated[
    Path | None,
    typer.Option("--simulated-tee", help="Attest as the simulated TEE in this directory. Protects nothing."),
]
TeeOption = Annotated[
    str,
    typer.Option("--tee", help="auto: this machine's SGX, TDX or SEV-SNP; tpm or az-snp-vtpm only by name."),
]
PccsOption = Annotated[
    str | None,
    typer.Option("--pccs", metavar="URL", help="Fetch Intel's endorsements from this PCCS."),
]
CaFileOption = Annotated[
    Path | None, typer.Option("--ca-file", help="Certificates (PEM) that vouch for the PCCS's TLS.")
]
NoEndorsementsOption = Annotated[
    bool, typer.Option("--no-endorsements", help="Fetch none: whoever verifies brings them.")
]
EndorsementsOption = Annotated[
    Path | None, typer.Option("--endorsements", help="Carry the endorsements in this file; fetch none.")
]
GpusOption = Annotated[bool, typer.Option("--gpus", help="Attest the NVIDIA GPUs beside the TEE.")]


@dataclass(frozen=True, slots=True)
class Tee:
    """A TEE to launch in, before anything is measured."""

    launch: Callable[[Sequence[LaunchEvent]], Attester]
    kind: TeeKind
    devices: DeviceAttester | None = None


def open_tee(
    simulated: Path | None,
    *,
    asked: str = "auto",
    pccs: str | None = None,
    ca_file: Path | None = None,
    no_endorsements: bool = False,
    endorsements: Path | None = None,
    gpus: bool = False,
    stated: bool = False,
) -> Tee:
    """The simulated TEE in that directory, or this machine's own; ``stated`` as in ``Machine.launch``.

    Raises :class:`UsageError` where there is none or the options cannot be meant,
    :class:`~cloister.errors.AttesterError` where it does not work.
    """
    if simulated is not None:
        if asked != "auto" or gpus or pccs or endorsements:
            raise UsageError(
                "--simulated-tee excludes --tee, --gpus, --pccs and --endorsements",
                todo="hardware and simulation are never mixed",
            )
        platform = open_platform(simulated)
        return Tee(lambda events: platform.tee("tdx", launch=events), "tdx")
    machine = open_machine(asked)
    carried = _read_endorsements(endorsements)

    from cloister.attester.nvidia import NvmlAttester

    devices: DeviceAttester | None = NvmlAttester() if gpus else None
    if no_endorsements:
        return Tee(
            lambda events: machine.launch(events, endorsements=carried, stated=stated), machine.tee, devices
        )

    from cloister.attester.endorsed import EndorsedAttester, EndorsedDeviceAttester
    from cloister.attester.probes import trusting
    from cloister.endorsements.fetch import Fetcher
    from cloister.endorsements.services import INTEL_PCS, Services

    fetcher = Fetcher(services=Services(intel=pccs or INTEL_PCS), transport=trusting(ca_file))

    def launch(events: Sequence[LaunchEvent]) -> Attester:
        attester = machine.launch(events, endorsements=carried, stated=stated)
        # A TPM's are of its enrolment, and what an operator gave is not replaced.
        return attester if carried or machine.tee == "tpm" else EndorsedAttester(attester, fetcher, time.time)

    endorsed = EndorsedDeviceAttester(devices, fetcher, time.time) if devices else None
    return Tee(launch, machine.tee, endorsed)


@dataclass(frozen=True, slots=True)
class GuestEndorsements:
    """Where endorsements come from for evidence that brings none: guests of others (docs/spec/kbs.md)."""

    evidence: Callable[[TeeKind, bytes], bytes] | None = None
    devices: Callable[[bytes], bytes] | None = None


def guest_endorsements(
    simulated: Path | None,
    *,
    pccs: str | None = None,
    ca_file: Path | None = None,
    no_endorsements: bool = False,
) -> GuestEndorsements:
    """The vendors' services, or those of the simulated platform; none where none shall be fetched."""
    if simulated is not None:
        from cloister.attester.simulated import SimulatedPlatform

        platform = SimulatedPlatform.load(simulated)
        return GuestEndorsements(lambda _tee, _quote: platform.tee("tdx").quote(bytes(64)).endorsements)
    if no_endorsements:
        return GuestEndorsements()
    from cloister.attester.probes import trusting
    from cloister.endorsements.fetch import Fetcher
    from cloister.endorsements.services import INTEL_PCS, Services

    fetcher = Fetcher(services=Services(intel=pccs or INTEL_PCS), transport=trusting(ca_file))
    return GuestEndorsements(fetcher.endorsements, fetcher.device_endorsements)


def open_machine(asked: str = "auto") -> Machine:
    """This machine's own TEE, named on standard error. Raises as :func:`open_tee`."""
    from rich.console import Console

    from cloister.attester.local import ASKED, LOUD, find_machine, looked_for

    chosen = next((one for one in ASKED if one == asked), None)
    if chosen is None:
        raise UsageError(f"there is no TEE {asked[:32]!r}", todo=f"--tee is {', '.join(ASKED)}")
    machine = find_machine(asked=chosen)
    if machine is None:
        raise UsageError(
            f"no TEE was found: there is {looked_for()}",
            todo="`cloister doctor attestation` says what is missing; --simulated-tee DIR rehearses, and protects nothing",
        )
    style = "bold white on red" if machine.tee in LOUD else "bold"
    Console(stderr=True).print(f"{machine.tee.upper()}: {machine.covered}.", style=style, soft_wrap=True)
    # Here nothing is simulated, so nothing is announced twice: what the attester has to say is shown.
    logging.getLogger("cloister.attester").setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, _leave)
    return machine


def _leave(number: int, frame: FrameType | None) -> None:
    """SIGTERM as an exception, so that a report in the kernel is removed; the server puts its own handler later."""
    raise SystemExit(EXIT_TERMINATED)


def open_platform(directory: Path) -> SimulatedPlatform:
    """The simulated platform at ``directory``, announced in red. Raises :class:`UsageError`."""
    from rich.console import Console

    from cloister.attester.simulated import SimulatedPlatform

    platform = SimulatedPlatform.load(directory)
    Console(stderr=True).print(
        "SIMULATED TEE: real quotes under a false root; nothing here is protected.",
        style="bold white on red",
        soft_wrap=True,
    )
    return platform


def _read_endorsements(path: Path | None) -> bytes:
    if path is None:
        return b""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_ENDORSEMENTS + 1)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", todo="check --endorsements") from None
    if not 0 < len(content) <= MAX_ENDORSEMENTS:
        raise UsageError(f"{path} is empty or over {MAX_ENDORSEMENTS} bytes", todo="check --endorsements")
    return content


def take_port(host: str, port: int) -> socket.socket:
    """Bind now and listen later, so that an occupied port costs nothing. Raises :class:`NetworkError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named: asyncio turns Nagle's algorithm off only for sockets that say they are TCP.
    taken = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((host, port))
    except OSError as error:
        taken.close()
        if error.errno == errno.EADDRINUSE:
            raise NetworkError(
                f"port {port} of {host} is taken", todo="stop what listens there, or name another port"
            ) from None
        raise NetworkError(
            f"cannot listen on {host} port {port}: {error.strerror}", todo="check address and port"
        ) from None
    return taken


def address_of(taken: socket.socket) -> str:
    """Of what was bound, for people and programs."""
    if taken.family == socket.AF_UNIX:
        return f"unix:{taken.getsockname()}"
    host, port = taken.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run_server(
    app: Any,
    taken: socket.socket,
    *,
    name: str,
    as_json: bool,
    facts: Mapping[str, object] = MappingProxyType({}),
) -> None:
    """Serve ``app`` until a signal, then stop gracefully. Requests are never logged: paths are in the clear there.

    ``facts`` are told in JSON with the address.
    """
    import uvicorn

    from cloister.cli.http_protocol import MAX_HEAD, http_protocol
    from cloister.workload.confinement import no_core_dumps

    no_core_dumps()  # keys are in this memory: no image of it is written

    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    url = address_of(taken)

    def ready() -> None:
        line = (
            json.dumps({"listening": url, "service": name, **facts})
            if as_json
            else f"{name}: listening on {url}"
        )
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    config = uvicorn.Config(
        app,
        access_log=False,
        log_level="warning",
        lifespan="on",
        server_header=False,
        date_header=False,
        http=http_protocol(),
        # Named, so that other packages beside this one (Flower brings uvloop and websockets) change nothing here.
        loop="asyncio",
        ws="none",
        timeout_graceful_shutdown=5,
        timeout_keep_alive=65,  # a client that is slow must not send into a connection that is just being closed
        h11_max_incomplete_event_size=MAX_HEAD,
    )
    server = _AnnouncingServer(config, ready)
    server.run(sockets=[taken])


def _server_class() -> type[Any]:
    import uvicorn

    class Announcing(uvicorn.Server):
        """Says when it listens, once."""

        def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
            super().__init__(config)
            self._ready = ready

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            if self.started:
                self._ready()

    return Announcing


def _AnnouncingServer(config: Any, ready: Callable[[], None]) -> Any:  # noqa: N802 -- stands for a class made late
    return _server_class()(config, ready)
