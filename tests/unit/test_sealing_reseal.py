"""Key rotation in place: headers change and bodies do not, stopped anywhere it is finished, and nothing is smuggled in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cloister.encoding import encode_json
from cloister.errors import IndexMismatch, SealingError, UsageError, WrongKey
from cloister.sealing.check import check_file, check_files
from cloister.sealing.envelope import HEADER_SIZE
from cloister.sealing.files import read_header, seal_file
from cloister.sealing.index import Index, open_index
from cloister.sealing.reseal import Rotation, reseal_directory, reseal_file
from cloister.sealing.reseal_journal import JOURNAL_NAME, Journal, read_journal
from sealing_samples import KEK, OTHER_KEK, OWNER, URI, Keys, patterned, sealed_folder

NEW_URI = "kbs:///default/key/a-longer-name-than-before"
FILES = {"a": b"1", "b": patterned(1_200_000), "c/d": b"", "c/e": b"4"}
SIGNERS = [OWNER.public_key]
NEW_KEYS = Keys({NEW_URI: OTHER_KEK})


class _Killed(BaseException):
    """As if the process had ended here."""


def rotate(sealed: Path, index: Index, **more: object) -> Rotation:
    settings = {"new_uri": NEW_URI, "new_kek": OTHER_KEK, **more}
    return reseal_directory(sealed, index, Keys(), **settings)  # type: ignore[arg-type]


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def killed_after(headers: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done == headers:
            raise _Killed

    return progress


def test_a_rotation_changes_the_headers_alone(tmp_path: Path) -> None:
    sealed, index = sealed_folder(tmp_path, FILES)
    before = bytes_of(sealed)
    assert rotate(sealed, index) == Rotation(rewrapped=4, finished=0, there=0)
    after = bytes_of(sealed)
    assert {name: data[HEADER_SIZE:] for name, data in after.items()} == {
        name: data[HEADER_SIZE:] for name, data in before.items()
    }
    assert {name: len(data) for name, data in after.items()} == {
        name: len(data) for name, data in before.items()
    }
    assert open_index(sealed, signers=SIGNERS) == index
    check_files(sealed, index.files, keys=NEW_KEYS)
    with pytest.raises(WrongKey):
        check_files(sealed, index.files, keys=Keys({NEW_URI: KEK}))


def test_the_inodes_stay_so_no_body_was_written_anew(tmp_path: Path) -> None:
    sealed, index = sealed_folder(tmp_path, FILES)
    before = {path.name: path.stat().st_ino for path in sealed.iterdir()}
    rotate(sealed, index)
    assert {path.name: path.stat().st_ino for path in sealed.iterdir()} == before


def test_a_rotation_to_another_key_at_the_same_uri(tmp_path: Path) -> None:
    sealed, index = sealed_folder(tmp_path, FILES)
    assert rotate(sealed, index, new_uri=URI).rewrapped == 4
    check_files(sealed, index.files, keys=Keys({URI: OTHER_KEK}))
    assert rotate(sealed, index, new_uri=URI) == Rotation(rewrapped=0, finished=0, there=4)


@pytest.mark.parametrize("headers", range(1, 5))
def test_killed_after_any_header_it_still_opens_and_is_finished_with_either_key(
    tmp_path: Path, headers: int
) -> None:
    sealed, index = sealed_folder(tmp_path, FILES)
    with pytest.raises(_Killed):
        rotate(sealed, index, progress=killed_after(headers))
    assert open_index(sealed, signers=SIGNERS) == index
    check_files(sealed, index.files, keys=Keys({URI: KEK, NEW_URI: OTHER_KEK}))
    shutil.copytree(sealed, tmp_path / "again")
    assert rotate(sealed, index) == Rotation(rewrapped=0, finished=4, there=0)
    check_files(sealed, index.files, keys=NEW_KEYS)
    # The old key may be gone by then: the journal has all that is needed.
    done = reseal_directory(tmp_path / "again", index, Keys({}), new_uri=NEW_URI, new_kek=OTHER_KEK)
    assert done.finished == 4
    check_files(tmp_path / "again", index.files, keys=NEW_KEYS)


def test_a_torn_header_is_one_clear_line_and_is_finished(tmp_path: Path) -> None:
    sealed, index = sealed_folder(tmp_path, FILES)
    torn = sealed / index.files["b"].file_name
    with pytest.raises(_Killed):
        rotate(sealed, index, progress=killed_after(1))
    journal = read_journal(sealed / JOURNAL_NAME)
    assert journal is not None
    old, new = journal.headers(torn.name)
    for at in (1, 44, 46, 60, 200, 400):
        with torn.open("r+b") as file:
            file.write(new[:at] + b"torn" + old[at + 4 :])
        with pytest.raises(IndexMismatch, match=r"half written.*run the same `cloister reseal` again"):
            open_index(sealed, signers=SIGNERS)
    assert rotate(sealed, open_index(sealed, signers=SIGNERS, resealing=True)).finished == 4
    check_files(sealed, index.files, keys=NEW_KEYS)


def test_half_a_journal_is_none_because_no_header_was_touched(tmp_path: Path) -> None:
    sealed, index = sealed_folder(tmp_path, FILES)
    with pytest.raises(_Killed):
        rotate(sealed, index, progress=killed_after(1))
    whole = (sealed / JOURNAL_NAME).read_bytes()
    sealed, index = sealed_folder(tmp_path, FILES)
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        (sealed / JOURNAL_NAME).write_bytes(whole[:length])
        assert open_index(sealed, signers=SIGNERS) == index
    assert rotate(sealed, index).rewrapped == 4
    assert not (sealed / JOURNAL_NAME).exists()


def test_a_second_rotation_waits_for_the_first(tmp_path: Path) -> None:
    sealed, index = sealed_folder(tmp_path, FILES)
    with pytest.raises(_Killed):
        rotate(sealed, index, progress=killed_after(2))
    before = bytes_of(sealed)
    for other in ({"new_uri": "kbs:///default/key/third"}, {"new_kek": bytes(32)}):
        with pytest.raises(UsageError, match=f"to the key at {NEW_URI} was interrupted, and comes first"):
            rotate(sealed, index, **other)
    assert bytes_of(sealed) == before


def test_a_rotation_puts_no_file_under_the_new_key_that_the_index_does_not_name(tmp_path: Path) -> None:
    # The host lays the header of another file, sealed under the same key, where the owner rotates.
    (tmp_path / "secret").mkdir()
    other, other_index = sealed_folder(tmp_path / "secret", {"a": b"not for the new key's holder"})
    sealed, index = sealed_folder(tmp_path, {"a": b"x"})
    theirs = (other / other_index.files["a"].file_name).read_bytes()[:HEADER_SIZE]
    place = sealed / index.files["a"].file_name
    place.write_bytes(theirs + place.read_bytes()[HEADER_SIZE:])
    with pytest.raises(IndexMismatch, match="another file"):
        rotate(sealed, index)
    assert place.read_bytes()[:HEADER_SIZE] == theirs
    assert not (sealed / JOURNAL_NAME).exists()


def test_a_rotation_that_one_file_refuses_touches_none(tmp_path: Path) -> None:
    sealed, index = sealed_folder(tmp_path, FILES)
    before = bytes_of(sealed)
    with pytest.raises(WrongKey):
        reseal_directory(sealed, index, Keys({URI: OTHER_KEK}), new_uri=NEW_URI, new_kek=KEK)
    with pytest.raises(UsageError, match="is not a key URI"):
        rotate(sealed, index, new_uri="kbs:///x")
    assert bytes_of(sealed) == before


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "index.json", "f" * 64 + ".sealed"])
def test_a_planted_journal_about_another_file_is_refused(tmp_path: Path, name: str) -> None:
    sealed, index = sealed_folder(tmp_path, FILES)
    with pytest.raises(_Killed):
        rotate(sealed, index, progress=killed_after(1))
    journal = read_journal(sealed / JOURNAL_NAME)
    assert journal is not None
    change = next(iter(journal.files.values()))
    (tmp_path / "outside").write_bytes(bytes(HEADER_SIZE))
    (sealed / JOURNAL_NAME).write_bytes(encode_json(Journal(key=NEW_URI, suite=1, files={name: change})))
    with pytest.raises(IndexMismatch, match="which the index does not name"):
        rotate(sealed, index)
    assert (tmp_path / "outside").read_bytes() == bytes(HEADER_SIZE)


def test_a_journal_that_is_a_link_is_refused(tmp_path: Path) -> None:
    sealed, index = sealed_folder(tmp_path, FILES)
    (tmp_path / "elsewhere").write_bytes(b"{}")
    (sealed / JOURNAL_NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SealingError):
        open_index(sealed, signers=SIGNERS)
    with pytest.raises(SealingError):
        rotate(sealed, index)


def test_one_sealed_file_is_rotated_alone(tmp_path: Path) -> None:
    (tmp_path / "it").write_bytes(b"x")
    sealed = tmp_path / "it.sealed"
    entry = seal_file(tmp_path / "it", sealed, key_uri=URI, kek=KEK)
    body = sealed.read_bytes()[HEADER_SIZE:]
    assert reseal_file(sealed, Keys(), new_uri=NEW_URI, new_kek=OTHER_KEK).rewrapped == 1
    assert sealed.read_bytes()[HEADER_SIZE:] == body
    assert read_header(sealed).key_uri == NEW_URI
    assert check_file(sealed, name="it", expected=entry, keys=NEW_KEYS) == entry
    assert sorted(path.name for path in tmp_path.iterdir()) == ["it", "it.sealed"]


def test_a_rotation_waits_for_no_other_writer(tmp_path: Path) -> None:
    import fcntl

    sealed, index = sealed_folder(tmp_path, FILES)
    descriptor = os.open(sealed, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another process has"):
            rotate(sealed, index)
    finally:
        os.close(descriptor)
