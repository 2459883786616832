"""What a token costs the server besides the model, and a request besides its first token (`make bench`): one run, one table.

An engine that costs next to nothing paces tokens as llama.cpp's slots do (paced_engine.py). (1) Processor time of the
server for each token, less what the same engine takes when nobody reads: plain and sealed, 1, 32 and 200 streams; the
clients read raw bytes, so that they leave the processors to the server. (2) First token, sealed over plain, interleaved
pairs through the real client.
(3) HPKE set-up for one request: client's and server's half, classical and hybrid.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
from rich.console import Console
from rich.table import Table

import cloister
from cloister.channel.exchange import PlainRequest, SealedExchange
from cloister.channel.hpke import Kem, KeyPair, Suite, setup_recipient, setup_sender
from cloister.channel.ohttp import CHUNKED_REQUEST_TYPE, parse_key_configs
from cloister.client.bench.asking import ask

SIDES = ("plain", "sealed")


class Server:
    """The process under measurement."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert process.stdout is not None
        self.told: dict[str, Any] = json.loads(process.stdout.readline())
        self._keys = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def keys(self) -> bytes:
        """The gateway's key configurations, as anybody gets them."""
        if not self._keys:
            self._keys = httpx2.get(self.told["sealed"] + ".well-known/ohttp-gateway", verify=False).content
        return self._keys

    def used(self) -> tuple[float, int]:
        """Processor seconds and tokens so far."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        told = json.loads(self._process.stdout.readline())
        return told["cpu"], told["tokens"]


@contextmanager
def server(slots: int, rate: float, working: float, kind: str) -> Iterator[Server]:
    program = Path(__file__).with_name("paced_engine.py")
    words = [sys.executable, program, str(slots), str(rate), str(working), kind]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield Server(process)
    finally:
        process.kill()
        process.wait()


def body(tokens: int) -> dict[str, Any]:
    return {
        "model": "m",
        "messages": [{"role": "user", "content": "a question"}],
        "max_tokens": tokens,
        "stream": True,
    }


async def drain(side: str, it: Server, tokens: int) -> int:
    """Ask one question over a raw connection and throw the answer away; its bytes."""
    url = httpx2.URL(it.told[side])
    content = json.dumps(body(tokens)).encode()
    fields = (
        (b"content-type", b"application/json"),
        (b"authorization", b"Bearer " + it.told["key"].encode()),
    )
    path, lines = b"/v1/chat/completions", [b"%s: %s" % field for field in fields]
    if side == "sealed":
        config = parse_key_configs(it.keys())[0]
        plain = PlainRequest(b"POST", b"http", url.netloc, path, fields, content, b"0" * 32)
        content, path = SealedExchange(config, plain).content, b"/.well-known/ohttp-gateway"
        lines = [b"content-type: " + CHUNKED_REQUEST_TYPE.encode()]
    reader, writer = await asyncio.open_connection(url.host, url.port)
    head = [b"POST %s HTTP/1.1" % path, b"host: " + url.netloc, b"content-length: %d" % len(content), *lines]
    writer.write(b"\r\n".join(head) + b"\r\n\r\n" + content)
    size, end = 0, b""
    while not end.endswith(b"0\r\n\r\n"):
        part = await reader.read(1 << 16)
        if not part:
            break
        size, end = size + len(part), (end + part)[-5:]
    writer.close()
    return size


async def cost(it: Server, side: str, streams: int, rate: float, seconds: float) -> tuple[float, float]:
    """Microseconds of the server's processors for a token, and bytes of it on the wire."""
    tokens = int(rate * (seconds + 2))
    tasks = [asyncio.create_task(drain(side, it, tokens)) for _ in range(streams)]
    await asyncio.sleep(1)  # all have begun
    cpu, count = it.used()
    await asyncio.sleep(seconds)
    cpu_after, count_after = it.used()
    sizes = await asyncio.gather(*tasks)
    made = count_after - count
    return 1e6 * ((cpu_after - cpu) / made - it.told["idle"]), statistics.fmean(sizes) / tokens


async def first_tokens(it: Server, pairs: int) -> dict[str, list[float]]:
    """Milliseconds to the first token, one client after the other."""
    found: dict[str, list[float]] = {side: [] for side in SIDES}
    headers = {"authorization": f"Bearer {it.told['key']}"}
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as policy:
        policy.write(it.told["policy"])
        policy.flush()
        async with (
            httpx2.AsyncClient() as plain,
            cloister.connect_async(it.told["sealed"], policy=policy.name) as sealed,
        ):
            clients = {"plain": plain, "sealed": sealed}
            for number in range(pairs + 10):
                for side in SIDES if number % 2 else SIDES[::-1]:
                    outcome = await ask(clients[side], it.told[side], body(2), headers)
                    assert outcome.failure is None
                    assert outcome.first is not None
                    if number >= 10:
                        found[side].append(1000 * outcome.first)
    return found


def hpke(kem: Kem, rounds: int = 500) -> tuple[float, float]:
    """Median milliseconds of set-up: the client's half, the server's half."""
    pair, suite, info = KeyPair.generate(kem), Suite(kem), b"message/bhttp chunked request\x00" + bytes(7)
    sending, receiving = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        enc, _sender = setup_sender(suite, pair.public_key, info)
        between = time.perf_counter()
        setup_recipient(suite, pair, enc, info)
        receiving.append(time.perf_counter() - between)
        sending.append(between - began)
    return 1000 * statistics.median(sending), 1000 * statistics.median(receiving)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", default="1,32,200")
    parser.add_argument("--rate", type=float, default=30.0, help="tokens a second of each stream")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--pairs", type=int, default=150)
    parser.add_argument("--server", default="auto", help="auto, h11, httptools, httptools+uvloop")
    parser.add_argument("--only", choices=("cpu", "first", "hpke"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    told = measure(options)
    if options.json:
        print(json.dumps(told))
    else:
        show(Console(), told)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    told: dict[str, Any] = {"server": options.server, "rate": options.rate}
    if options.only in (None, "cpu"):
        rows = []
        for streams in map(int, options.streams.split(",")):
            with server(streams, options.rate, 0.0, options.server) as it:
                row: dict[str, float] = {"streams": streams}
                for side in SIDES:
                    row[side], row[side + "_bytes"] = asyncio.run(
                        cost(it, side, streams, options.rate, options.seconds)
                    )
                rows.append(row)
        told["cpu"] = rows
    if options.only in (None, "first"):
        with server(1, 200.0, 0.005, options.server) as it:
            found = asyncio.run(first_tokens(it, options.pairs))
        costs = [b - a for a, b in zip(found["plain"], found["sealed"], strict=True)]
        told["first"] = {
            **{side: statistics.median(found[side]) for side in SIDES},
            "cost": statistics.median(costs),
            "cost_p95": statistics.quantiles(costs, n=20)[-1],
        }
    if options.only in (None, "hpke"):
        told["hpke"] = {kem.name: hpke(kem) for kem in (Kem.X25519, Kem.X_WING)}
    return told


def show(console: Console, told: dict[str, Any]) -> None:
    if "cpu" in told:
        table = Table(
            "streams",
            "plain µs/token",
            "sealed µs/token",
            "bytes/token plain",
            "sealed",
            title="the server's processors",
        )
        for row in told["cpu"]:
            cells = (row["plain"], row["sealed"], row["plain_bytes"], row["sealed_bytes"])
            table.add_row(str(row["streams"]), *(f"{cell:.1f}" for cell in cells))
        console.print(table)
    if "first" in told:
        first = told["first"]
        console.print(
            f"first token (5 ms of them the engine's): plain {first['plain']:.2f} ms, sealed {first['sealed']:.2f} ms, "
            f"cost {first['cost']:+.2f} ms (95 %: {first['cost_p95']:+.2f})"
        )
    for name, (client, service) in told.get("hpke", {}).items():
        console.print(f"HPKE set-up, {name}: client {client:.3f} ms, server {service:.3f} ms")


if __name__ == "__main__":
    main()
