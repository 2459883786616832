"""Which program is about to run: its command line, its executable, and the files that are measured with it.

A script is data to its interpreter, so every argument that names a file is measured as well; folders are measured where the
configuration names them. What is measured is copied once, and the copy is what the program gets: the disk may be the host's,
and what lies there can be another file a moment later. Refused: a program that is not there, files that are links or
devices, more than the bounds below.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.attester.launch import program_digest
from cloister.errors import AttesterError, UsageError
from cloister.sealing.descriptors import open_regular, read_into

MAX_ARGUMENTS: Final = 1024
MAX_ARGUMENT_BYTES: Final = 64 * 1024
MAX_MEASURED: Final = 64 << 20
"""Bytes of one measured file: these are scripts and settings; what is large is sealed."""
MAX_EXECUTABLE: Final = 1 << 30
"""Bytes of the executable; its copy lies in memory."""
_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class MeasuredProgram:
    """What will be executed, and the digests that stand for it."""

    argv: tuple[str, ...]
    """As it will be executed: the first is an absolute path."""
    executable: str
    """SHA-256 of the file behind ``argv[0]``, hexadecimal."""
    file: str
    """That file, without a link on the way: what is executed."""
    files: Mapping[str, str]
    """Absolute path → digest, hexadecimal: SHA-256 of a file; of a folder as :func:`program_digest`."""
    loose: str = ""
    """The folder that Python would import from first, if none of the measured folders holds it."""


def measure_program(
    argv: Sequence[str], *, files: Sequence[Path], directory: Path, search: str
) -> MeasuredProgram:
    """Find and digest. ``files`` are the configuration's own, ``directory`` is where the program will start, and
    ``search`` is a list of folders as in ``PATH``. Raises :class:`~cloister.errors.UsageError`."""
    if not argv:
        raise UsageError("no program was named", todo="cloister run [OPTIONS] -- PROGRAM ARGUMENTS")
    if len(argv) > MAX_ARGUMENTS or sum(map(len, argv)) > MAX_ARGUMENT_BYTES:
        raise UsageError("the command line is too long to be measured")
    program = _find(argv[0], directory=directory, search=search)
    measured: dict[str, str] = {}
    for path in files:
        measured[str(_absolute(path, directory))] = _digest(path, directory)
    for argument in argv[1:]:
        path = _absolute(Path(argument), directory)
        if str(path) in measured or _covered(path, measured):
            continue
        if _is_file(path):
            measured[str(path)] = file_digest(path)
        elif _is_file(path / "__main__.py"):  # `python FOLDER` runs it
            measured[str(path)] = _digest(path, directory)
    file = Path(os.path.realpath(program))
    return MeasuredProgram(
        argv=(str(program), *argv[1:]),
        executable=file_digest(file, limit=MAX_EXECUTABLE),
        file=str(file),
        files=measured,
        loose=_loose(argv[1:], measured, directory),
    )


def _loose(arguments: Sequence[str], measured: Mapping[str, str], directory: Path) -> str:
    """The script's own folder (or of ``-m`` and ``-c`` the one where the program starts), unless it is measured."""
    paths = (_absolute(Path(argument), directory) for argument in arguments)
    first = next((path.parent for path in paths if _is_file(path)), directory)
    return "" if _covered(first, measured) else str(first)


def file_digest(path: Path, *, limit: int = MAX_MEASURED) -> str:
    """SHA-256 of a plain file of at most ``limit`` bytes, hexadecimal. Raises UsageError."""
    hasher = hashlib.sha256()
    with open_regular(path, UsageError) as descriptor:
        _bounded(path, os.fstat(descriptor).st_size, limit)
        buffer, offset = bytearray(_CHUNK), 0
        while count := read_into(descriptor, memoryview(buffer), offset):
            hasher.update(memoryview(buffer)[:count])
            offset += count
            _bounded(path, offset, limit)
    return hasher.hexdigest()


def copy_measured(path: Path, digest: str, target: Path, *, limit: int = MAX_MEASURED) -> None:
    """Copy a measured file or folder to ``target``, and measure the copy. Raises UsageError if it is another by now.

    The copy can be read by everybody in the workload and written by nobody: of the modes only the right to execute stays.
    """
    try:
        if path.is_dir():
            shutil.copytree(path, target, ignore=shutil.ignore_patterns("__pycache__"))
            _plain_modes(target)
            found = program_digest(target).hex()
        else:
            with open_regular(path, UsageError) as source, target.open("xb") as file:
                _copy(source, file.fileno(), limit)
                os.fchmod(file.fileno(), _mode(os.fstat(source).st_mode))
            found = file_digest(target, limit=limit)
    except (OSError, AttesterError) as error:
        raise UsageError(f"{path} cannot be copied to where the program runs: {error}") from None
    if found != digest:
        raise UsageError(
            f"{path} changed after it was measured", todo="start again, so that it is measured anew"
        )


def _copy(source: int, target: int, limit: int) -> None:
    offset = 0
    # What grew over the bound meanwhile is cut off, and then is not what was measured.
    while offset <= limit and (part := os.pread(source, _CHUNK, offset)):
        offset += os.pwrite(target, part, offset)


def _mode(mode: int) -> int:
    return 0o555 if mode & 0o111 else 0o444


def _plain_modes(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        Path(root).chmod(0o755)
        for name in names:
            path = Path(root, name)
            path.chmod(_mode(path.stat().st_mode))


def _find(name: str, *, directory: Path, search: str) -> Path:
    # Not resolved: a virtual environment is found by the path that its interpreter was called by.
    found = _absolute(Path(name), directory) if "/" in name else None
    if found is None:
        where = shutil.which(name, path=search)
        found = None if where is None else Path(where)
    if found is None or not found.is_file():
        raise UsageError(f"there is no program {name!r}", todo="check the name, or give its path")
    if not os.access(found, os.X_OK):
        raise UsageError(f"{found} is not executable", todo="chmod +x, or name its interpreter")
    return found


def _absolute(path: Path, directory: Path) -> Path:
    return Path(os.path.normpath(directory / path))


def _digest(path: Path, directory: Path) -> str:
    path = _absolute(path, directory)
    if not path.exists():
        raise UsageError(f"there is no {path} to measure", todo="check [program] files")
    if path.is_dir():
        try:
            return program_digest(path).hex()
        except AttesterError as error:
            raise UsageError(error.what, todo="measure a folder of plain files") from None
    return file_digest(path)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # an argument that is no path at all, too long for one
        return False


def _covered(path: Path, measured: Mapping[str, str]) -> bool:
    return any(path.is_relative_to(folder) for folder in measured)


def _bounded(path: Path, size: int, limit: int) -> None:
    if size > limit:
        raise UsageError(
            f"{path} is over {limit} bytes, too long to be measured with the program",
            todo="seal it (`cloister seal`) and mount it",
        )
