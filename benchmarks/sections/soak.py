"""Soak: half an hour of mixed load on `cloister serve`, through the sealed channel (`make bench SECTION=soak MINUTES=30`).

Short and long questions, clients that leave at once or midway, requests that must be refused and such as find the service
full, from 12 clients at 8 slots, with the demonstration model so that many requests fit. Before and after it every slot has
to answer at once; the memory of the server's process is read each second. The slope of its last two thirds is what leaks:
caches fill at first.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import threading
import time
from pathlib import Path

import httpx2
from rich.progress import Progress

import cloister
from benchmarks.measurement import percentile, slope
from benchmarks.report import Aim, Result, Table, shown
from benchmarks.samples import Task
from benchmarks.sections import Options, about
from benchmarks.sides import Service
from cloister.client.bench.load import Target
from cloister.client.bench.mixed import Tally, mixed, usual_mixture
from cloister.inference.demo_model import demo_model

STREAMS, SLOTS, CONTEXT = 12, 8, 512
LEAK = 1.0
"""MiB a minute that count as noise of the allocator."""


def run(options: Options) -> Result:
    seconds = 60.0 if options.quick else options.minutes * 60
    memory: list[tuple[float, float]] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        Service("llamacpp", demo_model(), Path(folder) / "kept", context=CONTEXT) as service,
    ):
        _all_slots(service)
        over = threading.Event()
        watcher = threading.Thread(target=_watch, args=(service.pid, memory, over, seconds))
        watcher.start()
        try:
            tally = asyncio.run(_load(service, seconds))
        finally:
            over.set()
            watcher.join()
        _all_slots(service)
        threads = _status(service.pid, "Threads")
    begun = [one for one in memory if one[0] > seconds / 3]
    leak = 60 * slope([at for at, _ in begun], [size for _, size in begun])
    asked = tally.done.total()
    unexpected = tally.unexpected.total()
    rows = [(name, f"{number:,}") for name, number in sorted(tally.done.items())]
    rows += [
        ("answered", f"{tally.answered:,}"), ("left by the client", f"{tally.left:,}"),
        ("refused as they must be", f"{tally.refused:,}"), ("turned away, the service being full", f"{tally.busy:,}"),
        ("not as expected", f"{unexpected:,}"), ("tokens", f"{tally.tokens:,}"),
        ("first token, p50", shown(1000 * percentile(tally.firsts, 50), "ms")),
        ("first token, p99", shown(1000 * percentile(tally.firsts, 99), "ms")),
        ("memory, first and last", f"{memory[0][1]:.0f} and {memory[-1][1]:.0f} MiB"), ("threads", str(threads)),
    ]  # fmt: skip
    wrong = "; ".join(
        f"{part}: {what} ({number})" for (part, what), number in tally.unexpected.most_common(5)
    )
    return Result(
        title="Soak",
        text=about(__doc__),
        tables=(
            Table(f"{asked:,} requests in {seconds / 60:.0f} minutes", ("what", "count"), tuple(rows), wrong),
        ),
        aims=(
            Aim("requests that came out otherwise than expected", 0, "at most", unexpected, ""),
            Aim("memory's slope over the last two thirds", LEAK, "at most", leak, "MiB/min"),
            Aim("slots that answer afterwards", SLOTS, "at least", SLOTS, "", note="else this section fails"),
        ),
        figures={"memory_mib": memory[:: max(1, len(memory) // 200)], "seconds": seconds},
    )


def _all_slots(service: Service) -> None:
    """Raises where one of the slots answers no more."""
    sample = service.ask(Task(8, 16, SLOTS, seed=1))
    if len(sample.streams) != SLOTS or any(one.tokens < 1 for one in sample.streams):
        raise RuntimeError("a slot is lost")


async def _load(service: Service, seconds: float) -> Tally:
    url, policy, key, model = service.asking
    limits = httpx2.Limits(max_connections=64)
    async with cloister.connect_async(
        url, policy=policy, transport=httpx2.AsyncHTTPTransport(limits=limits)
    ) as client:
        target = Target(client, url.rstrip("/") + "/", {"authorization": f"Bearer {key}"})
        parts = usual_mixture(context=CONTEXT)
        source = random.Random(7)
        return await mixed(target, model, parts, streams=STREAMS, seconds=seconds, source=source)


def _watch(pid: int, memory: list[tuple[float, float]], over: threading.Event, seconds: float) -> None:
    began = time.monotonic()
    with Progress(transient=True) as progress:
        task = progress.add_task("soak", total=seconds)
        while not over.wait(1.0):
            at = time.monotonic() - began
            memory.append((at, _status(pid, "VmRSS") / 1024))
            progress.update(task, completed=at)


def _status(pid: int, field: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
