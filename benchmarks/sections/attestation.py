"""Attestation under load, in one run: attested clients per second, with and without Merkle batching.

The attester takes 30 ms a quote and makes one at a time, as a quoting enclave does (the quote itself is the simulated
TEE's). 500 clients ask at once, each with a nonce of its own. Without batching every nonce gets a quote; with it one
quote serves every nonce of a 20 ms window. Measured are (a) the evidence service alone and (b) the whole way over HTTP: a
server process, real sockets, and clients that verify what they got. Each pair is interleaved.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx2
import uvicorn
from rich.table import Table

from benchmarks.report import Result
from benchmarks.sections import Options, about, of_rich
from cloister.appraisal.appraise import appraise
from cloister.appraisal.draft import draft_policy
from cloister.appraisal.policy import Policy, load_policy
from cloister.attester import RawEvidence
from cloister.attester.simulated import SimulatedPlatform, SimulatedTee
from cloister.attester.simulation.collateral import EVALUATION_NUMBER
from cloister.channel.evidence_service import EvidenceService
from cloister.channel.keyring import KeyRing
from cloister.channel.middleware import SealedGateway
from cloister.encoding import b64url_encode
from cloister.evidence.bundle import EvidenceBundle, parse_bundle
from cloister.evidence.key_material import parse_key_material

QUOTE_SECONDS = 0.030
BATCHED = {"window": 0.02, "max_tree": 256}
ALONE = {"window": 0.0, "max_tree": 1}


class SlowAttester:
    """A simulated TEE that takes as long for a quote as hardware does, one at a time (the service asks so)."""

    def __init__(self, tee: SimulatedTee) -> None:
        self._tee = tee
        self.quotes = 0

    def quote(self, report_data: bytes) -> RawEvidence:
        time.sleep(QUOTE_SECONDS)
        self.quotes += 1
        return self._tee.quote(report_data)


def accept_only(platform: SimulatedPlatform, tee: SimulatedTee) -> Policy:
    text = draft_policy(
        tee="tdx",
        measurements=tee.measurements,
        min_tcb_evaluation_number=EVALUATION_NUMBER,
        simulated_root=platform.root_sha256,
    )
    return load_policy(text, name="benchmark policy")


def check(bundle: EvidenceBundle, nonce: bytes, policy: Policy, now: int) -> None:
    appraise(
        bundle,
        nonce=nonce,
        policy=policy,
        now=now,
        decode=parse_key_material,
        not_after=lambda material: material.not_after,
    )


async def service_alone(tee: SimulatedTee, settings: dict[str, float], clients: int) -> tuple[float, int]:
    """Clients per second, and quotes made."""
    attester = SlowAttester(tee)
    service = EvidenceService(attester, KeyRing(replica="bench"), **settings)  # type: ignore[arg-type]
    began = time.perf_counter()
    await asyncio.gather(*(service.evidence(os.urandom(32)) for _ in range(clients)))
    return clients / (time.perf_counter() - began), attester.quotes


async def over_http(
    url: str, policy: Policy, now: int, clients: int, *, verify: bool
) -> tuple[float, list[float]]:
    """Clients per second, and each client's seconds from asking to having verified (or received) evidence."""
    limits = httpx2.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx2.AsyncClient(base_url=url, limits=limits, timeout=120, trust_env=False) as http:

        async def one() -> float:
            nonce, began = os.urandom(32), time.perf_counter()
            answer = await http.post(
                "/.well-known/attestation",
                content=json.dumps({"nonce": b64url_encode(nonce)}),
                headers={"content-type": "application/json"},
            )
            answer.raise_for_status()
            if verify:
                check(parse_bundle(answer.content), nonce, policy, now)
            return time.perf_counter() - began

        began = time.perf_counter()
        seconds = await asyncio.gather(*(one() for _ in range(clients)))
        return clients / (time.perf_counter() - began), list(seconds)


def serve(directory: Path, mode: str) -> None:
    """The server's process: a gateway whose attester is slow. Prints its port."""

    async def nothing(scope: object, receive: object, send: object) -> None:
        raise RuntimeError("only evidence is asked for here")

    tee = SimulatedPlatform.load(directory).tee("tdx")
    keyring = KeyRing(replica="bench")
    settings = BATCHED if mode == "batched" else ALONE
    evidence = EvidenceService(SlowAttester(tee), keyring, **settings)  # type: ignore[arg-type]
    app = SealedGateway(nothing, keyring=keyring, evidence=evidence, max_open=1024)  # type: ignore[arg-type]
    config = uvicorn.Config(app, log_level="error", lifespan="off", ws="none", backlog=2048)
    taken = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    taken.bind(("127.0.0.1", 0))
    taken.listen(2048)  # who connects before the server runs waits here
    print(taken.getsockname()[1], flush=True)
    asyncio.run(uvicorn.Server(config).serve(sockets=[taken]))


def start(directory: Path, mode: str) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", __name__, "--serve", mode, "--platform", str(directory)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    return process, f"http://127.0.0.1:{int(process.stdout.readline())}"


def run(options: Options) -> Result:
    clients, rounds = (100, 1) if options.quick else (500, 3)
    now = int(time.time())
    table = Table(title=f"attested clients per second: {clients} at once, 30 ms a quote")
    for column in ("way", "without batching", "with batching", "ratio", "median wait", "slowest wait"):
        table.add_column(column, justify="left" if column == "way" else "right")
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "tee"
        platform = SimulatedPlatform.create(directory, now=now)
        tee = platform.tee("tdx")
        policy = accept_only(platform, tee)
        alone, batched, quotes = [], [], 0
        for _ in range(rounds):
            alone.append(asyncio.run(service_alone(tee, ALONE, clients))[0])
            rate, quotes = asyncio.run(service_alone(tee, BATCHED, clients))
            batched.append(rate)
        row(table, f"the service alone ({quotes} quotes with batching)", alone, batched, [])
        servers = {mode: start(directory, mode) for mode in ("alone", "batched")}
        try:
            for verify in (False, True):
                rates: dict[str, list[float]] = {"alone": [], "batched": []}
                waits: list[float] = []
                for _ in range(rounds):
                    for mode, (_, url) in servers.items():
                        rate, seconds = asyncio.run(over_http(url, policy, now, clients, verify=verify))
                        rates[mode].append(rate)
                        if mode == "batched":
                            waits += seconds
                name = "over HTTP, verified by every client" if verify else "over HTTP"
                row(table, name, rates["alone"], rates["batched"], waits)
        finally:
            for process, _ in servers.values():
                process.terminate()
                process.wait()
    return Result(title="Attestation under load", text=about(__doc__), tables=(of_rich(table),))


def row(table: Table, name: str, alone: list[float], batched: list[float], waits: list[float]) -> None:
    ratio = statistics.median(b / a for a, b in zip(alone, batched, strict=True))
    table.add_row(
        name,
        f"{statistics.median(alone):.0f}/s",
        f"{statistics.median(batched):.0f}/s",
        f"{ratio:.0f} ×",
        f"{statistics.median(waits) * 1000:.0f} ms" if waits else "",
        f"{max(waits) * 1000:.0f} ms" if waits else "",
    )


def main() -> None:
    """The server's process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--serve", choices=("batched", "alone"))
    parser.add_argument("--platform", type=Path)
    options = parser.parse_args()
    serve(options.platform, options.serve)


if __name__ == "__main__":
    main()
