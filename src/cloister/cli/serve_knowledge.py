"""Where `serve` has its keys from, and what keeps the documents that it answers from."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.errors import UsageError

if TYPE_CHECKING:
    from cloister.attester import Attester
    from cloister.cli.serve_options import AskedKnowledge
    from cloister.cli.serving import Tee
    from cloister.inference.rooms import OpenRoom
    from cloister.inference.token_count import Count
    from cloister.knowledge.opening import Elsewhere
    from cloister.sealing import KeySource

KnowledgeIndexOption = Annotated[
    Path | None,
    typer.Option(
        "--knowledge-index",
        metavar="DIR",
        help="Sealed tree that keeps the documents' index; made where there is none.",
    ),
]
KnowledgeServerOption = Annotated[
    str | None,
    typer.Option(
        "--knowledge-server",
        metavar="HOST:PORT",
        help="Where the server listens that the rules name, in place of an index.",
    ),
]


def check_knowledge(rules: Path | None, index: Path | None, server: str | None) -> None:
    """Raise :class:`UsageError` for documents that cannot be served here, before anything is opened."""
    from cloister.knowledge.opening import require_installed

    if (rules is None) != (index is None and server is None):
        raise UsageError(
            "--knowledge and --knowledge-index go together",
            todo="name the folder that keeps the documents' index, or with --knowledge-server who has them",
        )
    if index is not None and server is not None:
        raise UsageError(
            "--knowledge-index and --knowledge-server exclude each other",
            todo="name one that keeps the documents",
        )
    if rules is not None:
        require_installed()


def server_address(
    asked: AskedKnowledge | None, server: str | None, broker: str | None
) -> tuple[str, int] | None:
    """Where the server is that the rules name, if they name one. Raises :class:`UsageError`."""
    from cloister.cli.address import host_and_port

    named = asked is not None and asked.rules.server is not None
    if named and server is None:
        raise UsageError(
            "the rules name a server that keeps the documents",
            todo="say where it listens with --knowledge-server, and leave --knowledge-index out",
        )
    if server is None:
        return None
    if not named:
        raise UsageError(
            "the rules name no server", todo="pass --knowledge-index, or name the server in the rules"
        )
    if broker is None:
        raise UsageError(
            "who the server is, is known by its certificate of the owners' broker", todo="pass --broker"
        )
    return host_and_port(server, option="--knowledge-server", example="127.0.0.1:5432")


def sources(
    asked: AskedKnowledge | None,
    machine: Tee,
    attester: Attester,
    *,
    broker: str | None,
    broker_policy: Path | None,
    key_file: Path | None,
    index: Path | None,
    address: tuple[str, int] | None,
) -> tuple[KeySource | None, Path | Elsewhere | None]:
    """The source of keys, and what keeps the documents. Raises UsageError, and what verifying a broker raises."""
    from cloister.appraisal.policy import read_policy
    from cloister.broker.client import BrokerKeys
    from cloister.knowledge.opening import Elsewhere
    from cloister.sealing.key_file import KeyFile
    from cloister.workload.broker_session import open_session
    from cloister.workload.configuration import Identity

    if not (broker and broker_policy):
        return None if key_file is None else KeyFile.load(key_file), index
    policy = read_policy(broker_policy)
    server = None if asked is None else asked.rules.server
    if server is None or address is None:
        keys = BrokerKeys(broker, policy=policy, attester=attester, tee=machine.kind, devices=machine.devices)
        return keys, index
    session = open_session(broker, (policy,), attester, tee=machine.kind, devices=machine.devices)
    try:
        identity = session.identity(Identity(workload=server.own, application=server.application))
    except BaseException:
        session.close()
        raise
    return session.keys, Elsewhere(address, identity)


def room(
    asked: AskedKnowledge,
    documents: Path | Elsewhere,
    keys: KeySource | None,
    progress: Callable[[str, str], None],
) -> Callable[[Count, ExitStack], OpenRoom]:
    """Opens the room once the model can count tokens."""
    from cloister.knowledge.opening import open_room

    return lambda count, undo: open_room(
        asked.rules,
        encoder=asked.encoder,
        documents=documents,
        keys=keys,
        count=count,
        undo=undo,
        progress=progress,
    )
