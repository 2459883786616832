"""Where the server's own processor time goes, by py-spy: 1, 32 and 200 sealed streams of an engine that costs nothing.

The engine is paced (paced_engine.py), 30 tokens a second and stream, so that what is seen is the server's path: making a
token's JSON, server-sent events, sealing, HTTP, the event loop. py-spy looks 200 times a second from outside; a sample
belongs to the innermost function of ours or of a library that it stands in. Only who holds Python's lock is
seen: a thread that waits, or that multiplies or encrypts without the lock, is not. By name alone.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Final

from benchmarks.report import Result, Table
from benchmarks.sections import Options, about
from benchmarks.server_path import Server, drain, server

STREAMS: Final = (1, 32, 200)
RATE: Final = 30.0
PARTS: Final = (
    ("sealing: chunks, padding, AEAD", ("cloister/channel/",)),
    ("events and JSON of answers", ("cloister/inference/", "msgspec", "json/")),
    ("HTTP server (uvicorn, starlette)", ("uvicorn", "starlette", "httptools", "h11", "anyio")),
    ("event loop, sockets", ("asyncio", "selectors", "uvloop", "socket")),
    ("threads and queues", ("threading", "queue.py", "concurrent")),
    ("the paced engine itself", ("paced_engine",)),
)


def run(options: Options) -> Result:
    spy = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if spy is None:
        raise SystemExit("py-spy is not installed: pip install py-spy")
    seconds = 3 if options.quick else 10
    found = {streams: profile(spy, streams, seconds) for streams in STREAMS}
    names = [name for name, _ in PARTS] + ["other"]
    rows = [
        (
            name,
            *(f"{100 * found[streams][name] / max(1, found[streams].total()):.0f} %" for streams in STREAMS),
        )
        for name in names
    ]
    rows.append(("samples", *(f"{found[streams].total():,}" for streams in STREAMS)))
    head = ("", *(f"{streams} streams" for streams in STREAMS))
    return Result(
        title="The server's own path, profiled",
        text=about(__doc__),
        tables=(Table("share of the server's processor time", head, tuple(rows), ""),),
        figures={str(streams): dict(counts) for streams, counts in found.items()},
    )


def profile(spy: str, streams: int, seconds: int) -> Counter[str]:
    """Samples by part."""
    with server(streams, RATE, 0.0, "auto") as it, tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        asyncio.run(_loaded(it, streams, seconds, spy, raw))
        return counted(raw.read_text("utf-8"))


async def _loaded(it: Server, streams: int, seconds: int, spy: str, raw: Path) -> None:
    tokens = int(RATE * (seconds + 4))
    tasks = [asyncio.create_task(drain("sealed", it, tokens)) for _ in range(streams)]
    await asyncio.sleep(1.5)
    words = [
        spy, "record", "--pid", str(it.pid), "--duration", str(seconds), "--rate", "200", "--format", "raw", "--gil",
        "--output", str(raw), "--full-filenames",
    ]  # fmt: skip
    await asyncio.to_thread(subprocess.run, words, check=True, capture_output=True, timeout=seconds + 60)
    await asyncio.gather(*tasks)


def counted(raw: str) -> Counter[str]:
    """Of py-spy's raw format: frames from the outermost inwards, and how often."""
    found: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        found[_part(stack.split(";")[::-1])] += int(count)
    return found


def _part(frames: list[str]) -> str:
    for frame in frames:
        for name, marks in PARTS:
            if any(mark in frame for mark in marks):
                return name
    return "other"
