"""``cloister witness``: remember a broker's log for others, and co-sign what extends it (docs/spec/witness.md)."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.errors import FormatError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cloister.broker.witness import Memory

app = typer.Typer(
    no_args_is_help=True, help="Witness a broker's log: no restored copy and no fork goes unseen."
)

StateOption = Annotated[Path, typer.Option("--state", help="Where the witness keeps its memory. Guard it.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def serve(
    state: StateOption,
    key: Annotated[Path, typer.Option("--key", help="Key file of `cloister keys new --signing`.")],
    log: Annotated[
        list[str],
        typer.Option("--log", metavar="HEX", help="Log key of a broker (`cloister audit head`); repeat."),
    ],
    host: Annotated[str, typer.Option("--host")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535)] = 8095,
    as_json: JsonOption = False,
) -> None:
    """Serve the logs that are named, and no others. Answers are signed, so plain HTTP is enough."""
    from cloister.broker.witness_app import create_witness
    from cloister.broker.witness_memory import Witness, held
    from cloister.cli.serving import run_server, take_port
    from cloister.manifest.signers import Ed25519Signer
    from cloister.sealing.key_file import SIGNING_KIND, read_secret

    logs = _logs(log)
    signer = Ed25519Signer(read_secret(key, SIGNING_KIND))
    with held(state):
        witness = Witness(state, signer, logs)
        for name in witness.logs:
            # Aloud: a directory that was not mounted looks like a first contact, too.
            typer.echo(f"log {name}: {_standing(witness.memory(name))}", err=True)
        run_server(create_witness(witness), take_port(host, port), name="witness", as_json=as_json)


@app.command()
def show(state: StateOption, as_json: JsonOption = False) -> None:
    """What is remembered of each log."""
    from cloister.broker.witness_memory import remembered

    known = remembered(state)
    if as_json:
        typer.echo(json.dumps({log: _facts(memory) for log, memory in known.items()}))
        return
    for log, memory in known.items():
        typer.echo(f"log {log}: {_standing(memory)}")
        for one in memory.forgotten:
            typer.echo(
                f"  at {one.at} its owner went back from {one.from_size} entries with root "
                f"{one.from_root or 'any'} to {one.to_size} with root {one.to_root or 'any'}"
            )
    if not known:
        typer.echo("nothing was witnessed yet")


@app.command()
def forget(
    state: StateOption,
    log: Annotated[str, typer.Option("--log", metavar="HEX", help="The log's key.")],
    to_size: Annotated[
        int, typer.Option("--to-size", min=0, help="How many entries the restored state has.")
    ],
    root: Annotated[
        str | None,
        typer.Option("--root", metavar="HEX", help="Their root: nothing but this history is taken then."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """After a lawful restore: let the log go on from an older size. It is remembered that you did this.

    Without --root, this witness takes the next head it is shown as the truth: make sure that it is the restored one.
    """
    from cloister.broker.witness import forget as back_to
    from cloister.broker.witness_memory import held, read_memory, write_memory

    name = next(iter(_logs([log])))
    with held(state):
        memory = read_memory(state, name)
        if memory is None:
            raise UsageError("nothing is remembered of this log", todo="check --state and --log")
        try:
            after = back_to(memory, size=to_size, root=root or "", now=int(time.time()))
        except FormatError as error:
            raise UsageError(error.what, todo="it is the root of `cloister audit head`") from None
        if not yes and not typer.confirm(
            f"Forget {memory.size - to_size} entries that were witnessed?", err=True
        ):
            raise UsageError("nothing was forgotten")
        write_memory(state, name, after)
    facts = {"log": name, "from": memory.size, "to": to_size, "root": after.root}
    typer.echo(
        json.dumps(facts) if as_json else f"log {name}: {_standing(after)}; {memory.size} were seen before"
    )


def _standing(memory: Memory) -> str:
    if memory.size == 0:
        return "nothing co-signed yet: the next head is taken as it comes"
    if memory.newest is None:
        return f"its owner went back to {memory.size} entries, root {memory.root or 'any'}"
    return f"{memory.size} entries, root {memory.root}"


def _facts(memory: Memory) -> dict[str, object]:
    import msgspec

    return {
        "log_key": memory.log_key,
        "size": memory.size,
        "root": memory.root,
        "cosigned": memory.newest is not None,
        "forgotten": msgspec.to_builtins(memory.forgotten),
    }


def _logs(keys: Sequence[str]) -> dict[str, bytes]:
    from cloister.broker.tree_head import log_id
    from cloister.encoding import from_hex

    try:
        found = [from_hex(one, 32, what="a log key") for one in keys]
    except FormatError as error:
        raise UsageError(error.what, todo="it is the log_key of `cloister audit head --json`") from None
    return {log_id(one): one for one in found}
