"""The host owns the disk under a sealed tree: whatever it puts there, nothing is read that the tree did not write.

A tree that is older than the recorded head, or that went another way since, is refused.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from cloister.errors import (
    ForeignFile,
    IndexMismatch,
    KeyUnavailable,
    RolledBack,
    SealingError,
    TamperedFile,
    TruncatedFile,
    UsageError,
    WrongKey,
)
from cloister.sealing.envelope import HEADER_SIZE, TREE_SUITE, encode_header, new_header
from cloister.sealing.tree import Head, create_tree, frames, open_tree
from cloister.sealing.tree.journal import journal_name
from sealed_trees import SEGMENT, get, journal, make, objects, opened, put, reading, writing
from sealing_samples import KEK, OTHER_KEK, URI, Keys

A = b"".join(bytes([number]) * SEGMENT for number in range(1, 5)) + b"tail"
B = A[::-1]


class Place:
    """A tree with two files and a folder, each written by a commit of its own; ``heads`` after each."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = make(root / "tree")
        self.heads: list[Head] = []
        with writing(self.folder) as tree:
            self.heads.append(tree.head)
            put(tree, "a", A)
            self.heads.append(tree.commit())
            put(tree, "b", B)
            self.heads.append(tree.commit())
            tree.make_directory("folder", 0o700)
            self.heads.append(tree.commit())
            self.object_a = self.folder / f"{tree._ledger.state.nodes[2].object_id.hex()}.data"
            self.object_b = self.folder / f"{tree._ledger.state.nodes[3].object_id.hex()}.data"

    def copy(self, name: str) -> Path:
        return Path(shutil.copytree(self.folder, self.root / name))

    def read_all(self, minimum: Head | None = None, keys: Keys | None = None) -> dict[str, bytes]:
        with closing(open_tree(self.folder, keys or Keys(), writable=False, minimum=minimum)) as tree:
            tree.verify()
            return {name: get(tree, name) for name in tree.names("") if tree.status(name).kind == "file"}

    def frames(self) -> list[tuple[int, int]]:
        """Where each frame of the journal begins and ends."""
        data = journal(self.folder).read_bytes()
        found, at = [], 0
        while at < len(data):
            size = frames.parse_head(data[at : at + frames.HEAD_SIZE]).frame_size
            found.append((at, at + size))
            at += size
        return found


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def slot(path: Path, number: int) -> bytes:
    return path.read_bytes()[number * SEGMENT : (number + 1) * SEGMENT]


def swap_inside(place: Place) -> None:
    first, second = slot(place.object_a, 0), slot(place.object_a, 1)
    patch(place.object_a, 0, second)
    patch(place.object_a, SEGMENT, first)


def swap_between(place: Place) -> None:
    first, second = slot(place.object_a, 1), slot(place.object_b, 1)
    patch(place.object_a, SEGMENT, second)
    patch(place.object_b, SEGMENT, first)


def exchange_objects(place: Place) -> None:
    first, second = place.object_a.read_bytes(), place.object_b.read_bytes()
    place.object_a.write_bytes(second)
    place.object_b.write_bytes(first)


def put_back_old_slots(place: Place) -> None:
    old = place.object_a.read_bytes()
    with writing(place.folder) as tree:
        put(tree, "a", B)
        tree.commit()
        put(tree, "a", A)
    place.object_a.write_bytes(old.ljust(place.object_a.stat().st_size, b"\0"))


def flip_a_bit(place: Place) -> None:
    patch(place.object_b, 2 * SEGMENT + 5, bytes([slot(place.object_b, 2)[5] ^ 1]))


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(swap_inside, id="segments swapped inside a file"),
        pytest.param(swap_between, id="segments swapped between files"),
        pytest.param(exchange_objects, id="two files exchanged"),
        pytest.param(put_back_old_slots, id="segments of an older version put back"),
        pytest.param(flip_a_bit, id="a bit flipped"),
    ],
)
def test_a_host_that_moves_segments_of_a_tree_is_found_out(
    place: Place, attack: Callable[[Place], None]
) -> None:
    attack(place)
    with pytest.raises(TamperedFile):
        place.read_all()
    with writing(place.folder) as tree, closing(tree.open("b", write=True)) as file:
        # What is whole is still read and written; only the rest is refused, each time.
        with pytest.raises(TamperedFile):
            tree.verify()
        with pytest.raises(TamperedFile):
            tree.verify()
        file.truncate(0)


@pytest.mark.parametrize("kept", range(5))
@pytest.mark.parametrize("within", [0, 1])
def test_an_object_that_is_cut_at_a_segment_boundary_is_refused(place: Place, kept: int, within: int) -> None:
    os.truncate(place.object_a, min(kept * SEGMENT + within, len(A) - 1))
    with pytest.raises(TruncatedFile, match="ends before segment"):
        place.read_all()


def test_an_object_that_is_missing_is_refused_before_anything_is_read(place: Place) -> None:
    place.object_a.unlink()
    for writable in (True, False):
        with pytest.raises(TruncatedFile, match="is missing"):
            opened(place.folder, writable=writable)


def cut_last_record(place: Place) -> None:
    os.truncate(journal(place.folder), place.frames()[-1][0])


def cut_two_records(place: Place) -> None:
    os.truncate(journal(place.folder), place.frames()[-2][0])


def cut_inside_the_last(place: Place) -> None:
    os.truncate(journal(place.folder), place.frames()[-1][1] - 1)


def damage_the_last(place: Place) -> None:
    patch(journal(place.folder), place.frames()[-1][1] - 1, b"\0\0")


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(cut_last_record, id="the last record cut off"),
        pytest.param(cut_two_records, id="two records cut off"),
        pytest.param(cut_inside_the_last, id="cut inside the last record"),
        pytest.param(damage_the_last, id="the last record damaged"),
    ],
)
def test_a_journal_that_was_cut_is_older_than_the_recorded_head(
    place: Place, attack: Callable[[Place], None]
) -> None:
    attack(place)
    with pytest.raises(RolledBack, match="was recorded"):
        place.read_all(place.heads[-1])
    with pytest.raises(RolledBack):
        opened(place.folder, minimum=place.heads[-1])


def test_without_a_recorded_head_a_cut_journal_is_an_older_tree_and_nothing_else(place: Place) -> None:
    # docs/spec/sealed-tree.md, "Rollback": this is what a remembered head is for.
    cut_last_record(place)
    assert place.read_all() == {"a": A, "b": B}
    cut_last_record(place)
    assert place.read_all(place.heads[1]) == {"a": A}


def remove_a_record(place: Place) -> None:
    data, (start, end) = journal(place.folder).read_bytes(), place.frames()[2]
    journal(place.folder).write_bytes(data[:start] + data[end:])


def reorder_records(place: Place) -> None:
    data, (first, second, third) = journal(place.folder).read_bytes(), place.frames()[1:4]
    parts = [data[start:end] for start, end in (second, first, third)]
    journal(place.folder).write_bytes(data[: first[0]] + b"".join(parts))


def repeat_a_record(place: Place) -> None:
    data, (start, end) = journal(place.folder).read_bytes(), place.frames()[-1]
    journal(place.folder).write_bytes(data + data[start:end])


def damage_a_record(place: Place) -> None:
    patch(journal(place.folder), place.frames()[1][0] + 60, b"damage")


def damage_a_length(place: Place) -> None:
    patch(journal(place.folder), place.frames()[1][0] + 24, b"\0\0\1\0")


def wipe_a_head(place: Place) -> None:
    patch(journal(place.folder), place.frames()[1][0], bytes(52))


def damage_the_checkpoint(place: Place) -> None:
    patch(journal(place.folder), 60, b"damage")


def cut_inside_the_checkpoint(place: Place) -> None:
    os.truncate(journal(place.folder), place.frames()[0][1] - 1)


def empty_the_journal(place: Place) -> None:
    os.truncate(journal(place.folder), 0)


def remove_the_journal(place: Place) -> None:
    journal(place.folder).unlink()


def rename_the_journal(place: Place) -> None:
    journal(place.folder).rename(place.folder / journal_name(7))


def append_rubbish(place: Place) -> None:
    with journal(place.folder).open("ab") as file:
        file.write(bytes(80 << 20))


@pytest.mark.parametrize(
    ("attack", "error"),
    [
        pytest.param(remove_a_record, TamperedFile, id="a record removed"),
        pytest.param(reorder_records, TamperedFile, id="records reordered"),
        pytest.param(repeat_a_record, TamperedFile, id="a record repeated"),
        pytest.param(damage_a_record, TamperedFile, id="a record damaged before the end"),
        pytest.param(damage_a_length, TamperedFile, id="a record's length damaged"),
        pytest.param(wipe_a_head, TamperedFile, id="a record's head wiped out"),
        pytest.param(damage_the_checkpoint, TamperedFile, id="the checkpoint damaged"),
        pytest.param(cut_inside_the_checkpoint, TruncatedFile, id="cut inside the checkpoint"),
        pytest.param(empty_the_journal, TamperedFile, id="the journal emptied"),
        pytest.param(remove_the_journal, TruncatedFile, id="the journal removed"),
        pytest.param(rename_the_journal, TamperedFile, id="the journal under another version's name"),
        pytest.param(append_rubbish, TamperedFile, id="more behind it than a record can be"),
    ],
)
def test_a_journal_that_is_not_what_was_written_is_refused(
    place: Place, attack: Callable[[Place], None], error: type[SealingError]
) -> None:
    attack(place)
    before = {path.name: path.stat().st_size for path in place.folder.iterdir()}
    for writable in (False, True):
        with pytest.raises(error):
            opened(place.folder, writable=writable)
    assert {path.name: path.stat().st_size for path in place.folder.iterdir()} == before


def compacted(place: Place) -> None:
    with writing(place.folder) as tree:
        tree._ledger.compact(over=0)


def test_the_checkpoint_of_an_older_state_put_back_is_older_than_the_recorded_head(place: Place) -> None:
    old_journal, old = journal(place.folder).name, journal(place.folder).read_bytes()
    with writing(place.folder) as tree:
        put(tree, "c", b"new")
        recorded = tree.commit()
        tree._ledger.compact(over=0)
    journal(place.folder).unlink()
    (place.folder / old_journal).write_bytes(old)
    with pytest.raises(RolledBack):
        opened(place.folder, minimum=recorded)
    # Undetectable without a remembered head, as the specification says.
    assert place.read_all() == {"a": A, "b": B}


def test_a_whole_tree_that_is_rolled_back_is_older_than_the_recorded_head(place: Place) -> None:
    old = place.copy("old")
    with writing(place.folder) as tree:
        put(tree, "a", b"newer")
        recorded = tree.commit()
    shutil.rmtree(place.folder)
    old.rename(place.folder)
    with pytest.raises(RolledBack):
        opened(place.folder, minimum=recorded)


@pytest.mark.parametrize("compacting", [False, True])
def test_a_fork_of_the_recorded_history_is_refused_however_far_it_went_on(
    place: Place, compacting: bool
) -> None:
    fork = place.copy("fork")
    with writing(place.folder) as tree:
        put(tree, "a", b"ours")
        recorded = tree.commit()
    with writing(fork) as tree:
        for number in range(5):
            put(tree, "a", bytes([number]))
            tree.commit()
        if compacting:
            tree._ledger.compact(over=0)
    shutil.rmtree(place.folder)
    fork.rename(place.folder)
    with pytest.raises(RolledBack):
        opened(place.folder, minimum=recorded)


def test_a_recorded_head_is_known_to_every_later_checkpoint(place: Place) -> None:
    for head in place.heads:
        assert place.read_all(head) == {"a": A, "b": B}
    compacted(place)
    for head in place.heads:
        assert place.read_all(head) == {"a": A, "b": B}
    with pytest.raises(RolledBack):
        place.read_all(Head(place.heads[2].tree, place.heads[2].version, "00" * 32))


def test_a_head_that_no_checkpoint_knows_any_more_is_refused_not_believed(place: Place) -> None:
    with writing(place.folder) as tree:
        for number in range(3):
            put(tree, "a", bytes([number]))
            tree.open("a", write=False).sync()
        tree._ledger._heads.clear()  # as if thousands of commits had followed
        tree._ledger.compact(over=0)
    with pytest.raises(RolledBack, match="no longer knows"):
        place.read_all(place.heads[1])


def add_a_file(place: Place) -> None:
    (place.folder / "notes.txt").write_bytes(b"hello")


def add_a_folder(place: Place) -> None:
    (place.folder / "x").mkdir()


def link_an_object(place: Place) -> None:
    moved = place.root / "moved"
    place.object_a.rename(moved)
    place.object_a.symlink_to(moved)


def link_the_journal(place: Place) -> None:
    moved, name = place.root / "moved", journal(place.folder)
    name.rename(moved)
    name.symlink_to(moved)


def pipe_for_an_object(place: Place) -> None:
    place.object_a.unlink()
    os.mkfifo(place.object_a)


def link_the_header(place: Place) -> None:
    moved = place.root / "moved"
    (place.folder / "tree").rename(moved)
    (place.folder / "tree").symlink_to(moved)


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(add_a_file, id="a file added"),
        pytest.param(add_a_folder, id="a folder added"),
        pytest.param(link_an_object, id="a link in place of an object"),
        pytest.param(link_the_journal, id="a link in place of the journal"),
        pytest.param(link_the_header, id="a link in place of the header"),
        pytest.param(pipe_for_an_object, id="a pipe in place of an object"),
    ],
)
def test_what_does_not_belong_in_a_tree_is_refused(place: Place, attack: Callable[[Place], None]) -> None:
    attack(place)
    for writable in (False, True):
        with pytest.raises(IndexMismatch):
            opened(place.folder, writable=writable)


def test_an_object_exchanged_for_a_link_while_the_tree_is_open_is_not_followed(place: Place) -> None:
    with reading(place.folder) as tree:
        link_an_object(place)
        with pytest.raises(IndexMismatch):
            get(tree, "a")


def test_any_edited_byte_of_the_header_is_refused(place: Place) -> None:
    header = place.folder / "tree"
    data = header.read_bytes()
    end = 48 + len(URI) + 112
    for position in (*range(0, end, 3), end, HEADER_SIZE // 2, HEADER_SIZE - 1):
        changed = bytearray(data)
        changed[position] ^= 1
        header.write_bytes(changed)
        with pytest.raises(SealingError):
            opened(place.folder, writable=False)
    header.write_bytes(data[:-1])
    with pytest.raises(TruncatedFile):
        opened(place.folder)
    header.write_bytes(data + b"\0")
    with pytest.raises(IndexMismatch):
        opened(place.folder)


def test_a_header_that_names_another_key_opens_nothing(place: Place) -> None:
    other = "kbs:///default/key/other"
    header = place.folder / "tree"
    data = header.read_bytes()
    tree_id, wrapped = data[12:44], data[48 + len(URI) : 48 + len(URI) + 112]
    from cloister.sealing.envelope import Header

    header.write_bytes(encode_header(Header(tree_id, other, wrapped, TREE_SUITE)))
    with pytest.raises(KeyUnavailable):
        opened(place.folder)
    # Even where the workload may have that other key, the wrap is bound to its URI.
    with pytest.raises(WrongKey):
        place.read_all(keys=Keys({other: KEK}))
    with pytest.raises(WrongKey):
        place.read_all(keys=Keys({other: OTHER_KEK}))


def test_a_header_under_a_key_of_the_host_opens_nothing(place: Place) -> None:
    tree_id = (place.folder / "tree").read_bytes()[12:44]
    forged = new_header(
        key_uri=URI, kek=OTHER_KEK, data_key=bytes(32), file_id=tree_id, salt=bytes(32), suite=TREE_SUITE
    )
    (place.folder / "tree").write_bytes(encode_header(forged))
    with pytest.raises(WrongKey):
        place.read_all()
    with pytest.raises(TamperedFile):
        place.read_all(keys=Keys({URI: OTHER_KEK}))


@pytest.mark.parametrize("name", ["tree", "journal"])
def test_a_header_or_journal_of_another_tree_is_refused(place: Place, name: str) -> None:
    other = Place(place.root / "other")
    taken = other.folder / "tree" if name == "tree" else journal(other.folder)
    shutil.copy(taken, place.folder / taken.name)
    with pytest.raises((TamperedFile, TruncatedFile)):
        place.read_all()
    with pytest.raises(SealingError):
        place.read_all(place.heads[-1])


def test_another_whole_tree_under_the_same_key_is_not_the_recorded_one(place: Place) -> None:
    other = Place(place.root / "other")
    with pytest.raises(IndexMismatch, match="another tree"):
        opened(other.folder, minimum=place.heads[-1])


def test_a_sealed_file_is_no_tree_and_a_tree_no_sealed_file(place: Place) -> None:
    from cloister.sealing.files import read_header

    with pytest.raises(ForeignFile, match="suite 2"):
        read_header(place.folder / "tree")
    sealed = new_header(key_uri=URI, kek=KEK, data_key=bytes(32), file_id=bytes(32), salt=bytes(32))
    (place.folder / "tree").write_bytes(encode_header(sealed))
    with pytest.raises(ForeignFile, match="suite 1"):
        opened(place.folder)


def test_only_one_writer_and_no_reader_beside_it(place: Place) -> None:
    with writing(place.folder):
        for writable in (True, False):
            with pytest.raises(UsageError, match="open"):
                opened(place.folder, writable=writable)
    with reading(place.folder), reading(place.folder), pytest.raises(UsageError):
        opened(place.folder, writable=True)


def test_no_plaintext_no_name_and_no_key_lies_on_the_disk(tmp_path: Path) -> None:
    folder = tmp_path / "tree"
    create_tree(folder, key_uri=URI, kek=KEK)
    secret = b"the patient's name is written here"
    with writing(folder) as tree:
        tree.make_directory("secret-folder", 0o700)
        put(tree, "secret-folder/secret-name", secret * 1000)
        tree.link("secret-link", "secret-folder/secret-name")
        tree.commit()
        tree._ledger.compact(over=0)
        put(tree, "secret-folder/secret-name", secret, offset=5)
    everything = b"".join(path.read_bytes() for path in folder.iterdir())
    for text in (secret[:12], b"secret-", KEK):
        assert text not in everything


def test_an_unknown_object_is_left_alone_by_readers_and_removed_by_a_writer(place: Place) -> None:
    orphan = place.folder / f"{'ab' * 16}.data"
    orphan.write_bytes(b"of a commit that never was")
    partial = place.folder / f"{journal_name(9)}.partial"
    partial.write_bytes(b"of a compaction that never was")
    assert place.read_all(place.heads[-1]) == {"a": A, "b": B}
    assert orphan.exists()
    assert partial.exists()
    with writing(place.folder):
        pass
    assert not orphan.exists()
    assert not partial.exists()
    assert len(objects(place.folder)) == 2
