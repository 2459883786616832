"""Attacks on what is opened into private memory: by the storage's host, and by one who holds the data key as well.

Who holds a data key (a broker, another workload) can make bodies whose every segment authenticates. That they are not the
owner's shows in the signed digest alone.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import IndexMismatch, SealingError, UsageError
from cloister.inference import workload
from cloister.inference.api_keys import ApiKeys
from cloister.inference.configuration import ServeConfiguration
from cloister.inference.model import SealedModel
from cloister.sealing.directory import unseal_to_memory
from cloister.sealing.envelope import HEADER_SIZE, parse_header, unwrap
from cloister.sealing.index import Index
from cloister.sealing.restore import restore_directory, restore_early
from cloister.sealing.segments import PREAMBLE_SIZE, SEGMENT_SIZE, SegmentCipher
from left_behind import left_open, open_descriptors
from scripted_engine import ScriptedEngine
from sealing_samples import KEK, Keys, patterned, sealed_folder

FIRST = SEGMENT_SIZE - PREAMBLE_SIZE - 16
OTHER = SEGMENT_SIZE - 16
FILES = {
    "a/b/c/model.safetensors": patterned(5_500_000, 4),
    "one byte": b"x",
    "model.gguf": patterned(3_000_000, 5),
    "config.json": b"{}",
}


@pytest.fixture
def target() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def own(tmp_path: Path) -> tuple[Path, Index]:
    """A sealed directory that a test may damage."""
    return sealed_folder(tmp_path, FILES)


CONFIGURATION = ServeConfiguration(
    model_name="demo", engine="scripted", context_length=512, slots=2,
    index_signers=(), broker_policy=None, api_keys_required=False,
)  # fmt: skip


class NoAttester:
    """Nothing is attested before the model was confirmed."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was asked for")


def replaced(own: tuple[Path, Index], path: str, content: bytes) -> None:
    """Who holds the data key seals other content under it, with the same file id and nonces; all tags are genuine."""
    place = own[0] / own[1].files[path].file_name
    data = place.read_bytes()
    header = parse_header(data[:HEADER_SIZE], name=path)
    preamble = data[HEADER_SIZE : HEADER_SIZE + PREAMBLE_SIZE]
    cipher = SegmentCipher(unwrap(header, KEK, name=path), preamble, header.associated_data, name=path)
    body = bytearray(preamble)
    for segment, start in enumerate([0, *range(FIRST, len(content), OTHER)]):
        text = content[start : start + (OTHER if segment else FIRST)]
        out = bytearray(len(text) + 16)
        cipher.seal_into(segment, start + len(text) == len(content), text, out)
        body += out
    assert len(body) == len(data) - HEADER_SIZE
    place.write_bytes(data[:HEADER_SIZE] + body)


@pytest.mark.parametrize("path", ["a/b/c/model.safetensors", "one byte"])
def test_what_a_holder_of_the_key_put_in_a_files_place_is_refused(
    own: tuple[Path, Index], target: Path, path: str
) -> None:
    replaced(own, path, bytes(len(FILES[path])))
    with pytest.raises(IndexMismatch, match="another content"):
        restore_directory(*own, Keys(), target)
    assert not list(target.iterdir())


@pytest.mark.parametrize("path", ["a/b/c/model.safetensors", "one byte"])
def test_a_file_that_was_swapped_while_it_was_opened_early_is_refused_although_the_signed_one_is_back(
    own: tuple[Path, Index], target: Path, path: str
) -> None:
    genuine = (own[0] / own[1].files[path].file_name).read_bytes()
    replaced(own, path, bytes(len(FILES[path])))
    before = open_descriptors()
    made = restore_early(*own, Keys(), target)
    # The host puts the signed file back before it is confirmed: what counts is what was opened.
    (own[0] / own[1].files[path].file_name).write_bytes(genuine)
    with pytest.raises(IndexMismatch, match="another content"):
        made.confirm(workers=2)
    assert not list(target.iterdir())
    assert not left_open(before)
    with pytest.raises(UsageError, match="before"):
        made.confirm()


@pytest.mark.parametrize("huge", [True, False], ids=["large pages", "memfd"])
def test_a_model_that_a_holder_of_the_key_put_in_place_never_reaches_the_engine(
    own: tuple[Path, Index], huge: bool
) -> None:
    replaced(own, "a/b/c/model.safetensors", bytes(5_500_000))
    before = open_descriptors()
    with pytest.raises(IndexMismatch, match="another content"):
        unseal_to_memory(*own, "a/b/c/model.safetensors", Keys(), huge=huge)
    assert not left_open(before)


def test_a_model_that_a_holder_of_the_key_put_in_place_ends_the_workload_before_it_can_be_asked(
    own: tuple[Path, Index], monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = (own[0] / own[1].files["model.gguf"].file_name).read_bytes()
    replaced(own, "model.gguf", bytes(3_000_000))
    model = SealedModel(*own, "gguf", ("model.gguf",))
    before = open_descriptors()
    seen: list[str] = []

    def engine(*_: Any, **__: Any) -> ScriptedEngine:
        # While the engine loads, the host puts the signed file back.
        (own[0] / own[1].files["model.gguf"].file_name).write_bytes(genuine)
        return ScriptedEngine()

    monkeypatch.setattr(workload, "open_engine", engine)
    with pytest.raises(IndexMismatch, match="another content"):
        workload.start(
            CONFIGURATION,
            model=model,
            attester=NoAttester(),
            keys=Keys(),
            api_keys=ApiKeys.nobody_asks(),
            threads=None,
            replica="replica-0",
            progress=lambda step, _: seen.append(step),
        )
    assert "engine" not in seen
    assert not left_open(before)


def test_a_link_that_is_planted_in_the_target_meanwhile_is_not_followed(
    own: tuple[Path, Index], target: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()

    def planted(done: int, total: int) -> None:
        folder = target / "a/b/c"
        if folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder)
            folder.symlink_to(tmp_path / "elsewhere")

    with pytest.raises(SealingError, match="cannot put files"):
        restore_directory(*own, Keys(), target, progress=planted, workers=1)
    assert not list(target.iterdir())
    assert not list((tmp_path / "elsewhere").iterdir())
