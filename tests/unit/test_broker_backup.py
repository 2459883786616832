"""Backups: all of a state in one file, whole or refused, and useless without its key."""

from __future__ import annotations

import json
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from broker_parts import PASSPHRASE, PATH, SECRET, Bench, OwnersBench, attested, workload
from cloister.broker import tables
from cloister.broker.backup import MAX_LINE, back_up, restore
from cloister.broker.laptop import Laptop
from cloister.broker.protocol import MAX_ATTEST
from cloister.errors import CloisterError, UsageError


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path / "state")
    bench.put()
    bench.allow(workload())
    attested(bench, workload()).get()
    return bench


def engine_of(directory: Path) -> sa.Engine:
    if not (directory / tables.DATABASE).exists():
        tables.make_directory(directory)
    return tables.open_database(tables.sqlite_url(directory))


@pytest.fixture
def file(bench: Bench, tmp_path: Path) -> Path:
    back_up(engine_of(bench.directory), tmp_path / "backup")
    return tmp_path / "backup"


def test_a_restored_state_is_the_state(bench: Bench, file: Path, tmp_path: Path) -> None:
    rows = restore(engine_of(tmp_path / "restored"), file)
    assert rows == len(file.read_bytes().splitlines()) - 2
    again = Laptop.open(tmp_path / "restored", PASSPHRASE, now=bench.clock)
    assert again.state.resources.read(PATH) == (1, SECRET)
    bench.laptop.state.journal.catch_up()
    assert again.state.journal.head == bench.laptop.state.journal.head
    digest = bench.told("attestation")[0].evidence
    assert again.state.journal.evidence(digest) is not None
    again.put(PATH, b"and it goes on")


def test_a_state_of_owners_opens_by_their_shares_after_restoring(tmp_path: Path) -> None:
    bench = OwnersBench(tmp_path / "state")
    shares = bench.share_out()
    bench.have_done("put", PATH, SECRET)
    back_up(engine_of(bench.directory), tmp_path / "backup")
    restore(engine_of(tmp_path / "restored"), tmp_path / "backup")
    bench.directory = tmp_path / "restored"
    again = bench.again()
    for owner in ("alice", "carol"):
        again.offer(shares[owner])
    assert again.state.resources.read(PATH) == (1, SECRET)


def test_a_backup_is_for_its_owner_alone_and_holds_no_secret(bench: Bench, file: Path) -> None:
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    text = file.read_bytes()
    for secret in (SECRET, PASSPHRASE, bench.laptop.state.key_for_peer()):
        assert secret not in text
        assert secret.hex().encode() not in text


def test_a_backup_overwrites_nothing_and_leaves_no_draft(bench: Bench, file: Path, tmp_path: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(UsageError, match="exists"):
        back_up(engine_of(bench.directory), file)
    assert file.read_bytes() == before
    with pytest.raises(UsageError):
        back_up(engine_of(bench.directory), tmp_path / "nowhere" / "file")
    assert not list(tmp_path.glob("*.partial"))
    assert not list(tmp_path.glob(".*.partial"))


def test_a_state_is_not_restored_over_another(bench: Bench, file: Path) -> None:
    with pytest.raises(UsageError, match="already"):
        restore(engine_of(bench.directory), file)


def _line(number: int, change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    def attack(data: bytes) -> bytes:
        lines = data.splitlines(keepends=True)
        lines[number] = change(lines[number])
        return b"".join(lines)

    return attack


def _without(number: int) -> Callable[[bytes], bytes]:
    def attack(data: bytes) -> bytes:
        lines = data.splitlines(keepends=True)
        del lines[number]
        return b"".join(lines)

    return attack


ATTACKS: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda _data: b"",
    "a newline": lambda _data: b"\n",
    "its end cut": lambda data: data[:-1],
    "its last line cut": lambda data: data.removesuffix(data.splitlines(keepends=True)[-1]),
    "half of it": lambda data: data[: len(data) // 2],
    "its first line cut": _without(0),
    "a row left out": _without(3),
    "a row twice": _line(3, lambda line: line * 2),
    "a line more": lambda data: data + data.splitlines(keepends=True)[3],
    "two ends": lambda data: data + data.splitlines(keepends=True)[-1],
    "another format": _line(0, lambda line: line.replace(b"/v1", b"/v2")),
    "another schema": _line(0, lambda line: line.replace(b"0001", b"0002")),
    "another table": _line(3, lambda line: line.replace(b'"table":"entries"', b'"table":"sqlite_master"')),
    "a value less": _line(3, lambda line: line.replace(b'"row":[0,', b'"row":[')),
    "a text for a number": _line(3, lambda line: line.replace(b'"row":[0,', b'"row":["x",')),
    "no base64": _line(3, lambda line: line.replace(b'"row":[0,"', b'"row":[0,"$$')),
    "an empty line": _line(3, lambda line: b"\n" + line),
    "a line without end": lambda data: data + b"x" * (MAX_LINE + 10),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_a_damaged_backup_restores_nothing(
    file: Path, tmp_path: Path, attack: Callable[[bytes], bytes]
) -> None:
    data = file.read_bytes()
    assert attack(data) != data
    file.write_bytes(attack(data))
    engine = engine_of(tmp_path / "restored")
    with pytest.raises(CloisterError):
        restore(engine, file)
    assert not tables.exists(engine)
    with engine.connect() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(tables.entries)).scalar() == 0
    file.write_bytes(data)
    restore(engine, file)


def test_a_backup_that_was_edited_is_restored_and_then_not_opened(
    file: Path, tmp_path: Path, bench: Bench
) -> None:
    """A backup is not authenticated by itself: the state is, when it is opened."""
    lines = file.read_bytes().splitlines()
    for number, line in enumerate(lines):
        part = json.loads(line)
        if part.get("table") == "records" and part["row"][0] == "resource":
            part["row"][2] = 9
            lines[number] = json.dumps(part, separators=(",", ":"), sort_keys=True).encode()
    file.write_bytes(b"\n".join(lines) + b"\n")
    restore(engine_of(tmp_path / "restored"), file)
    with pytest.raises(CloisterError):
        Laptop.open(tmp_path / "restored", PASSPHRASE, now=bench.clock)


def test_a_backup_of_a_state_in_use_is_consistent(bench: Bench, tmp_path: Path) -> None:
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            bench.put(f"models/key/n{number}", b"x")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(3):
            back_up(engine_of(bench.directory), tmp_path / f"backup{number}")
    finally:
        stop.set()
        writer.join()
    for number in range(3):
        restore(engine_of(tmp_path / f"restored{number}"), tmp_path / f"backup{number}")
        Laptop.open(tmp_path / f"restored{number}", PASSPHRASE, now=bench.clock)


def test_the_largest_evidence_fits_into_a_line_of_a_backup() -> None:
    assert MAX_ATTEST * 4 // 3 + 1000 < MAX_LINE
