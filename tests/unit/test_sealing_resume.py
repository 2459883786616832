"""Sealing that is interrupted goes on: what is kept, what is sealed anew, and which stages are not touched."""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from cloister.errors import SealingError, UsageError
from cloister.sealing.check import check_files
from cloister.sealing.index import Index, open_index
from cloister.sealing.resume import Resumption, stage_of
from cloister.sealing.seal import seal_directory
from cloister.sealing.segments import SegmentCipher
from sealing_samples import KEK, OWNER, STRANGER, URI, Keys, patterned

FILES = {"a": b"1", "b/c": patterned(1_200_000), "b/d": b"", "e": b"5", "f": b"6"}
SIGNERS = [OWNER.public_key]


class _Killed(BaseException):
    """As if the process had ended here."""


class Place:
    """A source, and an ``out`` that runs are to fill."""

    def __init__(self, root: Path) -> None:
        self.source = root / "in"
        self.out = root / "out"
        for path, content in FILES.items():
            (self.source / path).parent.mkdir(parents=True, exist_ok=True)
            (self.source / path).write_bytes(content)

    @property
    def stage(self) -> Path:
        return stage_of(self.out)

    def resumption(self, **more: object) -> Resumption:
        settings = {
            "source": self.source,
            "key_uri": URI,
            "key_fingerprint": "f",
            "signing_key": OWNER,
            **more,
        }
        return Resumption(**settings)  # type: ignore[arg-type]

    def seal(
        self, resumption: Resumption | None = None, *, kill_after: int | None = None, **more: object
    ) -> tuple[Index, Resumption]:
        taken = resumption or self.resumption()
        settings = {"key_uri": URI, "kek": KEK, "signing_key": OWNER, "workers": 1, "staging": taken, **more}
        if kill_after is not None:
            settings["entropy"] = killing(kill_after)
        return seal_directory(self.source, self.out, **settings), taken  # type: ignore[arg-type]

    def kill(self, after: int) -> Resumption:
        """A run that ends when it has sealed so many files."""
        resumption = self.resumption()
        with pytest.raises(_Killed):
            self.seal(resumption, kill_after=after)
        assert not self.out.exists()
        return resumption


def killing(after: int) -> Callable[[int], bytes]:
    """The name of each stage file is 16 random bytes: at the one after ``after`` files the process ends."""
    files = iter(range(after))

    def entropy(length: int) -> bytes:
        if length == 16 and next(files, None) is None:
            raise _Killed
        return os.urandom(length)

    return entropy


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize("after", range(1, 5))
def test_what_was_sealed_is_kept_and_the_rest_is_sealed(place: Place, after: int) -> None:
    assert place.kill(after).left == after
    staged = {path.name: path.read_bytes() for path in (place.stage / "new").iterdir()}
    assert len(staged) == after
    index, resumption = place.seal(verify=True)
    assert len(resumption.found) == after
    assert all((place.out / name).read_bytes() == data for name, data in staged.items())
    assert open_index(place.out, signers=SIGNERS) == index
    assert {path: entry.size for path, entry in index.files.items()} == {p: len(c) for p, c in FILES.items()}
    check_files(place.out, index.files, keys=Keys())
    assert not place.stage.exists()
    assert stat.S_IMODE(place.out.stat().st_mode) == 0o755


def test_a_run_that_sealed_nothing_leaves_nothing(place: Place) -> None:
    assert place.kill(0).left == 0
    assert not place.stage.exists()


def test_a_run_that_was_killed_at_its_very_end_is_only_put_in_place(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("cloister.sealing.resume._put_in_place", lambda *_: (_ for _ in ()).throw(_Killed()))
        with pytest.raises(_Killed):
            place.seal()
    assert (place.stage / "new" / "index.json").exists()
    _, resumption = place.seal()
    assert len(resumption.found) == 5


def test_no_segment_is_ever_sealed_twice(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a run that was killed in the middle of a file and its successor: each pair of key and nonce once."""
    seen: set[tuple[bytes, int]] = set()
    genuine = SegmentCipher.seal_into

    def seal_into(self: SegmentCipher, segment: int, last: bool, plain: object, out: object) -> None:
        # The prefix is 7 of 39 random bytes that are drawn with each key.
        assert (self._prefix, segment) not in seen
        seen.add((self._prefix, segment))
        genuine(self, segment, last, plain, out)  # type: ignore[arg-type]
        if len(seen) == 2:
            raise _Killed

    monkeypatch.setattr(SegmentCipher, "seal_into", seal_into)
    with pytest.raises(_Killed):
        place.seal()
    place.seal()
    assert len(seen) == 2 + 5


@pytest.mark.parametrize("change", ["contents", "size", "another file", "times only"])
def test_a_source_that_changed_meanwhile_is_sealed_anew(place: Place, change: str) -> None:
    place.kill(3)
    source = place.source / "a"
    if change == "contents":
        times = source.stat()
        source.write_bytes(b"9")
        os.utime(
            source, ns=(times.st_atime_ns, times.st_mtime_ns)
        )  # who hides it cannot set the time of change
    elif change == "size":
        source.write_bytes(b"longer")
    elif change == "another file":
        source.rename(place.source / "e")
        (place.source / "a").write_bytes(b"1")
    else:
        os.utime(source)
    index, resumption = place.seal(verify=True)
    assert "a" not in resumption.found
    assert index.files["a"].size == source.stat().st_size
    check_files(place.out, index.files, keys=Keys())


def test_a_source_that_is_gone_is_not_sealed(place: Place) -> None:
    place.kill(4)
    (place.source / "a").unlink()
    index, resumption = place.seal()
    assert set(index.files) == set(FILES) - {"a"}
    assert len(resumption.found) == 3
    open_index(place.out, signers=SIGNERS)


@pytest.mark.parametrize(
    "more",
    [
        {"key_uri": "kbs:///a/b/c"},
        {"key_fingerprint": "other"},
        {"signing_key": STRANGER},
        {"source": Path("/")},
    ],
    ids=["another URI", "another key", "another signer", "another source"],
)
def test_a_stage_of_other_keys_or_another_source_is_refused_until_restarted(
    place: Place, more: dict[str, object]
) -> None:
    place.kill(2)
    before = sorted(path.name for path in (place.stage / "new").iterdir())
    with pytest.raises(UsageError, match=r"is left from sealing .*--restart"):
        place.seal(place.resumption(**more))
    assert sorted(path.name for path in (place.stage / "new").iterdir()) == before
    _, resumption = place.seal(place.resumption(**more, restart=True))
    assert not resumption.found


def test_a_record_torn_by_the_kill_is_sealed_anew(place: Place) -> None:
    place.kill(3)
    log = place.stage / "sealed.log"
    log.write_bytes(log.read_bytes()[:-10])
    _, resumption = place.seal(verify=True)
    assert len(resumption.found) == 2


@pytest.mark.parametrize("field", ["path", "source", "id", "size", "digest", "signature"])
def test_an_altered_record_is_refused(place: Place, field: str) -> None:
    place.kill(2)
    log = place.stage / "sealed.log"
    first, record, *rest = log.read_text().splitlines()
    document = json.loads(record)
    other = json.loads(rest[0])
    document[field] = document["size"] + 1 if field == "size" else other[field]
    log.write_text("\n".join([first, json.dumps(document), *rest]) + "\n")
    with pytest.raises(UsageError, match="its log was altered"):
        place.seal()


def test_a_staged_file_that_was_changed_is_found_when_it_is_read_back(place: Place) -> None:
    place.kill(4)
    staged = max((place.stage / "new").iterdir(), key=lambda path: path.stat().st_size)
    with staged.open("r+b") as file:
        file.seek(5000)
        file.write(b"x")
    with pytest.raises(SealingError):
        place.seal(verify=True)
    assert not place.out.exists()


def test_a_staged_file_of_another_length_is_sealed_anew(place: Place) -> None:
    place.kill(4)
    for staged in (place.stage / "new").iterdir():
        os.truncate(staged, 100)
    _, resumption = place.seal()
    assert not resumption.found


def loosen(place: Place) -> None:
    place.stage.chmod(0o755)


def link(place: Place) -> None:
    place.stage.rename(place.stage.with_name("elsewhere"))
    place.stage.symlink_to("elsewhere")


def link_the_files(place: Place) -> None:
    (place.stage / "new").rename(place.stage / "elsewhere")
    (place.stage / "new").symlink_to("elsewhere")


def link_the_log(place: Place) -> None:
    (place.stage / "sealed.log").rename(place.source.parent / "log")
    (place.stage / "sealed.log").symlink_to(place.source.parent / "log")


def link_the_log_hard(place: Place) -> None:
    (place.source.parent / "log").hardlink_to(place.stage / "sealed.log")


def add_a_file(place: Place) -> None:
    (place.stage / "new" / "notes.txt").write_bytes(b"mine")


def add_a_folder(place: Place) -> None:
    (place.stage / "new" / ("0" * 32)).mkdir()


@pytest.mark.parametrize(
    "spoil", [loosen, link, link_the_files, link_the_log, link_the_log_hard, add_a_file, add_a_folder]
)
def test_a_stage_that_is_not_as_a_run_leaves_it_is_not_touched(
    place: Place, spoil: Callable[[Place], None]
) -> None:
    place.kill(2)
    spoil(place)
    with pytest.raises(UsageError, match="no run of yours left it"):
        place.seal()
    if spoil in (loosen, link):
        with pytest.raises(UsageError, match="no run of yours left it"):
            place.seal(place.resumption(restart=True))
    assert not place.out.exists()


def test_two_runs_do_not_work_in_one_stage(place: Place) -> None:
    place.kill(2)
    with (place.stage / "sealed.log").open("rb") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another `cloister seal` is at work"):
            place.seal()
    _, resumption = place.seal()
    assert len(resumption.found) == 2


def test_a_place_that_is_taken_is_refused_and_a_stage_stays(place: Place) -> None:
    place.kill(2)
    place.out.mkdir()
    (place.out / "file").write_bytes(b"x")
    with pytest.raises(UsageError, match="not an empty directory"):
        place.seal()
    assert place.stage.exists()


def test_each_place_has_a_stage_of_its_own(tmp_path: Path) -> None:
    names = ["a", "b", "x" * 200, "x" * 199 + "y", "ü"]
    stages = {stage_of(tmp_path / name).name for name in names}
    assert len(stages) == len(names)
    assert max(len(os.fsencode(stage)) for stage in stages) <= 255
