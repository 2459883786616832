"""`cloister broker`: run a key broker. For laptop mode also put keys and say who may have them, on its own machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli.result_line import say
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
    import sqlalchemy as sa

    from cloister.broker.laptop import Laptop

app = typer.Typer(no_args_is_help=True, help="The key broker: keys leave only by an owner's rule.")

UriArgument = Annotated[str, typer.Argument(help="kbs:///repository/type/tag", metavar="KBS_URI")]
RepositoryArgument = Annotated[
    str, typer.Argument(metavar="REPOSITORY", help="The first part of the key's URI.")
]
StateOption = Annotated[Path, typer.Option("--state", help="The broker's state directory.")]
AnyStateOption = Annotated[
    Path | None, typer.Option("--state", help="The broker's state directory, with its SQLite database.")
]
DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database",
        metavar="URL",
        help="postgresql://user@host/name in place of --state; a password goes into PGPASSFILE.",
    ),
]
PassphraseOption = Annotated[
    Path,
    typer.Option("--passphrase-file", help="File with the state's passphrase; only its owner may read it."),
]
InitOption = Annotated[bool, typer.Option("--init", help="Make the state if there is none.")]
KeystoresOption = Annotated[
    Path | None, typer.Option("--keystores", help="TOML file that names key stores beside the embedded one.")
]
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
    keystores: KeystoresOption = None,
    as_json: JsonOption = False,
) -> None:
    """Laptop mode: store a key or another secret. Works while a broker serves the same state."""
    from cloister.cli.owner_files import parse_path, read_raw
    from cloister.sealing.key_file import read_key

    path = parse_path(uri)
    content = read_raw(file) if raw else read_key(file)
    laptop = _open(state, passphrase_file, init=init, keystores=keystores)
    done = laptop.put(path, content)
    say(as_json, f"{uri}: version {done.version} stored", {"uri": uri, "version": done.version})
    if not as_json and laptop.state.authority.rule(path) is None:
        typer.echo(f"next: cloister broker policy {uri} --file POLICY …; until then nobody may read it")


@app.command()
def policy(
    uri: UriArgument,
    file: Annotated[
        list[Path], typer.Option("--file", help="An appraisal policy (TOML); several are alternatives.")
    ],
    state: StateOption,
    passphrase_file: PassphraseOption,
    releases: Annotated[
        int | None, typer.Option("--releases", min=1, help="How often, at the most; without it unlimited.")
    ] = None,
    init: InitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Laptop mode: say who may have a resource: workloads that meet a policy, and nobody else."""
    from cloister.appraisal.policy import read_policy, read_policy_text
    from cloister.cli.owner_files import parse_path

    path = parse_path(uri)
    policies = [read_policy(one) for one in file]
    laptop = _open(state, passphrase_file, init=init)
    accepted = laptop.allow(path, tuple(read_policy_text(one) for one in file), releases=releases)
    digests = [one.digest for one in policies]
    facts = {"uri": uri, "version": accepted.rule.version, "policy": digests[0], "policies": digests}
    say(as_json, f"{uri}: rule version {accepted.rule.version}, policy {', '.join(digests)}", facts)


@app.command()
def destroy(
    uri: UriArgument, state: StateOption, passphrase_file: PassphraseOption, as_json: JsonOption = False
) -> None:
    """Laptop mode: shred a resource."""
    from cloister.cli.owner_files import parse_path

    done = _open(state, passphrase_file).destroy(parse_path(uri))
    say(as_json, f"{uri}: destroyed", {"uri": uri, "version": done.version})


@app.command("rotate-key")
def rotate_key(
    repository: RepositoryArgument,
    state: StateOption,
    passphrase_file: PassphraseOption,
    keystores: KeystoresOption = None,
    as_json: JsonOption = False,
) -> None:
    """Laptop mode: a new key-encryption key for a repository; data keys are wrapped anew, no data is touched."""
    done = _open(state, passphrase_file, keystores=keystores).rotate_key(repository)
    facts = {"repository": repository, "version": done.version, "rewrapped": done.rewrapped}
    say(as_json, f"{repository}: key version {done.version}, {done.rewrapped} data keys wrapped anew", facts)


@app.command("destroy-key")
def destroy_key(
    repository: RepositoryArgument,
    state: StateOption,
    passphrase_file: PassphraseOption,
    version: Annotated[int, typer.Option("--version", min=1, help="Which version to shred.")],
    keystores: KeystoresOption = None,
    as_json: JsonOption = False,
) -> None:
    """Laptop mode: shred one version of a repository's key-encryption key; what it alone wrapped is lost."""
    done = _open(state, passphrase_file, keystores=keystores).destroy_key(repository, version)
    facts = {"repository": repository, "version": done.version}
    say(as_json, f"{repository}: key version {done.version} destroyed", facts)


@app.command("list")
def list_records(state: StateOption, passphrase_file: PassphraseOption, as_json: JsonOption = False) -> None:
    """Laptop mode: what is stored, without contents."""
    rows = _open(state, passphrase_file).administration.listing()
    if as_json:
        typer.echo(json.dumps([{"uri": row.uri, "resource": row.resource, "rule": row.rule} for row in rows]))
        return
    for row in rows:
        resource = (
            "destroyed" if row.destroyed else f"version {row.resource}" if row.resource else "no resource"
        )
        rule = f"rule version {row.rule}" if row.rule else "no rule: nobody may read it"
        typer.echo(f"{row.uri}: {resource}, {rule}")
    if not rows:
        typer.echo("nothing is stored")


@app.command()
def audit(
    state: StateOption,
    passphrase_file: PassphraseOption,
    last: Annotated[
        int, typer.Option("--last", min=1, max=100_000, help="How many entries, the newest.")
    ] = 50,
    as_json: JsonOption = False,
) -> None:
    """Laptop mode: check the whole log and state against the signed head, and show the newest entries."""
    import msgspec

    from cloister.broker.journal import verified_entries
    from cloister.cli.audit import entry_line

    journal = _open(state, passphrase_file).state.journal
    start = max(0, journal.size - last)
    entries = verified_entries(journal.entries(start, journal.size), start)
    if as_json:
        facts = {
            "size": journal.size,
            "root": journal.root(journal.size).hex(),
            "log_key": journal.log_key.hex(),
        }
        typer.echo(json.dumps({**facts, "entries": msgspec.to_builtins(entries)}))
        return
    for entry in entries:
        typer.echo(entry_line(entry))
    typer.echo(f"{journal.size} entries, root {journal.root(journal.size).hex()}: log and state are whole")


@app.command()
def backup(
    out: Annotated[Path, typer.Option("--out", help="The file to make.")],
    state: AnyStateOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write all of a state to one file, while it is in use. Without the state's key it opens nothing."""
    from cloister.broker.backup import back_up

    rows = back_up(_engine(state, database), out)
    say(as_json, f"{out}: {rows} rows", {"file": str(out), "rows": rows})


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `cloister broker backup` wrote.")],
    state: AnyStateOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read a backup into an empty state. Witnesses that have seen a newer one will refuse it."""
    from cloister.broker import tables
    from cloister.broker.backup import restore as read_backup

    if state is not None and not (state / tables.DATABASE).exists():
        tables.make_directory(state)
    rows = read_backup(_engine(state, database), file)
    say(as_json, f"{file}: {rows} rows restored", {"file": str(file), "rows": rows})


@app.command()
def serve(
    state: AnyStateOption = None,
    database: DatabaseOption = None,
    passphrase_file: Annotated[
        Path | None,
        typer.Option(
            "--passphrase-file", help="Laptop mode: the passphrase, in a file only its owner may read."
        ),
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option("--manifest", help="Owners' mode: the signed first version of the manifest."),
    ] = None,
    witness: Annotated[
        list[str] | None,
        typer.Option("--witness", metavar="NAME=URL", help="Where a witness of the manifest is; repeat."),
    ] = None,
    peer: Annotated[
        str | None,
        typer.Option(
            "--peer", metavar="URL", help="Get the state's key from this broker on the same database."
        ),
    ] = None,
    keystores: KeystoresOption = None,
    host: Annotated[str, typer.Option("--host")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535)] = 8090,
    attested_tls_port: Annotated[
        int | None,
        typer.Option(
            "--attested-tls-port", min=0, max=65535, help="Also serve by attested TLS, for guests of others."
        ),
    ] = None,
    rate: Annotated[float, typer.Option("--rate", min=0.1, help="Requests a second and address.")] = 50.0,
    burst: Annotated[int, typer.Option("--burst", min=1, help="Requests at once from one address.")] = 200,
    simulated_tee: SimulatedOption = None,
    tee: TeeOption = "auto",
    pccs: PccsOption = None,
    ca_file: CaFileOption = None,
    endorsements: EndorsementsOption = None,
    no_endorsements: NoEndorsementsOption = False,
    init: InitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Serve keys to attested workloads, inside the sealed channel only.

    With --manifest its owners hold the state's key; with --passphrase-file whoever runs it does (laptop mode).
    """
    from cloister.cli.broker_serving import Asked, serve_broker

    if (passphrase_file is None) == (manifest is None):
        raise UsageError(
            "say who opens the state", todo="--manifest for its owners, or --passphrase-file for laptop mode"
        )
    serve_broker(
        Asked(
            state=state,
            database=database,
            passphrase_file=passphrase_file,
            manifest=manifest,
            witnesses=_addresses(witness or []),
            peer=peer,
            keystores=keystores,
            host=host,
            port=port,
            attested_tls_port=attested_tls_port,
            rate=rate,
            burst=burst,
            simulated_tee=simulated_tee,
            tee=tee,
            pccs=pccs,
            ca_file=ca_file,
            endorsements=endorsements,
            no_endorsements=no_endorsements,
            init=init,
            as_json=as_json,
        )
    )


def _addresses(given: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for one in given:
        name, separator, url = one.partition("=")
        if not separator or not name or not url.startswith(("http://", "https://")) or name in found:
            raise UsageError(
                f"{one[:80]!r} is no NAME=URL of a witness", todo="--witness acme=http://host:port"
            )
        found[name] = url
    return found


def _engine(state: Path | None, database: str | None) -> sa.Engine:
    from cloister.broker import tables

    if (state is None) == (database is None):
        raise UsageError("say where the state is", todo="--state DIR or --database URL")
    if database is not None:
        return tables.open_database(database)
    assert state is not None  # noqa: S101 -- one of both, above
    if not (state / tables.DATABASE).is_file():
        raise UsageError(f"{state} holds no broker's state", todo="check --state")
    tables.require_private(state)
    return tables.open_database(tables.sqlite_url(state))


def _open(state: Path, passphrase_file: Path, *, init: bool = False, keystores: Path | None = None) -> Laptop:
    from cloister.broker import tables
    from cloister.broker.keystores.placing import no_stores, read_stores
    from cloister.broker.laptop import Laptop
    from cloister.cli.passphrase import read_passphrase

    passphrase = read_passphrase(passphrase_file)
    if (state / tables.DATABASE).exists() or not init:
        if not (state / tables.DATABASE).exists():
            todo = "check --state; `cloister broker put … --init` makes one"
            raise UsageError(f"{state} holds no broker's state", todo=todo)
        stores = no_stores() if keystores is None else read_stores(keystores)
        return Laptop.open(state, passphrase, stores=stores.stores, placed=stores.placed)
    return Laptop.create(state, passphrase)
