"""The key broker under load and as it grows, in one run: attested releases per second and how long each
takes; and whether a release costs the same over 10 resources as over 100,000, with a thousand audit entries or a million.

Sessions are whole: a challenge, a quote of its own (the simulated TEE's), an attestation, a release, each with its
audit entry on disk. Over HTTP every client also verifies the broker and speaks through the sealed channel, and server and
clients share the machine. Large states are written through the journal, a few thousand entries a transaction; each is then
opened by a process of its own, and their rounds are interleaved.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from rich.table import Table

from benchmarks.report import Result
from benchmarks.sections import Options, about, of_rich
from cloister.appraisal.draft import draft_policy
from cloister.attester.simulated import SimulatedPlatform, SimulatedTee
from cloister.attester.simulation.collateral import EVALUATION_NUMBER
from cloister.broker import protocol, tables
from cloister.broker.audit import Fact
from cloister.broker.client import BrokerKeys, collect
from cloister.broker.clock import RisingClock
from cloister.broker.configuration import broker_events, owners_configuration
from cloister.broker.custody import Custody
from cloister.broker.desk import Desk
from cloister.broker.jwe import TeeKeyPair
from cloister.broker.limits import Buckets
from cloister.broker.metrics import Metrics
from cloister.broker.protocol import Attestation, RuntimeData, TeeEvidence
from cloister.broker.service import Broker
from cloister.broker.serving import seal_broker
from cloister.broker.session import Sessions
from cloister.broker.state_key import ShareLock
from cloister.broker.token import TokenSigner
from cloister.broker.transaction import Transaction
from cloister.channel.transport import wall_clock
from cloister.encoding import encode_json
from cloister.manifest.manifest import Manifest, Workload, origin
from cloister.manifest.quorum import Quorum
from cloister.manifest.rule import Rule
from cloister.manifest.signed import encode_signed, sign
from cloister.manifest.signers import Ed25519Signer

SIZES = ((10, 1_000), (1_000, 100_000), (100_000, 1_000_000))
"""Resources, each with a rule of its own, and audit entries."""
BATCH = 4_000
CHANGES = 200
SECRET = bytes(32)
SIGNER = Ed25519Signer(bytes(range(32)))


def path_of(number: int) -> str:
    return f"models/key/n{number}"


@dataclass
class Site:
    """A platform, and a state in owners' mode that one owner signs for."""

    directory: Path
    platform: SimulatedPlatform = field(init=False)

    def __post_init__(self) -> None:
        tee = self.directory / "tee"
        if tee.exists():
            self.platform = SimulatedPlatform.load(tee)
        else:
            self.platform = SimulatedPlatform.create(tee, now=wall_clock())
        self.workload = self.platform.tee("tdx")

    @property
    def genesis(self) -> Manifest:
        alone = Quorum(owners=("owner",), threshold=1)
        return Manifest(
            application="bench",
            version=1,
            previous="",
            issued=1,
            owners={"owner": SIGNER.key},
            update=alone,
            broker=(),
            workloads={"inference": Workload(policies=(self.policy(self.workload),))},
            resources={"models": alone},
            witnesses="none",
            operators={},
            auditors={},
        )

    def policy(self, tee: SimulatedTee) -> str:
        return draft_policy(
            tee="tdx",
            measurements=tee.measurements,
            min_tcb_evaluation_number=EVALUATION_NUMBER,
            simulated_root=self.platform.root_sha256,
        )

    def broker_tee(self) -> SimulatedTee:
        return self.platform.tee("tdx", launch=broker_events(owners_configuration(origin(self.genesis))))

    def custody(self, name: str) -> Custody:
        directory = self.directory / name
        tables.make_directory(directory)
        engine = tables.open_database(tables.sqlite_url(directory))
        return Custody(engine, clock=RisingClock(wall_clock), origin=origin(self.genesis))

    def build(self, name: str, resources: int, entries: int) -> bytes:
        """A state of this size; its key."""
        custody = self.custody(name)
        custody.create(sign("manifest", encode_json(self.genesis), [SIGNER]))
        state = custody.state
        lock = custody.document().lock
        if not isinstance(lock, ShareLock):
            raise TypeError("an owners' state is opened by shares")
        custody.hand_out("owner")
        custody.acknowledge("owner", sign("share", encode_json(state.kept(lock, "owner")), [SIGNER]))
        state.resources.ensure_key("models", owner="owner", now=wall_clock())
        for start in range(0, resources, BATCH):
            numbers = range(start, min(start + BATCH, resources))
            stores = [
                state.resources.prepare(path_of(number), SECRET, owner="owner", now=wall_clock())
                for number in numbers
            ]
            rules = [(path_of(number), self.rule(number)) for number in numbers]
            state.journal.transact(partial(stage, stores, rules))
        while (left := entries - state.journal.size) > 0:
            state.journal.transact(partial(tell, min(left, BATCH)))
        return state.key_for_peer()

    @staticmethod
    def rule(number: int) -> bytes:
        said = Rule(
            application="bench",
            resource=path_of(number),
            version=1,
            previous="",
            workloads={"inference": "manifest"},
            policies=(),
            purposes="any",
            window="always",
            releases="unlimited",
        )
        return encode_signed(sign("rule", encode_json(said), [SIGNER]))


def stage(
    stores: list[Callable[[Transaction], int]], rules: list[tuple[str, bytes]], transaction: Transaction
) -> None:
    """Resources and rules by the hundred; each hundred is one entry."""
    for start in range(0, len(stores), CHANGES // 2):
        for store, (path, body) in zip(
            stores[start : start + CHANGES // 2], rules[start : start + CHANGES // 2], strict=True
        ):
            store(transaction)
            transaction.put("rule", path, body)
        transaction.log(Fact("resource", "done", reason="built for a benchmark"))


def tell(count: int, transaction: Transaction) -> None:
    """Entries as long as those of releases."""
    for number in range(count):
        transaction.log(
            Fact(
                "release",
                "accepted",
                resource=f"kbs:///{path_of(number)}",
                workload="inference",
                session="5" * 64,
                evidence="e" * 64,
                measurements="a" * 64,
                policy="b" * 64,
                rule="c" * 64,
                manifest="d" * 64,
                tee="tdx",
                tee_key="f" * 64,
                simulated=True,
            )
        )


class Session:
    """One workload's session with a broker, without HTTP."""

    def __init__(self, broker: Broker, tee: SimulatedTee) -> None:
        self._broker = broker
        answer = broker.challenge(protocol.auth_request("tdx"))
        text, nonce = protocol.parse_challenge(answer.body)
        self._pair = TeeKeyPair.generate()
        runtime = RuntimeData(nonce=text, tee_pubkey=self._pair.public)
        bundle = collect(tee, nonce, encode_json(runtime))
        body = encode_json(
            Attestation(runtime_data=runtime, tee_evidence=TeeEvidence(primary_evidence=bundle))
        )
        self._identifier = broker.attest(answer.identifier, body).identifier

    def release(self, number: int) -> None:
        path = path_of(number)
        answer = self._broker.resource(
            f"{protocol.RESOURCE_PATH}{path}".encode(), b"", self._identifier, None
        )
        if self._pair.decrypt(answer.body, f"kbs:///{path}") != SECRET:
            raise AssertionError("another content came back")


def desk_over(custody: Custody) -> Desk:
    return Desk(
        custody, sessions=Sessions(limit=1 << 20), tokens=TokenSigner(build="bench"), metrics=Metrics()
    )


# -- processes ------------------------------------------------------------------------------------------------------------


def serve(site: Site, name: str, key: bytes) -> None:
    """The server's process, as `cloister broker serve` has it. Prints its port."""
    custody = site.custody(name)
    custody.open_from_peer(key)
    app, _ = seal_broker(desk_over(custody), site.broker_tee(), buckets=Buckets(rate=1e6, burst=1_000_000))
    taken = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    taken.bind(("127.0.0.1", 0))
    taken.listen(2048)  # who connects before the server runs waits here
    print(taken.getsockname()[1], flush=True)
    config = uvicorn.Config(app, log_level="error", ws="none", backlog=2048, timeout_keep_alive=65)
    asyncio.run(uvicorn.Server(config).serve(sockets=[taken]))


def measure(site: Site, name: str, key: bytes, resources: int) -> None:
    """The process of one state: open it, then a round for each line that is read."""
    before = memory()
    began = time.perf_counter()
    custody = site.custody(name)
    custody.open_from_peer(key)
    broker = desk_over(custody).broker
    print(json.dumps({"load": time.perf_counter() - began, "memory": memory() - before}), flush=True)
    session, dice = Session(broker, site.workload), random.Random(1)
    for line in sys.stdin:
        seconds, count = float(line), 0
        waits: list[float] = []
        end = time.perf_counter() + seconds
        while (at := time.perf_counter()) < end:
            session.release(dice.randrange(resources))
            waits.append(time.perf_counter() - at)
        alone = len(waits) / seconds

        def work(end: float, seed: int) -> int:
            own, done = random.Random(seed), 0
            while time.perf_counter() < end:
                session.release(own.randrange(resources))
                done += 1
            return done

        with ThreadPoolExecutor(16) as pool:
            end = time.perf_counter() + seconds
            together = sum(pool.map(partial(work, end), range(16))) / seconds
        began = time.perf_counter()
        while time.perf_counter() < began + seconds / 2:
            Session(broker, site.workload)
            count += 1
        attested = count / (time.perf_counter() - began)
        print(
            json.dumps({"alone": alone, "together": together, "attested": attested, "waits": waits}),
            flush=True,
        )


def memory() -> float:
    """MiB that this process has in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


@contextlib.contextmanager
def child(site: Site, *words: str, key: bytes) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", __name__, "--site", str(site.directory), *words]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdin is not None
        process.stdin.write(key.hex() + "\n")
        process.stdin.flush()
        try:
            yield process
        finally:
            process.terminate()


def told(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{' '.join(map(str, process.args[5:7]))} ended with {process.wait(20)}")  # type: ignore[index]
    return json.loads(line)


# -- what is measured -----------------------------------------------------------------------------------------------------


def at_once(sessions: int, one: Callable[[int], None]) -> tuple[float, list[float]]:
    """Sessions per second, and the seconds of each, when all begin at once."""
    start = threading.Barrier(sessions + 1)

    def timed(number: int) -> float:
        start.wait()
        began = time.perf_counter()
        one(number)
        return time.perf_counter() - began

    with ThreadPoolExecutor(sessions) as pool:
        asked = [pool.submit(timed, number) for number in range(sessions)]
        start.wait()
        began = time.perf_counter()
        waits = [each.result() for each in asked]  # an error of any session ends the benchmark
        return sessions / (time.perf_counter() - began), waits


def under_load(site: Site, sessions: int, rounds: int) -> Table:
    table = Table(title=f"{sessions} sessions at once: attest and release")
    for column in ("way", "sessions/s", "p50", "p95", "p99", "errors"):
        table.add_column(column, justify="left" if column == "way" else "right")
    key = site.build("load", 10, 100)
    policy = site.directory / "broker.toml"
    policy.write_text(site.policy(site.broker_tee()))
    custody = site.custody("load")
    custody.open_from_peer(key)
    broker = desk_over(custody).broker

    def without_http(number: int) -> None:
        Session(broker, site.workload).release(number % 10)

    with child(site, "--serve", "load", key=key) as process:
        url = f"http://127.0.0.1:{told(process)}"

        def over_http(number: int) -> None:
            with BrokerKeys(url, policy=policy, attester=site.workload, timeout=120) as keys:
                if keys.key(f"kbs:///{path_of(number % 10)}") != SECRET:
                    raise AssertionError("another key came back")

        ways = {"the service, without HTTP": without_http, "HTTP, sealed channel, verified": over_http}
        found: dict[str, list[tuple[float, list[float]]]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, one in ways.items():
                found[name].append(at_once(sessions, one))
    for name, results in found.items():
        waits = [wait for _, each in results for wait in each]
        rate = statistics.median(rate for rate, _ in results)
        table.add_row(name, f"{rate:.0f}", *percentiles(waits), "0")
    return table


def as_it_grows(site: Site, sizes: tuple[tuple[int, int], ...], rounds: int, seconds: float) -> Table:
    table = Table(title="a release, by what the state holds (without HTTP)")
    for column in (
        "resources",
        "entries",
        "release/s",
        "p50",
        "p95",
        "p99",
        "16 threads",
        "attest/s",
        "ratio",
        "load",
        "memory",
    ):
        table.add_column(column, justify="right")
    with contextlib.ExitStack() as stack:
        running: list[tuple[subprocess.Popen[str], dict[str, float], list[dict[str, Any]]]] = []
        for resources, entries in sizes:
            name = f"state{resources}"
            key = site.build(name, resources, entries)
            words = ("--measure", name, "--resources", str(resources))
            process = stack.enter_context(child(site, *words, key=key))
            running.append((process, told(process), []))
        for _ in range(rounds):
            for process, _, results in running:
                assert process.stdin is not None
                process.stdin.write(f"{seconds}\n")
                process.stdin.flush()
                results.append(told(process))
    first = running[0][2]
    for (resources, entries), (_, opened, results) in zip(sizes, running, strict=True):
        alone, together, attested = (
            statistics.median(each[name] for each in results) for name in ("alone", "together", "attested")
        )
        ratio = statistics.median(
            each["alone"] / base["alone"] for each, base in zip(results, first, strict=True)
        )
        table.add_row(
            f"{resources:,}",
            f"{entries:,}",
            f"{alone:.0f}",
            *percentiles([wait for each in results for wait in each["waits"]]),
            f"{together:.0f}",
            f"{attested:.0f}",
            f"{ratio:.2f}",
            f"{opened['load']:.1f} s",
            f"{opened['memory']:.0f} MiB",
        )
    return table


def percentiles(waits: list[float]) -> list[str]:
    cuts = statistics.quantiles(waits, n=100, method="inclusive")
    return [f"{cuts[number] * 1000:.1f} ms" for number in (49, 94, 98)]


def run(options: Options) -> Result:
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    sessions, rounds, seconds, sizes = (50, 1, 1.0, SIZES[:2]) if options.quick else (200, 3, 3.0, SIZES)
    with tempfile.TemporaryDirectory() as folder:
        site = Site(Path(folder))
        tables = (under_load(site, sessions, rounds), as_it_grows(site, sizes, rounds, seconds))
    return Result(title="The key broker", text=about(__doc__), tables=tuple(map(of_rich, tables)))


def main() -> None:
    """A child: it serves, or measures one state."""
    parser = argparse.ArgumentParser()
    for name in ("--site", "--serve", "--measure", "--resources"):
        parser.add_argument(name)
    options = parser.parse_args()
    site, key = Site(Path(options.site)), bytes.fromhex(sys.stdin.readline())
    if options.serve:
        serve(site, options.serve, key)
    else:
        measure(site, options.measure, key, int(options.resources))


if __name__ == "__main__":
    main()
