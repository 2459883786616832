"""A passphrase comes out of a file that its owner alone can read."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker_parts import PASSPHRASE
from cloister.cli.passphrase import read_passphrase
from cloister.errors import UsageError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "passphrase"
    file.write_bytes(PASSPHRASE + b"\n")
    file.chmod(0o600)
    return file


def test_one_trailing_newline_is_not_part_of_it(file: Path) -> None:
    assert read_passphrase(file) == PASSPHRASE
    file.write_bytes(PASSPHRASE + b"\n\n")
    assert read_passphrase(file) == PASSPHRASE + b"\n"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o622])
def test_a_passphrase_file_that_others_may_read_is_refused(file: Path, mode: int) -> None:
    file.chmod(mode)
    with pytest.raises(UsageError, match="chmod"):
        read_passphrase(file)


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"short\n", b"x" * 11, b"x" * 1025, b"x" * 100_000],
    ids=["empty", "a newline", "short", "one below", "one above", "long"],
)
def test_a_passphrase_out_of_its_bounds_is_refused_without_showing_it(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_passphrase(file)
    assert "short\n" not in str(caught.value)
    assert "xxx" not in str(caught.value)


def test_the_bounds_themselves_are_allowed(file: Path) -> None:
    for length in (12, 1024):
        file.write_bytes(b"x" * length + b"\n")
        assert read_passphrase(file) == b"x" * length


@pytest.mark.parametrize("kind", ["missing", "directory", "link"])
def test_what_is_no_file_is_refused(tmp_path: Path, file: Path, kind: str) -> None:
    path = tmp_path / "other"
    if kind == "directory":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError):
        read_passphrase(path)
