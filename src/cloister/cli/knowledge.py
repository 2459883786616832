"""`cloister knowledge`: documents that a verified service answers from, and the rules of who may ask which.

Documents are sealed on this machine and read inside the TEE. Exit codes: 0 done, 2 usage, or something that the service
refuses, 3 and 5 as `cloister verify`, 4 the service does not answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloister.cli.service_options import (
    JsonOption,
    ManifestOption,
    PolicyOption,
    ServiceKeyOption,
    UrlArgument,
    key_headers,
)
from cloister.errors import UsageError

if TYPE_CHECKING:
    from cloister.client.documents import Documents
    from cloister.knowledge.rules import Rules

MAX_FILES = 100_000
app = typer.Typer(
    no_args_is_help=True, help="Documents that a verified service answers from, and who may ask which."
)

CollectionOption = Annotated[
    str, typer.Option("--collection", "-c", metavar="NAME", help="Which of the service's collections.")
]
RulesArgument = Annotated[
    Path, typer.Argument(metavar="RULES", help="The rules that are measured with the service.")
]


@app.command()
def add(
    url: UrlArgument,
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH…", help="Documents, and folders of such.", show_default=False),
    ],
    collection: CollectionOption,
    policy: PolicyOption = None,
    manifest: ManifestOption = None,
    service_key_file: ServiceKeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Seal documents to the verified service, which reads them. What is there already is not sent again."""
    from cloister.cli.knowledge_progress import Shown

    found = list(documents_at(paths))
    refused = 0
    with (
        _connected(url, policy, manifest, service_key_file) as documents,
        Shown(len(found), as_json=as_json) as shown,
    ):
        for name, path in found:
            with shown.one(name) as told:
                try:
                    added = documents.add(collection, name, path, told)
                except UsageError as error:
                    refused += 1
                    shown.refused(name, error.what)
                else:
                    shown.added(name, added)
    if refused:
        raise UsageError(f"{refused} of {len(found)} documents were refused", todo="each is named above")


@app.command("list")
def list_(
    url: UrlArgument,
    collection: Annotated[
        str | None,
        typer.Option("--collection", "-c", metavar="NAME", help="Its documents; without it the collections."),
    ] = None,
    policy: PolicyOption = None,
    manifest: ManifestOption = None,
    service_key_file: ServiceKeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """The collections that you may ask, or the documents of one."""
    with _connected(url, policy, manifest, service_key_file) as documents:
        rows = documents.collections() if collection is None else documents.documents(collection)
    if as_json:
        typer.echo(json.dumps(rows))
    else:
        _show(rows)


@app.command()
def remove(
    url: UrlArgument,
    names: Annotated[
        list[str], typer.Argument(metavar="NAME…", help="As `cloister knowledge list` tells them.")
    ],
    collection: CollectionOption,
    policy: PolicyOption = None,
    manifest: ManifestOption = None,
    service_key_file: ServiceKeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove documents with all that was made of them."""
    with _connected(url, policy, manifest, service_key_file) as documents:
        for name in names:
            copies = documents.remove(collection, name)
            if as_json:
                typer.echo(json.dumps({"removed": name, "copies": copies}))
            else:
                left = f"{copies} of the same content are left" if copies else "no other copy is left"
                typer.echo(f"{name}: removed; {left}")


@app.command()
def grant(
    rules: RulesArgument,
    user: Annotated[str, typer.Argument(metavar="USER")],
    key_file: Annotated[
        Path | None,
        typer.Option("--key-file", help="The user's new API key goes there (mode 0600); it must not exist."),
    ] = None,
    read: Annotated[
        list[str] | None, typer.Option("--read", metavar="COLLECTION", help="May ask it; repeatable.")
    ] = None,
    write: Annotated[
        list[str] | None,
        typer.Option(
            "--write", metavar="COLLECTION", help="May ask it, add and remove documents; repeatable."
        ),
    ] = None,
    index_key: Annotated[
        str | None, typer.Option("--index-key", metavar="URI", help="Where the broker has the index's key.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Let USER ask collections. RULES is made where there is none; a service has to be launched anew with it."""
    import hashlib
    import secrets

    from cloister.encoding import encode_json
    from cloister.knowledge.rules import USUAL_KEY, Rules, check_name, with_user
    from cloister.manifest.storage import write_whole

    there = rules.exists()
    before = _read(rules) if there else Rules(index_key=index_key or USUAL_KEY, users={}, collections={})
    if there and index_key not in (None, before.index_key):
        raise UsageError(
            "the index's key cannot be moved by this", todo="write other rules, for another index"
        )
    check_name(user, what="user")
    key = None if key_file is None else secrets.token_urlsafe(32)
    digest = None if key is None else hashlib.sha256(key.encode()).digest()
    after = with_user(before, user, digest, reads=frozenset(read or ()), writes=frozenset(write or ()))
    if key is not None and key_file is not None:
        write_whole(key_file, f"{key}\n".encode(), replace=False, mode=0o600)
    write_whole(rules, encode_json(after) + b"\n", replace=there)
    _told(after, rules, as_json=as_json)


@app.command()
def revoke(
    rules: RulesArgument,
    user: Annotated[str, typer.Argument(metavar="USER")],
    as_json: JsonOption = False,
) -> None:
    """Take USER out of RULES; a service has to be launched anew with it."""
    from cloister.encoding import encode_json
    from cloister.knowledge.rules import without_user
    from cloister.manifest.storage import write_whole

    after = without_user(_read(rules), user)
    write_whole(rules, encode_json(after) + b"\n", replace=True)
    _told(after, rules, as_json=as_json)


@app.command("rules")
def rules_(rules: RulesArgument, as_json: JsonOption = False) -> None:
    """Show who may ask what, and the digest that is measured."""
    _told(_read(rules), rules, as_json=as_json)


def documents_at(paths: list[Path]) -> Iterator[tuple[str, Path]]:
    """Name and place of each document: a file by its name, files of a folder by their paths in it, in order."""
    seen: dict[str, Path] = {}
    for path in paths:
        if path.is_dir():
            inside = sorted(one for one in path.rglob("*") if _own(one, path))
            named = [(one.relative_to(path).as_posix(), one) for one in inside]
        elif path.exists():
            named = [(path.name, path)]
        else:
            raise UsageError(f"there is no document {path}", todo="name files or folders")
        for name, place in named:
            if seen.setdefault(name, place) != place:
                raise UsageError(
                    f"{seen[name]} and {place} would both be {name}", todo="add them one after the other"
                )
            if len(seen) > MAX_FILES:
                raise UsageError(f"there are over {MAX_FILES} documents", todo="add fewer at once")
    if not seen:
        raise UsageError("there are no documents", todo="name files, or folders that hold some")
    return iter(seen.items())


def _own(one: Path, folder: Path) -> bool:
    """A file of the folder's own: hidden ones are left out, and links, which may lead to what nobody meant to show."""
    inside = one.relative_to(folder)
    ways = (one, *(folder / part for part in inside.parents))
    linked = any(way.is_symlink() for way in ways if way != folder)
    return one.is_file() and not linked and not any(part.startswith(".") for part in inside.parts)


@contextmanager
def _connected(
    url: str, policy: Path | None, manifest: Path | None, service_key_file: Path | None
) -> Iterator[Documents]:
    from cloister.channel.transport import connect
    from cloister.client.documents import Documents
    from cloister.workload.confinement import no_core_dumps

    no_core_dumps()  # what is sealed is in this memory: no image of it is written
    headers = key_headers(service_key_file)
    with connect(url, policy=policy, manifest=manifest) as client:
        yield Documents(client, headers)


def _read(path: Path) -> Rules:
    from cloister.knowledge.rules import MAX_RULES, read_rules
    from cloister.manifest.storage import read_bounded

    return read_rules(read_bounded(path, limit=MAX_RULES, what="the knowledge rules"), name=str(path))


def _told(rules: Rules, path: Path, *, as_json: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    if as_json:
        rights = {
            name: {"readers": list(one.readers), "writers": list(one.writers)}
            for name, one in rules.collections.items()
        }
        typer.echo(
            json.dumps({"digest": rules.digest.hex(), "users": sorted(rules.users), "collections": rights})
        )
        return
    table = Table(
        "collection", "may ask", "may also add and remove", title=f"{path}: {rules.digest.hex()[:16]}…"
    )
    for name, one in sorted(rules.collections.items()):
        table.add_row(name, ", ".join(one.readers) or "–", ", ".join(one.writers) or "–")
    Console().print(table)


def _show(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from cloister.client.api_answers import plain

    if not rows:
        typer.echo("none")
        return
    shown = [name for name in rows[0] if name != "digest"]
    table = Table(*shown)
    for row in rows:
        table.add_row(*(escape(plain(str(row.get(name, "")))) for name in shown))
    Console().print(table)
