"""Files of owners: shares, signed documents, secrets to put. Shares are readable by their owner alone; nothing is
overwritten.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from cloister.encoding import decode_json, encode_json, parse_json
from cloister.errors import FormatError, UsageError

if TYPE_CHECKING:
    from cloister.broker.state_key import Share
    from cloister.manifest.signed import Signed

MAX_SHARE = 4096


def parse_path(uri: str) -> str:
    """``repository/type/tag`` of a URI from the command line. Raises :class:`UsageError`."""
    from cloister.broker.protocol import resource_path
    from cloister.sealing.uri import parse_key_uri

    try:
        return resource_path(parse_key_uri(uri))
    except FormatError as error:
        raise UsageError(error.what, todo=error.todo) from None


def read_raw(file: Path) -> bytes:
    """A file's bytes, at most 64 KiB. Raises :class:`UsageError`."""
    from cloister.broker.resources import MAX_RESOURCE

    return _read(file, MAX_RESOURCE)


def kind_of(signed: Signed) -> str:
    """``manifest``, ``rule`` or ``order``, as the document itself says. Raises :class:`UsageError`."""
    try:
        document = parse_json(signed.document, what="document")
    except FormatError as error:
        raise UsageError(error.what) from None
    name = document.get("format") if isinstance(document, dict) else None
    for kind in ("manifest", "rule", "order"):
        if name == f"cloister/{kind}/v1":
            return kind
    raise UsageError("this is no manifest, rule or order", todo="make one with `cloister manifest`")


def write_share(file: Path, share: Share) -> None:
    """A new 0600 file with a share, synced to disk. Raises :class:`UsageError` if it exists."""
    _write(file, encode_json(share), 0o600)


def read_share(file: Path) -> Share:
    """A share, out of a file that only its owner may read. Raises :class:`UsageError`."""
    from cloister.broker.state_key import Share
    from cloister.sealing.descriptors import read_private

    data = read_private(file, what="the share file", limit=MAX_SHARE)
    try:
        return decode_json(data, Share, what="share", limit=MAX_SHARE)
    except FormatError:
        raise UsageError(
            f"{file} is no share of a broker's state key",
            todo="give the file that `cloister owner share` made",
        ) from None


def _read(file: Path, limit: int) -> bytes:
    try:
        with file.open("rb") as source:
            content = source.read(limit + 1)
    except OSError as error:
        raise UsageError(f"cannot read {file} ({error.strerror})") from None
    if not 1 <= len(content) <= limit:
        raise UsageError(f"{file} must be 1 to {limit} bytes long")
    return content


def _write(file: Path, content: bytes, mode: int) -> None:
    draft = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        with os.fdopen(handle, "wb") as target:
            target.write(content)
            target.flush()
            os.fsync(target.fileno())
        os.link(draft, file)
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except FileExistsError:
        raise UsageError(f"{file} exists, and is not overwritten", todo="choose another name") from None
    except OSError as error:
        raise UsageError(f"cannot write {file} ({error.strerror})") from None
    finally:
        draft.unlink(missing_ok=True)
