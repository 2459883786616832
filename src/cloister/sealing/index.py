"""The signed index of a sealed directory: which files it has, which sealed body each of them is.

Refuses an index that nobody named has signed, that is not canonical, whose paths could lead outside a folder or
collide there, and a directory that holds anything but what its index says. Format: docs/spec/index.md.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from cloister.encoding import Record, decode_json, encode_json, labelled_hash
from cloister.errors import FormatError, IndexMismatch, TamperedFile, TruncatedFile, UsageError
from cloister.sealing.envelope import FILE_ID_SIZE, HEADER_SIZE, framed
from cloister.sealing.reseal_journal import JOURNAL_NAME, refuse_torn_headers
from cloister.sealing.segments import MAX_SIZE, Layout
from cloister.sealing.signing import PUBLIC_KEY_SIZE, SIGNATURE_SIZE, SigningKey, verify_signature

INDEX_NAME = "index.json"
SIGNATURE_NAME = "index.sig"
SUFFIX = ".sealed"
MAX_INDEX = 1 << 24
MAX_FILES = 50_000
MAX_PATH = 1024
MAX_COMPONENT = 255
FORMAT: Final = "cloister/index/v1"

_SIGNATURE_LABEL = "cloister/index-signature/v1"


class IndexEntry(Record, frozen=True, kw_only=True):
    """One sealed file: its id (32 bytes), plaintext size in bytes, and digest of its sealed body (32 bytes)."""

    id: bytes
    size: int
    digest: bytes

    @property
    def file_name(self) -> str:
        """Its name in the sealed directory."""
        return self.id.hex() + SUFFIX


class _Document(Record, frozen=True, kw_only=True):
    """``index.json``."""

    format: Literal["cloister/index/v1"] = FORMAT
    files: dict[str, IndexEntry]
    signer: bytes
    tree: bytes
    version: int


@dataclass(frozen=True, slots=True)
class Index:
    """An index whose signature was verified."""

    files: Mapping[str, IndexEntry]
    signer: bytes
    """The Ed25519 public key that signed it, 32 bytes."""
    tree: bytes
    """The same 32 bytes over all versions of one tree."""
    version: int
    digest: bytes
    """What is measured as the model index, 32 bytes."""

    @property
    def size(self) -> int:
        """Plaintext bytes of all files together."""
        return sum(entry.size for entry in self.files.values())

    def entry(self, path: str) -> IndexEntry:
        """The entry of ``path``. Raises :class:`~cloister.errors.IndexMismatch`."""
        try:
            return self.files[path]
        except KeyError:
            raise IndexMismatch(f"the index names no file {path!r}", todo="see index.json") from None


def sign_index(
    files: Mapping[str, IndexEntry], *, key: SigningKey, tree: bytes, version: int
) -> tuple[bytes, bytes]:
    """The bytes of ``index.json`` and ``index.sig``. Raises :class:`~cloister.errors.FormatError`."""
    document = _Document(files=dict(files), signer=key.public_key, tree=tree, version=version)
    _check(document)
    data = encode_json(document)
    if len(data) > MAX_INDEX:
        raise FormatError(f"an index of {len(data)} bytes is over its bound of {MAX_INDEX}")
    return data, key.sign(signed_message(_digest(data)))


def verify_index(data: bytes, signature: bytes, *, signers: Collection[bytes]) -> Index:
    """Verify ``index.json`` and ``index.sig``. ``signers`` are public keys of 32 bytes, at least one.

    Raises :class:`~cloister.errors.IndexMismatch`, :class:`~cloister.errors.FormatError` and, for an empty
    ``signers``, :class:`~cloister.errors.UsageError`.
    """
    document = decode_json(data, _Document, what=INDEX_NAME, limit=MAX_INDEX)
    digest = _digest(data)
    verify_signature(signed_message(digest), signature, document.signer, signers=signers, what=INDEX_NAME)
    _check(document)
    if encode_json(document) != data:
        raise FormatError(f"{INDEX_NAME} is not canonical JSON")
    return Index(
        files=document.files,
        signer=document.signer,
        tree=document.tree,
        version=document.version,
        digest=digest,
    )


def open_index(
    directory: Path, *, signers: Collection[bytes], minimum_version: int = 1, resealing: bool = False
) -> Index:
    """Verify the index of a sealed directory, and that the directory holds exactly the files it names.

    Beside them only the journal of a rotation (reseal.py) may lie there; headers must be whole nevertheless,
    unless ``resealing`` is about to finish it.
    Raises :class:`~cloister.errors.IndexMismatch` and as :func:`verify_index`; a sealed file of another length
    than its own raises :class:`~cloister.errors.TruncatedFile` or :class:`~cloister.errors.TamperedFile`.
    """
    if not directory.is_dir():
        raise UsageError(f"there is no sealed directory {directory}", todo="check the path")
    data = _read(directory / INDEX_NAME, MAX_INDEX)
    try:
        index = verify_index(data, _read(directory / SIGNATURE_NAME, SIGNATURE_SIZE), signers=signers)
    except IndexMismatch:
        # Index and signature are two files: between the two renames the new signature lies beside the directory.
        following = next_signature(directory)
        if not os.path.lexists(following):
            raise
        index = verify_index(data, _read(following, SIGNATURE_SIZE), signers=signers)
    if index.version < minimum_version:
        raise IndexMismatch(
            f"the index is version {index.version}, and at least {minimum_version} is asked for",
            todo="an old copy was put in place of the newest: get the newest from its owner",
        )
    _check_directory(directory, index)
    if not resealing:
        refuse_torn_headers(directory)
    return index


def claimed_signer(directory: Path) -> bytes:
    """The public key that a sealed directory's index says it is signed by. Anybody can say that.

    Raises as :func:`open_index`.
    """
    if not directory.is_dir():
        raise UsageError(f"there is no sealed directory {directory}", todo="check the path")
    return decode_json(
        _read(directory / INDEX_NAME, MAX_INDEX), _Document, what=INDEX_NAME, limit=MAX_INDEX
    ).signer


def next_signature(directory: Path) -> Path:
    """Where the signature of the next index lies while that takes the place of the present one."""
    place = Path(os.path.abspath(directory))  # noqa: PTH100 -- a link to a directory stays what it is
    return place.parent / f".{place.name}.{SIGNATURE_NAME}.next"


def check_path(path: str) -> None:
    """Raise :class:`~cloister.errors.FormatError` unless ``path`` may stand in an index (docs/spec/index.md)."""
    try:
        encoded = path.encode("utf-8")
    except UnicodeEncodeError:
        raise FormatError(f"the path {path!r} is not Unicode") from None
    shown = ascii(path[:80])
    if len(encoded) > MAX_PATH:
        raise FormatError(f"the path {shown}… is over {MAX_PATH} bytes")
    if unicodedata.normalize("NFC", path) != path:
        raise FormatError(f"the path {shown} is not in Unicode normal form C", todo="rename the file")
    if "\\" in path or any(unicodedata.category(char) == "Cc" for char in path):
        raise FormatError(
            f"the path {shown} holds a backslash or a control character", todo="rename the file"
        )
    for component in path.split("/"):
        if component in ("", ".", "..") or len(component.encode("utf-8")) > MAX_COMPONENT:
            raise FormatError(f"the path {shown} is not a plain relative path", todo="rename the file")


def _check(document: _Document) -> None:
    if not 1 <= len(document.files) <= MAX_FILES:
        raise FormatError(f"an index names 1 to {MAX_FILES} files, not {len(document.files)}")
    if len(document.signer) != PUBLIC_KEY_SIZE or len(document.tree) != 32 or document.version < 1:
        raise FormatError("an index has a signer and a tree of 32 bytes each and a version from 1 on")
    for path, entry in document.files.items():
        check_path(path)
        if len(entry.id) != FILE_ID_SIZE or len(entry.digest) != 32 or not 0 <= entry.size <= MAX_SIZE:
            raise FormatError(f"the entry of {path[:80]!a} has an id, digest or size that cannot be")
    if len({entry.id for entry in document.files.values()}) != len(document.files):
        raise FormatError("an index names a file id twice")
    _check_folders(document.files)


def _check_folders(paths: Iterable[str]) -> None:
    names = set(paths)
    for path in names:
        parent = path
        while "/" in parent:
            parent = parent.rpartition("/")[0]
            if parent in names:
                raise FormatError(f"the path {parent[:80]!a} is a file and a folder")


def _check_directory(directory: Path, index: Index) -> None:
    wanted = {entry.file_name: (path, entry) for path, entry in index.files.items()}
    allowed = {INDEX_NAME, SIGNATURE_NAME, JOURNAL_NAME, *wanted}
    with os.scandir(directory) as found:
        names = set()
        for item in found:
            if item.name not in allowed:
                raise IndexMismatch(
                    f"{directory} holds {item.name!a}, which its index does not name", todo="remove it"
                )
            if not item.is_file(follow_symlinks=False):
                raise IndexMismatch(f"{item.name} is not a regular file", todo="get it again from its owner")
            names.add(item.name)
            if item.name in wanted:
                path, entry = wanted[item.name]
                check_size(item.stat(follow_symlinks=False).st_size, entry, name=path)
    for name, (path, _) in wanted.items():
        if name not in names:
            raise IndexMismatch(f"{path} is missing ({name})", todo="get it again from its owner")


def check_size(size: int, entry: IndexEntry, *, name: str) -> None:
    """Raise unless a sealed file of ``size`` bytes can be ``entry``."""
    expected = HEADER_SIZE + Layout(entry.size).body_size
    if size < expected:
        raise TruncatedFile(
            f"{name} has {size} sealed bytes of {expected}", todo="get the whole file again from its owner"
        )
    if size > expected:
        raise TamperedFile(
            f"{name} has {size} sealed bytes where its index says {expected}",
            todo="get it again from its owner",
        )


def _read(path: Path, limit: int) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise IndexMismatch(
            f"{path.parent} has no {path.name}: it is not a sealed directory",
            todo="seal it with `cloister seal`",
        ) from None
    except OSError as error:
        raise IndexMismatch(f"cannot read {path}: {error.strerror}") from None
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise IndexMismatch(f"{path.name} is not a regular file")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise IndexMismatch(f"{path.name} is over its bound of {limit} bytes")
    return data


def _digest(data: bytes) -> bytes:
    return labelled_hash(FORMAT, data)


def signed_message(digest: bytes) -> bytes:
    """What the signer of an index with this digest signs."""
    return framed(_SIGNATURE_LABEL, digest)
