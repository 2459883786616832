"""Sealing that goes on where it was interrupted: a stage beside the place to fill, which outlives the process.

The stage is called after the place, holds sealed files only, and a log of which source became which of them. The log is
signed by the owner line by line, so whoever holds the disk cannot lay one file under the name of another. Refuses a
stage that is not a private folder of this user, one of other keys or another source, one whose log was altered, and to
work in one where another process does. A file whose source changed, or that was sealed half, is sealed anew under a new
data key: no segment is ever sealed twice. Format: docs/spec/index.md, "A stage that is kept".
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from io import RawIOBase
from pathlib import Path
from typing import Final, Literal

from cloister.encoding import Record, decode_json, encode_json
from cloister.errors import CloisterError, UsageError
from cloister.sealing.envelope import HEADER_SIZE, framed
from cloister.sealing.index import INDEX_NAME, SIGNATURE_NAME, IndexEntry
from cloister.sealing.seal import Stage, fingerprint
from cloister.sealing.segments import Layout
from cloister.sealing.signing import SigningKey, verify_signature
from cloister.sealing.staging import refuse_occupied, sync_folder

FORMAT: Final = "cloister/seal-stage/v1"
_LABEL = FORMAT
_LOG = "sealed.log"
_FILES = "new"
_MAX_LINE = 1 << 14
_MAX_LOG = 1 << 26
_OURS = re.compile(
    r"[0-9a-f]{32}|[0-9a-f]{64}\.sealed|" + re.escape(INDEX_NAME) + "|" + re.escape(SIGNATURE_NAME)
)


class _Task(Record, frozen=True, kw_only=True):
    """The first line: what is sealed, and under what."""

    format: Literal["cloister/seal-stage/v1"] = FORMAT
    key: str
    key_fingerprint: str
    signer: bytes
    source: str


class _Sealed(Record, frozen=True, kw_only=True):
    """Each further line: this source, as it was, is this sealed file."""

    path: str
    source: str
    """Size, times and inode as decimal numbers: they do not fit a number of JSON."""
    id: bytes
    size: int
    digest: bytes
    signature: bytes


class Resumption:
    """A :data:`~cloister.sealing.seal.Staging` that keeps what is sealed when it is interrupted."""

    def __init__(
        self,
        *,
        source: Path,
        key_uri: str,
        key_fingerprint: str,
        signing_key: SigningKey,
        restart: bool = False,
        told: Callable[[int, int], None] | None = None,
    ) -> None:
        """``restart`` throws away what an earlier run left; ``told`` hears how many files and bytes are taken over."""
        self._task = _Task(
            key=key_uri,
            key_fingerprint=key_fingerprint,
            signer=signing_key.public_key,
            source=os.fspath(source.resolve()),
        )
        self._key = signing_key
        self._restart = restart
        self._told = told
        self.found: Mapping[str, IndexEntry] = {}
        """Path → entry of what an earlier run had sealed and this one takes over."""
        self.left = 0
        """Files that are sealed and kept in :attr:`place`, when the block ended in an error."""
        self.place: Path | None = None

    @contextlib.contextmanager
    def __call__(self, out: Path, sources: Mapping[str, os.stat_result]) -> Iterator[Stage]:
        refuse_occupied(out)
        self.place = place = stage_of(out)
        _make(place, restart=self._restart)
        with _locked_log(place, out) as log:
            stage = _KeptStage(place / _FILES, log, self._task, self._key)
            stage.take_over(sources)
            self.found = dict(stage.kept)
            if self.found and self._told is not None:
                self._told(len(self.found), sum(entry.size for entry in self.found.values()))
            try:
                yield stage
            except BaseException:
                self.left = len(stage.kept) + stage.recorded
                if not self.left:
                    shutil.rmtree(place, ignore_errors=True)
                raise
            _put_in_place(place / _FILES, out)
            shutil.rmtree(place, ignore_errors=True)


def stage_of(out: Path) -> Path:
    """Where an interrupted run that was to fill ``out`` keeps what it sealed: one place for each ``out``."""
    tag = hashlib.sha256(os.fsencode(out.name)).hexdigest()[:16]
    return out.parent / f".{out.name[:60]}.{tag}.sealing"


class _KeptStage:
    """The stage at work, its log locked."""

    def __init__(self, folder: Path, log: RawIOBase, task: _Task, key: SigningKey) -> None:
        self.folder = folder
        self.kept: dict[str, IndexEntry] = {}
        self.recorded = 0
        self._log = log
        self._task = task
        self._key = key
        self._writing = threading.Lock()
        self._task_digest = hashlib.sha256(encode_json(task)).digest()

    def record(self, path: str, status: os.stat_result, entry: IndexEntry) -> None:
        facts = {"path": path, "source": _text(status), "id": entry.id, "size": entry.size}
        unsigned = _Sealed(**facts, digest=entry.digest, signature=b"")  # type: ignore[arg-type]
        signature = self._key.sign(self._message(unsigned))
        signed = _Sealed(**facts, digest=entry.digest, signature=signature)  # type: ignore[arg-type]
        with self._writing:
            self._append(encode_json(signed))
            self.recorded += 1

    def take_over(self, sources: Mapping[str, os.stat_result]) -> None:
        """Read the log, keep what still is as it says, and remove the rest.

        Raises :class:`~cloister.errors.UsageError`.
        """
        self._log.seek(0)
        data = self._log.read(_MAX_LOG + 1)
        if len(data) > _MAX_LOG:
            raise self._altered()
        lines = data.split(b"\n")
        # A line without an end was being written when the process was killed.
        self._log.truncate(sum(len(line) + 1 for line in lines[:-1]))
        if len(lines) == 1:
            self._append(encode_json(self._task))
        else:
            self._check_task(lines[0])
        for line in lines[1:-1]:
            record = self._verified(line)
            self.kept.pop(record.path, None)
            entry = IndexEntry(id=record.id, size=record.size, digest=record.digest)
            status = sources.get(record.path)
            if status is not None and record.source == _text(status) and _is_whole(self.folder, entry):
                self.kept[record.path] = entry
        names = {entry.file_name for entry in self.kept.values()}
        for item in self.folder.iterdir():
            if item.name not in names:
                if not _OURS.fullmatch(item.name) or item.is_dir():
                    raise _not_ours(item)
                item.unlink()

    def _append(self, line: bytes) -> None:
        try:
            self._log.seek(0, os.SEEK_END)
            taken = self._log.write(line + b"\n")
        except OSError as error:
            raise UsageError(f"cannot write {self.folder.parent / _LOG}: {error.strerror}") from None
        if taken != len(line) + 1:
            raise UsageError(f"cannot write {self.folder.parent / _LOG}: the disk is full")

    def _check_task(self, line: bytes) -> None:
        try:
            found = decode_json(line, _Task, what=_LOG, limit=_MAX_LINE)
        except CloisterError:
            raise self._altered() from None
        if found != self._task:
            raise UsageError(
                f"{self.folder.parent} is left from sealing {found.source[:200]!a} under {found.key[:255]!a},"
                " which is another folder or another key",
                todo="give the same folder and keys, or --restart to throw it away",
            )

    def _verified(self, line: bytes) -> _Sealed:
        try:
            record = decode_json(line, _Sealed, what=_LOG, limit=_MAX_LINE)
            signer = self._key.public_key
            message = self._message(record)
            verify_signature(message, record.signature, signer, signers=[signer], what=_LOG)
        except CloisterError:
            raise self._altered() from None
        return record

    def _altered(self) -> UsageError:
        return UsageError(
            f"{self.folder.parent} is left from an interrupted run, and its log was altered",
            todo="throw it away with --restart",
        )

    def _message(self, record: _Sealed) -> bytes:
        facts = (record.path, record.source, str(record.size))
        return framed(
            _LABEL, self._task_digest, *(fact.encode("utf-8") for fact in facts), record.id, record.digest
        )


def _text(status: os.stat_result) -> str:
    return " ".join(str(number) for number in fingerprint(status))


def _is_whole(folder: Path, entry: IndexEntry) -> bool:
    try:
        status = (folder / entry.file_name).lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == HEADER_SIZE + Layout(entry.size).body_size


def _make(place: Path, *, restart: bool) -> None:
    """The stage, new or left by us. Its name can be foreseen, so what lies there may be anybody's."""
    try:
        if restart and os.path.lexists(place):
            _must_be_private(place)
            shutil.rmtree(place)
        for folder in (place, place / _FILES):
            try:
                folder.mkdir(mode=0o700)
            except FileExistsError:
                _must_be_private(folder)
    except OSError as error:
        raise UsageError(
            f"cannot create a folder in {place.parent}: {error.strerror}", todo="check --out"
        ) from None


def _must_be_private(folder: Path) -> None:
    status = folder.lstat()
    private = stat.S_ISDIR(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o700
    if not private or status.st_uid != os.geteuid():
        raise _not_ours(folder)


def _not_ours(path: Path) -> UsageError:
    return UsageError(
        f"{path} lies where an interrupted run is kept, and no run of yours left it",
        todo="look at it and remove it",
    )


@contextlib.contextmanager
def _locked_log(place: Path, out: Path) -> Iterator[RawIOBase]:
    path = place / _LOG
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(path, flags, 0o600)
    except OSError:
        raise _not_ours(path) from None
    with os.fdopen(
        descriptor, "r+b", buffering=0
    ) as log:  # what a full disk refused must not come again on close
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f"another `cloister seal` is at work on {out}", todo="wait for it") from None
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or status.st_uid != os.geteuid():
            raise _not_ours(path)
        yield log


def _put_in_place(folder: Path, out: Path) -> None:
    try:
        sync_folder(folder)
        folder.chmod(0o755)
        folder.rename(out)
        sync_folder(out.parent)
    except OSError as error:
        raise UsageError(f"cannot put {out} in place: {error.strerror}", todo="name a new folder") from None
