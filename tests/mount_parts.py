"""Real mounts for tests: a sealed directory or a sealed tree, served by a process of its own, and programs in it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from msgspec import structs

from cloister.sealing.tree import create_tree
from cloister.sealing.tree.head import Head
from cloister.workload.mount_client import MountProcess
from cloister.workload.mount_protocol import MountSpec
from real_parts import absent
from sealing_samples import KEK, OWNER, URI, sealed_folder


def need_fuse() -> None:
    """Root, or fusermount3, and the device."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        absent("/dev/fuse is not here, so nothing can be mounted")
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        absent("only root can mount without fusermount3")


def spec(source: Path, mountpoint: Path, **fields: Any) -> MountSpec:
    """What to mount, for this user, under the tests' key."""
    given = {
        "source": str(source),
        "mountpoint": str(mountpoint),
        "uid": os.getuid(),
        "gid": os.getgid(),
        "keys": {URI: KEK},
        **fields,
    }
    return MountSpec(**given)


class TreePlace:
    """A sealed tree on disk and a folder to mount it at."""

    def __init__(self, place: Path) -> None:
        self.source, self.at = place / "tree", place / "mounted"
        self.at.mkdir()
        self.recorded: list[Head] = []
        create_tree(self.source, key_uri=URI, kek=KEK)

    def start(self, record: Callable[[Head], None] | None = None, **fields: Any) -> MountProcess:
        """Mount it to write."""
        wanted = structs.replace(spec(self.source, self.at, kind="tree", writable=True), **fields)
        return MountProcess.start(wanted, record=record or self.recorded.append)

    @contextlib.contextmanager
    def mounted(self, **fields: Any) -> Iterator[Path]:
        """Mounted to write; stopped in order."""
        mount = self.start(**fields)
        try:
            yield self.at
        finally:
            mount.stop()


@contextlib.contextmanager
def directory_mounted(place: Path, files: dict[str, bytes], **fields: Any) -> Iterator[tuple[Path, Path]]:
    """A sealed directory of ``files``, mounted: the mount point and the sealed directory."""
    source, _ = sealed_folder(place, files)
    at = place / "mounted"
    at.mkdir()
    signers = (OWNER.public_key.hex(),)
    wanted = spec(source, at, kind="directory", signers=signers, **fields)
    mount = MountProcess.start(wanted, record=lambda _: None)
    try:
        yield at, source
    finally:
        mount.stop()


def shell(command: str, folder: Path) -> str:
    """What a command line prints, run in ``folder``; it must succeed."""
    done = subprocess.run(
        ["bash", "-euc", command], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def python(code: str, *arguments: object, folder: Path) -> str:
    """What a program of its own prints, run in ``folder``; it must succeed."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
