"""Memory for what is opened: nobody can change it afterwards, nothing of it is left when it failed, and it is no disk."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

import pytest

from cloister.errors import TamperedFile
from cloister.sealing import restore_memory
from cloister.sealing.directory import unseal_to_memory
from cloister.sealing.restore_memory import frozen_pages, in_memory
from left_behind import left_open, open_descriptors
from sealing_samples import Keys, alter, patterned, sealed_folder

SIZE = 5_500_000
REFUSED = "Bad file descriptor|Invalid argument|Read-only|not permitted|Permission denied"


@pytest.fixture(params=["as this machine gives it", "where no tmpfs can be made", "small"])
def content(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bytes:
    if request.param == "where no tmpfs can be made":

        def refused(number: int, *arguments: int | bytes | None) -> int:
            raise OSError(errno.EPERM, "not for you")

        monkeypatch.setattr(restore_memory, "_call", refused)
    return patterned(1000 if request.param == "small" else SIZE)


def test_what_is_in_frozen_pages_can_be_read_and_not_changed(content: bytes) -> None:
    before = open_descriptors()
    descriptor = frozen_pages(len(content), lambda file: _write(file, content))
    try:
        assert len(left_open(before)) == 1
        assert in_memory(descriptor)
        assert not os.get_inheritable(descriptor)
        assert os.fstat(descriptor).st_nlink == 0, "it has no name"
        path = Path(f"/proc/self/fd/{descriptor}")
        assert path.read_bytes() == content
        for change in (
            lambda: os.pwrite(descriptor, b"x", 0),
            lambda: os.ftruncate(descriptor, 1),
            lambda: os.ftruncate(descriptor, len(content) + 1),
            lambda: path.write_bytes(b"x"),
            lambda: os.truncate(path, 0),
            lambda: mmap.mmap(descriptor, 0, prot=mmap.PROT_READ | mmap.PROT_WRITE),
        ):
            with pytest.raises(OSError, match=REFUSED):
                change()
        assert path.read_bytes() == content
    finally:
        os.close(descriptor)


def test_frozen_pages_that_could_not_be_filled_leave_nothing(content: bytes) -> None:
    def fails(descriptor: int) -> None:
        _write(descriptor, content)
        raise KeyboardInterrupt

    before = open_descriptors()
    with pytest.raises(KeyboardInterrupt):
        frozen_pages(len(content), fails)
    assert not left_open(before)


def test_frozen_pages_that_somebody_could_still_write_are_not_handed_out() -> None:
    kept: list[mmap.mmap] = []

    def fill(descriptor: int) -> None:
        os.truncate(descriptor, SIZE)
        kept.append(mmap.mmap(descriptor, SIZE))

    before = open_descriptors()
    try:
        with pytest.raises(OSError, match="busy"):
            frozen_pages(SIZE, fill)
    finally:
        kept[0].close()
    assert not left_open(before)


def test_a_model_is_unsealed_into_them(tmp_path: Path, content: bytes) -> None:
    sealed, index = sealed_folder(tmp_path, {"model.gguf": content})
    descriptor = unseal_to_memory(sealed, index, "model.gguf", Keys(), workers=2, huge=True)
    try:
        assert os.pread(descriptor, len(content) + 1, 0) == content
        with pytest.raises(OSError, match=REFUSED):
            os.pwrite(descriptor, b"x", 0)
    finally:
        os.close(descriptor)
    before = open_descriptors()
    alter(sealed / index.files["model.gguf"].file_name, -1)
    with pytest.raises(TamperedFile):
        unseal_to_memory(sealed, index, "model.gguf", Keys(), workers=2, huge=True)
    assert not left_open(before)


def test_a_disk_or_another_file_system_is_not_taken_for_memory() -> None:
    for path, expected in (("/dev/shm", True), ("/proc", False), ("/sys", False)):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            assert in_memory(descriptor) == expected, path
        finally:
            os.close(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        in_memory(-1)


def _write(descriptor: int, content: bytes) -> None:
    assert os.pwrite(descriptor, content, 0) == len(content)
