"""The cache of endorsements: whole entries or none, bounded, and never a reason to trust."""

from __future__ import annotations

import multiprocessing
import os
import stat
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.endorsements import cache as module
from cloister.endorsements.asking import Entry
from cloister.endorsements.cache import Cache
from cloister.errors import CloisterError, EndorsementError, UsageError

KEY = "tcb/tdx/00a06d080000"


def entry(content: bytes = b"content", *, key: str = KEY, at: int = 1_750_000_000) -> Entry:
    return Entry("intel", key, at, content)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "a" / "cache")


def files(cache: Cache) -> list[Path]:
    return sorted(cache.directory.iterdir())


def test_what_was_written_is_read(cache: Cache) -> None:
    assert cache.read("intel", KEY) is None
    cache.write(entry())
    assert cache.read("intel", KEY) == entry()
    assert cache.entries() == (entry(),)
    cache.write(entry(b"newer", at=1_750_000_001))
    assert cache.read("intel", KEY) == entry(b"newer", at=1_750_000_001)
    cache.drop("intel", KEY)
    assert cache.entries() == ()


def test_vendors_and_keys_do_not_meet(cache: Cache) -> None:
    cache.write(entry())
    assert cache.read("amd", KEY) is None
    assert cache.read("intel", KEY.upper()) is None


def test_only_the_user_can_read_it(cache: Cache) -> None:
    old = os.umask(0)
    try:
        cache.write(entry())
    finally:
        os.umask(old)
    assert stat.S_IMODE(cache.directory.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in files(cache)] == [0o600]


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_a_directory_that_others_can_write_to_is_refused(cache: Cache, mode: int) -> None:
    cache.write(entry())
    cache.directory.chmod(mode)
    for use in (lambda: cache.read("intel", KEY), lambda: cache.write(entry()), cache.entries):
        with pytest.raises(UsageError, match="others can write to the cache"):
            use()


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is not a directory"):
        Cache(tmp_path / "file").read("intel", KEY)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: data[:-1], id="one byte short"),
        pytest.param(lambda data: data[: len(data) // 2], id="half"),
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: data + b" ", id="one byte more"),
        pytest.param(lambda data: data.replace(b"intel", b"Intel"), id="altered"),
        pytest.param(lambda data: b"x" * 3_000_000, id="too large"),
        pytest.param(lambda data: data.replace(b"/v1 ", b"/v2 "), id="of another release"),
    ],
)
def test_a_damaged_entry_is_dropped(cache: Cache, damage: object) -> None:
    cache.write(entry())
    (path,) = files(cache)
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    assert cache.read("intel", KEY) is None
    assert files(cache) == []
    cache.write(entry())
    assert cache.read("intel", KEY) == entry()


def test_an_entry_under_another_name_is_dropped(cache: Cache) -> None:
    cache.write(entry())
    (path,) = files(cache)
    cache.write(entry(key="qe/tdx"))
    other = next(one for one in files(cache) if one != path)
    other.write_bytes(path.read_bytes())
    assert cache.read("intel", "qe/tdx") is None
    assert files(cache) == [path]


def test_a_link_is_not_followed(cache: Cache, tmp_path: Path) -> None:
    cache.write(entry())
    (path,) = files(cache)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="cannot be used"):
        cache.read("intel", KEY)


def test_a_pipe_does_not_block(cache: Cache) -> None:
    cache.write(entry())
    (path,) = files(cache)
    path.unlink()
    os.mkfifo(path)
    assert cache.read("intel", KEY) is None


def test_a_crash_before_the_rename_leaves_what_was_there(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PowerFails(BaseException):
        pass

    def crash(path: Path, data: bytes) -> None:
        path.write_bytes(data[: len(data) // 2])
        raise PowerFails

    cache.write(entry())
    monkeypatch.setattr(module, "_write_synced", crash)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)  # nobody tidies up after a crash
    with pytest.raises(PowerFails):
        cache.write(entry(b"newer"))
    monkeypatch.undo()
    assert cache.read("intel", KEY) == entry()
    assert len(files(cache)) == 2
    (left,) = [path for path in files(cache) if path.name.startswith(".new-")]
    os.utime(left, (0, 0))
    cache.write(entry(b"newest"))
    assert len(files(cache)) == 1


def _write_many(directory: Path, mark: bytes, enough: Event) -> None:
    number = 0
    while number < 40 or not enough.is_set():
        number += 1
        Cache(directory).write(entry(mark * 5000, key=f"tcb/tdx/{number % 4}"))


def test_two_processes_write_at_once_and_every_entry_is_whole(cache: Cache) -> None:
    context = multiprocessing.get_context("fork")
    enough = context.Event()
    writers = [
        context.Process(target=_write_many, args=(cache.directory, mark, enough)) for mark in (b"a", b"b")
    ]
    for writer in writers:
        writer.start()
    seen = 0
    try:
        while any(writer.is_alive() for writer in writers):
            for number in range(4):
                found = cache.read("intel", f"tcb/tdx/{number}")
                assert found is None or found.content in (b"a" * 5000, b"b" * 5000)
                seen += found is not None
            if seen:
                enough.set()
    finally:
        enough.set()
    for writer in writers:
        writer.join(20)
        assert writer.exitcode == 0
    assert seen > 0
    assert len(cache.entries()) == 4


def test_the_oldest_entries_go_first_when_there_are_too_many(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", max_entries=3)
    for number in range(6):
        cache.write(entry(key=f"qe/{number}"))
        for path in files(cache):
            status = path.stat()
            os.utime(path, (status.st_atime, status.st_mtime - 10))
    assert [one.key for one in cache.entries()] == ["qe/3", "qe/4", "qe/5"]


def test_the_size_in_all_is_bounded(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", max_bytes=10_000)
    for number in range(6):
        cache.write(entry(bytes(3000), key=f"qe/{number}"))
    assert sum(path.stat().st_size for path in files(cache)) <= 10_000
    assert cache.read("intel", "qe/5") is not None  # the one just written stays


def test_an_entry_larger_than_everything_is_still_kept_alone(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", max_bytes=100)
    cache.write(entry())
    cache.write(entry(key="qe/tdx"))
    assert [one.key for one in cache.entries()] == ["qe/tdx"]


def test_a_content_over_its_bound_is_refused(cache: Cache) -> None:
    with pytest.raises(UsageError, match="too large"):
        cache.write(entry(bytes((1 << 20) + 1)))


@pytest.mark.parametrize(
    "key", ["", "/", "../x", "a/../b", "a//b", "a b", "a/", ".hidden", "ä", "x" * 201, "a\n"]
)
def test_names_that_are_none_are_refused(cache: Cache, key: str) -> None:
    for use in (lambda: cache.read("intel", key), lambda: cache.write(entry(key=key))):
        with pytest.raises(EndorsementError, match="malformed"):
            use()


@given(data=st.binary(max_size=300), prefix=st.booleans())
def test_whatever_lies_there_is_an_entry_or_nothing(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, prefix: bool
) -> None:
    cache = Cache(tmp_path_factory.mktemp("cache") / "cache")
    cache.write(entry())
    (path,) = files(cache)
    path.write_bytes(path.read_bytes()[:20] + data if prefix else data)
    assert cache.read("intel", KEY) is None


@given(at=st.integers(0, 300), bit=st.integers(0, 7))
def test_any_flipped_bit_drops_the_entry(tmp_path_factory: pytest.TempPathFactory, at: int, bit: int) -> None:
    cache = Cache(tmp_path_factory.mktemp("cache") / "cache")
    cache.write(entry())
    (path,) = files(cache)
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1 << bit
    path.write_bytes(data)
    try:
        assert cache.read("intel", KEY) is None
    except CloisterError:  # pragma: no cover -- would be a wrong error, and fails the test
        pytest.fail("a damaged entry is no error")
