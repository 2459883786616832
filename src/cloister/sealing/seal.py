"""Sealing whole directories: every file under one key, then a signed index, all or nothing.

Refuses links, special files and names that cannot stand in an index, and a source that changes meanwhile. With a stage
that is kept (resume.py) an interrupted run goes on where it stopped; a file that was sealed half is sealed anew, under
a new data key. With ``verify`` each sealed file is read back from the disk and opened before the index is signed.
Formats: docs/spec/sealed-file.md, docs/spec/index.md.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from cloister.errors import FormatError, UsageError
from cloister.sealing.check import check_files
from cloister.sealing.files import Entropy, seal_file
from cloister.sealing.index import (
    INDEX_NAME,
    SIGNATURE_NAME,
    Index,
    IndexEntry,
    check_path,
    sign_index,
    verify_index,
)
from cloister.sealing.key_file import KeyFile
from cloister.sealing.signing import SigningKey
from cloister.sealing.staging import staged_beside
from cloister.sealing.uri import parse_key_uri
from cloister.sealing.workers import Progress, Tally, share_out


class Stage(Protocol):
    """Where sealed files lie until all are there, and which of them are from an earlier run."""

    @property
    def folder(self) -> Path: ...

    @property
    def kept(self) -> Mapping[str, IndexEntry]: ...

    def record(self, path: str, status: os.stat_result, entry: IndexEntry) -> None:
        """``path``, whose source had ``status`` before and after, is sealed. Thread-safe."""
        ...


class _Fresh:
    """A stage that keeps nothing."""

    kept: Mapping[str, IndexEntry] = {}

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def record(self, path: str, status: os.stat_result, entry: IndexEntry) -> None:
        pass


Staging = Callable[[Path, Mapping[str, os.stat_result]], contextlib.AbstractContextManager[Stage]]
"""From the place to fill and what there is to seal to a stage, which becomes that place when its block ends well."""


@contextlib.contextmanager
def fresh_stage(out: Path, sources: Mapping[str, os.stat_result]) -> Iterator[Stage]:
    """A stage that an error or Ctrl-C removes."""
    del sources
    with staged_beside(out) as folder:
        yield _Fresh(folder)
        folder.chmod(0o755)


def seal_directory(
    source: Path,
    out: Path,
    *,
    key_uri: str,
    kek: bytes,
    signing_key: SigningKey,
    after: Index | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    staging: Staging = fresh_stage,
    verify: bool = False,
    verifying: Progress | None = None,
    entropy: Entropy = os.urandom,
) -> Index:
    """Seal every file below ``source`` into the new sealed directory ``out``, all or nothing.

    ``kek`` is the 32-byte key that the broker holds at ``key_uri``. ``after`` is the index that this one
    supersedes: it keeps the tree and counts the version on. ``workers`` defaults to the number of CPUs.
    ``progress`` counts what is sealed now, ``verifying`` what is read back.
    Raises :class:`~cloister.errors.UsageError`; with ``verify`` also the errors of sealing (errors.py).
    """
    with as_usage():
        uri = str(parse_key_uri(key_uri))
        sources = files_below(source)
    if out.resolve().is_relative_to(source.resolve()):
        raise UsageError(f"{out} lies inside {source}", todo="name a folder outside with --out")
    with staging(out, sources) as stage:
        entries = dict(stage.kept)
        sizes = {path: status.st_size for path, status in sources.items() if path not in entries}
        tally = Tally(sum(sizes.values()), progress)

        def seal(path: str, threads: int) -> None:
            beside = stage.folder / entropy(16).hex()
            plain = source / path
            try:
                entry = seal_file(
                    plain, beside, key_uri=uri, kek=kek, workers=threads, tally=tally, entropy=entropy
                )
                if not same_source(plain, sources[path]):
                    raise UsageError(
                        f"{plain} changed while the folder was sealed", todo="seal again when it is at rest"
                    )
                beside.rename(stage.folder / entry.file_name)
            except BaseException:
                beside.unlink(missing_ok=True)  # half a file helps nobody, and the disk may be full
                raise
            stage.record(path, sources[path], entry)
            entries[path] = entry

        share_out(sizes, seal, workers=workers)
        tally.add(0)  # only now all of it is on the disk
        if verify:
            check_files(
                stage.folder, entries, keys=KeyFile(kek, uri), workers=workers, progress=verifying, cold=True
            )
        tree = entropy(32) if after is None else after.tree
        version = 1 if after is None else after.version + 1
        with as_usage():
            data, signature = sign_index(entries, key=signing_key, tree=tree, version=version)
        write_new(stage.folder / INDEX_NAME, data)
        write_new(stage.folder / SIGNATURE_NAME, signature)
    return verify_index(data, signature, signers=[signing_key.public_key])


@contextlib.contextmanager
def as_usage() -> Iterator[None]:
    """What an index cannot name is, when sealing, a wrong argument and no hostile document."""
    try:
        yield
    except FormatError as error:
        raise UsageError(error.what, todo=error.todo) from None


def files_below(source: Path) -> dict[str, os.stat_result]:
    """Path → status of every file below ``source``, sorted; refuses what an index cannot name."""
    if not source.is_dir():
        raise UsageError(f"there is no directory {source}", todo="name the folder to seal")
    found: dict[str, os.stat_result] = {}
    for root, folders, names in os.walk(source, onerror=_raise):
        for name in sorted([*folders, *names]):
            path = Path(root, name)
            status = path.lstat()
            if stat.S_ISDIR(status.st_mode):
                continue
            if not stat.S_ISREG(status.st_mode):
                raise UsageError(
                    f"{path} is a link or a special file, and only plain files are sealed",
                    todo="copy the folder with `cp -rL` first",
                )
            relative = path.relative_to(source).as_posix()
            check_path(relative)
            found[relative] = status
    if not found:
        raise UsageError(f"{source} holds no file", todo="name the folder to seal")
    return dict(sorted(found.items()))


def same_source(path: Path, status: os.stat_result) -> bool:
    """Whether nothing tells that the file at ``path`` is another than it was, or has other contents."""
    try:
        now = path.lstat()
    except OSError:
        return False
    return fingerprint(now) == fingerprint(status)


def fingerprint(status: os.stat_result) -> tuple[int, int, int, int]:
    """Size, times of last change of contents and of anything (ns), inode: a file left alone keeps all four."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def write_new(path: Path, data: bytes) -> None:
    """A new file, synced. Raises :class:`~cloister.errors.UsageError`."""
    try:
        with path.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None


def _raise(error: OSError) -> None:
    raise UsageError(f"cannot read {error.filename}: {error.strerror}")
