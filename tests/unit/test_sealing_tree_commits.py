"""Commits, heads, making and opening: what is recorded when, what a failure leaves, what is given back."""

from __future__ import annotations

import errno
import itertools
import os
import random
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from cloister.errors import KeyUnavailable, RolledBack, TamperedFile, UsageError, WorkloadError
from cloister.sealing.tree import Head, SealedTree, create_tree, is_tree, ledger, open_tree
from cloister.sealing.tree.checkpoint import MAX_HEADS, newest
from cloister.sealing.tree.creation import create_in
from cloister.sealing.tree.opening import open_in
from cloister.sealing.tree.segment_map import SegmentMap
from cloister.sealing.tree.slots import Slots
from cloister.sealing.tree.storage import FolderStorage
from sealed_tree_disk import Disk, Inode, PowerLoss
from sealed_trees import SEGMENT, errno_of, get, journal, make, objects, opened, put, reading, writing
from sealing_samples import KEK, OTHER_KEK, URI, Keys


def test_a_tree_is_made_in_a_new_or_an_empty_folder_and_nowhere_else(tmp_path: Path) -> None:
    assert not is_tree(tmp_path)
    make(tmp_path / "new")
    (tmp_path / "empty").mkdir()
    make(tmp_path / "empty")
    assert is_tree(tmp_path / "new")
    assert is_tree(tmp_path / "empty")
    for place in (tmp_path, tmp_path / "new"):
        before = sorted(place.iterdir())
        with pytest.raises(UsageError, match="not empty"):
            make(place)
        assert sorted(place.iterdir()) == before
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("size", [0, 2048, 4097, 6144, 131072])
def test_another_segment_size_is_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(UsageError):
        create_tree(tmp_path / "tree", key_uri=URI, kek=KEK, segment_size=size)
    assert not (tmp_path / "tree").exists()


@pytest.mark.parametrize(
    ("uri", "kek"),
    [pytest.param("https://x/y/z", KEK, id="no key URI"), pytest.param(URI, b"short", id="no key")],
)
def test_a_tree_that_cannot_be_made_leaves_nothing(tmp_path: Path, uri: str, kek: bytes) -> None:
    with pytest.raises(UsageError):
        create_tree(tmp_path / "tree", key_uri=uri, kek=kek)
    assert list(tmp_path.iterdir()) == []


def test_a_making_that_was_interrupted_is_done_again() -> None:
    for steps in itertools.count():
        disk = Disk()
        disk.off_after = steps
        try:
            made(disk)
            break
        except PowerLoss:
            for chance in range(10):
                found = disk.after_power_loss(random.Random(chance))
                if "tree" not in found.view_names:
                    made(found)
                assert on(found).names("") == ()
    assert steps > 5


def made(disk: Disk) -> Disk:
    create_in(
        disk,
        key_uri=URI,
        kek=KEK,
        segment_size=SEGMENT,
        now_ns=lambda: 0,
        entropy=os.urandom,
        name="the tree",
    )
    return disk


def test_there_is_no_tree_where_there_is_none(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "none"):
        with pytest.raises(UsageError):
            opened(place)


def test_the_key_source_is_asked_for_the_key_in_the_header(tmp_path: Path) -> None:
    folder = make(tmp_path / "tree")
    keys = Keys()
    open_tree(folder, keys, writable=True).close()
    assert keys.asked == [URI]
    with pytest.raises(KeyUnavailable):
        open_tree(folder, Keys({}), writable=True)
    # A refusal lets go of the tree.
    opened(folder).close()


def test_versions_count_commits_that_changed_something(tmp_path: Path) -> None:
    with writing(make(tmp_path / "tree")) as tree:
        first = tree.head
        assert first.version == 1
        assert tree.commit() == first
        put(tree, "a", b"1")
        assert tree.head == first
        second = tree.commit()
        assert (second.version, second.tree) == (2, first.tree)
        assert second.digest != first.digest
        assert tree.commit() == second


def test_every_new_head_is_recorded_before_a_sync_returns(tmp_path: Path) -> None:
    folder = make(tmp_path / "tree")
    recorded: list[Head] = []
    with writing(folder, recorded=recorded.append) as tree:
        with closing(tree.create("a", 0o600)) as file:
            file.write(0, b"1")
            assert recorded == []
            file.sync()
            assert recorded == [tree.head]
            file.sync()
            tree.sync()
            assert len(recorded) == 1
        put(tree, "a", b"2")
    assert [head.version for head in recorded] == [2, 3]
    opened(folder, minimum=recorded[-1]).close()


def test_a_head_that_nobody_records_fails_the_sync_and_is_recorded_later(tmp_path: Path) -> None:
    folder = make(tmp_path / "tree")
    refusing = [True]
    recorded: list[Head] = []

    def record(head: Head) -> None:
        if refusing[0]:
            raise WorkloadError("nobody listens")
        recorded.append(head)

    with writing(folder, recorded=record) as tree:
        put(tree, "a", b"1")
        for _ in range(2):
            with pytest.raises(WorkloadError):
                tree.sync()
        refusing[0] = False
        tree.sync()
        assert recorded == [tree.head]
        refusing[0] = True
        put(tree, "a", b"2")
        refusing[0] = False


def test_closing_says_when_the_last_head_was_not_recorded_and_lets_go_all_the_same(tmp_path: Path) -> None:
    folder = make(tmp_path / "tree")

    def refuse(head: Head) -> None:
        raise WorkloadError(f"nobody remembers {head.version}")

    tree = opened(folder, recorded=refuse)
    put(tree, "a", b"1")
    with pytest.raises(WorkloadError):
        tree.close()
    with reading(folder) as again:
        assert get(again, "a") == b"1"


def test_those_who_wait_for_a_commit_share_it(tmp_path: Path) -> None:
    with writing(make(tmp_path / "tree")) as tree:
        files = [tree.create(f"f{number}", 0o600) for number in range(8)]
        tree.sync()
        start = tree.head.version
        gate = threading.Barrier(len(files))

        def work(number: int) -> None:
            files[number].write(0, b"x")
            gate.wait()
            files[number].sync()

        threads = [threading.Thread(target=work, args=(number,)) for number in range(len(files))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert tree.head.version == start + 1
        for file in files:
            file.close()


def test_what_is_over_its_bound_is_sealed_and_committed_without_being_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "MAX_DIRTY", 4 * SEGMENT)
    monkeypatch.setattr(ledger, "MAX_UNCOMMITTED", 32 * SEGMENT)
    monkeypatch.setattr(ledger, "MAX_PENDING", 2000)
    with writing(make(tmp_path / "tree")) as tree:
        file = tree.create("a", 0o600)
        for number in range(200):
            file.write(number * SEGMENT + 1, b"x")
            assert tree._ledger.dirty <= 6
        assert tree.head.version > 3
        before = tree.head.version
        for number in range(100):
            tree.make_directory(f"a folder of the number {number}", 0o700)
        assert tree.head.version > before
        file.close()


def test_a_long_journal_is_replaced_by_a_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "MIN_COMPACTED", 5000)
    folder = make(tmp_path / "tree")
    recorded: list[Head] = []
    names = set()
    with writing(folder, recorded=recorded.append) as tree:
        for number in range(100):
            put(tree, f"f{number % 7}", str(number).encode())
            tree.sync()
            names.add(journal(folder).name)
    assert len(names) > 2
    assert journal(folder).stat().st_size < 20_000
    for head in recorded:
        with reading(folder, minimum=head) as tree:
            assert get(tree, "f1") == b"99"


def test_a_journal_that_cannot_be_replaced_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path / "tree")
    with writing(folder) as tree:
        put(tree, "a", b"1")
        tree.commit()
        name = journal(folder).name

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(FolderStorage, "rename", full)
        tree._ledger.compact(over=0)
        assert sorted(folder.glob("journal-*")) == [folder / name]
        put(tree, "a", b"2")
        tree.commit()
    with reading(folder) as again:
        assert get(again, "a") == b"2"


def test_checkpoints_remember_no_more_heads_than_they_may_and_always_the_recorded_one(tmp_path: Path) -> None:
    heads = newest({version: bytes(32) for version in range(1, MAX_HEADS + 2)})
    assert (len(heads), max(heads)) == (MAX_HEADS // 2, MAX_HEADS + 1)
    folder = make(tmp_path / "tree")
    with writing(folder) as tree:
        put(tree, "a", b"1")
        head = tree.commit()
        tree.note_recorded(head)
        tree._ledger._heads.update({version: bytes(32) for version in range(100, 100 + MAX_HEADS)})
        assert tree.head.version == head.version
        put(tree, "a", b"2")
        tree.commit()
        assert head.version in tree._ledger._heads
        assert len(tree._ledger._heads) <= MAX_HEADS


def test_slots_of_a_commit_that_may_still_be_found_are_not_written_over() -> None:
    # The journal's sync fails, and so does cutting off what it wrote: the record may be on the disk or not.
    disk = made(Disk())
    tree = on(disk)
    put(tree, "a", b"1" * SEGMENT)
    tree.sync()
    put(tree, "a", b"2" * SEGMENT)
    disk.failing_syncs, disk.failing_names, disk.failing_loses = 2, "journal-", False
    assert errno_of(tree.sync) == errno.EIO
    for number in (b"3", b"4", b"5"):
        put(tree, "a", number * SEGMENT)
    (name,) = [name for name in disk.view_names if name.endswith(".data")]
    kept = Disk(
        {
            found: Inode(bytearray(inode.view), bytearray(inode.view))
            for found, inode in disk.view_names.items()
        }
    )
    record = next(data for kind, _, data in disk.view_names[JOURNAL].pending if kind == "write")
    kept.view_names[JOURNAL].view += record
    again = on(kept)
    assert get(again, "a") == b"2" * SEGMENT
    # And what was going on goes on.
    tree.sync()
    assert get(on(disk), "a") == b"5" * SEGMENT
    assert name in disk.view_names


JOURNAL = "journal-0000000000000001"


def on(disk: Disk) -> SealedTree:
    disk.locked = False
    return open_in(
        disk,
        Keys(),
        writable=True,
        minimum=None,
        recorded=None,
        now_ns=lambda: 0,
        entropy=os.urandom,
        name="the tree",
    )


def test_two_segments_in_one_slot_are_refused() -> None:
    segments = SegmentMap()
    segments.put_run(0, (bytes(44)) * 2)
    with pytest.raises(TamperedFile):
        Slots(segments.slots())


def test_short_writes_and_reads_of_the_system_are_carried_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path / "tree")
    write, read = os.pwritev, os.preadv

    def short_write(descriptor: int, buffers: Sequence[bytes], offset: int) -> int:
        return write(descriptor, [memoryview(buffers[0])[:1000]], offset)

    def short_read(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        return read(descriptor, [buffers[0][:777]], offset)

    monkeypatch.setattr(os, "pwritev", short_write)
    monkeypatch.setattr(os, "preadv", short_read)
    data = os.urandom(5 * SEGMENT + 5)
    with writing(folder) as tree:
        put(tree, "a", data)
        tree.sync()
        assert get(tree, "a") == data
    with reading(folder) as tree:
        tree.verify()
        assert get(tree, "a") == data


def test_room_in_the_middle_of_a_large_object_is_given_back(tmp_path: Path) -> None:
    folder = make(tmp_path / "tree", segment_size=65536)
    large = 96 << 20
    with writing(folder) as tree:
        with closing(tree.create("a", 0o600)) as file:
            for start in range(0, large, 1 << 20):
                file.write(start, bytes(1 << 20))
            file.sync()
            file.write(large, b"end")
            file.sync()
            file.truncate(1 << 20)
            file.write(large, b"end")
            file.sync()
            (only,) = objects(folder)
            assert only.stat().st_blocks * 512 < 16 << 20
            assert file.read(large, 3) == b"end"
        tree.verify()


def test_verifying_counts_every_byte(tmp_path: Path) -> None:
    folder = make(tmp_path / "tree")
    with writing(folder) as tree:
        put(tree, "a", b"x" * 3 * SEGMENT)
        put(tree, "b", b"y" * 100)
        told: list[tuple[int, int]] = []
        tree.verify(lambda done, total: told.append((done, total)))
        assert told[-1] == (3 * SEGMENT + 100, 3 * SEGMENT + 100)


def test_a_rotated_key_leaves_everything_else_as_it_was(tmp_path: Path) -> None:
    from cloister.sealing.reseal import reseal_tree

    folder = make(tmp_path / "tree")
    with writing(folder) as tree:
        put(tree, "a", b"content")
        head = tree.commit()
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "tree"}
    new = "kbs:///default/key/new"
    reseal_tree(folder, Keys(), new_uri=new, new_kek=OTHER_KEK)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "tree"} == before
    with pytest.raises(KeyUnavailable):
        opened(folder)
    with closing(
        open_tree(folder, Keys({new: OTHER_KEK}), writable=True, minimum=head, recorded=None)
    ) as tree:
        assert get(tree, "a") == b"content"


def test_an_interrupted_rotation_is_finished_first(tmp_path: Path) -> None:
    folder = make(tmp_path / "tree")
    (folder / "tree.reseal.journal").write_bytes(b"{}")
    with pytest.raises(UsageError, match="interrupted"):
        opened(folder)


def test_a_remembered_head_of_the_future_is_a_rollback(tmp_path: Path) -> None:
    folder = make(tmp_path / "tree")
    with reading(folder) as tree:
        head = tree.head
    with pytest.raises(RolledBack):
        opened(folder, minimum=Head(head.tree, head.version + 1, head.digest))


def test_on_a_full_disk_files_can_be_removed() -> None:
    disk = made(Disk())
    disk.reserving = True
    tree = on(disk)
    put(tree, "a", b"1" * 5 * SEGMENT)
    tree.sync()
    disk.full_after = 0
    put(tree, "b", b"x")
    assert errno_of(tree.sync) == errno.ENOSPC
    tree.unlink("b")
    tree.unlink("a")
    tree.sync()
    assert not [name for name in disk.view_names if name.endswith(".data")]
    assert on(disk).names("") == ()
