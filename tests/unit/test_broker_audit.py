"""The audit chain: what is found, and how it lives through crashes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cloister.broker.audit import (
    FILE,
    MAX_LINE,
    START,
    AuditDamaged,
    AuditLog,
    Fact,
    Line,
    chain_value,
    verify,
)
from cloister.encoding import decode_json, encode_json

NOW = 1_790_000_000
FACT = Fact("release", "accepted", resource="kbs:///models/key/demo")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    audit = AuditLog(tmp_path)
    for number in range(5):
        audit.append(FACT, NOW + number)
    return tmp_path / FILE


def test_an_untouched_log_verifies(log: Path) -> None:
    lines = log.read_bytes().splitlines()
    assert verify(log) == (5, chain_value(lines[-1]))
    assert decode_json(lines[0], Line, what="line").previous == START


def test_the_first_line_is_the_documented_vector(tmp_path: Path) -> None:
    AuditLog(tmp_path).append(Fact("put", "done", resource="kbs:///models/key/demo", reason="version 1"), NOW)
    line = (tmp_path / FILE).read_bytes()[:-1]
    spec = (Path(__file__).parents[2] / "docs/spec/audit-line.md").read_text()
    assert f"`{line.decode()}`" in spec
    assert f"`{chain_value(line)}`" in spec


def _edit(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[1].replace(b"accepted", b"refused"), *lines[2:]]


ATTACKS: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "a line edited": _edit,
    "a line deleted": lambda lines: lines[:1] + lines[2:],
    "the first line deleted": lambda lines: lines[1:],
    "two lines exchanged": lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
    "a line doubled": lambda lines: [*lines[:2], lines[1], *lines[2:]],
    "a line of another form": lambda lines: [*lines[:2], b"{}", *lines[3:]],
    "a space added": lambda lines: [lines[0].replace(b":", b": ", 1), *lines[1:]],
    "an over-long line": lambda lines: [*lines, b"x" * (2 * MAX_LINE)],
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_a_log_altered_inside_is_found(log: Path, attack: Callable[[list[bytes]], list[bytes]]) -> None:
    lines = log.read_bytes().splitlines()
    log.write_bytes(b"".join(line + b"\n" for line in attack(lines)))
    with pytest.raises(AuditDamaged):
        verify(log)


def test_any_flipped_bit_is_found_by_the_chain_value_kept_elsewhere(log: Path) -> None:
    kept, raw = verify(log), log.read_bytes()
    for index in range(0, len(raw), 11):
        changed = bytearray(raw)
        changed[index] ^= 4
        log.write_bytes(changed)
        try:
            assert verify(log) != kept
        except AuditDamaged:
            continue


@pytest.mark.parametrize("torn", [1, 20, 200])
def test_a_torn_last_line_is_cut_off_and_said(log: Path, torn: int) -> None:
    whole = log.read_bytes()
    log.write_bytes(whole + whole.splitlines()[-1][:torn])
    AuditLog(log.parent).append(FACT, NOW)
    lines = [decode_json(line, Line, what="line") for line in log.read_bytes().splitlines()]
    assert [line.event for line in lines[-2:]] == ["recovery", "release"]
    assert f"{torn} bytes" in lines[-2].reason
    assert verify(log)[0] == 7


def test_a_torn_first_line_is_cut_off_too(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b'{"event"')
    AuditLog(tmp_path).append(FACT, NOW)
    assert verify(tmp_path / FILE)[0] == 2


def test_a_log_that_ends_in_something_else_takes_no_line(log: Path) -> None:
    with log.open("ab") as file:
        file.write(b"{}\n")
    before = log.read_bytes()
    with pytest.raises(AuditDamaged):
        AuditLog(log.parent).append(FACT, NOW)
    assert log.read_bytes() == before


def test_a_reason_is_one_bounded_line(tmp_path: Path) -> None:
    AuditLog(tmp_path).append(Fact("release", "refused", reason="a\nb\x1b[31m" + "é" * 10_000), NOW)
    (line,) = (tmp_path / FILE).read_bytes().splitlines()
    assert len(line) < MAX_LINE
    reason = decode_json(line, Line, what="line").reason
    assert reason.startswith("a b [31m")
    assert encode_json(decode_json(line, Line, what="line")) == line


def test_a_log_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(AuditDamaged):
        AuditLog(tmp_path / "nowhere").append(FACT, NOW)


def test_a_log_that_is_a_link_takes_no_line(log: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"a last line without its end")
    log.unlink()
    log.symlink_to(victim)
    with pytest.raises(AuditDamaged):
        AuditLog(tmp_path).append(FACT, NOW)
    assert victim.read_bytes() == b"a last line without its end"


def test_many_writers_keep_one_chain(tmp_path: Path) -> None:
    def write() -> None:
        audit = AuditLog(tmp_path)
        for _ in range(10):
            audit.append(FACT, NOW)

    threads = [threading.Thread(target=write) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verify(tmp_path / FILE)[0] == 60
