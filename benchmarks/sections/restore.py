"""What opening a sealed directory into memory costs, in one run: beside a plain copy by as many workers.

One file of random bytes, in the page cache, plain and sealed. Each way of getting it into a private tmpfs is measured in a
process of its own, round by round, so that drift of the machine falls on all; ratios are to the plain copy of the same
round into the same kind of memory, and medians are shown. "restored whole" is
restore_directory; "opened, early" is restore_early, authenticated under the data key, and "confirmed" what Restored.confirm
takes after it to compare with the digest that the owner signed. "over size" is the memory that the process had at most,
with what lies in the tmpfs, less the file's size.

A virtual machine's host may take back memory that lies free (free page reporting does so within seconds), and touching it
again is then slow for whoever does. So each process first fills as much memory and gives it back; `--cold` leaves that out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.report import Result
from benchmarks.sections import Options, about, of_rich
from cloister.sealing.descriptors import read_into, write_all
from cloister.sealing.index import Index, open_index
from cloister.sealing.restore import restore_directory, restore_early, room_for
from cloister.sealing.seal import seal_directory
from cloister.sealing.signing import SigningKey
from cloister.sealing.workers import share
from cloister.workload.namespaces import private_mounts, private_tmpfs

URI = "kbs:///bench/key/restore"
KEK = hashlib.sha256(b"a key of this benchmark").digest()
OWNER = SigningKey(hashlib.sha256(b"an owner of this benchmark").digest())
BLOCK = 1 << 20
FILES = "build/bench"
NAME = "weights.bin"
WAYS = ("plain copy", "opened", "confirmed after", "whole")
MEMORY = {"small pages": "never", "large pages": "within_size"}


class Keys:
    """The one key."""

    def key(self, uri: str) -> bytes:
        return KEK


def prepare(place: Path, size: int) -> None:
    """The plain file and the sealed directory of this size, made once."""
    plain, sealed = place / "plain", place / "sealed"
    if (sealed / "index.sig").exists() and (plain / NAME).stat().st_size == size:
        return
    plain.mkdir(parents=True, exist_ok=True)
    with (plain / NAME).open("wb") as file:
        for _ in range(size // BLOCK):
            file.write(os.urandom(BLOCK))
        file.write(os.urandom(size % BLOCK))
    seal_directory(plain, sealed, key_uri=URI, kek=KEK, signing_key=OWNER)


def into_page_cache(*paths: Path) -> None:
    buffer = memoryview(bytearray(BLOCK))
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def copy(source: Path, target: Path, workers: int) -> None:
    """As plain as it gets with threads: each block read into a buffer that is used again, and written."""
    here, there = os.open(source, os.O_RDONLY), os.open(target, os.O_WRONLY | os.O_CREAT, 0o600)
    size = os.fstat(here).st_size

    def make_worker() -> Callable[[int], None]:
        buffer = memoryview(bytearray(BLOCK))

        def work(number: int) -> None:
            with buffer[: read_into(here, buffer, number * BLOCK)] as found:
                write_all(there, found, number * BLOCK)

        return work

    share(-(-size // BLOCK), make_worker, workers=workers)
    os.close(here)
    os.close(there)


def measure(place: Path, way: str, memory: str, *, workers: int, warm: bool) -> dict[str, float]:
    """One way, once: seconds, and bytes over the file's size at most. In a process of its own."""
    private_mounts()
    index: Index = open_index(place / "sealed", signers=[OWNER.public_key])
    target = place / "mounted"
    target.mkdir(exist_ok=True)
    private_tmpfs(
        str(target),
        size=room_for(index) + (64 << 20),
        uid=os.geteuid(),
        gid=os.getegid(),
        huge=MEMORY[memory],  # type: ignore[arg-type]
    )
    if warm:
        copy(place / "plain" / NAME, target / "warm", workers)
        (target / "warm").unlink()
    began = time.perf_counter()
    if way == "plain copy":
        copy(place / "plain" / NAME, target / NAME, workers)
    elif way == "whole":
        restore_directory(place / "sealed", index, Keys(), target, workers=workers)
    else:
        restored = restore_early(place / "sealed", index, Keys(), target, workers=workers)
        if way == "confirmed after":
            began = time.perf_counter()
        else:
            took = time.perf_counter() - began
        restored.confirm(workers=workers)
    if way != "opened":
        took = time.perf_counter() - began
    space = os.statvfs(target)
    held = (space.f_blocks - space.f_bfree) * space.f_frsize
    status = Path("/proc/self/status").read_text("ascii")
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    return {"seconds": took, "over": peak * 1024 + held - index.size}


def apart(place: Path, way: str, memory: str, *, workers: int, warm: bool) -> dict[str, float]:
    command = [sys.executable, "-m", __name__, "--place", str(place), "--way", way, "--memory", memory]
    command += ["--workers", str(workers), *([] if warm else ["--cold"])]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def compare(gigabytes: float, rounds: int, workers: int, *, cold: bool = False) -> dict[str, Any]:
    size = round(gigabytes * 1e9)
    place = Path(FILES) / f"restore-{size}"
    prepare(place, size)
    into_page_cache(place / "plain" / NAME, *(place / "sealed").iterdir())
    samples: dict[tuple[str, str], list[dict[str, float]]] = {}
    for number in range(rounds):
        ways = WAYS if number % 2 else WAYS[::-1]
        for memory in MEMORY:
            for way in ways:
                found = apart(place, way, memory, workers=workers, warm=not cold)
                samples.setdefault((memory, way), []).append(found)
    rows = []
    for (memory, way), found in sorted(
        samples.items(), key=lambda item: (item[0][0], WAYS.index(item[0][1]))
    ):
        plain = samples[memory, "plain copy"]
        ratios = [a["seconds"] / b["seconds"] for a, b in zip(plain, found, strict=True)]
        rows.append(
            {
                "memory": memory,
                "way": way,
                "gb_per_s": size / statistics.median(one["seconds"] for one in found) / 1e9,
                "best_gb_per_s": size / min(one["seconds"] for one in found) / 1e9,
                "of_plain_copy": statistics.median(ratios),
                "high_water_over_size_mb": max(one["over"] for one in found) / 1e6,
            }
        )
    return {
        "bytes": size,
        "workers": workers,
        "rounds": rounds,
        "cold": cold,
        "rows": rows,
    }


def shown(result: dict[str, Any]) -> Table:
    table = Table(
        title=f"{result['bytes'] / 1e9:g} GB into memory, {result['workers']} workers, {result['rounds']} rounds"
    )
    for column in ("memory", "way", "GB/s", "best", "of plain copy", "over size"):
        table.add_column(column, justify="left" if column in ("memory", "way") else "right")
    said = {
        "opened": "opened, early",
        "confirmed after": "… confirmed",
        "whole": "restored whole",
    }
    for row in result["rows"]:
        table.add_row(
            row["memory"],
            said.get(row["way"], row["way"]),
            f"{row['gb_per_s']:.2f}",
            f"{row['best_gb_per_s']:.2f}",
            f"{row['of_plain_copy']:.2f}",
            f"{row['high_water_over_size_mb']:.0f} MB",
        )
    return table


def run(options: Options) -> Result:
    found = compare(0.3 if options.quick else 1.0, options.rounds(3), 2)
    title = "A sealed directory, opened into memory"
    return Result(title=title, text=about(__doc__), tables=(of_rich(shown(found)),), figures=found)


def main() -> None:
    """One way, in this process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--place", type=Path)
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--memory", choices=MEMORY)
    options = parser.parse_args()
    found = measure(
        options.place, options.way, options.memory, workers=options.workers, warm=not options.cold
    )
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
