"""The process of a mount and its launcher: what they say, when a head is recorded, and what ends the conversation."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import CloisterError, FormatError, KeyUnavailable, RolledBack, WorkloadError
from cloister.sealing.tree.head import Head
from cloister.workload import mount_device
from cloister.workload.held_keys import GivenKeys
from cloister.workload.mount_client import MountProcess
from cloister.workload.mount_kernel import Owner
from cloister.workload.mount_process import COMMIT_SECONDS, Launcher, Recorded, open_files
from cloister.workload.mount_protocol import MAX_LINE, Line, MountSpec, Order, Report


def head(version: int) -> Head:
    return Head(tree="ab" * 32, version=version, digest="cd" * 32)


class CountedTree:
    """Its head moves when something was written and committed."""

    def __init__(self) -> None:
        self.version, self.written, self.full = 1, False, False
        self.noted: list[Head] = []

    @property
    def head(self) -> Head:
        return head(self.version)

    def note_recorded(self, head: Head) -> None:
        self.noted.append(head)

    def commit(self) -> Head:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.version += self.written
        self.written = False
        return self.head


@pytest.fixture
def tree() -> Any:
    return CountedTree()


class TestRecorded:
    def test_what_was_written_is_committed_every_few_seconds(self, tree: Any):
        recorded = Recorded(tree, lambda _: None, 3600, now=0)
        tree.written = True
        recorded.tick(COMMIT_SECONDS - 1)
        assert tree.version == 1
        recorded.tick(COMMIT_SECONDS)
        assert tree.version == 2

    def test_a_head_is_recorded_when_it_moved_and_the_time_has_come(self, tree: Any):
        asked: list[Head] = []
        recorded = Recorded(tree, asked.append, 30, now=0)
        for now in range(0, 29, 5):
            tree.written = True
            recorded.tick(now)
        assert asked == []
        recorded.tick(30)
        recorded.tick(60)
        recorded.tick(90)
        assert asked == [tree.head]

    def test_a_refusal_is_said_and_tried_again(self, tree: Any, caplog: pytest.LogCaptureFixture):
        asked: list[Head] = []

        def refuse(wanted: Head) -> None:
            asked.append(wanted)
            raise WorkloadError("the broker is away")

        recorded = Recorded(tree, refuse, 10, now=0)
        tree.written = True
        recorded.tick(10)
        recorded.tick(20)
        assert asked == [tree.head, tree.head]
        assert "the broker is away" in caplog.text
        with pytest.raises(WorkloadError):
            recorded.finish()

    def test_a_full_disk_is_said_and_does_not_end_the_mount(
        self, tree: Any, caplog: pytest.LogCaptureFixture
    ):
        tree.full = True
        Recorded(tree, lambda _: None, 10, now=0).tick(10)
        assert "cannot be committed" in caplog.text

    def test_the_last_head_is_recorded_once(self, tree: Any):
        asked: list[Head] = []
        recorded = Recorded(tree, asked.append, 3600, now=0)
        tree.written = True
        assert recorded.finish() == tree.head
        recorded.finish()
        assert asked == tree.noted == [tree.head], "the tree must not forget what others remember"

    def test_where_every_fsync_records_nothing_is_recorded_twice(self, tree: Any):
        asked: list[Head] = []
        recorded = Recorded(tree, asked.append, 0, now=0)
        tree.written = True
        recorded.tick(10)
        recorded.finish()
        assert asked == []


@pytest.fixture
def ends() -> Iterator[tuple[Line, Line]]:
    one, two = socket.socketpair()
    lines = Line(one), Line(two)
    yield lines
    for line in lines:
        line.close()


def answering(line: Line, *orders: Order) -> threading.Thread:
    def answer() -> None:
        for order in orders:
            line.receive(Report)
            line.send(order)

    thread = threading.Thread(target=answer)
    thread.start()
    return thread


class TestLauncher:
    def test_a_head_is_recorded_when_the_launcher_says_so(self, ends: tuple[Line, Line]):
        thread = answering(ends[1], Order(kind="recorded"))
        Launcher(ends[0]).record(head(2))
        thread.join()

    def test_a_refusal_is_an_error_with_its_reason(self, ends: tuple[Line, Line]):
        thread = answering(ends[1], Order(kind="refused", what="the broker knows a newer one"))
        with pytest.raises(WorkloadError, match="knows a newer one"):
            Launcher(ends[0]).record(head(2))
        thread.join()

    def test_a_stop_stops(self, ends: tuple[Line, Line]):
        launcher = Launcher(ends[0])
        ends[1].send(Order(kind="stop"))
        assert launcher.stopping.wait(10)
        assert not launcher.orphaned

    def test_the_end_of_the_socket_stops_and_nothing_is_recorded_any_more(self, ends: tuple[Line, Line]):
        launcher = Launcher(ends[0])
        ends[1].close()
        assert launcher.stopping.wait(10)
        assert launcher.orphaned
        with pytest.raises(WorkloadError, match="gone"):
            launcher.record(head(2))

    def test_a_launcher_that_dies_while_asked_is_a_refusal(self, ends: tuple[Line, Line]):
        launcher = Launcher(ends[0])
        threading.Timer(0.05, ends[1].close).start()
        with pytest.raises(WorkloadError):
            launcher.record(head(2))

    def test_a_launcher_that_does_not_answer_ends_the_mount(
        self, ends: tuple[Line, Line], monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr("cloister.workload.mount_process.RECORD_TIMEOUT", 0.01)
        launcher = Launcher(ends[0])
        with pytest.raises(WorkloadError, match="does not answer"):
            launcher.record(head(2))
        assert launcher.stopping.is_set()


class TestLine:
    def test_messages_arrive_whole_and_in_order_however_they_are_cut(self):
        one, two = socket.socketpair()
        with one, two:
            for byte in b'{"kind":"stop","what":""}\n{"kind":"recorded","what":""}\n':
                two.sendall(bytes([byte]))
            two.shutdown(socket.SHUT_WR)
            line = Line(one)
            assert [line.receive(Order), line.receive(Order), line.receive(Order)] == [
                Order(kind="stop"),
                Order(kind="recorded"),
                None,
            ]

    @pytest.mark.parametrize(
        "data",
        [
            pytest.param(b"{}\n", id="no kind"),
            pytest.param(b'{"kind":"explode"}\n', id="an unknown kind"),
            pytest.param(b'{"kind":"stop","also":1}\n', id="an unknown field"),
            pytest.param(b'{"kind":"stop","kind":"recorded"}\n', id="a field twice"),
            pytest.param(b'{"what":"","kind":"stop"}\n', id="in another order"),
            pytest.param(b'{"kind":"stop"}\n', id="a field missing"),
            pytest.param(b"\xff\n", id="no text"),
            pytest.param(b"x" * (MAX_LINE + 2), id="over the bound"),
        ],
    )
    def test_anything_else_ends_the_conversation(self, data: bytes):
        one, two = socket.socketpair()
        with one, two:
            sending = threading.Thread(target=two.sendall, args=(data,))
            sending.start()
            with pytest.raises(CloisterError):
                Line(one).receive(Order)
            one.close()
            sending.join()

    @given(key=st.binary(min_size=32, max_size=32), version=st.integers(1, 2**53 - 1))
    def test_a_spec_arrives_as_it_was_sent(self, key: bytes, version: int):
        wanted = MountSpec(
            source="/sealed", mountpoint="/data", kind="tree", writable=True, uid=1, gid=2,
            keys={"kbs:///a/b/c": key}, minimum=head(version),
        )  # fmt: skip
        one, two = socket.socketpair()
        with one, two:
            Line(one).send(wanted)
            assert Line(two).receive(MountSpec) == wanted

    def test_a_spec_does_not_show_its_keys(self):
        wanted = MountSpec(
            source="/s", mountpoint="/m", kind="tree", uid=1, gid=2, keys={"kbs:///a/b/c": b"secret"}
        )
        assert "secret" not in repr(wanted)


def test_a_key_that_was_not_given_is_not_there():
    with pytest.raises(KeyUnavailable, match="kbs:///a/b/d"):
        GivenKeys({"kbs:///a/b/c": bytes(32)}).key("kbs:///a/b/d")


def test_a_sealed_directory_is_never_mounted_to_write(ends: tuple[Line, Line]):
    wanted = MountSpec(source="/s", mountpoint="/m", kind="directory", writable=True, uid=1, gid=2, keys={})
    with pytest.raises(WorkloadError, match="sealed once"):
        open_files(wanted, Launcher(ends[0]))


class TestClient:
    def mounted(self, line: Line) -> MountProcess:
        process: Any = SimpleNamespace(poll=lambda: None, pid=1)
        wanted = MountSpec(source="/s", mountpoint="/m", kind="tree", uid=1, gid=2, keys={})
        return MountProcess(process, line, wanted, head(1))

    def test_the_newest_head_is_the_one_that_was_recorded_last(self, ends: tuple[Line, Line]):
        mounted, recorded = self.mounted(ends[0]), []
        mounted._listen_with(recorded.append)
        ends[1].send(Report(kind="record", head=head(2)))
        assert ends[1].receive(Order) == Order(kind="recorded")
        assert (mounted.head, recorded) == (head(2), [head(2)])

    @pytest.mark.parametrize("error", [RolledBack("not that one"), ValueError("a secret")])
    def test_whatever_goes_wrong_the_mount_gets_an_answer(self, ends: tuple[Line, Line], error: Exception):
        def refuse(_: Head) -> None:
            raise error

        self.mounted(ends[0])._listen_with(refuse)
        ends[1].send(Report(kind="record", head=head(2)))
        answer = ends[1].receive(Order)
        assert answer is not None
        assert answer.kind == "refused"
        assert "secret" not in answer.what

    def test_a_mount_that_says_nonsense_has_failed(self, ends: tuple[Line, Line]):
        mounted = self.mounted(ends[0])
        mounted._listen_with(lambda _: None)
        ends[1].send(Report(kind="ready"))
        assert mounted._stopped.wait(10)
        assert isinstance(mounted._failure, FormatError)
        assert not mounted.alive


class TestDevice:
    def test_what_is_alive_at_a_mount_point_is_never_detached(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        tried: list[Path] = []
        monkeypatch.setattr(mount_device, "_unmounted", lambda path, **_: tried.append(path))
        mount_device.detach(tmp_path)
        mount_device.detach(tmp_path / "missing")
        assert tried == []

    @pytest.mark.parametrize("name", ["missing", "file", "full"])
    def test_a_mount_point_is_an_empty_folder(self, tmp_path: Path, name: str):
        (tmp_path / "file").touch()
        (tmp_path / "full").mkdir()
        (tmp_path / "full/inside").touch()
        answering: Any = None
        with pytest.raises(WorkloadError, match="empty folder"):
            mount_device.Session(tmp_path / name, answering, owner=Owner(0, 0), writable=False)
