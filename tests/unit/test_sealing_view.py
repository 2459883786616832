"""A sealed directory looked at through a view: what it shows, and what it refuses to hand out."""

from __future__ import annotations

import errno
import logging
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import KeyUnavailable
from cloister.sealing.envelope import HEADER_SIZE
from cloister.sealing.segments import SEGMENT_SIZE
from cloister.sealing.view import MAX_IDLE, SealedView
from cloister.sealing.view_cache import SegmentCache
from left_behind import left_open, open_descriptors
from sealing_samples import KEK, OTHER_KEK, URI, Keys, alter, patterned, sealed_folder

CONTENT = patterned(3 * SEGMENT_SIZE)
FILES = {"large": CONTENT, "folder/deep/small": b"small", "folder/empty": b""}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("view")


@pytest.fixture(scope="module")
def view(place: Path) -> SealedView:
    directory, index = sealed_folder(place, FILES)
    return SealedView(directory, index, Keys())


def refused(number: int) -> pytest.RaisesExc[OSError]:
    return pytest.RaisesExc(OSError, check=lambda error: error.errno == number)


def test_folders_and_sizes_are_those_of_the_index(view: SealedView):
    assert view.names("") == ("folder", "large")
    assert view.names("folder") == ("deep", "empty")
    assert view.names("folder/deep") == ("small",)
    assert view.status("large").size == len(CONTENT)
    assert (view.status("folder").kind, view.status("folder/empty").size) == ("directory", 0)


def test_every_file_and_folder_has_a_number_of_its_own(view: SealedView):
    paths = ("", "folder", "folder/deep", *FILES)
    assert len({view.status(path).number for path in paths}) == len(paths)


def test_nobody_but_the_owner_of_the_mount_may_read(view: SealedView):
    assert view.status("large").mode == 0o400
    assert view.status("folder").mode == 0o500


@given(offset=st.integers(0, len(CONTENT) + 10), length=st.integers(0, SEGMENT_SIZE + 50))
def test_any_range_is_the_range_of_the_plaintext(view: SealedView, offset: int, length: int):
    file = view.open("large", write=False)
    assert file.read(offset, length) == CONTENT[offset : offset + length]
    file.close()


def test_a_file_opens_again_after_it_was_closed(view: SealedView):
    for _ in range(3):
        file = view.open("folder/deep/small", write=False)
        assert file.read(0, 100) == b"small"
        file.close()


def test_many_readers_at_once_all_get_what_was_sealed(view: SealedView):
    wrong: list[int] = []

    def read(number: int) -> None:
        file = view.open("large", write=False)
        for offset in range(number * 1000, len(CONTENT), 300_007):
            if file.read(offset, 70_000) != CONTENT[offset : offset + 70_000]:
                wrong.append(offset)
        file.close()

    threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("path", "number"),
    [
        pytest.param("missing", errno.ENOENT, id="a name that is not there"),
        pytest.param("folder/missing", errno.ENOENT, id="a name that is not in a folder"),
        pytest.param("large/below", errno.ENOTDIR, id="something below a file"),
        pytest.param("folder", errno.EISDIR, id="a folder"),
        pytest.param("", errno.EISDIR, id="the root"),
    ],
)
def test_what_is_no_file_does_not_open(view: SealedView, path: str, number: int):
    with refused(number):
        view.open(path, write=False)


def test_every_change_is_refused(view: SealedView):
    changes = (
        lambda: view.open("large", write=True),
        lambda: view.create("new", 0o600),
        lambda: view.truncate("large", 0),
        lambda: view.make_directory("new", 0o700),
        lambda: view.remove_directory("folder"),
        lambda: view.unlink("large"),
        lambda: view.rename("large", "other"),
        lambda: view.link("new", "large"),
        lambda: view.set_mode("large", 0o777),
        lambda: view.set_modified("large", 0),
    )
    for change in changes:
        with refused(errno.EROFS):
            change()


# What somebody with the disk can do


@pytest.mark.parametrize(
    "offset",
    [
        pytest.param(30, id="the file id"),
        pytest.param(100, id="the wrapped key"),
        pytest.param(HEADER_SIZE - 1, id="the padding"),
        pytest.param(HEADER_SIZE + 3, id="the preamble"),
        pytest.param(HEADER_SIZE + 100, id="the first segment"),
        pytest.param(HEADER_SIZE + SEGMENT_SIZE + 5, id="a middle segment"),
        pytest.param(-1, id="the last tag"),
    ],
)
def test_a_flipped_bit_anywhere_keeps_the_file_closed(
    tmp_path: Path, offset: int, caplog: pytest.LogCaptureFixture
):
    directory, index = sealed_folder(tmp_path, {"file": CONTENT[: 2 * SEGMENT_SIZE + 9]})
    alter(directory / index.entry("file").file_name, offset)
    view = SealedView(directory, index, Keys())
    with refused(errno.EIO):
        view.open("file", write=False)
    assert ["'file'" in record.getMessage() for record in caplog.records] == [True]


def test_the_reason_is_told_to_the_log_once_however_often_it_is_tried(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    directory, index = sealed_folder(tmp_path, {"file": b"content"})
    alter(directory / index.entry("file").file_name, -1)
    view = SealedView(directory, index, Keys())
    for _ in range(3):
        with refused(errno.EIO):
            view.open("file", write=False)
    assert len(caplog.records) == 1


def test_a_segment_replaced_after_the_check_by_one_that_authenticates_is_refused(tmp_path: Path):
    """By somebody who has the data key: here, by another body of the same file under the same key, salt and prefix."""
    directory, index = sealed_folder(tmp_path, {"file": CONTENT})
    sealed = directory / index.entry("file").file_name
    view = SealedView(directory, index, Keys())
    file = view.open("file", write=False)
    body = file._body.sealed
    span, plain = body.layout.block(1), body.layout.plain(1)
    forged = bytearray(span.length)
    body._cipher.seal_into(1, False, bytes(plain.length), forged)
    with sealed.open("r+b") as disk:
        disk.seek(HEADER_SIZE + span.start)
        disk.write(forged)
    with refused(errno.EIO):
        file.read(plain.start, 10)
    assert file.read(0, 10) == CONTENT[:10]
    # What verify="segments" gives up, as docs/spec/mount.md says.
    careless = SealedView(directory, index, Keys(), verify="segments").open("file", write=False)
    assert careless.read(plain.start, 10) == bytes(10)


@pytest.mark.parametrize("segment", [0, 1, 2])
def test_without_the_whole_check_a_damaged_segment_is_still_refused(tmp_path: Path, segment: int):
    directory, index = sealed_folder(tmp_path, {"file": CONTENT})
    view = SealedView(directory, index, Keys(), verify="segments")
    file = view.open("file", write=False)
    layout = file._body.sealed.layout
    alter(directory / index.entry("file").file_name, HEADER_SIZE + layout.block(segment).start + 50)
    with refused(errno.EIO):
        file.read(layout.plain(segment).start, 1)


def test_without_the_whole_check_a_file_cut_at_a_segment_is_refused_at_opening(tmp_path: Path):
    directory, index = sealed_folder(tmp_path, {"file": CONTENT})
    sealed = directory / index.entry("file").file_name
    sealed.write_bytes(sealed.read_bytes()[: HEADER_SIZE + SEGMENT_SIZE])
    with refused(errno.EIO):
        SealedView(directory, index, Keys(), verify="segments").open("file", write=False)


def test_two_files_swapped_on_disk_do_not_open(tmp_path: Path):
    directory, index = sealed_folder(tmp_path, {"one": b"1" * 50, "two": b"2" * 50})
    one, two = (directory / index.entry(name).file_name for name in ("one", "two"))
    beside = directory / "beside"
    one.rename(beside)
    two.rename(one)
    beside.rename(two)
    view = SealedView(directory, index, Keys())
    for name in ("one", "two"):
        with refused(errno.EIO):
            view.open(name, write=False)


def test_a_link_in_the_place_of_a_sealed_file_is_not_followed(tmp_path: Path):
    directory, index = sealed_folder(tmp_path, {"file": b"content"})
    sealed = directory / index.entry("file").file_name
    sealed.rename(tmp_path / "elsewhere")
    sealed.symlink_to(tmp_path / "elsewhere")
    with refused(errno.EIO):
        SealedView(directory, index, Keys()).open("file", write=False)


def test_a_key_that_nobody_gives_is_no_permission(tmp_path: Path):
    directory, index = sealed_folder(tmp_path, {"file": b"content"})
    with refused(errno.EACCES):
        SealedView(directory, index, Keys({})).open("file", write=False)


def test_a_wrong_key_opens_nothing(tmp_path: Path):
    directory, index = sealed_folder(tmp_path, {"file": b"content"})
    with refused(errno.EIO):
        SealedView(directory, index, Keys({URI: OTHER_KEK})).open("file", write=False)


def test_a_file_that_could_not_be_opened_opens_when_its_key_is_there(tmp_path: Path):
    directory, index = sealed_folder(tmp_path, {"file": b"content"})
    keys = Keys({})
    view = SealedView(directory, index, keys)
    with refused(errno.EACCES):
        view.open("file", write=False)
    keys.table[URI] = KEK
    assert view.open("file", write=False).read(0, 7) == b"content"


# Bounds


def test_descriptors_are_open_only_while_somebody_reads(tmp_path: Path):
    directory, index = sealed_folder(tmp_path, {"file": b"content"})
    view = SealedView(directory, index, Keys())

    before = open_descriptors()
    file = view.open("file", write=False)
    assert len(left_open(before)) == 1
    file.close()
    assert not left_open(before)


def test_files_that_nobody_has_open_are_forgotten_over_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("cloister.sealing.view.MAX_IDLE", 2)
    assert MAX_IDLE > 2
    directory, index = sealed_folder(tmp_path, {f"file-{number}": b"x" for number in range(5)})
    view = SealedView(directory, index, Keys())
    for number in range(5):
        view.open(f"file-{number}", write=False).close()
    assert len(view._bodies) <= 3


def test_the_cache_holds_no_more_segments_than_it_may():
    cache = SegmentCache(2)

    def fill(number: int):
        def act(block: bytearray, clear: bytearray) -> None:
            clear[0] = number

        return act

    for number in (1, 2, 3, 1, 2, 3):
        assert cache.copy(number, fill(number), 0, 1) == bytes([number])
    assert len(cache._held) == 2
    cache.close()
    assert not cache._held


def test_a_segment_that_failed_is_tried_again_and_never_handed_out():
    cache = SegmentCache(2)

    def fail(block: bytearray, clear: bytearray) -> None:
        clear[0] = 99
        raise KeyUnavailable("no")

    def fill(block: bytearray, clear: bytearray) -> None:
        clear[0] = 1

    with pytest.raises(KeyUnavailable):
        cache.copy("segment", fail, 0, 1)
    assert cache.copy("segment", fill, 0, 1) == b"\1"


def test_nothing_of_a_file_is_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    directory, index = sealed_folder(tmp_path, {"file": b"a secret sentence"})
    view = SealedView(directory, index, Keys())
    view.open("file", write=False).read(0, 100)
    alter(directory / index.entry("file").file_name, -1)
    other = SealedView(directory, index, Keys())
    with refused(errno.EIO):
        other.open("file", write=False)
    assert "secret" not in caplog.text
