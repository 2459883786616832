"""One sealed file: sealing, unsealing, random access, rewrap, and the named ways in which it can be wrong."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from cloister.errors import (
    ForeignFile,
    IndexMismatch,
    KeyUnavailable,
    SealingError,
    TamperedFile,
    TruncatedFile,
    UsageError,
    WrongKey,
)
from cloister.sealing.envelope import HEADER_SIZE
from cloister.sealing.files import read_header, seal_file, unseal_into
from cloister.sealing.index import IndexEntry
from cloister.sealing.reader import SealedReader
from cloister.sealing.segments import PREAMBLE_SIZE, SEGMENT_SIZE, TAG_SIZE
from sealing_samples import KEK, OTHER_KEK, URI, Keys, alter, counted_entropy, patterned

FIRST = SEGMENT_SIZE - PREAMBLE_SIZE - TAG_SIZE
OTHER = SEGMENT_SIZE - TAG_SIZE
NEW_URI = "kbs:///default/key/rotated"


def seal(folder: Path, content: bytes, name: str = "it", **options: object) -> tuple[Path, IndexEntry]:
    (folder / name).write_bytes(content)
    target = folder / f"{name}.sealed"
    settings = {"key_uri": URI, "kek": KEK, **options}
    return target, seal_file(folder / name, target, **settings)  # type: ignore[arg-type]


def unseal(
    path: Path, keys: Keys | None = None, expected: IndexEntry | None = None, workers: int = 1
) -> bytes:
    target = path.with_name("unsealed")
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        unseal_into(path, descriptor, keys or Keys(), name="it", expected=expected, workers=workers)
    finally:
        os.close(descriptor)
    return target.read_bytes()


def read_all(path: Path, expected: IndexEntry | None) -> bytes:
    with path.open("rb") as file:
        reader = SealedReader(file, Keys(), name="it", expected=expected)
        return reader.read(0, reader.size)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(
    "size", [0, 1, FIRST - 1, FIRST, FIRST + 1, FIRST + OTHER, FIRST + OTHER + 1, 3 * SEGMENT_SIZE]
)
def test_a_file_comes_back(tmp_path: Path, size: int, workers: int) -> None:
    content = patterned(size)
    sealed, entry = seal(tmp_path, content, workers=workers)
    assert entry.size == size
    assert unseal(sealed, expected=entry, workers=workers) == content
    assert unseal(sealed) == content


def test_two_seals_of_one_file_share_no_bytes_but_the_fixed_header(tmp_path: Path) -> None:
    content = bytes(3 * SEGMENT_SIZE)
    one, first = seal(tmp_path, content, "one")
    two, second = seal(tmp_path, content, "two")
    a, b = one.read_bytes()[HEADER_SIZE:], two.read_bytes()[HEADER_SIZE:]
    chunks_a, chunks_b = ({data[i : i + 16] for i in range(1, len(data) - 16, 16)} for data in (a, b))
    assert len(chunks_a) == len(chunks_b) == (len(a) - 2) // 16
    assert not chunks_a & chunks_b
    assert first.id != second.id
    assert first.digest != second.digest
    assert read_header(one).wrapped[:96] != read_header(two).wrapped[:96]


def test_the_plaintext_is_nowhere_in_the_sealed_file(tmp_path: Path) -> None:
    marker = b"a marker that must not be seen"
    sealed, _ = seal(tmp_path, marker * 1000)
    assert marker[:12] not in sealed.read_bytes()


SIZE = 2 * SEGMENT_SIZE + 100


def swap_segments(path: Path) -> None:
    data = bytearray(path.read_bytes())
    second, third = HEADER_SIZE + SEGMENT_SIZE, HEADER_SIZE + 2 * SEGMENT_SIZE
    part = len(data) - third
    data[second : second + part], data[third:] = data[third:], data[second : second + part]
    path.write_bytes(data)


def cut(path: Path, size: int) -> None:
    os.truncate(path, size if size >= 0 else path.stat().st_size + size)


ATTACKS = {
    "flipped bit in the magic": (lambda p: alter(p, 0), ForeignFile),
    "flipped bit in the version": (lambda p: alter(p, 9), ForeignFile),
    "flipped bit in the suite": (lambda p: alter(p, 11, mask=2), ForeignFile),
    "flipped bit in the file id": (lambda p: alter(p, 20), (WrongKey, IndexMismatch)),
    "flipped bit in the key URI": (lambda p: alter(p, 60), KeyUnavailable),
    "flipped bit in the wrapped key": (lambda p: alter(p, 48 + len(URI) + 100), TamperedFile),
    "flipped bit in the padding": (lambda p: alter(p, HEADER_SIZE - 1), TamperedFile),
    "flipped bit in the preamble's length": (lambda p: alter(p, HEADER_SIZE), TamperedFile),
    "flipped bit in the salt": (lambda p: alter(p, HEADER_SIZE + 1), TamperedFile),
    "flipped bit in the nonce prefix": (lambda p: alter(p, HEADER_SIZE + 33), TamperedFile),
    "flipped bit in the first segment": (lambda p: alter(p, HEADER_SIZE + 40), TamperedFile),
    "flipped bit in a middle segment": (lambda p: alter(p, HEADER_SIZE + SEGMENT_SIZE), TamperedFile),
    "flipped bit in the last tag": (lambda p: alter(p, -1), TamperedFile),
    "two segments swapped": (swap_segments, TamperedFile),
    "one byte appended": (lambda p: p.write_bytes(p.read_bytes() + b"\0"), TamperedFile),
    "a segment appended": (lambda p: p.write_bytes(p.read_bytes() + bytes(SEGMENT_SIZE)), TamperedFile),
    "last byte cut off": (lambda p: cut(p, -1), (TruncatedFile, TamperedFile)),
    "cut inside a tag": (lambda p: cut(p, HEADER_SIZE + SEGMENT_SIZE + 7), TruncatedFile),
    "cut at a segment": (lambda p: cut(p, HEADER_SIZE + SEGMENT_SIZE), TruncatedFile),
    "cut behind the header": (lambda p: cut(p, HEADER_SIZE), TruncatedFile),
    "cut inside the header": (lambda p: cut(p, 100), TruncatedFile),
    "emptied": (lambda p: cut(p, 0), (ForeignFile, TruncatedFile)),
    "another file altogether": (lambda p: p.write_bytes(b"GGUF" + bytes(8000)), (ForeignFile, TruncatedFile)),
}


@pytest.mark.parametrize("indexed", [True, False], ids=["with its index entry", "on its own"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_damaged_file_is_refused_with_its_own_error(tmp_path: Path, attack: str, indexed: bool) -> None:
    damage, errors = ATTACKS[attack]
    sealed, entry = seal(tmp_path, patterned(SIZE))
    damage(sealed)
    with pytest.raises(errors) as refused:
        unseal(sealed, expected=entry if indexed else None)
    assert isinstance(refused.value, SealingError)
    with pytest.raises(SealingError):
        read_all(sealed, entry if indexed else None)


def test_a_wrong_key_is_one_clear_line(tmp_path: Path) -> None:
    sealed, _ = seal(tmp_path, b"x")
    with pytest.raises(WrongKey, match="does not open it"):
        unseal(sealed, Keys({URI: OTHER_KEK}))
    with pytest.raises(KeyUnavailable):
        unseal(sealed, Keys({}))


def test_the_body_of_another_file_under_the_same_key_is_refused(tmp_path: Path) -> None:
    one, entry = seal(tmp_path, b"one", "one")
    two, _ = seal(tmp_path, b"two", "two")
    one.write_bytes(one.read_bytes()[:HEADER_SIZE] + two.read_bytes()[HEADER_SIZE:])
    with pytest.raises(TamperedFile):
        unseal(one, expected=entry)


def test_who_holds_the_data_key_still_cannot_replace_what_the_index_names(tmp_path: Path) -> None:
    """A reader re-seals other content under the same file id: every segment authenticates, the digest does not."""
    _, entry = seal(tmp_path, b"what the owner sealed", "one", entropy=counted_entropy())
    forged, _ = seal(tmp_path, b"what a reader forged!", "two", entropy=counted_entropy())
    assert unseal(forged) == b"what a reader forged!"
    with pytest.raises(IndexMismatch, match="another content"):
        unseal(forged, expected=entry)


def test_random_access_refuses_another_genuine_file_than_its_index_names(tmp_path: Path) -> None:
    """Random access cannot check the digest of the whole body, so the file id has to tell them apart."""
    _, entry = seal(tmp_path, b"what is named", "one")
    other, _ = seal(tmp_path, b"what is there", "two")
    with pytest.raises(IndexMismatch, match="another file"):
        read_all(other, entry)


def test_a_length_that_is_not_the_index_s_is_said_before_any_key_is_asked_for(tmp_path: Path) -> None:
    sealed, entry = seal(tmp_path, patterned(SIZE))
    keys = Keys()
    cut(sealed, HEADER_SIZE + SEGMENT_SIZE)
    with pytest.raises(TruncatedFile, match="sealed bytes of"):
        unseal(sealed, keys, expected=entry)
    sealed.write_bytes(sealed.read_bytes() + bytes(5 * SEGMENT_SIZE))
    with pytest.raises(TamperedFile, match="where its index says"):
        unseal(sealed, keys, expected=entry)
    assert keys.asked == []


def test_links_pipes_and_folders_are_neither_sealed_nor_unsealed(tmp_path: Path) -> None:
    sealed, entry = seal(tmp_path, b"x")
    (tmp_path / "link").symlink_to(sealed)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "folder", "pipe", "missing"):
        with pytest.raises(IndexMismatch):
            unseal(tmp_path / name, expected=entry)
        with pytest.raises(UsageError):
            seal_file(tmp_path / name, tmp_path / "out", key_uri=URI, kek=KEK)


def test_a_target_that_exists_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"mine")
    (tmp_path / "in").write_bytes(b"x")
    with pytest.raises(UsageError):
        seal_file(tmp_path / "in", tmp_path / "there", key_uri=URI, kek=KEK)
    assert (tmp_path / "there").read_bytes() == b"mine"


def test_a_source_that_grows_while_it_is_sealed_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.write_bytes(bytes(100))

    class Growing:
        def add(self, count: int) -> None:
            with source.open("ab") as file:
                file.write(b"more")

    with pytest.raises(UsageError, match="changed while it was sealed"):
        seal_file(source, tmp_path / "out", key_uri=URI, kek=KEK, tally=Growing())  # type: ignore[arg-type]


def test_random_access_reads_what_the_file_holds(tmp_path: Path) -> None:
    content = patterned(SIZE)
    sealed, entry = seal(tmp_path, content)
    keys = Keys()
    reader = SealedReader(io.BytesIO(sealed.read_bytes()), keys, name="it", expected=entry)
    assert reader.size == SIZE
    for offset, length in [
        (0, 0),
        (0, 1),
        (FIRST - 1, 2),
        (FIRST, OTHER),
        (FIRST + OTHER - 3, 7),
        (10, SIZE),
        (SIZE - 1, 1),
        (SIZE - 1, 100),
        (SIZE, 1),
        (SIZE + 5, 10),
    ]:
        assert reader.read(offset, length) == content[offset : offset + length]
    assert keys.asked == [URI]
    with pytest.raises(UsageError):
        reader.read(-1, 1)
    with pytest.raises(UsageError):
        reader.read(0, -1)
    reader.close()


def test_random_access_to_an_empty_file(tmp_path: Path) -> None:
    sealed, entry = seal(tmp_path, b"")
    with sealed.open("rb") as file:
        reader = SealedReader(file, Keys(), name="it", expected=entry)
        assert (reader.size, reader.read(0, 10)) == (0, b"")


def test_random_access_refuses_a_cut_file_before_the_first_read(tmp_path: Path) -> None:
    sealed, _ = seal(tmp_path, patterned(SIZE))
    cut(sealed, HEADER_SIZE + SEGMENT_SIZE)
    with sealed.open("rb") as file, pytest.raises(TruncatedFile):
        SealedReader(file, Keys(), name="it")


def test_a_reader_has_no_way_to_write() -> None:
    assert not {name for name in dir(SealedReader) if "write" in name or "seal" in name or "trunc" in name}
