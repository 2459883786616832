"""Sealing and resealing that are killed, stopped, or run out of disk: no half of it is ever taken for the whole."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloister.errors import EXIT_USAGE, EXIT_VERIFICATION
from real_parts import absent
from sealing_samples import OWNER, URI, patterned
from sealing_shell import key_files, run, start

SIGNER = OWNER.public_key.hex()
SIZE = 2_000_000
ATTEMPTS = 5
"""To stop a command before it ends, while another process may keep this one from its turn."""
KEYS = ("--key", URI, "--key-file", "k", "--sign-key", "s")
NEW_URI = "kbs:///default/key/rotated"
ROTATE = (
    "reseal",
    "sealed",
    "--key-file",
    "k",
    "--new-key",
    NEW_URI,
    "--new-key-file",
    "k2",
    "--signer",
    SIGNER,
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    key_files(tmp_path)
    return tmp_path


def folder_of(place: Path, files: int, size: int = SIZE) -> dict[str, bytes]:
    contents = {f"part-{number:04}": patterned(size, seed=number) for number in range(files)}
    (place / "in").mkdir()
    for name, content in contents.items():
        (place / "in" / name).write_bytes(content)
    return contents


def stage_in(place: Path) -> Path | None:
    return next(iter(place.glob(".sealed.*.sealing")), None)


def happens(happened: Callable[[], object], process: subprocess.Popen[bytes]) -> bool:
    """Whether it does before ``process`` ends."""
    deadline = time.monotonic() + 60
    while not happened():
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return True


def sealed_files(place: Path) -> int:
    stage = stage_in(place)
    log = stage / "sealed.log" if stage is not None else place / "none"
    return max(0, log.read_bytes().count(b"\n") - 1) if log.exists() else 0


def opens(contents: dict[str, bytes], key: str = "k") -> None:
    assert run("unseal", "sealed", "--key-file", key, "--signer", SIGNER, "--out", "clear").code == 0
    assert {path.name: path.read_bytes() for path in Path("clear").iterdir()} == contents
    shutil.rmtree("clear")


def stopped_in_the_middle(place: Path, stop: signal.Signals) -> tuple[int, bytes]:
    command = ("seal", "in", *KEYS, "--out", "sealed", "--workers", 1)
    for _ in range(ATTEMPTS):
        process = start(*command, place=place, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if happens(lambda: sealed_files(place) >= 3, process):
            process.send_signal(stop)
        _, said = process.communicate(timeout=60)
        if not (place / "sealed").exists():
            return process.returncode, said
        shutil.rmtree(place / "sealed")
    raise AssertionError("it always ended before it was stopped")


def test_a_seal_that_was_killed_goes_on_where_it_was_and_seals_nothing_twice(place: Path) -> None:
    contents = folder_of(place, 40)
    stopped_in_the_middle(place, signal.SIGKILL)
    stage = stage_in(place)
    assert stage is not None
    kept = {path.name: path.read_bytes() for path in (stage / "new").glob("*.sealed")}
    count = sealed_files(place)
    outcome = json.loads(run("seal", "in", *KEYS, "--out", "sealed", "--json").text)
    assert 3 <= outcome["kept"] == count < 40
    assert (outcome["files"], outcome["verified"]) == (40, True)
    unchanged = [name for name, data in kept.items() if (place / "sealed" / name).exists()]
    assert len(unchanged) >= count  # one more may have been renamed and not yet recorded
    assert all((place / "sealed" / name).read_bytes() == kept[name] for name in unchanged)
    assert stage_in(place) is None
    opens(contents)


def test_a_seal_that_was_interrupted_says_how_to_go_on_and_what_it_kept(place: Path) -> None:
    contents = folder_of(place, 40)
    code, said = stopped_in_the_middle(place, signal.SIGINT)
    assert code == 130
    assert b"sealed so far: run the same command again to go on" in said
    outcome = run("seal", "in", *KEYS, "--out", "sealed")
    assert "were sealed by the run before and are kept" in outcome.text.splitlines()[0]
    opens(contents)


@contextlib.contextmanager
def small_disk(at: Path, size: int) -> Iterator[None]:
    at.mkdir()
    made = subprocess.run(
        ("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", at), check=False, capture_output=True
    )
    if made.returncode:
        absent(f"a small disk cannot be mounted: {made.stderr.decode()}")
    try:
        yield
    finally:
        subprocess.run(("umount", "-l", at), check=True)


def test_a_full_disk_leaves_no_directory_and_a_larger_one_is_gone_on_with(place: Path) -> None:
    contents = folder_of(place, 10)
    with small_disk(place / "disk", 9 << 20):
        command = ("seal", "in", *KEYS, "--out", "disk/sealed", "--workers", 1)
        outcome = run(*command)
        assert outcome.code == EXIT_USAGE
        assert "No space left on device; 4 files sealed so far" in outcome.err
        assert len(outcome.err.splitlines()) == 1
        assert not (place / "disk" / "sealed").exists()
        assert run(*command).code == EXIT_USAGE  # the disk is as full as it was, and nothing is lost
        subprocess.run(("mount", "-o", f"remount,size={64 << 20}", place / "disk"), check=True)
        assert json.loads(run(*command, "--json").text)["kept"] == 4
        shutil.copytree(place / "disk" / "sealed", place / "sealed")
    opens(contents)


def test_a_full_disk_while_a_rotation_begins_leaves_every_header(place: Path) -> None:
    contents = folder_of(place, 30, size=1000)
    assert run("seal", "in", *KEYS, "--out", "out").code == 0
    with small_disk(place / "disk", 1 << 20):
        shutil.copytree(place / "out", place / "disk" / "sealed")
        shutil.copytree(place / "out", place / "sealed")
        filler = (place / "disk" / "filler").open("wb", buffering=0)
        with filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(4096))
        outcome = run(*(word if word != "sealed" else "disk/sealed" for word in ROTATE))
        assert outcome.code == EXIT_USAGE
        assert "No space left" in outcome.err
        for path in (place / "out").iterdir():
            assert (place / "disk" / "sealed" / path.name).read_bytes() == path.read_bytes()
        assert not (place / "disk" / "sealed" / "reseal.journal").exists()
    opens(contents)


def test_a_rotation_that_was_killed_still_opens_and_is_finished_by_the_same_command(place: Path) -> None:
    contents = folder_of(place, 800, size=100)
    assert run("seal", "in", *KEYS, "--out", "sealed", "--no-verify").code == 0
    bodies = {path.name: path.read_bytes()[4096:] for path in (place / "sealed").glob("*.sealed")}
    listed = json.loads(run("ls", "sealed", "--signer", SIGNER, "--json").text)["files"]
    first = place / "sealed" / f"{listed['part-0000']['id']}.sealed"
    journal = place / "sealed" / "reseal.journal"
    shutil.copytree(place / "sealed", place / "before")
    for _ in range(ATTEMPTS):
        process = start(*ROTATE, place=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if happens(lambda: NEW_URI.encode() in first.read_bytes()[:400], process):
            process.send_signal(signal.SIGKILL)
        process.wait(60)
        if journal.exists():
            break
        shutil.rmtree(place / "sealed")
        shutil.copytree(place / "before", place / "sealed")
    assert journal.exists()
    listed = json.loads(run("ls", "sealed", "--signer", SIGNER, "--json").text)["files"]
    keys = [file["key"] for file in listed.values()]
    assert 0 < keys.count(NEW_URI) < 800
    assert keys.count(URI) + keys.count(NEW_URI) == 800
    # Each file opens with its own key.
    for path in (keys.index(URI), keys.index(NEW_URI)):
        name = list(listed)[path]
        key = "k" if listed[name]["key"] == URI else "k2"
        assert run("cat", "sealed", name, "--key-file", key, "--signer", SIGNER).out == contents[name]
    outcome = json.loads(run(*ROTATE, "--json").text)
    assert (outcome["finished"], outcome["rewrapped"]) == (800, 0)
    assert not journal.exists()
    opens(contents, key="k2")
    assert {path.name: path.read_bytes()[4096:] for path in (place / "sealed").glob("*.sealed")} == bodies


def test_two_files_exchanged_on_the_disk_between_two_runs_are_found(place: Path) -> None:
    """Who holds the disk lays one sealed file under the name of another while the owner's run is interrupted."""
    folder_of(place, 40)
    stopped_in_the_middle(place, signal.SIGKILL)
    stage = stage_in(place)
    assert stage is not None
    log = (stage / "sealed.log").read_text().splitlines()
    one, two = (json.loads(line) for line in log[1:3])
    # Only the records exchanged: the signature of each is over its path.
    one["path"], two["path"] = two["path"], one["path"]
    altered = [log[0], json.dumps(one), json.dumps(two), *log[3:]]
    (stage / "sealed.log").write_text("\n".join(altered) + "\n")
    outcome = run("seal", "in", *KEYS, "--out", "sealed")
    assert (outcome.code, "its log was altered" in outcome.err) == (EXIT_USAGE, True)
    # Only the files exchanged: read back, they are not what the records say.
    (stage / "sealed.log").write_text("\n".join(log) + "\n")
    first, second = sorted((stage / "new").glob("????????????????????????*.sealed"))[:2]
    first.rename(place / "aside")
    second.rename(first)
    (place / "aside").rename(second)
    outcome = run("seal", "in", *KEYS, "--out", "sealed")
    assert (outcome.code, "is another file than its index names" in outcome.err) == (EXIT_VERIFICATION, True)
    assert "--restart" in outcome.err
    assert not (place / "sealed").exists()
    assert run("seal", "in", *KEYS, "--out", "sealed", "--restart").code == 0
