"""Whatever moment a broker is killed at, what it had acknowledged is there, and nothing is there by half.

A process puts, allows, attests, releases, rotates and destroys at random and says so after each; it is killed with
SIGKILL at random moments, again and again. After each the state is opened as a broker that starts opens it, and
compared with what was said. The seed is fixed; the moments are the machine's.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from broker_parts import CHEAP, PASSPHRASE, Attempt, all_entries, attested
from cloister.appraisal.draft import draft_policy
from cloister.attester.simulated import SimulatedPlatform
from cloister.broker import tables
from cloister.broker.audit import Entry
from cloister.broker.clock import RisingClock
from cloister.broker.counters import counted
from cloister.broker.custody import Custody
from cloister.broker.desk import Desk
from cloister.broker.laptop import Laptop, create_laptop_state
from cloister.broker.metrics import Metrics
from cloister.broker.service import Broker
from cloister.broker.session import Sessions, session_digest
from cloister.broker.token import TokenSigner
from cloister.errors import UnknownResource
from postgres import postgres_server

COUNTED = ("models/key/a", "models/key/b", "data/key/a")
FREE = ("models/key/c", "data/key/b")
PATHS = (*COUNTED, *FREE)
PLENTY = 10_000
THREADS = 4
OPERATIONS = (
    "put",
    "put",
    "allow",
    "attest",
    "release",
    "release",
    "burst",
    "burst",
    "rotate-key",
    "destroy",
)
"""``burst``: releases of several threads, which share transactions."""


def wall() -> int:
    return int(time.time())


# -- the process that is killed -------------------------------------------------------------------------------------------


@dataclass
class Worker:
    """One run of the broker: says what it does before it does it, and again when it was done."""

    database: str
    platform: SimulatedPlatform
    dice: random.Random
    desk: Desk = field(init=False)

    def __post_init__(self) -> None:
        self.tee = self.platform.tee("tdx")
        self.policy = policy(self.platform)
        self.laptop = Laptop.open_engine(tables.open_database(self.database), PASSPHRASE)
        custody = Custody(tables.open_database(self.database), clock=RisingClock(wall), origin=None)
        custody.open_by_passphrase(PASSPHRASE)
        self.desk = Desk(custody, sessions=Sessions(), tokens=TokenSigner(build="test"), metrics=Metrics())
        self.attempt: Attempt | None = None

    @property
    def broker(self) -> Broker:
        return self.desk.broker

    def run(self) -> None:
        self._attest()
        while True:
            getattr(self, "_" + self.dice.choice(OPERATIONS).replace("-", "_"))()

    def _put(self) -> None:
        path, content = self.dice.choice(PATHS), self.dice.randbytes(32)
        with said("put", path, content=hashlib.sha256(content).hexdigest()) as done:
            done["version"] = self.laptop.put(path, content).version

    def _allow(self) -> None:
        path = self.dice.choice(PATHS)
        with said("allow", path) as done:
            rule = self.laptop.allow(path, (self.policy,), releases=PLENTY if path in COUNTED else None)
            done["version"] = rule.rule.version

    def _destroy(self) -> None:
        path = self.dice.choice(PATHS)
        with said("destroy", path) as done:
            done["version"] = self.laptop.destroy(path).version

    def _rotate_key(self) -> None:
        repository = self.dice.choice(("models", "data"))
        with said("rotate-key", repository) as done:
            done["version"] = self.laptop.rotate_key(repository).version

    def _attest(self) -> None:
        with said("attest", "") as done:
            self.attempt = attested(self, self.tee)  # type: ignore[arg-type]
            assert self.attempt.session is not None
            done["session"] = session_digest(self.attempt.session)

    def _release(self, path: str | None = None) -> None:
        path = path or self.dice.choice(PATHS)
        assert self.attempt is not None
        assert self.attempt.session is not None
        with said("release", path, session=session_digest(self.attempt.session)):
            self.attempt.get(path)

    def _burst(self) -> None:
        path = self.dice.choice(COUNTED)
        threads = [threading.Thread(target=self._release, args=(path,)) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


@contextlib.contextmanager
def said(what: str, subject: str, **facts: str) -> Iterator[dict[str, Any]]:
    """A line before, and one after: what is between may have happened or not."""
    done: dict[str, Any] = {"what": what, "subject": subject, "thread": threading.get_ident(), **facts}
    tell(done | {"line": "doing"})
    try:
        yield done
    except UnknownResource:
        tell(done | {"line": "refused"})  # a resource that was destroyed
    except Exception as error:
        tell(done | {"line": repr(error)})
        raise
    else:
        tell(done | {"line": "done"})


def tell(facts: dict[str, Any]) -> None:
    os.write(1, json.dumps(facts).encode() + b"\n")  # one write: a kill leaves no half of a line


def policy(platform: SimulatedPlatform) -> str:
    tee = platform.tee("tdx")
    return draft_policy(
        tee="tdx",
        measurements=tee.measurements,
        events=tee.launch,
        min_tcb_evaluation_number=1,
        simulated_root=platform.root_sha256,
    )


def nursery(database: str, platform: SimulatedPlatform) -> None:
    """Fork a worker for each seed that is read: importing takes longer than all that a worker lives."""
    for line in sys.stdin:
        child = os.fork()
        if not child:
            tell({"line": "born", "pid": os.getpid()})
            Worker(database, platform, random.Random(int(line))).run()
        os.waitpid(child, 0)
        tell({"line": "dead"})


# -- the test -------------------------------------------------------------------------------------------------------------


@dataclass
class Said:
    """What workers said up to now."""

    done: list[dict[str, Any]] = field(default_factory=list)
    doubtful: list[dict[str, Any]] = field(default_factory=list)
    """Begun, and not known to have ended."""


@contextlib.contextmanager
def workers(database: str, platform: Path) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, __file__, database, str(platform)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        process.wait(20)


def live_and_die(process: subprocess.Popen[str], said: Said, dice: random.Random) -> None:
    """One worker, killed a random while after a random number of operations."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{dice.getrandbits(32)}\n")
    process.stdin.flush()
    pid = int(json.loads(process.stdout.readline())["pid"])
    enough = dice.randint(2, 24)
    open_ones: dict[int, dict[str, Any]] = {}
    ended, killed = 0, False
    while (facts := json.loads(process.stdout.readline()))["line"] != "dead":
        if facts["line"] == "doing":
            open_ones[facts["thread"]] = facts
        else:
            assert facts["line"] in ("done", "refused"), facts
            del open_ones[facts["thread"]]
            if facts["line"] == "done":
                said.done.append(facts)
                ended += 1
        if ended >= enough and not killed:
            time.sleep(dice.uniform(0, 0.02))
            os.kill(pid, signal.SIGKILL)
            killed = True
    assert killed, "the worker ended by itself"
    said.doubtful += open_ones.values()


def check(database: str, said: Said) -> None:
    """Open the state and compare it with what was said."""
    engine = tables.open_database(database)
    try:
        laptop = Laptop.open_engine(
            engine, PASSPHRASE
        )  # reads and checks log, state tree and every signature
        journal = laptop.state.journal
        journal.transact(lambda _transaction: None)  # waits for what a killed worker's connection is still at
        entries = all_entries(journal)
        stands: dict[tuple[str, str], tuple[int, str]] = {}
        for entry in entries:
            for change in entry.changes:
                before = stands.get((change.kind, change.name), (0, ""))[0]
                assert change.version == before + 1, "a version was left out or came twice"
                stands[change.kind, change.name] = (change.version, change.digest)
        for (kind, name), (version, digest) in stands.items():
            stored = journal.read(kind, name)  # type: ignore[arg-type]
            assert stored is not None
            assert (stored.version, hashlib.sha256(stored.body).hexdigest()) == (version, digest)
        assert_acknowledged_is_there(entries, said)
        for path in PATHS:
            assert_counter_is_the_logs(laptop, entries, path)
            assert_content_is_what_was_put(laptop, said, path)
    finally:
        engine.dispose()


def assert_acknowledged_is_there(entries: list[Entry], said: Said) -> None:
    told, begun = Counter(map(told_by, entries)), Counter(map(promised, said.doubtful))
    acknowledged = Counter(map(promised, said.done))
    missing = acknowledged - told
    assert not missing, missing
    # Whatever else the log tells of was begun when a worker died.
    for what in ("put", "allow", "destroy", "rotate-key", "attest", "release"):
        extra = sum(n for key, n in (told - acknowledged).items() if key[0] == what)
        assert extra <= sum(n for key, n in begun.items() if key[0] == what), what


def promised(facts: dict[str, Any]) -> tuple[str, ...]:
    """What the log has to tell of an operation."""
    if facts["what"] in ("release", "attest"):
        return (facts["what"], facts["subject"], facts.get("session", ""))
    return (facts["what"], facts["subject"], str(facts.get("version", "")))


def told_by(entry: Entry) -> tuple[str, ...]:
    """What an entry tells of, in the same words."""
    subject = entry.resource.removeprefix("kbs:///").removeprefix("key:")
    version = entry.reason.partition("version ")[2].partition(" ")[0]
    if entry.event == "attestation" and entry.outcome == "accepted":
        return ("attest", "", entry.session)
    if entry.event == "release" and entry.outcome == "accepted":
        return ("release", subject, entry.session)
    if entry.event == "rule":
        return ("allow", subject, version)
    if entry.event == "key" and " active" in entry.reason:
        return ("rotate-key", subject, version)
    if entry.event == "resource":
        return ("put" if entry.reason.endswith("put") else "destroy", subject, version)
    return ("beside", entry.event, entry.outcome)


def assert_counter_is_the_logs(laptop: Laptop, entries: list[Entry], path: str) -> None:
    """Release 1, 2, 3 … of each version of a rule, and the counter is at the last of them."""
    numbers: dict[str, list[str]] = {}
    for entry in entries:
        if (entry.event, entry.outcome, entry.resource) == ("release", "accepted", f"kbs:///{path}"):
            numbers.setdefault(entry.rule, []).append(entry.reason)
    for found in numbers.values():
        assert found == [
            f"release {number}" if path in COUNTED else "" for number in range(1, len(found) + 1)
        ]
    rule = laptop.state.authority.rule(path)
    assert rule is not None
    released = counted(laptop.state.journal.read("counter", path), rule.rule.digest).released
    assert released == (len(numbers.get(rule.rule.digest, [])) if path in COUNTED else 0)


def assert_content_is_what_was_put(laptop: Laptop, said: Said, path: str) -> None:
    read, version = laptop.state.resources.read(path), laptop.state.resources.version(path)
    puts = [one for one in said.done if one["what"] == "put" and one["subject"] == path]
    if read is None:
        assert version
        assert not any(one["version"] >= version for one in puts)
        return
    assert read[0] == version
    exact = {one["content"] for one in puts if one["version"] == version} or {
        one["content"] for one in said.doubtful if one["what"] == "put" and one["subject"] == path
    }
    assert hashlib.sha256(read[1]).hexdigest() in exact


def die_again_and_again(database: str, directory: Path, *, operations: int, seed: int) -> None:
    dice, said = random.Random(seed), Said()
    platform = SimulatedPlatform.create(directory / "tee", now=wall())
    engine = tables.open_database(database)
    create_laptop_state(engine, PASSPHRASE, cost=CHEAP)
    laptop = Laptop.open_engine(engine, PASSPHRASE)
    for path in PATHS:
        first = dice.randbytes(32)
        version = laptop.put(path, first).version
        content = hashlib.sha256(first).hexdigest()
        said.done.append({"what": "put", "subject": path, "version": version, "content": content})
        rule = laptop.allow(path, (policy(platform),), releases=PLENTY if path in COUNTED else None)
        said.done.append({"what": "allow", "subject": path, "version": rule.rule.version})
    engine.dispose()
    begun, kills = len(said.done), 0
    with workers(database, directory / "tee") as process:
        while len(said.done) - begun < operations:
            live_and_die(process, said, dice)
            kills += 1
            check(database, said)
    assert kills >= operations / 25
    assert {one["what"] for one in said.done} >= {
        "put",
        "allow",
        "attest",
        "release",
        "rotate-key",
        "destroy",
    }


@pytest.mark.parametrize("seed", [1, 2])
def test_a_broker_that_is_killed_again_and_again_keeps_what_it_acknowledged(
    tmp_path: Path, seed: int
) -> None:
    tables.make_directory(tmp_path / "state")
    die_again_and_again(tables.sqlite_url(tmp_path / "state"), tmp_path, operations=200, seed=seed)


def test_a_broker_on_postgresql_that_is_killed_again_and_again_keeps_what_it_acknowledged(
    tmp_path: Path,
) -> None:
    with postgres_server() as server:
        die_again_and_again(server.create("crash"), tmp_path, operations=100, seed=3)


if __name__ == "__main__":
    nursery(sys.argv[1], SimulatedPlatform.load(Path(sys.argv[2])))
