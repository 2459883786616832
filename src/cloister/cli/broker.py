"""`cloister broker`: put keys, say who may have them, serve them to attested workloads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    from cloister.broker.store import Store

app = typer.Typer(no_args_is_help=True, help="The key broker: keys leave only by an owner's rule.")

UriArgument = Annotated[str, typer.Argument(help="kbs:///repository/type/tag", metavar="KBS_URI")]
StateOption = Annotated[Path, typer.Option("--state", help="The broker's state directory.")]
PassphraseOption = Annotated[
    Path,
    typer.Option("--passphrase-file", help="File with the state's passphrase; only its owner may read it."),
]
InitOption = Annotated[bool, typer.Option("--init", help="Make the state if there is none.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def put(
    uri: UriArgument,
    file: Annotated[
        Path, typer.Option("--file", help="A key file of `cloister keys new`, or with --raw any.")
    ],
    state: StateOption,
    passphrase_file: PassphraseOption,
    raw: Annotated[bool, typer.Option("--raw", help="Take the file's bytes as they are.")] = False,
    init: InitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Store a key or another secret. Works while a broker serves the same state."""
    from cloister.broker import administration
    from cloister.sealing.key_file import read_key

    path = administration.parse_path(uri)
    content = administration.read_raw(file) if raw else read_key(file)
    store = _open(state, passphrase_file, init)
    version = administration.put_resource(store, state, path, content)
    _say(as_json, f"{uri}: version {version} stored", {"uri": uri, "version": version})
    if not as_json and not any(row.uri == uri and row.rule for row in administration.listing(store)):
        typer.echo(f"next: cloister broker policy {uri} --file POLICY …; until then nobody may read it")


@app.command()
def policy(
    uri: UriArgument,
    file: Annotated[Path, typer.Option("--file", help="An appraisal policy (TOML).")],
    state: StateOption,
    passphrase_file: PassphraseOption,
    init: InitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Say who may have a resource: workloads that meet this policy, and nobody else."""
    from cloister.broker import administration

    path = administration.parse_path(uri)
    text, parsed = administration.read_rule(file)
    store = _open(state, passphrase_file, init)
    version = administration.put_rule(store, state, path, text, parsed)
    facts = {"uri": uri, "version": version, "policy": parsed.digest}
    _say(as_json, f"{uri}: rule version {version}, policy {parsed.digest}", facts)


@app.command("list")
def list_records(state: StateOption, passphrase_file: PassphraseOption, as_json: JsonOption = False) -> None:
    """What is stored, without contents."""
    from cloister.broker import administration

    rows = administration.listing(_open(state, passphrase_file, init=False))
    if as_json:
        typer.echo(json.dumps([{"uri": row.uri, "resource": row.resource, "rule": row.rule} for row in rows]))
        return
    for row in rows:
        resource = f"version {row.resource}" if row.resource else "no resource"
        rule = f"rule version {row.rule}" if row.rule else "no rule: nobody may read it"
        typer.echo(f"{row.uri}: {resource}, {rule}")
    if not rows:
        typer.echo("nothing is stored")


@app.command()
def audit(state: StateOption, as_json: JsonOption = False) -> None:
    """Check the audit log's chain and print its last value; keep that elsewhere."""
    from cloister.broker.audit import FILE, verify

    lines, last = verify(state / FILE)
    _say(as_json, f"{lines} lines, chain value {last}", {"lines": lines, "chain": last})


@app.command()
def serve(
    state: StateOption,
    passphrase_file: PassphraseOption,
    host: Annotated[str, typer.Option("--host")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535)] = 8090,
    simulated_tee: SimulatedOption = None,
    tee: TeeOption = "auto",
    pccs: PccsOption = None,
    ca_file: CaFileOption = None,
    endorsements: EndorsementsOption = None,
    no_endorsements: NoEndorsementsOption = False,
    init: InitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Serve keys to attested workloads, inside the sealed channel only."""
    from cloister.broker.app import create_broker
    from cloister.broker.audit import AuditLog
    from cloister.broker.configuration import broker_events
    from cloister.broker.serving import seal_broker
    from cloister.cli.serving import open_tee, run_server, take_port

    machine = open_tee(
        simulated_tee,
        asked=tee,
        pccs=pccs,
        ca_file=ca_file,
        endorsements=endorsements,
        no_endorsements=no_endorsements,
    )
    listener = take_port(host, port)
    store = _open(state, passphrase_file, init)
    attester = machine.launch(broker_events())
    gateway, keyring = seal_broker(create_broker(store, AuditLog(state)), attester)
    try:
        run_server(gateway, listener, name="broker", as_json=as_json)
    finally:
        keyring.close()


def _open(state: Path, passphrase_file: Path, init: bool) -> Store:
    from cloister.broker.keystores.local import read_passphrase
    from cloister.broker.store import DATABASE, Store

    passphrase = read_passphrase(passphrase_file)
    if (state / DATABASE).exists():
        return Store.open(state, passphrase)
    if not init:
        todo = "check --state; `cloister broker put … --init` makes one"
        raise UsageError(f"{state} holds no broker's state", todo=todo)
    return Store.create(state, passphrase)


def _say(as_json: bool, line: str, facts: dict[str, Any]) -> None:
    typer.echo(json.dumps(facts) if as_json else line)
