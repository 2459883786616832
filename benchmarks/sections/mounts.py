"""Mounts against each other in one run: a plain file, gocryptfs, a sealed directory (suite 1, read only)
and a sealed tree (suite 2), the same file and the same programs.

Each measurement begins with a new mount, so no plaintext of it is in the page cache; what lies below (ciphertext, or the
plain file itself) is. Sequential reads and writes are in pieces of 1 MiB, writes end with an fsync; random ones are of
4 KiB, spread over the whole file, writes with one fsync at the end. The first open of a sealed directory's file hashes all
of it: that is shown apart. The ways take turns; shown is the median of the rounds.
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.report import Result, Table
from benchmarks.sections import Options, about
from cloister.sealing.directory import seal_directory
from cloister.sealing.signing import SigningKey
from cloister.sealing.tree import create_tree
from cloister.workload.mount_client import MountProcess
from cloister.workload.mount_protocol import MountSpec

PIECE = 1 << 20
BLOCK = 4096
URI = "kbs:///bench/key/mounts"
KEK = secrets.token_bytes(32)
SIGNING = SigningKey(secrets.token_bytes(32))
MEASURES = {
    "read": "sequential read, GB/s",
    "write": "sequential write, GB/s",
    "random read": "random 4 KiB reads, /s",
    "random write": "random 4 KiB writes, /s",
    "first open": "first open, s",
}


def write_all(path: Path, size: int) -> float:
    piece = memoryview(os.urandom(PIECE))
    began = time.perf_counter()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for offset in range(0, size, PIECE):
        os.pwrite(descriptor, piece, offset)
    os.fsync(descriptor)
    os.close(descriptor)
    return size / (time.perf_counter() - began) / 1e9


def read_all(path: Path, size: int) -> float:
    buffer = bytearray(PIECE)
    descriptor = os.open(path, os.O_RDONLY)
    began, offset = time.perf_counter(), 0
    while count := os.preadv(descriptor, [buffer], offset):
        offset += count
    elapsed = time.perf_counter() - began
    os.close(descriptor)
    assert offset == size
    return size / elapsed / 1e9


def read_some(path: Path, size: int, count: int) -> float:
    draw, buffer = random.Random(1), bytearray(BLOCK)
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    began = time.perf_counter()
    for _ in range(count):
        os.preadv(descriptor, [buffer], draw.randrange(size // BLOCK) * BLOCK)
    elapsed = time.perf_counter() - began
    os.close(descriptor)
    return count / elapsed


def write_some(path: Path, size: int, count: int) -> float:
    draw, block = random.Random(2), os.urandom(BLOCK)
    descriptor = os.open(path, os.O_WRONLY)
    began = time.perf_counter()
    for _ in range(count):
        os.pwrite(descriptor, block, draw.randrange(size // BLOCK) * BLOCK)
    os.fsync(descriptor)
    elapsed = time.perf_counter() - began
    os.close(descriptor)
    return count / elapsed


class Plain:
    name = "plain file"
    writable = True

    def __init__(self, place: Path) -> None:
        self.folder = place / "plain"
        self.folder.mkdir()

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        yield self.folder


class Gocryptfs:
    name = "gocryptfs"
    writable = True

    def __init__(self, place: Path) -> None:
        self.folder, self.at = place / "gocryptfs", place / "gocryptfs-mount"
        self.folder.mkdir()
        self.at.mkdir()
        self.passphrase = place / "passphrase"
        self.passphrase.write_text("benchmark\n")
        # A weak passphrase hash: only mounting is slow with a strong one.
        self._run("-init", "-scryptn", "10", str(self.folder))

    def _run(self, *arguments: str) -> None:
        command = ["gocryptfs", "-q", "-nosyslog", "-passfile", str(self.passphrase), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        self._run(str(self.folder), str(self.at))
        try:
            yield self.at
        finally:
            subprocess.run(["umount", str(self.at)], check=True)


class Sealed:
    def __init__(self, place: Path, kind: str, source: Path) -> None:
        self.name = "sealed tree" if kind == "tree" else "sealed directory"
        self.writable = kind == "tree"
        self.at = place / f"{kind}-mount"
        self.at.mkdir()
        self.spec = MountSpec(
            source=str(source),
            mountpoint=str(self.at),
            kind=kind,  # type: ignore[arg-type]
            writable=self.writable,
            uid=os.getuid(),
            gid=os.getgid(),
            signers=(SIGNING.public_key.hex(),),
            keys={URI: KEK},
        )

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        mount = MountProcess.start(self.spec, record=lambda _: None)
        try:
            yield self.at
        finally:
            mount.stop()


def measure(way: Plain | Gocryptfs | Sealed, size: int, count: int) -> dict[str, float]:
    found = {}
    steps: dict[str, Callable[[Path], float]] = {
        "read": lambda path: read_all(path, size),
        "random read": lambda path: read_some(path, size, count),
    }
    if way.writable:
        steps = {
            "write": lambda path: write_all(path, size),
            **steps,
            "random write": lambda path: write_some(path, size, count),
        }
    for name, step in steps.items():
        with way.mounted() as folder:
            path = folder / "file"
            if name != "write":
                began = time.perf_counter()
                with path.open("rb"):
                    found["first open"] = time.perf_counter() - began
            found[name] = step(path)
    return found


def prepare(place: Path, size: int) -> list[Plain | Gocryptfs | Sealed]:
    source = place / "source"
    source.mkdir()
    write_all(source / "file", size)
    seal_directory(source, place / "directory", key_uri=URI, kek=KEK, signing_key=SIGNING)
    shutil.rmtree(source)
    create_tree(place / "tree", key_uri=URI, kek=KEK)
    ways: list[Plain | Gocryptfs | Sealed] = [Plain(place)]
    if shutil.which("gocryptfs"):
        ways.append(Gocryptfs(place))
    else:
        print("gocryptfs is not installed: nothing to compare with", file=sys.stderr)
    return [*ways, Sealed(place, "directory", place / "directory"), Sealed(place, "tree", place / "tree")]


def run(options: Options) -> Result:
    megabytes, count, turns = (128, 500, 1) if options.quick else (1024, 4000, 3)
    size = megabytes * PIECE
    with tempfile.TemporaryDirectory() as folder:
        ways = prepare(Path(folder), size)
        rounds: dict[str, list[dict[str, float]]] = {way.name: [] for way in ways}
        for _ in range(turns):
            for way in ways:
                rounds[way.name].append(measure(way, size, count))
    medians = {
        name: {measure: statistics.median(one[measure] for one in found) for measure in found[0]}
        for name, found in rounds.items()
    }
    base = medians.get("gocryptfs", {})
    rows = []
    for key, label in MEASURES.items():
        row = [label]
        for name, found in medians.items():
            value, other = found.get(key), base.get(key)
            text = "–" if value is None else f"{value:.3g}" if value < 100 else f"{value:,.0f}"
            if value and other and name != "gocryptfs" and key != "first open":
                text += f" ({value / other:.2f} ×)"
            row.append(text)
        rows.append(tuple(row))
    table = Table(
        f"{megabytes} MiB, {count} random operations, median of {turns}",
        ("", *medians),
        tuple(rows),
        "In brackets: times gocryptfs." if base else "gocryptfs is not installed: nothing to compare with.",
    )
    return Result(title="Mounts", text=about(__doc__), tables=(table,), figures=medians)
