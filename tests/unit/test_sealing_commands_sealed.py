"""`cloister seal -`, `ls`, `cat`, `verify`, `reseal` and uploads, as an owner types them: outcomes, refusals, exit codes."""

from __future__ import annotations

import io
import json
import shutil
import stat
from pathlib import Path

import pytest

from cloister.errors import EXIT_POLICY, EXIT_USAGE, EXIT_VERIFICATION
from cloister.sealing.filesystem_remote import RemoteStore
from sealing_samples import OWNER, STRANGER, URI, patterned
from sealing_shell import key_files, run

SIGNER = OWNER.public_key.hex()
FILES = {"weights": patterned(2_500_000), "texts/one": b"hello\n", "empty": b""}
KEYS = ("--key-file", "k", "--signer", SIGNER)
SEAL = ("--key", URI, "--key-file", "k", "--sign-key", "s")
NEW_URI = "kbs:///default/key/new"
ROTATION = ("--new-key", NEW_URI, "--new-key-file", "k2")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    key_files(tmp_path)
    for path, content in FILES.items():
        (tmp_path / "in" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / path).write_bytes(content)
    return tmp_path


@pytest.fixture
def sealed(place: Path) -> Path:
    assert run("seal", "in", *SEAL, "--out", "sealed").code == 0
    return place / "sealed"


class _Stdin:
    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)


def stream(monkeypatch: pytest.MonkeyPatch, content: bytes) -> bytes:
    monkeypatch.setattr("sys.stdin", _Stdin(content))
    outcome = run("seal", "-", "--key", URI, "--key-file", "k")
    assert outcome.code == 0
    assert f"sealed {len(content):,} bytes" in outcome.err
    return outcome.out


def test_what_was_sealed_is_read_back_unless_told_not_to(place: Path) -> None:
    said = json.loads(run("seal", "in", *SEAL, "--out", "one", "--json").text)
    assert (said["verified"], said["kept"]) == (True, 0)
    assert {"seconds", "mb_per_s", "verify_seconds", "verify_mb_per_s"} <= set(said)
    said = json.loads(run("seal", "in", *SEAL, "--out", "two", "--no-verify", "--json").text)
    assert said["verified"] is False
    assert "verify_seconds" not in said
    assert "read back and verified: " in run("seal", "in", *SEAL, "--out", "three").text


@pytest.mark.parametrize(
    "content", [b"", b"x", FILES["weights"]], ids=["empty", "one byte", "three segments"]
)
def test_standard_input_is_sealed_and_opened_again(
    place: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    (place / "x.sealed").write_bytes(stream(monkeypatch, content))
    assert run("cat", "x.sealed", "--key-file", "k").out == content
    assert json.loads(run("verify", "x.sealed", "--key-file", "k", "--json").text)["bytes"] == len(content)
    assert run("unseal", "x.sealed", "--key-file", "k", "--out", "x").code == 0
    assert (place / "x").read_bytes() == content
    assert stat.S_IMODE((place / "x").stat().st_mode) == 0o600
    assert run("unseal", "x.sealed", "--key-file", "k", "--out", "x").err.startswith("usage: x exists")
    listed = json.loads(run("ls", "x.sealed", "--json").text)
    assert (listed["files"]["x.sealed"]["size"], listed["files"]["x.sealed"]["key"]) == (len(content), URI)


def test_a_stream_is_put_at_its_place_when_it_is_whole_and_verified(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", _Stdin(FILES["weights"]))
    command = ("seal", "-", "--key", URI, "--key-file", "k", "--out", "x.sealed", "--json")
    said = json.loads(run(*command).text)
    assert (said["bytes"], said["verified"]) == (len(FILES["weights"]), True)
    assert run("cat", "x.sealed", "--key-file", "k").out == FILES["weights"]
    assert json.loads(run(*command).err)["exit_code"] == EXIT_USAGE  # it exists
    monkeypatch.setattr("sys.stdin", _Stdin(b""))
    monkeypatch.setattr(
        "sys.stdin.buffer.readinto", lambda _: (_ for _ in ()).throw(OSError(5, "Input/output error"))
    )
    outcome = run("seal", "-", "--key", URI, "--key-file", "k", "--out", "y.sealed")
    assert (outcome.code, "Input/output error" in outcome.err) == (EXIT_USAGE, True)
    assert not list(place.glob("*y.sealed*"))


def test_a_directory_is_listed(sealed: Path) -> None:
    outcome = run("ls", "sealed")
    assert outcome.text.splitlines() == ["        0  empty", "        6  texts/one", "2,500,000  weights"]
    assert f"3 files, 2,500,006 bytes, version 1, signed by {SIGNER} (compared with nobody" in outcome.err
    outcome = run("ls", "sealed", "--signer", SIGNER, "--long")
    assert all(URI in line for line in outcome.text.splitlines())
    assert "compared" not in outcome.err
    listed = json.loads(run("ls", "sealed", "--json").text)
    assert (listed["signer_compared"], sorted(listed["files"])) == (False, sorted(FILES))


def test_a_file_of_a_directory_is_written_out_whole_or_in_part(sealed: Path) -> None:
    for path, content in FILES.items():
        assert run("cat", "sealed", path, *KEYS).out == content
    for text, part in {
        "0-0": slice(0, 1),
        "1048519-1048520": slice(1048519, 1048521),
        "2499999-": slice(2499999, None),
    }.items():
        assert run("cat", "sealed", "weights", *KEYS, "--range", text).out == FILES["weights"][part]


def test_verifying_says_what_it_compared(sealed: Path) -> None:
    said = json.loads(run("verify", "sealed", "--json").text)
    assert (said["kind"], said["files"], said["signer_compared"], said["opened"]) == (
        "directory",
        3,
        False,
        False,
    )
    said = json.loads(run("verify", "sealed", *KEYS, "--json").text)
    assert (said["signer_compared"], said["opened"]) == (True, True)
    assert "not opened: give --key-file" in run("verify", "sealed").text
    assert "every segment verified" in run("verify", "sealed", *KEYS).text


def test_a_rotation_and_a_rename_in_one_go(sealed: Path) -> None:
    said = json.loads(
        run(
            "reseal", "sealed", *KEYS, *ROTATION, "--sign-key", "s", "--rename", "empty=none/at-all", "--json"
        ).text
    )
    assert (said["rewrapped"], said["renamed"], said["version"]) == (3, 1, 2)
    listed = json.loads(run("ls", "sealed", "--json").text)["files"]
    assert sorted(listed) == ["none/at-all", "texts/one", "weights"]
    assert {file["key"] for file in listed.values()} == {NEW_URI}
    new = ("--key-file", "k2", "--signer", SIGNER)
    assert run("verify", "sealed", *new).code == 0
    assert run("cat", "sealed", "weights", *new).out == FILES["weights"]
    again = run("reseal", "sealed", *KEYS, *ROTATION, "--sign-key", "s", "--rename", "empty=none/at-all")
    assert "3 under it already" in again.text
    assert "0 files renamed: version 2" in again.text


def test_one_sealed_file_is_put_under_another_key(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "x.sealed").write_bytes(stream(monkeypatch, b"hello"))
    assert f"1 file put under {NEW_URI}" in run("reseal", "x.sealed", "--key-file", "k", *ROTATION).text
    assert run("cat", "x.sealed", "--key-file", "k2").out == b"hello"
    assert run("cat", "x.sealed", "--key-file", "k").code == EXIT_VERIFICATION


def test_a_directory_is_sealed_into_a_store(place: Path) -> None:
    import fsspec

    url = f"memory://{place.name}/sealed"
    said = json.loads(run("seal", "in", *SEAL, "--out", url, "--json").text)
    assert (said["files"], said["verified"]) == (3, True)
    fsspec.filesystem("memory").get(f"/{place.name}/sealed/", "copy/", recursive=True)
    assert run("verify", "copy", *KEYS).code == 0
    for path, content in FILES.items():
        assert run("cat", "copy", path, *KEYS).out == content
    assert "holds files already" in run("seal", "in", *SEAL, "--out", url).err
    assert "nothing here writes to nowhere://" in run("seal", "in", *SEAL, "--out", "nowhere://x/y").err


@pytest.mark.parametrize("where", ["a body", "index.sig", "index.json"])
def test_an_upload_that_fails_leaves_no_sealed_directory(
    place: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    import fsspec

    genuine = RemoteStore.write

    def write(self: RemoteStore, path: str, data: bytes, *, directory: str) -> None:
        if path.endswith(where):
            raise OSError(28, "No space left on device")
        genuine(self, path, data, directory=directory)

    def keep(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if where == "a body":
        monkeypatch.setattr("cloister.sealing.filesystem_remote._RemoteBody.keep", keep)
    else:
        monkeypatch.setattr(RemoteStore, "write", write)
    url = f"memory://{place.name}/sealed"
    outcome = run("seal", "in", *SEAL, "--out", url)
    assert "No space left on device" in outcome.err
    assert len(outcome.err.splitlines()) == 1
    files = fsspec.filesystem("memory").find(f"/{place.name}/sealed")
    assert not [path for path in files if path.endswith(("index.json", ".sealed"))]


def test_what_cannot_be_meant_is_one_line_and_an_exit_code(sealed: Path, place: Path) -> None:
    (place / "x").write_bytes(b"no sealed file")
    shutil.copy(next(sealed.glob("*.sealed")), place / "x.sealed")
    stranger = ("--signer", STRANGER.public_key.hex())
    for expected, code, arguments in [
        ("a directory is sealed with --sign-key", EXIT_USAGE, ("seal", "in", "--key", URI, "--key-file", "k", "--out", "o")),
        ("a directory is sealed with --out", EXIT_USAGE, ("seal", "in", *SEAL)),
        ("has no index to sign", EXIT_USAGE, ("seal", "-", *SEAL)),
        ("into a file or to standard output", EXIT_USAGE, ("seal", "-", *SEAL[:4], "--out", "memory://x")),
        ("there is no sealed directory", EXIT_USAGE, ("ls", "nothing")),
        ("is not a sealed file", EXIT_VERIFICATION, ("ls", "x")),
        ("it is not a sealed directory", EXIT_VERIFICATION, ("ls", "in")),
        ("not one of the accepted", EXIT_VERIFICATION, ("ls", "sealed", *stranger)),
        ("at least 2 is asked for", EXIT_VERIFICATION, ("ls", "sealed", "--minimum-version", 2)),
        ("hexadecimal", EXIT_USAGE, ("ls", "sealed", "--signer", "me")),
        ("the index names no file 'none'", EXIT_VERIFICATION, ("cat", "sealed", "none", *KEYS)),
        ("give --signer", EXIT_USAGE, ("cat", "sealed", "weights", "--key-file", "k")),
        ("'--key-file'", EXIT_USAGE, ("cat", "sealed", "weights")),
        ("which of its files is not said", EXIT_USAGE, ("cat", "sealed", *KEYS)),
        ("one sealed file has no paths", EXIT_USAGE, ("cat", "x.sealed", "weights", *KEYS[:2])),
        ("is signed by nobody", EXIT_USAGE, ("cat", "x.sealed", *KEYS)),
        ("has no version", EXIT_USAGE, ("verify", "x.sealed", *KEYS[:2], "--minimum-version", 2)),
        ("--range is A-B", EXIT_USAGE, ("cat", "sealed", "weights", *KEYS, "--range", "-5")),
        ("--range is A-B", EXIT_USAGE, ("cat", "sealed", "weights", *KEYS, "--range", "1-2-3")),
        ("ends before it starts", EXIT_USAGE, ("cat", "sealed", "weights", *KEYS, "--range", "5-4")),
        ("none from 9999999 on", EXIT_USAGE, ("cat", "sealed", "weights", *KEYS, "--range", "9999999-")),
        ("k holds the key at", EXIT_POLICY, ("verify", "sealed", *KEYS, "--key", "kbs:///a/b/c")),
        ("is not a key URI", EXIT_USAGE, ("verify", "sealed", *KEYS, "--key", "a")),
        ("does not open", EXIT_VERIFICATION, ("verify", "sealed", "--key-file", "k2")),
        ("not one of the accepted", EXIT_VERIFICATION, ("verify", "sealed", *stranger)),
        ("what is sealed is no evidence", EXIT_USAGE, ("verify", "sealed", "--offline")),
        ("evidence has no signer", EXIT_USAGE, ("verify", "x", "--key-file", "k")),
        ("give --key-file", EXIT_USAGE, ("verify", "x.sealed")),
        ("nothing is to be done", EXIT_USAGE, ("reseal", "sealed")),
        ("takes the old key and the new one", EXIT_USAGE, ("reseal", "sealed", *KEYS, "--new-key", NEW_URI)),
        ("only local files can be resealed", EXIT_USAGE, ("reseal", "s3://a/b", *KEYS, *ROTATION)),
        ("nobody is named", EXIT_USAGE, ("reseal", "sealed", "--key-file", "k", *ROTATION)),
        ("give --sign-key", EXIT_USAGE, ("reseal", "sealed", "--rename", "weights=w")),
        ("--rename is OLD=NEW", EXIT_USAGE, ("reseal", "sealed", "--sign-key", "s", "--rename", "weights")),
        ("is taken", EXIT_USAGE, ("reseal", "sealed", "--sign-key", "s", "--rename", "weights=empty")),
        ("plain relative path", EXIT_USAGE, ("reseal", "sealed", "--sign-key", "s", "--rename", "weights=../w")),
        ("use `mv`", EXIT_USAGE, ("reseal", "x.sealed", "--sign-key", "s", "--rename", "a=b")),
        ("does not open", EXIT_VERIFICATION, ("reseal", "sealed", "--key-file", "k2", "--signer", SIGNER, *ROTATION[:2],
                                              "--new-key-file", "k")),
    ]:  # fmt: skip
        outcome = run(*arguments)
        assert (outcome.code, expected in outcome.err) == (code, True), (arguments, outcome)
        assert len(outcome.err.splitlines()) == 1
        assert outcome.out == b""
        in_json = json.loads(run(*arguments, "--json").err)
        assert (in_json["exit_code"], expected in in_json["error"]) == (code, True)
    assert run("verify", "sealed", *KEYS).code == 0
