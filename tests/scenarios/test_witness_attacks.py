"""Named attacks on witnesses that run as their own processes: old copies, forks, forged proofs, replays, crashes."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app_server import served
from cloister.broker.tree_head import (
    Cosignature,
    ForkFound,
    HeadRefused,
    RollbackFound,
    SignedHead,
    require_cosignatures,
    with_cosignatures,
)
from cloister.broker.witness import CosignRequest, NewestRequest
from cloister.broker.witness_app import create_witness
from cloister.broker.witness_client import WitnessClient, ask_newest, gather
from cloister.broker.witness_memory import Witness
from cloister.encoding import encode_json
from cloister.errors import EXIT_USAGE, NetworkError
from cloister.manifest.owner_key import PublicKey, parse_public_key
from cloister.sealing.signing import SigningKey
from witness_parts import Log, signer

NAMES = ("anna", "ben", "cleo")
MAX_LOGS = 32
MAIN = "from cloister.cli import main; main()"


class Process:
    """One witness: its directory, its key file, and a process when it runs."""

    def __init__(self, root: Path, name: str, *logs: Log) -> None:
        self.name, self.state, self.file = name, root / name, root / f"{name}.key"
        self.key: PublicKey = parse_public_key(f"ed25519:{SigningKey.create(self.file).public_key.hex()}")
        self.logs = logs
        self.url = ""
        self.process: subprocess.Popen[str] | None = None

    def command(self, program: str = MAIN) -> list[str]:
        logs = [word for log in self.logs for word in ("--log", log.public.hex())]
        words = ["witness", "serve", "--state", str(self.state), "--key", str(self.file), *logs]
        return [sys.executable, "-c", program, *words, "--port", "0", "--json"]

    def start(self, program: str = MAIN) -> None:
        self.process = subprocess.Popen(
            self.command(program), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout is not None
        self.url = json.loads(self.process.stdout.readline())["listening"]

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(30)
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None

    @property
    def client(self) -> WitnessClient:
        return WitnessClient(self.name, self.url, self.key)

    def cosign(self, log: Log, size: int | None = None, *, known: int = 0) -> Cosignature:
        """As a broker that runs ``log`` asks for it."""
        return self.client.cosign(log.head(size), known=known, proof=log.tree.consistency, timeout=30)

    def sent(self, request: CosignRequest) -> tuple[int, str]:
        """Status and name of the problem, for exactly this request, as an attacker sends it."""
        body, deadline = encode_json(request), time.monotonic() + 30
        status, answer = self.client._post(f"{self.url}/cloister/v1/witness/cosign", body, deadline)
        return status, json.loads(answer).get("type", "").removeprefix("urn:cloister:problem:")


class Site:
    """Three running witnesses."""

    def __init__(self, root: Path) -> None:
        self.logs = [Log(name=f"log {number}") for number in range(MAX_LOGS)]
        self.processes = [Process(root, name, *self.logs) for name in NAMES]
        self.numbers = itertools.count()

    @property
    def keys(self) -> dict[str, PublicKey]:
        return {one.name: one.key for one in self.processes}

    def gather(self, log: Log, size: int | None = None) -> SignedHead:
        clients = [one.client for one in self.processes]
        head = log.head(size)
        return gather(clients, head, consistency=log.tree.consistency, threshold=2, timeout=30)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    found = Site(tmp_path_factory.mktemp("witnesses"))
    try:
        for one in found.processes:
            one.start()
        yield found
    finally:
        for one in found.processes:
            one.end()


@pytest.fixture
def name(site: Site) -> str:
    """Of a log that no other test uses."""
    return f"log {next(site.numbers)}"


@pytest.fixture
def log(site: Site, name: str) -> Log:
    """A log of 8 entries that all three have co-signed."""
    mine = Log(8, name=name)
    for one in site.processes:
        one.cosign(mine)
    return mine


def fork(log: Log, at: int, size: int) -> Log:
    """What a second broker makes of a copy of the first ``at`` entries, under the same log key."""
    other = log.copy()
    other.tree.truncate(at)
    return other.grow(size - at, mark="fork ")


# -- the whole way ------------------------------------------------------------------------------------------------------


def test_a_log_that_grows_is_cosigned_by_all(site: Site, log: Log) -> None:
    for count in (1, 5, 100):
        signed = site.gather(log.grow(count))
        assert len(require_cosignatures(signed, keys=site.keys, threshold=2)) >= 2


# -- the broker's host --------------------------------------------------------------------------------------------------


def test_a_full_snapshot_restored_is_found_at_the_start(site: Site, log: Log) -> None:
    site.gather(log.grow(4))
    snapshot = log.copy()
    snapshot.tree.truncate(8)
    clients = [one.client for one in site.processes]
    newest = ask_newest(clients, log=log.id, nonce=random.randbytes(32), threshold=2, timeout=30)
    assert max(one.size for one in newest.values()) == 12 > snapshot.tree.size
    with pytest.raises(RollbackFound, match=r"seen 12 entries .* has 8"):
        site.gather(snapshot)


def test_two_brokers_forked_from_one_disk_do_not_both_go_on(site: Site, log: Log) -> None:
    other = fork(log, 8, 9)
    site.gather(log.grow())
    with pytest.raises(ForkFound) as caught:
        site.gather(other)
    assert log.tree.root().hex() in caught.value.what
    assert other.tree.root().hex() in caught.value.what
    with pytest.raises(ForkFound):
        site.gather(other.grow(20))
    site.gather(log.grow())


def test_two_brokers_that_race_for_the_witnesses_do_not_both_win(site: Site, log: Log) -> None:
    brokers = [fork(log, 8, 8).grow(1, mark=f"broker {number} ") for number in range(6)]
    won: list[int] = []
    start = threading.Barrier(len(brokers))

    def run(number: int) -> None:
        start.wait()
        try:
            site.gather(brokers[number])
        except (ForkFound, RollbackFound, NetworkError):
            return
        won.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(brokers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) <= 1


FORGERIES: dict[str, Callable[[Log], CosignRequest]] = {
    "a shorter log": lambda log: log.request(0, 5),
    "a shorter log with an honest proof towards the newest": lambda log: CosignRequest(
        head=log.head(5), old_size=8, proof=log.tree.consistency(5, 8)
    ),
    "another history of the same size": lambda log: fork(log, 7, 8).request(8),
    "another history of the same size from nothing": lambda log: fork(log, 0, 8).request(0),
    "another state under the same entries": lambda log: CosignRequest(
        head=log.head(state="0" * 64), old_size=8, proof=()
    ),
    "another history with its own proof": lambda log: fork(log, 7, 12).request(8),
    "another history with the proof of the first": lambda log: CosignRequest(
        head=fork(log, 7, 12).head(), old_size=8, proof=log.copy().grow(4).tree.consistency(8)
    ),
    "another history with random hashes": lambda log: CosignRequest(
        head=fork(log, 7, 12).head(), old_size=8, proof=tuple(random.randbytes(32) for _ in range(3))
    ),
    "another history without a proof": lambda log: CosignRequest(
        head=fork(log, 7, 12).head(), old_size=8, proof=()
    ),
    "another history that says the witness is new": lambda log: fork(log, 7, 12).request(0),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_history_is_not_cosigned(site: Site, log: Log, forgery: str) -> None:
    witness = site.processes[0]
    status, problem = witness.sent(FORGERIES[forgery](log))
    assert (status, problem) in {(409, f"witness-{kind}") for kind in ("fork", "rollback", "elsewhere")}
    # … and the true one goes on as if nothing had been asked.
    witness.cosign(log.grow(), known=8)


def test_a_head_of_another_log_or_of_nobodys_is_not_cosigned(site: Site, log: Log) -> None:
    witness, stranger = site.processes[0], Log(12, name="a log that nobody named")
    assert witness.sent(stranger.request(0)) == (404, "unknown-log")
    # The name of ours, signed by a stranger's key:
    forged = Log(12, name="a log that nobody named")
    forged.id = log.id
    assert witness.sent(forged.request(8)) == (422, "head-refused")


# -- between broker and witness -----------------------------------------------------------------------------------------


def test_a_recorded_answer_does_not_hide_what_came_later(site: Site, log: Log) -> None:
    witness = site.processes[0]
    request = encode_json(NewestRequest(log=log.id, nonce=b"o" * 32))
    url = f"{witness.url}/cloister/v1/witness/newest"
    status, recorded = witness.client._post(url, request, time.monotonic() + 30)
    assert status == 200
    witness.cosign(log.grow(4), known=8)

    async def replay(_request: Request) -> Response:
        return Response(recorded)

    replaying = Starlette(routes=[Route("/{rest:path}", replay, methods=["POST"])])
    with served(replaying) as between:
        client = WitnessClient(witness.name, between, witness.key)
        with pytest.raises(NetworkError, match="another question"):
            ask_newest([client], log=log.id, nonce=b"n" * 32, threshold=1, timeout=30)
    told = ask_newest([witness.client], log=log.id, nonce=b"n" * 32, threshold=1, timeout=30)
    assert told[witness.name].size == 12


def test_a_strangers_cosignature_does_not_count(site: Site, log: Log, tmp_path: Path) -> None:
    mallory = Witness(tmp_path, signer("mallory"), {log.id: log.public})
    with served(create_witness(mallory)) as url:
        anna, *_ = site.processes
        clients = [anna.client, WitnessClient("ben", url, site.keys["ben"])]
        with pytest.raises(NetworkError, match="1 witnesses answered, and 2 must"):
            gather(clients, log.head(), consistency=log.tree.consistency, threshold=2, timeout=30)
        signed = log.head()
        both = (anna.cosign(log), mallory.cosign(log.request(0)))
        with pytest.raises(HeadRefused, match="stranger"):
            require_cosignatures(with_cosignatures(signed, both), keys=site.keys, threshold=1)


def test_one_witness_is_not_counted_twice(site: Site, log: Log) -> None:
    anna, *_ = site.processes
    # Its address under a second name:
    clients = [anna.client, WitnessClient("ben", anna.url, site.keys["ben"])]
    with pytest.raises(NetworkError, match="1 witnesses answered, and 2 must"):
        gather(clients, log.head(), consistency=log.tree.consistency, threshold=2, timeout=30)
    # Its signature twice:
    twice = with_cosignatures(log.head(), (anna.cosign(log), anna.cosign(log)))
    with pytest.raises(HeadRefused, match="twice"):
        require_cosignatures(twice, keys=site.keys, threshold=2)


# -- the witness's own machine ------------------------------------------------------------------------------------------

DYING = """
import os, signal
from pathlib import Path
from cloister.broker import witness_memory
real, replace = witness_memory.write_memory, Path.replace
def die():
    os.kill(os.getpid(), signal.SIGKILL)
def write(directory, log, memory):
    if memory.size < 9:
        return real(directory, log, memory)
    {act}
witness_memory.write_memory = write
from cloister.cli import main
main()
"""
MOMENTS = {
    "before it is written": ("die()", False),
    "when it is written, before it is in its place": (
        "Path.replace = lambda *_: die(); real(directory, log, memory)",
        False,
    ),
    "in its place, before the directory is synced": (
        "Path.replace = lambda *names: (replace(*names), die()); real(directory, log, memory)",
        True,
    ),
    "remembered, before it answers": ("real(directory, log, memory); die()", True),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_witness_killed_between_signing_and_answering_signs_no_fork_afterwards(
    tmp_path: Path, moment: str
) -> None:
    act, remembered = MOMENTS[moment]
    log = Log(8)
    witness = Process(tmp_path, "anna", log)
    witness.start(DYING.format(act=act))
    try:
        witness.cosign(log)
        with pytest.raises(NetworkError):
            witness.cosign(log.grow(), known=8)
        assert witness.process is not None
        assert witness.process.wait(30) == -signal.SIGKILL
        witness.end()
        witness.start()
        other = fork(log, 8, 9)
        if remembered:
            with pytest.raises(ForkFound):
                witness.cosign(other)
            witness.cosign(log)
        else:
            # Nobody ever got a co-signature of the first history, so the second one is the only one.
            witness.cosign(other)
            with pytest.raises(ForkFound):
                witness.cosign(log)
    finally:
        witness.end()


def test_a_witness_killed_at_random_never_signs_a_fork_of_what_it_signed(tmp_path: Path) -> None:
    log, chance = Log(0), random.Random(4)
    witness = Process(tmp_path, "anna", log)
    signed = 0
    try:
        for _ in range(5):
            witness.start()
            if signed:
                with pytest.raises((ForkFound, RollbackFound)):
                    witness.cosign(fork(log, signed - 1, log.tree.size + 1))
            else:
                witness.cosign(log.grow(), known=log.tree.size - 1)
                signed = log.tree.size
            killer = threading.Timer(chance.uniform(0.02, 0.3), witness.process.kill)  # type: ignore[union-attr]
            killer.start()
            try:
                while True:
                    witness.cosign(log.grow(), known=log.tree.size - 1)
                    signed = log.tree.size
            except NetworkError:
                killer.join()
                witness.end(signal.SIGKILL)
        assert signed
        witness.start()
        witness.cosign(log.grow())
    finally:
        witness.end()


def test_two_processes_do_not_share_a_witnesss_memory(tmp_path: Path) -> None:
    witness = Process(tmp_path, "anna", Log())
    witness.start()
    try:
        second = subprocess.run(witness.command(), capture_output=True, text=True, timeout=60, check=False)
        assert second.returncode == EXIT_USAGE
        assert "another witness works in" in second.stderr
    finally:
        witness.end()


def test_a_witness_whose_own_memory_was_put_back_signs_a_fork_so_it_must_guard_it(tmp_path: Path) -> None:
    # Not defended, and docs/spec/witness.md says so: this shows what is at stake.
    log = Log(8)
    witness = Process(tmp_path, "anna", log)
    try:
        witness.start()
        witness.cosign(log)
        witness.end()
        shutil.copytree(witness.state, tmp_path / "copy")
        other = fork(log, 8, 9)
        witness.start()
        witness.cosign(log.grow())
        witness.end()
        shutil.rmtree(witness.state)
        (tmp_path / "copy").rename(witness.state)
        witness.start()
        assert witness.cosign(other).key == witness.key.text
    finally:
        witness.end()
