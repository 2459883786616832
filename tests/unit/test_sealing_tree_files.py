"""A sealed tree as a file system: what POSIX promises, and each refusal by its errno."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from cloister.sealing.tree import SealedTree
from left_behind import left_open, open_descriptors
from sealed_trees import SEGMENT, errno_of, get, make, objects, opened, put, reading, writing


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return make(tmp_path / "tree")


@pytest.fixture
def tree(place: Path) -> SealedTree:
    tree = opened(place)
    tree.make_directory("folder", 0o755)
    tree.make_directory("folder/full", 0o755)
    tree.make_directory("empty", 0o755)
    put(tree, "file", b"file")
    put(tree, "folder/full/deep", b"deep")
    tree.link("link", "folder/full")
    return tree


@pytest.mark.parametrize(
    ("act", "number"),
    [
        pytest.param(lambda tree: tree.status("none"), errno.ENOENT, id="what is not there"),
        pytest.param(lambda tree: tree.status("file/x"), errno.ENOTDIR, id="below a file"),
        pytest.param(lambda tree: tree.status("link/deep"), errno.ENOTDIR, id="through a link"),
        pytest.param(lambda tree: tree.status("x" * 256), errno.ENAMETOOLONG, id="a long name"),
        pytest.param(lambda tree: tree.status("x/" * 2048 + "x"), errno.ENAMETOOLONG, id="a long path"),
        pytest.param(lambda tree: tree.status("folder//full"), errno.EINVAL, id="an empty name"),
        pytest.param(lambda tree: tree.status("folder/../file"), errno.EINVAL, id="a path that climbs"),
        pytest.param(lambda tree: tree.names("file"), errno.ENOTDIR, id="list a file"),
        pytest.param(lambda tree: tree.open("folder", write=False), errno.EISDIR, id="open a folder"),
        pytest.param(lambda tree: tree.open("link", write=False), errno.ELOOP, id="open a link"),
        pytest.param(lambda tree: tree.create("file", 0o600), errno.EEXIST, id="create what is there"),
        pytest.param(lambda tree: tree.create("", 0o600), errno.EEXIST, id="create the root"),
        pytest.param(lambda tree: tree.create("none/x", 0o600), errno.ENOENT, id="create in no folder"),
        pytest.param(lambda tree: tree.create("x" * 256, 0o600), errno.ENAMETOOLONG, id="create a long name"),
        pytest.param(lambda tree: tree.create("a\0b", 0o600), errno.EINVAL, id="a name with NUL"),
        pytest.param(lambda tree: tree.create("\udcff", 0o600), errno.EILSEQ, id="a name that is no UTF-8"),
        pytest.param(lambda tree: tree.make_directory("empty", 0o700), errno.EEXIST, id="make what is there"),
        pytest.param(lambda tree: tree.unlink("folder"), errno.EISDIR, id="unlink a folder"),
        pytest.param(lambda tree: tree.unlink("none"), errno.ENOENT, id="unlink nothing"),
        pytest.param(
            lambda tree: tree.remove_directory("folder"), errno.ENOTEMPTY, id="remove a full folder"
        ),
        pytest.param(lambda tree: tree.remove_directory("file"), errno.ENOTDIR, id="remove a file as folder"),
        pytest.param(lambda tree: tree.remove_directory(""), errno.EBUSY, id="remove the root"),
        pytest.param(lambda tree: tree.rename("none", "x"), errno.ENOENT, id="rename nothing"),
        pytest.param(lambda tree: tree.rename("file", "none/x"), errno.ENOENT, id="rename into no folder"),
        pytest.param(lambda tree: tree.rename("", "x"), errno.EBUSY, id="rename the root"),
        pytest.param(lambda tree: tree.rename("file", "empty"), errno.EISDIR, id="a file over a folder"),
        pytest.param(lambda tree: tree.rename("empty", "file"), errno.ENOTDIR, id="a folder over a file"),
        pytest.param(lambda tree: tree.rename("empty", "folder"), errno.ENOTEMPTY, id="over a full folder"),
        pytest.param(lambda tree: tree.rename("folder", "folder/full/x"), errno.EINVAL, id="into itself"),
        pytest.param(
            lambda tree: tree.rename("file", "link", replace=False), errno.EEXIST, id="over something, not to"
        ),
        pytest.param(lambda tree: tree.link("l", "/etc/passwd"), errno.EPERM, id="an absolute link"),
        pytest.param(lambda tree: tree.link("l", "../x"), errno.EPERM, id="a link that leads out"),
        pytest.param(
            lambda tree: tree.link("l", "folder/../../x"), errno.EPERM, id="a link that climbs later"
        ),
        pytest.param(
            lambda tree: tree.link("folder/l", "../../x"), errno.EPERM, id="a link that climbs too far"
        ),
        pytest.param(lambda tree: tree.link("l", ""), errno.ENOENT, id="a link to nothing"),
        pytest.param(lambda tree: tree.link("l", "x" * 4096), errno.ENAMETOOLONG, id="a long link"),
        pytest.param(lambda tree: tree.read_link("file"), errno.EINVAL, id="read a link that is none"),
        pytest.param(lambda tree: tree.truncate("file", -1), errno.EINVAL, id="a negative size"),
        pytest.param(lambda tree: tree.truncate("file", (1 << 40) + 1), errno.EFBIG, id="over a tebibyte"),
        pytest.param(
            lambda tree: tree.open("file", write=True).write(1 << 40, b"x"), errno.EFBIG, id="behind it"
        ),
        pytest.param(
            lambda tree: tree.open("file", write=True).write(-1, b"x"), errno.EINVAL, id="before it"
        ),
        pytest.param(
            lambda tree: tree.open("file", write=False).write(0, b"x"), errno.EBADF, id="not for writing"
        ),
        pytest.param(
            lambda tree: tree.open("file", write=False).read(-1, 1), errno.EINVAL, id="read before it"
        ),
        pytest.param(lambda tree: tree.set_modified("file", 1 << 63), errno.EINVAL, id="a time after 2262"),
    ],
)
def test_posix_refuses(tree: SealedTree, act: Callable[[SealedTree], object], number: int) -> None:
    before = sorted(tree.names(""))
    assert errno_of(lambda: act(tree)) == number
    assert sorted(tree.names("")) == before
    tree.close()


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(lambda tree: tree.open("file", write=True), id="open to write"),
        pytest.param(lambda tree: tree.create("x", 0o600), id="create"),
        pytest.param(lambda tree: tree.truncate("file", 0), id="truncate"),
        pytest.param(lambda tree: tree.make_directory("x", 0o700), id="make a folder"),
        pytest.param(lambda tree: tree.remove_directory("empty"), id="remove a folder"),
        pytest.param(lambda tree: tree.unlink("file"), id="unlink"),
        pytest.param(lambda tree: tree.rename("file", "x"), id="rename"),
        pytest.param(lambda tree: tree.link("x", "file"), id="link"),
        pytest.param(lambda tree: tree.set_mode("file", 0o600), id="set a mode"),
        pytest.param(lambda tree: tree.set_modified("file", 0), id="set a time"),
    ],
)
def test_a_tree_that_is_read_is_not_changed(
    tree: SealedTree, place: Path, act: Callable[[SealedTree], object]
) -> None:
    tree.close()
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    with reading(place) as again:
        assert errno_of(lambda: act(again)) == errno.EROFS
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before


def test_a_moved_folder_takes_no_link_out_with_it(tree: SealedTree) -> None:
    tree.link("folder/full/up", "../../file")
    with pytest.raises(PermissionError):
        tree.rename("folder/full", "full")
    with pytest.raises(PermissionError):
        tree.rename("folder/full/up", "up")
    tree.rename("folder", "empty/folder")
    tree.close()


def test_everything_is_there_after_closing(tree: SealedTree, place: Path) -> None:
    tree.set_mode("file", 0o4755)
    tree.set_modified("file", -1)
    tree.set_modified("folder", 12)
    tree.rename("folder/full/deep", "moved")
    big = os.urandom(10 * SEGMENT + 17)
    put(tree, "big", big)
    before = {path: tree.status(path) for path in ("", "file", "folder", "moved", "link", "big")}
    tree.close()
    with reading(place) as again:
        assert {path: again.status(path) for path in before} == before
        assert again.names("") == ("big", "empty", "file", "folder", "link", "moved")
        assert (again.status("file").mode, again.status("file").modified_ns) == (0o4755, -1)
        assert again.read_link("link") == "folder/full"
        assert (get(again, "moved"), get(again, "big")) == (b"deep", big)


def test_times_are_those_of_the_clock(place: Path) -> None:
    now = [100]
    with writing(place, now_ns=lambda: now[0]) as tree:
        put(tree, "a", b"1")
        now[0] = 200
        tree.set_mode("a", 0o600)
        assert (tree.status("a").modified_ns, tree.status("a").changed_ns) == (100, 200)
        now[0] = 300
        put(tree, "a", b"2")
        assert (tree.status("a").modified_ns, tree.status("").modified_ns) == (300, 100)
        now[0] = 400
        tree.unlink("a")
        assert tree.status("").modified_ns == 400


def test_a_file_stays_open_when_its_name_goes_to_another(tree: SealedTree, place: Path) -> None:
    with closing(tree.open("file", write=True)) as old:
        put(tree, "new", b"new")
        tree.rename("new", "file")
        tree.sync()
        old.write(4, b" of old")
        assert old.read(0, 100) == b"file of old"
        assert get(tree, "file") == b"new"
    tree.close()
    with reading(place) as again:
        assert get(again, "file") == b"new"
    assert len(objects(place)) == 2


def test_a_removed_file_is_read_and_written_until_it_is_closed(tree: SealedTree, place: Path) -> None:
    file = tree.open("file", write=True)
    number = file.status.number
    tree.sync()
    tree.unlink("file")
    tree.sync()
    assert len(objects(place)) == 2
    file.write(SEGMENT, b"x" * 3 * SEGMENT)
    tree.sync()
    assert file.read(0, 4) == b"file"
    assert file.read(4 * SEGMENT - 1, 2) == b"x"
    assert file.status.number == number
    file.close()
    assert len(objects(place)) == 1
    tree.close()


def test_closed_is_closed(tree: SealedTree) -> None:
    file, other = tree.open("file", write=True), tree.open("file", write=True)
    file.close()
    file.close()
    for act in (lambda: file.read(0, 1), lambda: file.write(0, b"x"), lambda: file.truncate(0), file.sync):
        assert errno_of(act) == errno.EBADF
    tree.close()
    tree.close()
    for act in (lambda: other.read(0, 1), lambda: other.write(0, b"x"), lambda: tree.status(""), tree.sync):
        assert errno_of(act) == errno.EBADF
    other.close()


def test_holes_take_no_room_and_are_zeros(place: Path) -> None:
    with writing(place) as tree:
        with closing(tree.create("sparse", 0o600)) as file:
            file.write(1 << 39, b"far")
            file.truncate(1 << 40)
            file.sync()
            assert file.read((1 << 39) - 2, 7) == b"\0\0far\0\0"
            assert file.read(1 << 20, SEGMENT) == bytes(SEGMENT)
            assert file.status.size == 1 << 40
            assert file.status.stored == SEGMENT
        (only,) = objects(place)
        assert only.stat().st_size <= SEGMENT
    with reading(place) as tree, closing(tree.open("sparse", write=False)) as file:
        assert file.read(1 << 39, 3) == b"far"
        assert file.status.stored == SEGMENT


@pytest.mark.parametrize("size", [0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 2 * SEGMENT, 3 * SEGMENT - 1])
@pytest.mark.parametrize("synced", [True, False])
def test_bytes_behind_a_shrunk_end_never_come_back(place: Path, size: int, synced: bool) -> None:
    data = b"\xff" * 3 * SEGMENT
    with writing(place) as tree, closing(tree.create("file", 0o600)) as file:
        file.write(0, data)
        if synced:
            file.sync()
        file.truncate(size)
        if synced:
            file.sync()
        file.truncate(3 * SEGMENT)
        assert file.read(0, 4 * SEGMENT) == data[:size].ljust(3 * SEGMENT, b"\0")
        file.truncate(size)
        file.write(3 * SEGMENT, b"end")
        assert file.read(0, 4 * SEGMENT) == data[:size].ljust(3 * SEGMENT, b"\0") + b"end"
    with reading(place) as tree:
        assert get(tree, "file") == data[:size].ljust(3 * SEGMENT, b"\0") + b"end"


def test_a_file_that_is_written_over_and_over_does_not_grow(place: Path) -> None:
    size = 64 * SEGMENT
    with writing(place) as tree, closing(tree.create("file", 0o600)) as file:
        for _ in range(20):
            file.write(0, os.urandom(size))
            file.sync()
        (only,) = objects(place)
        assert only.stat().st_size <= 2 * size
        file.truncate(SEGMENT)
        file.sync()
        file.write(0, os.urandom(SEGMENT))
        file.sync()
        assert only.stat().st_size <= size + SEGMENT
        file.truncate(0)
        file.sync()
        assert only.stat().st_size == 0


def test_programs_see_their_own_writes_before_they_are_synced(place: Path) -> None:
    with (
        writing(place) as tree,
        closing(tree.create("file", 0o600)) as file,
        closing(tree.open("file", write=False)) as other,
    ):
        file.write(10, b"abc")
        assert other.read(0, 100) == bytes(10) + b"abc"
        assert other.status.size == 13
        file.write(11, b"X" * 3 * SEGMENT)
        assert other.read(9, 4) == b"\0aXX"
        assert get(tree, "file") == bytes(10) + b"a" + b"X" * 3 * SEGMENT


def test_many_files_at_once_need_no_more_descriptors_than_the_bound(place: Path) -> None:
    before = open_descriptors()
    with writing(place) as tree:
        for number in range(1500):
            put(tree, f"f{number}", str(number).encode())
        assert len(left_open(before)) < 600
    with reading(place) as tree:
        assert all(get(tree, f"f{number}") == str(number).encode() for number in range(1500))


def test_threads_read_what_is_whole_while_others_write_and_sync(place: Path) -> None:
    wrong: list[object] = []
    size = 8 * SEGMENT
    with writing(place) as tree:
        file = tree.create("file", 0o600)
        file.write(0, bytes(size))
        stop = threading.Event()

        def read() -> None:
            try:
                with closing(tree.open("file", write=False)) as mine:
                    while not stop.is_set():
                        data = mine.read(0, size)
                        # One write is one segment here, so no segment is ever a mixture.
                        for start in range(0, size, SEGMENT):
                            if len(set(data[start : start + SEGMENT])) != 1:
                                wrong.append(start)
            except Exception as error:
                wrong.append(error)

        def write(seed: int) -> None:
            try:
                for turn in range(60):
                    file.write(turn % 8 * SEGMENT, bytes([(seed + turn) % 256]) * SEGMENT)
                    if turn % 3 == 0:
                        file.sync()
            except Exception as error:
                wrong.append(error)

        readers = [threading.Thread(target=read) for _ in range(2)]
        writers = [threading.Thread(target=write, args=(seed,)) for seed in (1, 100)]
        for thread in readers + writers:
            thread.start()
        for thread in writers:
            thread.join()
        stop.set()
        for thread in readers:
            thread.join()
        file.close()
        tree.verify()
    assert not wrong


def test_a_tree_says_how_much_room_there_is(tree: SealedTree, place: Path) -> None:
    real = os.statvfs(place)
    space = tree.space()
    assert space.total == real.f_blocks * real.f_frsize
    assert 0 < space.free <= space.total
    tree.close()
