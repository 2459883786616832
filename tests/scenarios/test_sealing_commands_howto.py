"""docs/how-to/sealed-files.md works as it stands there, command by command; and streams through real pipes."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

from cloister.errors import EXIT_VERIFICATION
from sealing_samples import URI, patterned
from sealing_shell import key_files, run, start

PAGE = (Path(__file__).resolve().parents[2] / "docs/how-to/sealed-files.md").read_text()


def test_the_how_to_seals_looks_rotates_renames_and_unseals(tmp_path: Path) -> None:
    script = ["set -euo pipefail", *re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL), "echo THE-END"]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    shell = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=tmp_path, env=environment, check=False, capture_output=True, timeout=280,
    )  # fmt: skip
    said = shell.stdout.decode() + shell.stderr.decode()
    assert "THE-END" in said, said[-3000:]
    assert "Traceback" not in said
    assert re.search(
        r"sealed 2 files, [\d,]+ bytes, into my-model\.sealed \(version 1\): [\d.]+ s, [\d,]+ MB/s", said
    )
    assert "into my-model-2.sealed (version 2)" in said
    assert "my-model/weights/0" in said  # of the archive
    assert "signature, files, digests and every segment verified" in said
    assert "2 files put under kbs:///default/key/my-model-2" in said
    assert "1 file renamed: version 2" in said
    assert said.count('{"layers": 2}') == 2
    assert "\n100\n" in said


def test_a_stream_through_real_pipes_comes_out_as_it_went_in(tmp_path: Path) -> None:
    key_files(tmp_path)
    content = patterned(5_000_000)
    sealing = start(
        "seal", "-", "--key", URI, "--key-file", "k", place=tmp_path, stdin=-1, stdout=-1, stderr=-1
    )
    opened = tmp_path / "x.sealed"
    sealed, said = sealing.communicate(content, timeout=60)
    opened.write_bytes(sealed)
    assert (sealing.returncode, b"sealed 5,000,000 bytes" in said) == (0, True)
    reading = start("cat", "x.sealed", "--key-file", "k", place=tmp_path, stdout=-1)
    assert reading.communicate(timeout=60)[0] == content


def test_a_stream_whose_writer_is_killed_is_refused_before_its_first_byte(tmp_path: Path) -> None:
    key_files(tmp_path)
    with (tmp_path / "x.sealed").open("wb") as out:
        sealing = start("seal", "-", "--key", URI, "--key-file", "k", place=tmp_path, stdin=-1, stdout=out)
        assert sealing.stdin is not None
        sealing.stdin.write(patterned(5_000_000))
        sealing.stdin.flush()
        while (tmp_path / "x.sealed").stat().st_size < 3 << 20:
            assert sealing.poll() is None
        sealing.kill()
        sealing.stdin.close()
        sealing.wait(60)
    outcome = run("cat", tmp_path / "x.sealed", "--key-file", tmp_path / "k")
    assert (outcome.code, outcome.out) == (EXIT_VERIFICATION, b"")


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    key_files(tmp_path)
    command = (
        "set -o pipefail; head -c 20000000 /dev/zero | cloister seal - --key kbs:///a/b/c --key-file k > x.sealed\n"
        "cloister cat x.sealed --key-file k | head -c 5 | wc -c"
    )
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    shell = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=environment, check=False, capture_output=True, timeout=60
    )
    assert shell.stdout.strip() == b"5"
    assert b"Traceback" not in shell.stderr


def test_a_terminal_shows_both_phases_with_their_speed(tmp_path: Path) -> None:
    key_files(tmp_path)
    (tmp_path / "in").mkdir()
    for number in range(30):
        (tmp_path / "in" / str(number)).write_bytes(patterned(2_000_000, seed=number))
    ours, theirs = pty.openpty()
    keys = ("--key", URI, "--key-file", "k", "--sign-key", "s")
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    sealing = start(
        "seal",
        "in",
        *keys,
        "--out",
        "sealed",
        place=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # how a terminal says that nobody writes to it any more
        while part := os.read(ours, 65536):
            said += part
    os.close(ours)
    assert sealing.wait(60) == 0
    for phase in (b"sealing", b"verifying"):
        assert phase in said
    assert re.search(rb"[\d.]+ (MB|GB)/s", said)
