"""File formats are forever: what was sealed when format 1 was final opens in this version, by every command.

If one of these fails, the code is wrong. The files in sealed-directory-1/ are never made again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from sealing_shell import run

GOLDEN = Path(__file__).parent / "sealed-directory-1"
SIGNER = "0772788e6c693aa332484c936922cca729fb9a424013cdfebaf171641c7d5be2"
DIGEST = "b09ce71626315cbdf2eab03a6884e880bf45ecda29c2a4ecbfb4af2eb507db29"
URI = "kbs:///default/key/golden"
GREETING = "Grüße aus der Enklave\n".encode()
PLAIN = {
    "config.json": b'{"temperature": 0}\n',
    "empty": b"",
    "texts/grüße.txt": GREETING,
    "weights/layer-0": hashlib.shake_256(bytes(4)).digest(1_048_520),
    "weights/layer-1": hashlib.shake_256(bytes([0, 0, 0, 1])).digest(1_048_521),
}
KEYS = ("--key-file", "owner.key", "--signer", SIGNER)


@pytest.fixture
def golden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy with a private key file, as git keeps no such mode."""
    shutil.copytree(GOLDEN, tmp_path / "golden")
    (tmp_path / "golden" / "owner.key").chmod(0o600)
    monkeypatch.chdir(tmp_path / "golden")
    return tmp_path / "golden"


def test_the_golden_directory_is_listed_without_a_key(golden: Path) -> None:
    listed = json.loads(run("ls", "sealed", "--signer", SIGNER, "--json").text)
    assert (listed["version"], listed["index_digest"]) == (1, DIGEST)
    assert {path: file["size"] for path, file in listed["files"].items()} == {
        path: len(content) for path, content in PLAIN.items()
    }
    assert {file["key"] for file in listed["files"].values()} == {URI}


@pytest.mark.parametrize("path", PLAIN)
def test_each_golden_file_has_its_known_bytes(golden: Path, path: str) -> None:
    outcome = run("cat", "sealed", path, *KEYS)
    assert (outcome.code, outcome.out) == (0, PLAIN[path])


def test_the_golden_directory_verifies_with_a_key_and_without(golden: Path) -> None:
    for arguments in (("--signer", SIGNER), KEYS):
        outcome = run("verify", "sealed", *arguments, "--json")
        assert json.loads(outcome.text)["index_digest"] == DIGEST


def test_the_golden_directory_unseals_to_its_known_files(golden: Path) -> None:
    assert run("unseal", "sealed", *KEYS, "--out", "clear").code == 0
    clear = golden / "clear"
    found = {path.relative_to(clear).as_posix(): path for path in clear.rglob("*") if path.is_file()}
    assert {name: path.read_bytes() for name, path in found.items()} == PLAIN


def test_the_golden_stream_has_its_known_bytes(golden: Path) -> None:
    assert run("cat", "stream.sealed", "--key-file", "owner.key").out == GREETING
    assert run("unseal", "stream.sealed", "--key-file", "owner.key", "--out", "clear").code == 0
    assert (golden / "clear").read_bytes() == GREETING


def test_the_golden_directory_can_be_put_under_another_key(golden: Path) -> None:
    run("keys", "new", "new.key")
    rotation = ("--new-key", "kbs:///default/key/silver", "--new-key-file", "new.key")
    assert run("reseal", "sealed", *KEYS, *rotation).code == 0
    for path, content in PLAIN.items():
        assert run("cat", "sealed", path, "--key-file", "new.key", "--signer", SIGNER).out == content
