"""What the commands on sealed files share: who may have signed, which key, and what a path holds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from cloister.sealing.key_file import KeyFile

Kind = Literal["directory", "tree", "file"]

SealedArgument = Annotated[
    Path, typer.Argument(help="A sealed directory, a sealed tree, or one sealed file.", metavar="SEALED")
]
SignersOption = Annotated[
    list[str] | None,
    typer.Option("--signer", help="Public key that may have signed, hexadecimal; repeatable."),
]
KeyFileOption = Annotated[Path, typer.Option("--key-file", help="Your copy of the key.")]
KeyFileIfAnyOption = Annotated[Path | None, typer.Option("--key-file", help="Your copy of the key.")]
KeyOption = Annotated[
    str | None, typer.Option("--key", help="Use the key file for this URI only.", metavar="URI")
]
VersionOption = Annotated[int, typer.Option(min=1, help="Refuse older versions of the tree.")]
WorkersOption = Annotated[int | None, typer.Option(min=1, max=64, help="Threads; one for each CPU.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")]


def kind_of(path: Path) -> Kind:
    """What lies at ``path``. Raises :class:`~cloister.errors.UsageError` if nothing does."""
    from cloister.errors import UsageError
    from cloister.sealing.index import INDEX_NAME
    from cloister.sealing.reseal import TREE_HEADER

    try:
        if path.is_dir():
            # What has an index is a directory, whatever else lies there; opening it refuses that.
            tree = os.path.lexists(path / TREE_HEADER) and not os.path.lexists(path / INDEX_NAME)
            return "tree" if tree else "directory"
        there = os.path.lexists(path)
    except (OSError, ValueError):
        there = False
    if not there:
        raise UsageError(f"there is no sealed directory {str(path)[:200]}", todo="check the path")
    return "file"


def refuse_pointless(kind: Kind, signer: list[str] | None, minimum_version: int) -> None:
    """Raise :class:`~cloister.errors.UsageError` for options that would be believed to have been looked at."""
    from cloister.errors import UsageError

    if kind != "directory" and signer:
        what = "tree" if kind == "tree" else "file on its own"
        raise UsageError(f"a sealed {what} is signed by nobody", todo="leave --signer out")
    if kind == "file" and minimum_version > 1:
        raise UsageError("a sealed file on its own has no version", todo="leave --minimum-version out")


def accepted_signers(texts: list[str] | None) -> list[bytes]:
    """The public keys that were named. Raises :class:`~cloister.errors.UsageError` for none, and for what is none."""
    from cloister.encoding import from_hex
    from cloister.errors import FormatError, UsageError

    if not texts:
        raise UsageError(
            "nobody is named who may have signed the index",
            todo="give --signer, the public key that `cloister keys show` prints",
        )
    try:
        return [from_hex(text, 32, what="--signer") for text in texts]
    except FormatError as error:
        raise UsageError(error.what, todo="copy it from `cloister keys show`") from None


def key_at_hand(key_file: Path | None, key: str | None) -> KeyFile:
    """The key file as a key source. Raises :class:`~cloister.errors.UsageError`."""
    from cloister.errors import FormatError, UsageError
    from cloister.sealing.key_file import KeyFile

    if key_file is None:
        raise UsageError("this takes the key", todo="give --key-file")
    try:
        return KeyFile.load(key_file, key)
    except FormatError as error:
        raise UsageError(error.what, todo=error.todo) from None


def counted(number: int, thing: str = "file") -> str:
    """``1 file``, ``2 files``."""
    return f"1 {thing}" if number == 1 else f"{number:,} {thing}s"
