"""Parquet through ``sealed://`` against the same plain file, in one run: seconds, ratio and memory.

Each way of reading has a process of its own; they take turns, so that drift of the machine falls on all of them, and the
median over the pairs is what counts. All files are in the page cache. "whole" compares a body with its signed digest before
the first byte is handed out, the first time that a process reads it; "again" is the same process reading once more;
"segments" leaves that pass out.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from benchmarks.report import Result
from benchmarks.sections import Options, about, of_rich
from cloister.sealing.access import Access
from cloister.sealing.directory import seal_directory
from cloister.sealing.filesystem import SealedFileSystem
from cloister.sealing.signing import SigningKey

WORDS = [
    "patient",
    "was",
    "seen",
    "with",
    "no",
    "acute",
    "distress",
    "and",
    "told",
    "to",
    "come",
    "back",
    "soon",
]
URI = "kbs:///bench/key/parquet"
KEK = bytes(32)
NAME = "rows.parquet"
WAYS = ("plain", "plain file object", "sealed whole", "sealed again", "sealed segments")
TASKS: dict[str, list[str] | None] = {"all columns": None, "2 of 16 columns": ["c3", "c9"]}


class Keys:
    """One key, no broker."""

    def key(self, _uri: str) -> bytes:
        return KEK


def numbers(rows: int) -> dict[str, Any]:
    """Random floats, stored as they are: reading them is hardly more than copying, so all that sealing costs shows."""
    draw = np.random.default_rng(5)
    return {f"c{n}": draw.standard_normal(rows) for n in range(16)}


def records(rows: int) -> dict[str, Any]:
    """What tables often hold: identifiers, times, categories, prices, short texts."""
    draw = np.random.default_rng(6)
    words = np.array(WORDS)
    texts = draw.choice(words, (50_000, 12))
    sentences = np.array([" ".join(row) for row in texts])
    columns: dict[str, Any] = {
        "c0": draw.integers(0, 1 << 40, rows),
        "c1": draw.integers(1_600_000_000, 1_900_000_000, rows).astype("datetime64[s]"),
        "c2": pa.array(draw.choice(sentences, rows)).cast(pa.string()),
        "c3": np.char.mod("ICD-%05d", draw.integers(0, 90_000, rows)),
    }
    columns |= {f"c{n}": draw.choice(words, rows) for n in range(4, 8)}
    columns |= {f"c{n}": np.round(draw.lognormal(3, 1, rows), 2) for n in range(8, 12)}
    return columns | {f"c{n}": draw.integers(0, 1000, rows, dtype=np.int32) for n in range(12, 16)}


KINDS = {"numbers": (numbers, False, 130), "records": (records, True, 60)}
"""Columns, whether they get dictionaries, and bytes of a row in the file."""


def make(place: Path, kind: str, megabytes: int) -> tuple[int, str]:
    """A Parquet file of about this size, and the sealed directory of it; the size and the signer."""
    columns, dictionaries, width = KINDS[kind]
    (place / "plain").mkdir(parents=True)
    pq.write_table(
        pa.table(columns(megabytes * 1_000_000 // width)),
        place / "plain" / NAME,
        use_dictionary=dictionaries,
        row_group_size=1 << 18,
    )
    key = SigningKey(bytes(32))
    seal_directory(place / "plain", place / "data.sealed", key_uri=URI, kek=KEK, signing_key=key)
    return (place / "plain" / NAME).stat().st_size, key.public_key.hex()


def child(way: str, place: Path, signer: str) -> None:
    """Reads what each line asks for, answers with seconds and the memory high-water mark."""
    filesystem: Any = SealedFileSystem
    verify = "segments" if way == "sealed segments" else "whole"

    def read(columns: list[str] | None) -> int:
        if way == "plain":
            return pq.read_table(place / "plain" / NAME, columns=columns).num_rows
        if way == "plain file object":
            with (place / "plain" / NAME).open("rb") as file:
                return pq.read_table(file, columns=columns).num_rows
        given = held if way == "sealed again" else Access(Keys(), frozenset([bytes.fromhex(signer)]))
        files = filesystem(access=given, verify=verify, skip_instance_cache=True)
        return pq.read_table(f"{place}/data.sealed/{NAME}", filesystem=files, columns=columns).num_rows

    held = Access(Keys(), frozenset([bytes.fromhex(signer)]))
    for line in sys.stdin:
        columns = json.loads(line)
        began, before = time.perf_counter(), time.process_time()
        rows = read(columns)
        took, spent = time.perf_counter() - began, time.process_time() - before
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": took, "cpu": spent, "rows": rows, "peak": peak}), flush=True)


def measure(place: Path, signer: str, rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """task → way → median seconds and peak bytes."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for task, columns in TASKS.items():
        running = {
            way: subprocess.Popen(
                [sys.executable, "-m", __name__, "--child", way, "--place", str(place), "--signer", signer],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for way in WAYS
        }
        samples: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(rounds + 1):
            for way, process in running.items():
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(json.dumps(columns) + "\n")
                process.stdin.flush()
                samples[way].append(json.loads(process.stdout.readline()))
        for process in running.values():
            process.communicate()
        found[task] = {
            way: {
                "seconds": statistics.median(sample["seconds"] for sample in taken[1:]),
                "cpu": statistics.median(sample["cpu"] for sample in taken[1:]),
                # Pair by pair: what else runs on the machine falls on both of a pair.
                "ratio": statistics.median(
                    sample["seconds"] / plain["seconds"]
                    for sample, plain in zip(taken[1:], samples["plain"][1:], strict=True)
                ),
                "peak": taken[-1]["peak"],
            }
            for way, taken in samples.items()
        }
    return found


def run(options: Options) -> Result:
    megabytes, rounds = (32, 2) if options.quick else (256, 7)
    table = Table("data", "task", "way", "s", "× plain", "CPU s", "MB/s of file", "peak MB")
    table.title = f"Parquet through sealed://, {rounds} rounds"
    found = {}
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            size, signer = make(Path(folder), kind, megabytes)
            figures = measure(Path(folder), signer, rounds)
        found[kind] = {"size": size, "tasks": figures}
        for task, ways in figures.items():
            for way, figure in ways.items():
                speed = f"{size / figure['seconds'] / 1e6:.0f}" if TASKS[task] is None else "–"
                table.add_row(
                    f"{kind}, {size / 1e6:.0f} MB",
                    task,
                    way,
                    f"{figure['seconds']:.3f}",
                    f"{figure['ratio']:.2f}",
                    f"{figure['cpu']:.3f}",
                    speed,
                    f"{figure['peak'] / 1e6:.0f}",
                )
    return Result(title="Parquet", text=about(__doc__), tables=(of_rich(table),), figures=found)


def main() -> None:
    """One way of reading, in this process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--child", choices=WAYS)
    parser.add_argument("--place", type=Path)
    parser.add_argument("--signer", default="")
    given = parser.parse_args()
    child(given.child, given.place, given.signer)


if __name__ == "__main__":
    main()
