"""What `cloister broker serve` does: find the TEE, take the port, open the state or wait for its owners, serve."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloister.errors import AppraisalRefused, UsageError

if TYPE_CHECKING:
    import sqlalchemy as sa

    from cloister.attester import Attester
    from cloister.broker.configuration import BrokerConfiguration
    from cloister.broker.custody import Custody
    from cloister.manifest.acceptance import AcceptedManifest
    from cloister.manifest.manifest import Manifest
    from cloister.manifest.signed import Signed


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The command line of `cloister broker serve`."""

    state: Path | None
    database: str | None
    passphrase_file: Path | None
    manifest: Path | None
    witnesses: Mapping[str, str]
    peer: str | None
    keystores: Path | None
    host: str
    port: int
    attested_tls_port: int | None
    rate: float
    burst: int
    simulated_tee: Path | None
    tee: str
    pccs: str | None
    ca_file: Path | None
    endorsements: Path | None
    no_endorsements: bool
    init: bool
    as_json: bool


def serve_broker(asked: Asked) -> None:
    """Serve until a signal. Raises what opening the TEE, the port and the state raises."""
    from cloister.broker.clock import RisingClock
    from cloister.broker.configuration import broker_events
    from cloister.broker.custody import Custody
    from cloister.broker.desk import Desk
    from cloister.broker.keystores.placing import no_stores, read_stores
    from cloister.broker.limits import Buckets
    from cloister.broker.metrics import Metrics
    from cloister.broker.serving import attested_broker, seal_broker
    from cloister.broker.session import Sessions
    from cloister.broker.token import TokenSigner
    from cloister.channel.transport import wall_clock
    from cloister.cli.serving import guest_endorsements, open_tee, run_server, take_port

    genesis = None if asked.manifest is None else _genesis(asked.manifest)
    machine = open_tee(
        asked.simulated_tee,
        asked=asked.tee,
        pccs=asked.pccs,
        ca_file=asked.ca_file,
        endorsements=asked.endorsements,
        no_endorsements=asked.no_endorsements,
    )
    listener = take_port(asked.host, asked.port)
    tls_listener = None if asked.attested_tls_port is None else take_port(asked.host, asked.attested_tls_port)
    engine = _engine(asked)
    stores = no_stores() if asked.keystores is None else read_stores(asked.keystores)
    configuration, origin = _configuration(genesis)
    custody = Custody(
        engine,
        clock=RisingClock(wall_clock),
        origin=origin,
        stores=stores.stores,
        placed=stores.placed,
        witnesses=asked.witnesses,
    )
    attester = machine.launch(broker_events(configuration))
    _open(asked, custody, genesis, attester, engine)
    _shout(custody)
    guests = guest_endorsements(
        asked.simulated_tee,
        pccs=asked.pccs,
        ca_file=asked.ca_file,
        no_endorsements=asked.no_endorsements,
    )
    desk = Desk(
        custody,
        sessions=Sessions(),
        tokens=TokenSigner(build=version("cloister")),
        metrics=Metrics(),
        collateral=guests.evidence,
        device_collateral=guests.devices,
    )
    buckets = Buckets(rate=asked.rate, burst=asked.burst)
    gateway, keyring = seal_broker(desk, attester, replica=f"broker-{secrets.token_hex(4)}", buckets=buckets)
    try:
        with contextlib.ExitStack() as beside:
            if tls_listener is not None:
                app = attested_broker(desk, buckets=buckets)
                beside.enter_context(attested_tls(app, tls_listener, attester, as_json=asked.as_json))
            run_server(gateway, listener, name="broker", as_json=asked.as_json)
    finally:
        custody.close()
        keyring.close()


@contextlib.contextmanager
def attested_tls(app: Any, listener: socket.socket, attester: Attester, *, as_json: bool) -> Iterator[None]:
    """Serve ``app`` by attested TLS in a thread of its own, its certificate renewed, as long as the block runs."""
    import uvicorn

    from cloister.channel.ratls import AttestedTls

    tls = AttestedTls(attester)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            access_log=False,
            log_level="warning",
            lifespan="off",
            ws="none",
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=5,
            h11_max_incomplete_event_size=64 * 1024,
            ssl_context_factory=lambda _config, _default: tls.context,
        )
    )

    async def serve() -> None:
        renewing = asyncio.create_task(tls.keep_renewed())
        try:
            await server.serve(sockets=[listener])
        finally:
            renewing.cancel()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="attested-tls", daemon=True)
    thread.start()
    host, port = listener.getsockname()[:2]
    url = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    line = (
        json.dumps({"listening": url, "service": "broker, attested TLS"})
        if as_json
        else f"broker: attested TLS on {url}"
    )
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(10)


def _genesis(path: Path) -> tuple[Signed, Manifest]:
    from cloister.manifest.manifest import parse_manifest
    from cloister.manifest.storage import read_signed

    signed = read_signed(path)
    manifest = parse_manifest(signed.document)
    if manifest.version != 1:
        raise UsageError(
            f"{path} is version {manifest.version} of its manifest",
            todo="give version 1: it says whose broker this is, and the newer ones are in the state",
        )
    return signed, manifest


def _configuration(genesis: tuple[Signed, Manifest] | None) -> tuple[BrokerConfiguration, str | None]:
    from cloister.broker.configuration import BrokerConfiguration, owners_configuration
    from cloister.manifest.manifest import origin

    if genesis is None:
        return BrokerConfiguration(), None
    pinned = origin(genesis[1])
    return owners_configuration(pinned), pinned


def _engine(asked: Asked) -> sa.Engine:
    from cloister.broker import tables

    if (asked.state is None) == (asked.database is None):
        raise UsageError("say where the state is", todo="--state DIR or --database URL")
    if asked.database is not None:
        return tables.open_database(asked.database)
    assert asked.state is not None  # noqa: S101 -- one of both, above
    if not (asked.state / tables.DATABASE).exists():
        if asked.manifest is None and not asked.init:
            todo = "check --state; `cloister broker put … --init` makes one"
            raise UsageError(f"{asked.state} holds no broker's state", todo=todo)
        tables.make_directory(asked.state)
    tables.require_private(asked.state)
    return tables.open_database(tables.sqlite_url(asked.state))


def _open(
    asked: Asked,
    custody: Custody,
    genesis: tuple[Signed, Manifest] | None,
    attester: Attester,
    engine: sa.Engine,
) -> None:
    from cloister.broker.authority import newest_in
    from cloister.broker.custody import holds_state
    from cloister.broker.laptop import create_laptop_state
    from cloister.cli.passphrase import read_passphrase
    from cloister.manifest.manifest import origin

    if genesis is None:
        assert asked.passphrase_file is not None  # noqa: S101 -- the command checked that one of both is there
        passphrase = read_passphrase(asked.passphrase_file)
        if not holds_state(engine) and asked.init:
            create_laptop_state(engine, passphrase)
        custody.open_by_passphrase(passphrase)
    elif not holds_state(engine):
        custody.create(genesis[0])
    elif asked.peer is not None:
        custody.open_from_peer(_ask_peer(asked.peer, newest_in(engine, origin(genesis[1])), attester))


def _ask_peer(url: str, manifest: AcceptedManifest, attester: Attester) -> bytes:
    """The state's key from a running broker that meets what the manifest says of brokers."""
    from cloister.broker.client import BrokerKeys
    from cloister.broker.service import STATE_KEY_PATH

    refusal: AppraisalRefused | None = None
    for policy in manifest.broker_policies:
        try:
            with BrokerKeys(url, policy=policy, attester=attester) as keys:
                return keys.resource(f"kbs:///{STATE_KEY_PATH}")
        except AppraisalRefused as error:
            refusal = error
    raise refusal or UsageError("the manifest says nothing of brokers, so no peer can be believed")


def _shout(custody: Custody) -> None:
    """What this mode is not worth, in red, where an operator cannot overlook it."""
    from rich.console import Console

    from cloister.broker.status_words import LAPTOP, UNWITNESSED

    console = Console(stderr=True)
    if not custody.opened:
        console.print("locked: waiting for the owners' shares", style="bold", soft_wrap=True)
        return
    if custody.state.laptop:
        console.print(LAPTOP, style="bold white on red", soft_wrap=True)
    elif not custody.state.witnessing.threshold:
        console.print(UNWITNESSED, style="bold white on red", soft_wrap=True)
