"""Directories that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from cloister.errors import UsageError
from cloister.sealing.staging import staged_beside, staged_inside

Staging = Callable[[Path], AbstractContextManager[Path]]
both = pytest.mark.parametrize("staged", [staged_beside, staged_inside])


def fill(stage: Path) -> None:
    (stage / "a").write_bytes(b"a")
    (stage / "b").mkdir()
    (stage / "b" / "c").write_bytes(b"c")


@both
@pytest.mark.parametrize("there", [True, False])
def test_what_was_staged_is_in_place(tmp_path: Path, staged: Staging, there: bool) -> None:
    out = tmp_path / "out"
    if there:
        out.mkdir()
    with staged(out) as stage:
        fill(stage)
        assert stage.stat().st_mode & 0o077 == 0
    assert sorted(path.name for path in out.rglob("*")) == ["a", "b", "c"]
    assert os.listdir(tmp_path) == ["out"]  # noqa: PTH208 -- hidden files too


@both
@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError, UsageError("x")])
def test_a_failure_leaves_the_place_as_it_was(
    tmp_path: Path, staged: Staging, failure: BaseException
) -> None:
    def fail(out: Path) -> None:
        with staged(out) as stage:
            fill(stage)
            raise failure

    kind = failure if isinstance(failure, type) else type(failure)
    with pytest.raises(kind):
        fail(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    with pytest.raises(kind):
        fail(tmp_path / "out")
    assert list(tmp_path.rglob("*")) == [tmp_path / "out"]


def test_plaintext_is_staged_inside_its_place_and_nowhere_else(tmp_path: Path) -> None:
    with staged_inside(tmp_path / "out") as stage:
        assert stage.parent == tmp_path / "out"
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failure_half_way_through_the_move_takes_back_what_is_ours_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def collide() -> None:
        with staged_inside(out) as stage:
            fill(stage)
            (stage / "z").write_bytes(b"z")
            # Somebody else puts something where `z` should go.
            (out / "z").mkdir()
            (out / "z" / "theirs").write_bytes(b"theirs")

    with pytest.raises(UsageError, match="cannot put z"):
        collide()
    assert sorted(path.name for path in out.rglob("*")) == ["theirs", "z"]


@both
def test_a_place_that_fills_up_meanwhile_is_not_written_over(tmp_path: Path, staged: Staging) -> None:
    out = tmp_path / "out"

    def collide() -> None:
        with staged(out) as stage:
            fill(stage)
            (out / "a").mkdir(parents=True)
            (out / "a" / "theirs").write_bytes(b"theirs")

    with pytest.raises(UsageError):
        collide()
    assert (out / "a" / "theirs").read_bytes() == b"theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
