"""``cloister ls`` and ``cloister cat``: what a sealed directory, tree or file holds, and one of its files in the clear.

Of a sealed directory no key is needed to list it: its paths are in the clear. Whose they are only --signer tells, and
what was not compared with one is said to be so. Nothing is printed that could steer a terminal but a file's own content.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cloister.cli.sealed_options import (
    JsonOption,
    KeyFileIfAnyOption,
    KeyFileOption,
    KeyOption,
    SealedArgument,
    SignersOption,
    VersionOption,
)


def list_command(
    sealed: SealedArgument,
    signer: SignersOption = None,
    key_file: KeyFileIfAnyOption = None,
    key: KeyOption = None,
    minimum_version: VersionOption = 1,
    long: Annotated[bool, typer.Option("--long", "-l", help="Show ids and key URIs too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List what is sealed: sizes and paths. A sealed tree takes the key, as its names are sealed."""
    from cloister.cli.report_words import inert
    from cloister.cli.sealed_options import key_at_hand, kind_of, refuse_pointless

    kind = kind_of(sealed)
    refuse_pointless(kind, signer, minimum_version)
    if kind == "tree":
        from cloister.cli.sealed_tree import tree_facts

        facts, head = tree_facts(sealed, key_at_hand(key_file, key), minimum_version)
    elif kind == "file":
        facts, head = _file_facts(sealed)
    else:
        facts, head = _directory_facts(sealed, signer, minimum_version)
    if as_json:
        typer.echo(json.dumps({**facts, "signer_compared": bool(signer)} if kind == "directory" else facts))
        return
    files: dict[str, dict[str, Any]] = facts["files"]
    width = max((len(f"{file['size']:,}") for file in files.values()), default=1)
    for path, file in files.items():
        more = f"  {file['id'][:16]}  {file['key']}" if long and "id" in file else ""
        typer.echo(f"{file['size']:>{width},}{more}  {inert(path)}")
    typer.echo(head, err=True)


def cat_command(
    sealed: SealedArgument,
    path: Annotated[
        str | None, typer.Argument(help="The path in it; none for a sealed file.", metavar="[PATH]")
    ] = None,
    key_file: KeyFileOption = ...,  # type: ignore[assignment]  # Typer's way to say required
    signer: SignersOption = None,
    key: KeyOption = None,
    minimum_version: VersionOption = 1,
    range_: Annotated[
        str | None, typer.Option("--range", help="Bytes A to B, both counted, from 0.", metavar="A-B")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print an error as JSON.")] = False,
) -> None:
    """Write one file in the clear to standard output, each segment verified before it goes out."""
    del as_json  # the command line looks for it
    from cloister.cli.sealed_options import accepted_signers, key_at_hand, kind_of, refuse_pointless
    from cloister.errors import UsageError
    from cloister.sealing.index import open_index
    from cloister.sealing.stream import stream_file

    kind = kind_of(sealed)
    refuse_pointless(kind, signer, minimum_version)
    start, end = parse_range(range_)
    if (path is None) != (kind == "file"):
        raise UsageError(
            "one sealed file has no paths" if kind == "file" else "which of its files is not said",
            todo="leave PATH out" if kind == "file" else f"see `cloister ls {sealed}`",
        )
    keys = key_at_hand(key_file, key)
    out = sys.stdout.buffer
    if kind == "tree":
        from cloister.cli.sealed_tree import cat_from_tree

        cat_from_tree(
            sealed, str(path), keys, out.write, minimum_version=minimum_version, start=start, end=end
        )
    elif path is None:
        stream_file(sealed, out.write, keys, name=sealed.name, expected=None, start=start, end=end)
    else:
        index = open_index(sealed, signers=accepted_signers(signer), minimum_version=minimum_version)
        entry = index.entry(path)
        stream_file(
            sealed / entry.file_name, out.write, keys, name=path, expected=entry, start=start, end=end
        )
    out.flush()


def parse_range(text: str | None) -> tuple[int, int | None]:
    """Where a range starts, and where it ends (exclusive; None for the end of the file).

    Raises :class:`~cloister.errors.UsageError`.
    """
    from cloister.errors import UsageError

    if text is None:
        return 0, None
    first, dash, last = text.partition("-")
    numbers = [number for number in (first, last) if number]
    if not dash or not first or any(not n.isascii() or not n.isdigit() or len(n) > 16 for n in numbers):
        raise UsageError("--range is A-B, two byte numbers counted from 0", todo="give 0-99, or 100-")
    start, end = int(first), int(last) + 1 if last else None
    if end is not None and end <= start:
        raise UsageError("--range ends before it starts", todo="give 0-99, or 100-")
    return start, end


def _directory_facts(
    sealed: Path, signer: list[str] | None, minimum_version: int
) -> tuple[dict[str, Any], str]:
    from cloister.cli.sealed_options import accepted_signers, counted
    from cloister.sealing.files import read_header
    from cloister.sealing.index import claimed_signer, open_index

    signers = accepted_signers(signer) if signer else [claimed_signer(sealed)]
    index = open_index(sealed, signers=signers, minimum_version=minimum_version)
    # Not authentic before a key opened it; whoever changes it obtains a refusal.
    keys = {path: read_header(sealed / entry.file_name).key_uri for path, entry in index.files.items()}
    facts = {
        "kind": "directory",
        "version": index.version,
        "index_digest": index.digest.hex(),
        "signer": index.signer.hex(),
        "tree": index.tree.hex(),
        "bytes": index.size,
        "files": {
            path: {"size": entry.size, "id": entry.id.hex(), "digest": entry.digest.hex(), "key": keys[path]}
            for path, entry in sorted(index.files.items())
        },
    }
    said = "" if signer else " (compared with nobody: give --signer)"
    files = f"{counted(len(index.files))}, {index.size:,} bytes, version {index.version}"
    return facts, f"{files}, signed by {index.signer.hex()}{said}"


def _file_facts(sealed: Path) -> tuple[dict[str, Any], str]:
    from cloister.sealing.envelope import HEADER_SIZE
    from cloister.sealing.files import read_header
    from cloister.sealing.segments import layout_of_body

    header = read_header(sealed)
    size = layout_of_body(sealed.stat().st_size - HEADER_SIZE, name=sealed.name).size
    file = {"size": size, "id": header.file_id.hex(), "key": header.key_uri}
    return {"kind": "file", "files": {sealed.name: file}}, "1 sealed file, signed by nobody"
