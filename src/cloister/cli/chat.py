"""`cloister chat URL`: a conversation in the terminal with a service that was verified. Nothing of it is written anywhere.

What is asked comes from the terminal or, once, from standard input: never from the command line, which all of this machine
can read. Exit codes: 0 done, 2 usage or a refused key, 3 and 5 as `cloister verify`, 4 the service does not answer.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console

from cloister.cli.service_options import (
    ManifestOption,
    PolicyOption,
    ServiceKeyOption,
    UrlArgument,
    key_headers,
)
from cloister.errors import CloisterError, UsageError

if TYPE_CHECKING:
    from cloister.channel.transport import SealedClient
    from cloister.client.conversation import Conversation

MAX_QUESTION: Final = 4 << 20
"""Bytes."""
_HELP: Final = "/new begins anew · /verify says who answers · /quit or Ctrl-D ends · Ctrl-C stops an answer"


def command(
    url: UrlArgument,
    policy: PolicyOption = None,
    manifest: ManifestOption = None,
    service_key_file: ServiceKeyOption = None,
    model: Annotated[
        str, typer.Option("--model", help="By default the first; knowledge/COLLECTION for documents.")
    ] = "",
    system: Annotated[
        Path | None, typer.Option("--system", metavar="FILE", help="What the model is told first.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1, help="Of one answer.")] = None,
    receipts: Annotated[
        Path | None,
        typer.Option(
            "--receipts", metavar="DIR", help="Keep each answer's signed receipt there; no text of it."
        ),
    ] = None,
    web: Annotated[
        bool,
        typer.Option("--web", help="A page in the browser instead, served on this machine to you alone."),
    ] = False,
    host: Annotated[
        str, typer.Option("--host", help="Of the page: an address of this machine itself.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Of the page; 0 takes a free one.")
    ] = 8789,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the page's address.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One question from standard input, one JSON object.")
    ] = False,
) -> None:
    """Talk to a verified service in the terminal; with standard input redirected, ask it one question."""
    from cloister.channel.transport import connect
    from cloister.cli.receipt import receipt_keeper
    from cloister.client.conversation import Conversation
    from cloister.workload.confinement import no_core_dumps

    if web:
        if model or system or receipts or max_tokens is not None:
            raise UsageError(
                "--web excludes --model, --system, --receipts and --max-tokens", todo="the page has its own"
            )
        from cloister.cli.api_key_file import read_api_key
        from cloister.cli.chat_web import serve_page

        serve_page(
            url,
            policy=policy,
            manifest=manifest,
            service_key=read_api_key(service_key_file) if service_key_file else None,
            host=host,
            port=port,
            open_browser=not no_browser,
            as_json=as_json,
        )
        return
    no_core_dumps()  # what is said is in this memory: no image of it is written
    headers = key_headers(service_key_file)
    told = _read(system) if system else ""
    keep = None if receipts is None else receipt_keeper(receipts)
    with connect(url, policy=policy, manifest=manifest, receipts=keep) as client:
        talk = Conversation(client, model=model, system=told, headers=headers, max_tokens=max_tokens)
        if as_json or not sys.stdin.isatty():
            _once(talk, as_json=as_json)
        else:
            _converse(talk, client)


def _once(talk: Conversation, *, as_json: bool) -> None:
    """The question is all of standard input."""
    data = sys.stdin.buffer.read(MAX_QUESTION + 1)
    try:
        question = data.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise UsageError("the question is not UTF-8 text") from None
    if not question or len(data) > MAX_QUESTION:
        raise UsageError(
            f"the question is empty, or over {MAX_QUESTION} bytes", todo="pass it by standard input"
        )
    if as_json:
        answer = "".join(talk.ask(question))
        sources = {"sources": [asdict(one) for one in talk.sources]} if talk.sources else {}
        typer.echo(json.dumps({"model": talk.model, "answer": answer, **sources}))
    else:
        _show(talk.ask(question))
        _show_sources(talk)


def _converse(talk: Conversation, client: SealedClient) -> None:
    import readline  # gives input() a line editor; its history stays in memory

    from cloister.client.api_answers import plain

    console = Console(stderr=True)
    _verified(console, client)
    console.print(f"{plain(talk.model)} · {_HELP}", style="dim", markup=False, soft_wrap=True)
    while True:
        try:
            question = input("\n> ").strip()
        except UnicodeDecodeError:
            console.print("this was no UTF-8 text", style="red")
            continue
        except (EOFError, KeyboardInterrupt):
            typer.echo()
            return
        if question == "/quit":
            return
        if question == "/new":
            talk.begin_anew()
            readline.clear_history()
        elif question == "/verify":
            _verify_again(console, client)
        elif question.startswith("/"):
            console.print(_HELP, style="dim", markup=False)
        elif question:
            _answer(talk, question, console)


def _verify_again(console: Console, client: SealedClient) -> None:
    """Ends the conversation where the service is not who it was; that it does not answer may pass."""
    from cloister.errors import NetworkError

    try:
        client.verify()
    except NetworkError as error:
        console.print(str(error), style="red", markup=False, soft_wrap=True)
    else:
        _verified(console, client)


def _answer(talk: Conversation, question: str, console: Console) -> None:
    answer = talk.ask(question)
    try:
        _show(answer)
        _show_sources(talk)
    except KeyboardInterrupt:
        answer.close()  # what came counts as said
        typer.echo()
    except CloisterError as error:
        console.print(f"\n{error}", style="red", markup=False, soft_wrap=True)


def _show(answer: Iterator[str]) -> None:
    from cloister.client.api_answers import plain

    for piece in answer:
        sys.stdout.write(plain(piece))
        sys.stdout.flush()
    sys.stdout.write("\n")


def _show_sources(talk: Conversation) -> None:
    from cloister.client.api_answers import plain

    for one in talk.sources:
        typer.echo(plain(str(one)), err=True)


def _verified(console: Console, client: SealedClient) -> None:
    from cloister.client.proxy import in_words

    result = client.attestation
    if result is not None:
        style = "bold white on red" if result.claims.simulated else "bold"
        console.print(in_words(result.claims, result.expires), style=style, markup=False, soft_wrap=True)


def _read(path: Path) -> str:
    from cloister.manifest.storage import read_bounded

    try:
        return read_bounded(path, limit=MAX_QUESTION, what="what the model is told").decode("utf-8").strip()
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text", todo="check --system") from None
