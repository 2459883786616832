"""Sealed against plain, in one run (`make bench`): what the channel costs.

(a) the engine's own plaintext HTTP server and (b) `cloister serve` through the sealed channel hold the same model
with the same parameters, each in its own process. They are measured in interleaved pairs, so that drift of the machine
falls on both. The ratio is the mean over the pairs with a 95 % interval (Student's t). Both get the same requests from
the same client code.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

import dcap_qvl
import httpx2
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import cloister
from cloister.appraisal.appraise import appraise
from cloister.appraisal.policy import read_policy
from cloister.encoding import b64url_encode
from cloister.evidence.bundle import parse_bundle
from cloister.evidence.key_material import parse_key_material
from cloister.inference.demo_model import demo_model
from deployment import deployment
from random_model import write as write_random_model

T_95 = {
    2: 12.706,
    3: 4.303,
    4: 3.182,
    5: 2.776,
    6: 2.571,
    7: 2.447,
    8: 2.365,
    9: 2.306,
    10: 2.262,
    12: 2.201,
    15: 2.145,
}
QUESTIONS = (
    "What is asthma?", "What are the symptoms of diabetes?", "What causes gout?", "What is epilepsy?",
    "How is anemia treated?", "What is a stroke?", "What are the treatments for migraine?", "What is glaucoma?",
)  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """One round: tokens per second over all clients, and each request's seconds to the first token."""

    rate: float
    first: float


async def one(
    client: httpx2.AsyncClient, base: str, headers: dict[str, str], model: str, question: str, tokens: int
) -> tuple[int, float]:
    body = {
        "model": model, "messages": [{"role": "user", "content": question}], "max_tokens": tokens, "temperature": 0,
        "stream": True, "stream_options": {"include_usage": True}, "logit_bias": {"2": -100},
    }  # fmt: skip
    began, first, count = time.perf_counter(), 0.0, 0
    async with client.stream("POST", f"{base}/v1/chat/completions", json=body, headers=headers) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if not first and chunk.get("choices") and chunk["choices"][0]["delta"].get("content"):
                first = time.perf_counter() - began
            if chunk.get("usage"):
                count = chunk["usage"]["completion_tokens"]
    return count, first


async def measure(
    client: httpx2.AsyncClient, base: str, headers: dict[str, str], model: str, clients: int, tokens: int
) -> Sample:
    began = time.perf_counter()
    done = await asyncio.gather(
        *(one(client, base, headers, model, QUESTIONS[i % len(QUESTIONS)], tokens) for i in range(clients))
    )
    took = time.perf_counter() - began
    return Sample(sum(count for count, _ in done) / took, statistics.median(first for _, first in done))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of the 95 % interval."""
    mean = statistics.fmean(values)
    t = T_95.get(len(values), 2.0)
    return mean, t * statistics.stdev(values) / math.sqrt(len(values))


async def compare(
    plain: str, sealed: str, policy: Path, key: str, model: str, pairs: int, tokens: int
) -> dict[int, list[tuple[Sample, Sample]]]:
    limits = httpx2.Limits(max_connections=64)
    rows: dict[int, list[tuple[Sample, Sample]]] = {1: [], 8: []}
    outer = httpx2.AsyncHTTPTransport(limits=limits)
    async with (
        httpx2.AsyncClient(timeout=600, limits=limits) as a,
        cloister.connect_async(sealed, policy=policy, transport=outer) as b,
    ):
        bearer = {"authorization": f"Bearer {key}"}
        with Progress(transient=True) as progress:
            task = progress.add_task("pairs", total=2 * (pairs + 1))
            for clients, row in rows.items():
                for number in range(pairs + 1):
                    # Alternate which goes first: a machine that slows down must not favour one of them.
                    order = ("plain", "sealed") if number % 2 else ("sealed", "plain")
                    sample = {}
                    for side in order:
                        sample[side] = (
                            await measure(a, plain, {}, "bench", clients, tokens)
                            if side == "plain"
                            else await measure(b, sealed, bearer, model, clients, tokens)
                        )
                    if number:  # the first pair warms up
                        row.append((sample["plain"], sample["sealed"]))
                    progress.advance(task)
    return rows


def verification(url: str, policy_path: Path, repeats: int = 200) -> tuple[float, float]:
    """Median milliseconds of a whole appraisal, and of dcap-qvl alone on the same quote."""
    nonce = os.urandom(32)
    answer = httpx2.post(f"{url}/.well-known/attestation", json={"nonce": b64url_encode(nonce)})
    body, policy = answer.content, read_policy(policy_path)
    bundle = parse_bundle(body)
    whole, alone = [], []
    now = int(time.time())
    collateral = dcap_qvl.QuoteCollateralV3.from_json(bundle.endorsements.decode())
    root = _root_of(bundle.quote)
    for _ in range(repeats):
        began = time.perf_counter()
        appraise(
            parse_bundle(body),
            nonce=nonce,
            policy=policy,
            now=now,
            decode=parse_key_material,
            not_after=lambda m: m.not_after,
        )
        whole.append(time.perf_counter() - began)
        began = time.perf_counter()
        dcap_qvl.verify_with_root_ca(bundle.quote, collateral, root, now)
        alone.append(time.perf_counter() - began)
    return 1000 * statistics.median(whole), 1000 * statistics.median(alone)


def _root_of(quote: bytes) -> bytes:
    chain = x509.load_pem_x509_certificates(bytes(dcap_qvl.Quote.parse(quote).cert_chain_pem_bytes()))
    return chain[-1].public_bytes(Encoding.DER)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", choices=("demo", "1b", "both"), default="both", help="1b: 1.1 B shape, random weights"
    )
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=0, help="per request; default 128 (demo), 24 (1b)")
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    options = parser.parse_args()
    console = Console()
    for name in ("demo", "1b") if options.model == "both" else (options.model,):
        run(console, name, options.pairs, options.tokens or {"demo": 128, "1b": 24}[name], options.threads)


def run(console: Console, name: str, pairs: int, tokens: int, threads: int) -> None:
    model = demo_model()
    if name == "1b":
        model = Path("build/bench/llama-1.1b-random-q4_0.gguf")
        if not model.exists():
            model.parent.mkdir(parents=True, exist_ok=True)
            write_random_model(
                model, layers=22, hidden=2048, heads=32, kv_heads=4, feed_forward=5632, context=2048
            )
    here = Path(__file__).resolve().parent
    with tempfile.TemporaryDirectory() as folder, deployment(Path(folder) / "d", model) as it:
        it.root.mkdir()
        it.serve_options = ("--context", "256", "--slots", "8")
        it.prepare()
        it.write_policies()
        it.fill_broker()
        plain = subprocess.Popen(
            [sys.executable, here / "plain_server.py", model, "256", "8", str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert plain.stdout is not None
            address = json.loads(plain.stdout.readline())["listening"]
            inference = it.start_inference(it.start_broker().url, "--threads", str(threads))
            rows = asyncio.run(
                compare(address, inference.url, it.policy, it.api_key, it.model_name, pairs, tokens)
            )
            whole, alone = verification(inference.url, it.policy)
        finally:
            plain.kill()
            plain.wait()
    table = Table(
        title=f"{model.name}: {pairs} interleaved pairs, {tokens} tokens a request, {threads} engine threads"
    )
    for column in (
        "clients",
        "plain tok/s",
        "sealed tok/s",
        "sealed/plain (95 %)",
        "plain first token",
        "sealed first token",
        "cost",
    ):
        table.add_column(column, justify="right")
    for clients, samples in rows.items():
        mean, half = interval([b.rate / a.rate for a, b in samples])
        cost, spread = interval([1000 * (b.first - a.first) for a, b in samples])
        table.add_row(
            str(clients),
            f"{statistics.median(a.rate for a, _ in samples):.1f}",
            f"{statistics.median(b.rate for _, b in samples):.1f}",
            f"{mean:.3f} ± {half:.3f}",
            f"{1000 * statistics.median(a.first for a, _ in samples):.1f} ms",
            f"{1000 * statistics.median(b.first for _, b in samples):.1f} ms",
            f"{cost:+.1f} ± {spread:.1f} ms",
        )
    console.print(table)
    console.print(
        f"one quote verified and appraised: {whole:.2f} ms (dcap-qvl alone on it: {alone:.2f} ms), medians of 200\n"
    )


if __name__ == "__main__":
    main()
