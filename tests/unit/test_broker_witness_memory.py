"""A witness over its directory: durable before it answers, one process at a time, damage refused."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from cloister.broker.tree_head import ForkFound, verify_cosignature
from cloister.broker.witness import MAX_MEMORY, MemoryDamaged, NewestRequest, UnknownLog
from cloister.broker.witness_memory import Witness, held, read_memory, remembered, write_memory
from cloister.errors import CloisterError, UsageError
from witness_parts import Log, signer, witness_keys


def witness(directory: Path, *logs: Log) -> Witness:
    directory.mkdir(exist_ok=True)
    return Witness(directory, signer("wanda"), {log.id: log.public for log in logs})


def test_what_was_cosigned_is_known_to_the_next_process(tmp_path: Path) -> None:
    log = Log(8)
    cosignature = witness(tmp_path, log).cosign(log.request(0))
    verify_cosignature(log.head().head, cosignature, witness_keys("wanda")["wanda"])
    again = witness(tmp_path, log)
    assert again.memory(log.id).size == 8
    with pytest.raises(ForkFound):
        again.cosign(Log(8, mark="fork ").request(8))


def test_logs_do_not_touch_each_other(tmp_path: Path) -> None:
    one, other = Log(8), Log(3, name="another")
    both = witness(tmp_path, one, other)
    both.cosign(one.request(0))
    both.cosign(other.request(0))
    assert {log: memory.size for log, memory in remembered(tmp_path).items()} == {one.id: 8, other.id: 3}


def test_a_log_that_is_not_named_is_not_served(tmp_path: Path) -> None:
    log, stranger = Log(8), Log(8, name="stranger")
    one = witness(tmp_path, log)
    with pytest.raises(UnknownLog):
        one.cosign(stranger.request(0))
    with pytest.raises(UnknownLog):
        one.newest(NewestRequest(log=stranger.id, nonce=bytes(32)))
    assert remembered(tmp_path) == {}


def test_a_refused_head_leaves_the_memory_as_it_was(tmp_path: Path) -> None:
    log = Log(8)
    one = witness(tmp_path, log)
    one.cosign(log.request(0))
    before = (tmp_path / f"{log.id}.json").read_bytes()
    with pytest.raises(ForkFound):
        one.cosign(Log(9, mark="fork ").request(8))
    assert (tmp_path / f"{log.id}.json").read_bytes() == before
    assert one.memory(log.id).size == 8


def test_nothing_is_signed_that_could_not_be_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log(8)
    one = witness(tmp_path, log)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(UsageError, match="No space left"):
            one.cosign(log.request(0))
    # Nothing was signed, so nothing binds: another history of that size is still possible.
    assert one.memory(log.id).size == 0
    assert one.cosign(log.copy().grow().request(0)).key == one.key


def test_of_many_at_once_only_one_history_is_cosigned(tmp_path: Path) -> None:
    # Each thread shows a history of its own for one size: the lock lets one of them be the first.
    one = witness(tmp_path, Log())
    logs = [Log(8, mark=f"history {number} ") for number in range(16)]
    signed: list[int] = []
    start = threading.Barrier(len(logs))

    def ask(number: int) -> None:
        start.wait()
        try:
            one.cosign(logs[number].request(0))
        except CloisterError:
            return
        signed.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(logs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(signed) == 1
    assert one.memory(Log().id).root == logs[signed[0]].tree.root().hex()


def test_two_processes_do_not_share_a_directory(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    with held(directory):
        assert directory.stat().st_mode & 0o777 == 0o700
        with pytest.raises(UsageError, match="another witness"), held(directory):
            raise AssertionError("held twice")
    with held(directory):
        pass


def test_a_directory_that_others_write_to_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    directory.mkdir()
    directory.chmod(0o777)
    with pytest.raises(UsageError, match="chmod 700"), held(directory):
        raise AssertionError("held")


DAMAGE = {
    "an empty file": b"",
    "half a file": b'{"format":"cloister/witness-memory/v1","forgo',
    "another thing": b"{}",
    "an endless file": b" " * (MAX_MEMORY + 10),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_witness_whose_memory_is_damaged_does_not_start(tmp_path: Path, damage: str) -> None:
    log = Log(8)
    witness(tmp_path, log).cosign(log.request(0))
    (tmp_path / f"{log.id}.json").write_bytes(DAMAGE[damage])
    with pytest.raises(MemoryDamaged, match="must not sign"):
        witness(tmp_path, log)


def test_a_memory_under_another_logs_name_is_damage(tmp_path: Path) -> None:
    log, other = Log(8), Log(8, name="another")
    witness(tmp_path, log).cosign(log.request(0))
    (tmp_path / f"{log.id}.json").rename(tmp_path / f"{other.id}.json")
    with pytest.raises(MemoryDamaged, match="another log"):
        witness(tmp_path, other)


def test_a_draft_that_a_crash_left_behind_counts_for_nothing(tmp_path: Path) -> None:
    log = Log(8)
    one = witness(tmp_path, log)
    one.cosign(log.request(0, 5))
    (tmp_path / f".{log.id}.partial").write_bytes(b"half")
    assert witness(tmp_path, log).memory(log.id).size == 5
    assert witness(tmp_path, log).cosign(log.request(5)).key == one.key
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{log.id}.json"]


def test_a_memory_that_cannot_be_read_or_written_says_so(tmp_path: Path) -> None:
    log = Log(8)
    (tmp_path / f"{log.id}.json").mkdir()
    with pytest.raises(UsageError, match="cannot read"):
        read_memory(tmp_path, log.id)
    with pytest.raises(UsageError, match="cannot write"):
        write_memory(tmp_path, log.id, log.memory)
    with pytest.raises(UsageError, match="no directory"):
        remembered(tmp_path / "nowhere")
