"""``cloister mount`` as an owner types it: one line when ready, the files, Ctrl-C, exit code 0."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.errors import EXIT_USAGE, EXIT_VERIFICATION
from cloister.sealing.key_file import KEK_KIND, write_secret
from mount_parts import need_fuse
from sealing_samples import KEK, OTHER_KEK, OWNER, STRANGER, URI, sealed_folder

need_fuse()

CLOISTER = (sys.executable, "-c", "from cloister.cli import main; main()", "mount")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_secret(tmp_path / "owner.key", KEK_KIND, KEK)
    write_secret(tmp_path / "other.key", KEK_KIND, OTHER_KEK)
    (tmp_path / "at").mkdir()
    return tmp_path


@contextlib.contextmanager
def mounted(place: Path, *arguments: str, stop: signal.Signals = signal.SIGINT) -> Iterator[list[str]]:
    """What it printed: when ready, and at the end."""
    command = [*CLOISTER, *arguments, "--key-file", str(place / "owner.key")]
    said: list[str] = []
    with subprocess.Popen(
        command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        said.append(process.stdout.readline())
        try:
            yield said
        finally:
            process.send_signal(stop)
            out, err = process.communicate(timeout=60)
            said += [out, err]
    assert process.returncode == 0, said


def refused(place: Path, *arguments: str, key: str = "owner.key") -> tuple[int, str]:
    command = [*CLOISTER, *arguments, "--key-file", str(place / key)]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert not (place / "at").is_mount()
    return done.returncode, done.stderr


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda stop: stop.name)
def test_an_owner_looks_into_a_sealed_directory_until_a_signal_ends_it(place: Path, stop: signal.Signals):
    sealed, _ = sealed_folder(place, {"folder/file": b"content"})
    with mounted(place, str(sealed), "at", "--signer", OWNER.public_key.hex(), stop=stop) as said:
        assert said[0].startswith("mounted ")
        assert (place / "at/folder/file").read_bytes() == b"content"
        with pytest.raises(OSError, match="Read-only"):
            (place / "at/new").touch()
    assert said[1].startswith("unmounted ")
    assert said[2] == ""
    assert not (place / "at").is_mount()


def test_an_owner_makes_a_tree_writes_into_it_and_reads_it_again(place: Path):
    with mounted(place, "tree", "at", "--new", "--key", URI, "--json") as said:
        ready = json.loads(said[0])
        assert (ready["kind"], ready["writable"], ready["head"]["version"]) == ("tree", True, 1)
        (place / "at/file").write_text("content")
    ended = json.loads(said[1])
    assert ended["head"]["version"] > 1
    with mounted(place, "tree", "at", "--json") as said:
        assert json.loads(said[0])["head"] == ended["head"]
        assert (place / "at/file").read_text() == "content"
        with pytest.raises(OSError, match="Read-only"):
            (place / "at/new").touch()
    with mounted(place, "tree", "at", "--write", "--minimum-version", str(ended["head"]["version"])):
        (place / "at/file").write_text("more")
    later = str(ended["head"]["version"] + 100)
    code, line = refused(place, "tree", "at", "--minimum-version", later)
    assert (code, later in line) == (EXIT_VERIFICATION, True)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        pytest.param(("sealed-1", "at"), EXIT_USAGE, id="nobody is named who may have signed"),
        pytest.param(("sealed-1", "at", "--signer", "xyz"), EXIT_USAGE, id="a signer that is none"),
        pytest.param(
            ("sealed-1", "at", "--signer", STRANGER.public_key.hex()),
            EXIT_VERIFICATION,
            id="signed by somebody else",
        ),
        pytest.param(
            ("sealed-1", "at", "--signer", OWNER.public_key.hex(), "--write"), EXIT_USAGE, id="sealed once"
        ),
        pytest.param(
            ("sealed-1", "at", "--signer", OWNER.public_key.hex(), "--minimum-version", "2"),
            EXIT_VERIFICATION,
            id="too old",
        ),
        pytest.param(("sealed-1", "nowhere"), EXIT_USAGE, id="no mount point"),
        pytest.param(("sealed-1", "plain-0"), EXIT_USAGE, id="a mount point that is not empty"),
        pytest.param(("nowhere", "at", "--signer", OWNER.public_key.hex()), EXIT_USAGE, id="nothing sealed"),
        pytest.param(("new", "at", "--new"), EXIT_USAGE, id="a new tree without a key's name"),
        pytest.param(
            ("sealed-1", "at", "--new", "--key", URI), EXIT_USAGE, id="a new tree where something is"
        ),
    ],
)
def test_what_cannot_be_mounted_is_one_line(place: Path, arguments: tuple[str, ...], code: int):
    sealed_folder(place, {"file": b"content"})[0].rename(place / "sealed-1")
    found, line = refused(place, *arguments)
    assert found == code, line


def test_a_wrong_key_opens_no_tree(place: Path):
    with mounted(place, "tree", "at", "--new", "--key", URI):
        pass
    code, line = refused(place, "tree", "at", key="other.key")
    assert (code, URI in line) == (EXIT_VERIFICATION, True)


def test_a_wrong_key_opens_no_sealed_directory(place: Path):
    sealed, _ = sealed_folder(place, {"file": b"content"})
    code, line = refused(place, str(sealed), "at", "--signer", OWNER.public_key.hex(), key="other.key")
    assert (code, "does not open file" in line) == (EXIT_VERIFICATION, True)
