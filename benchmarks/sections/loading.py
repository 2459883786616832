"""How long until a model gives its first token, in one run: sealed, beside the plain file in the page cache.

A GGUF of LLaMA shape with random weights. Each start is a process of its own, round by round, so that drift of the machine
falls on all. Plain: the engine maps the file itself. Sealed, as `cloister serve` does it: the directory's index is
verified, the model opened into memory, and while the engine loads it another process compares it with the digest that
its owner signed; the first token waits for that. "digest first": the engine sees it only then. Counted from the start of
the process to the first chunk with text; "loading" leaves out what Python takes to start and import. The same engine
settings, and the key at hand in all: what a broker and a quote take is measured elsewhere. Medians, also of the ratios.
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
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.report import Aim, Result
from benchmarks.sections import Options, about, of_rich
from cloister.inference.engines import EngineSettings
from cloister.inference.engines.llamacpp import LlamaCppEngine
from cloister.inference.model import find_model
from cloister.inference.model_files import ModelFiles
from cloister.sealing.directory import unseal_to_memory
from cloister.sealing.index import open_index
from cloister.sealing.seal import seal_directory
from cloister.sealing.signing import SigningKey

URI = "kbs:///bench/key/model"
KEK = hashlib.sha256(b"a key of this benchmark").digest()
OWNER = SigningKey(hashlib.sha256(b"an owner of this benchmark").digest())
FILES = "build/bench"
NAME = "model.gguf"
LAYER_BYTES = 24_800_000
"""Of the 1.1 B shape in Q4_0: 44 million weights of 18 bytes for 32."""
OUTER_BYTES = 74_000_000
"""Embeddings and output."""
WAYS = ("plain", "digest first", "sealed")


class Keys:
    """The one key."""

    def key(self, uri: str) -> bytes:
        return KEK


def prepare(place: Path, size: int) -> None:
    """The model and its sealed directory, made once."""
    plain, sealed = place / "plain", place / "sealed"
    if (sealed / "index.sig").exists():
        return
    from benchmarks.random_models import SHAPES, write_gguf  # noqa: PLC0415 -- its libraries are for making it only

    plain.mkdir(parents=True, exist_ok=True)
    layers = max(1, round((size - OUTER_BYTES) / LAYER_BYTES))
    write_gguf(replace(SHAPES["llama-1b"], layers=layers), plain / NAME)
    seal_directory(plain, sealed, key_uri=URI, kek=KEK, signing_key=OWNER)


def into_page_cache(*paths: Path) -> None:
    buffer = memoryview(bytearray(1 << 20))
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def start(place: Path, way: str, threads: int) -> dict[str, float]:
    """One start, in this process: when loading began and when the first text was there, on the system's clock."""
    began = time.monotonic()
    confirm: Callable[[], None] = _nothing
    if way == "plain":
        model = ModelFiles.of_path(place / "plain" / NAME)
    elif way == "sealed":
        served = find_model(place / "sealed", signers=[OWNER.public_key]).open(Keys())
        model, confirm = served.files, served.confirm
    else:
        index = open_index(place / "sealed", signers=[OWNER.public_key])
        model = ModelFiles("gguf", {NAME: unseal_to_memory(place / "sealed", index, NAME, Keys(), huge=True)})
    opened = time.monotonic()
    with model:
        engine = LlamaCppEngine.open(model, EngineSettings(context_length=256, slots=1, threads=threads))
    confirm()
    first = 0.0

    def sink(chunk: Mapping[str, Any]) -> bool:
        nonlocal first
        if chunk.get("choices") and not first:
            first = time.monotonic()
        return bool(first)

    engine.generate("text", {"prompt": "What is asthma?", "max_tokens": 4, "temperature": 0}, sink)
    status = Path("/proc/self/status").read_text("ascii")
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    engine.close()
    return {"began": began, "opened": opened, "first": first, "peak": peak * 1024}


def _nothing() -> None:
    """There is nothing to confirm."""


def apart(place: Path, way: str, threads: int) -> dict[str, float]:
    launched = time.monotonic()
    command = [sys.executable, "-m", __name__, "--place", str(place), "--way", way, "--threads", str(threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    return {
        "whole": found["first"] - launched,
        "loading": found["first"] - found["began"],
        "opening": found["opened"] - found["began"],
        "peak": found["peak"],
    }


def measure(size: float, rounds: int, threads: int) -> dict[str, Any]:
    place = Path(FILES) / f"loading-{size:g}"
    prepare(place, round(size * 1e9))
    plain = place / "plain" / NAME
    into_page_cache(plain, *(place / "sealed").iterdir())
    samples: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for number in range(rounds + 1):
        for way in WAYS if number % 2 else WAYS[::-1]:
            found = apart(place, way, threads)
            if number:  # the first round warms up
                samples[way].append(found)
    rows = []
    for way, starts in samples.items():
        rows.append(
            {
                "way": way,
                "first_token_s": statistics.median(one["whole"] for one in starts),
                "of_plain": _ratio(starts, samples["plain"], "whole"),
                "loading_s": statistics.median(one["loading"] for one in starts),
                "loading_of_plain": _ratio(starts, samples["plain"], "loading"),
                "opening_s": statistics.median(one["opening"] for one in starts),
                "process_high_water_mb": max(one["peak"] for one in starts) / 1e6,
            }
        )
    return {"bytes": plain.stat().st_size, "rounds": rounds, "threads": threads, "rows": rows}


def _ratio(found: list[dict[str, float]], plain: list[dict[str, float]], what: str) -> float:
    return statistics.median(a[what] / b[what] for a, b in zip(found, plain, strict=True))


def shown(result: dict[str, Any]) -> Table:
    table = Table(
        title=f"first token of {result['bytes'] / 1e9:.2f} GB, "
        f"{result['rounds']} rounds, {result['threads']} engine threads"
    )
    for column in (
        "model",
        "first token",
        "of plain",
        "loading",
        "of plain",
        "opening",
        "memory",
    ):
        table.add_column(column, justify="left" if column == "model" else "right")
    for row in result["rows"]:
        table.add_row(
            row["way"],
            f"{row['first_token_s']:.2f} s",
            f"{row['of_plain']:.2f}",
            f"{row['loading_s']:.2f} s",
            f"{row['loading_of_plain']:.2f}",
            f"{row['opening_s']:.2f} s",
            f"{row['process_high_water_mb']:.0f} MB",
        )
    return table


def run(options: Options) -> Result:
    found = measure(0.3 if options.quick else 1.0, options.rounds(5), len(os.sched_getaffinity(0)))
    sealed = next(row for row in found["rows"] if row["way"] == "sealed")
    return Result(
        title="Model load, sealed against plain",
        text=about(__doc__),
        tables=(of_rich(shown(found)),),
        aims=(Aim("first token of a sealed model, over a plain one", 1.4, "at most", sealed["of_plain"]),),
        figures=found,
    )


def main() -> None:
    """One start, in this process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--place", type=Path)
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    sys.stdout.write(json.dumps(start(options.place, options.way, options.threads)))


if __name__ == "__main__":
    main()
