"""`cloister keys`, `seal` and `unseal` as an owner types them: outcome, exit code, one line of error, no secrets."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from cloister.cli import main
from cloister.errors import EXIT_POLICY, EXIT_USAGE, EXIT_VERIFICATION
from sealing_samples import URI, alter, patterned


class Shell:
    """Runs commands in a folder of an owner; errors are one line."""

    def __init__(self, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.place = place
        self._capsys = capsys

    def __call__(self, *arguments: object, code: int = 0) -> str:
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        out, err = self._capsys.readouterr()
        assert left.value.code == code, err
        assert len(err.splitlines()) == (1 if code else 0), err
        secrets = [path.read_text().split("\n")[1] for path in self.place.glob("owner.*")]
        assert not [secret for secret in secrets if secret in out + err]
        return err if code else out


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(patterned(2_000_000))
    (tmp_path / "model" / "config").write_bytes(b"{}")
    return Shell(tmp_path, capsys)


def seal(shell: Shell, *more: object, code: int = 0, out: str = "sealed", key: str = URI) -> str:
    keys = ("--key", key, "--key-file", "owner.key", "--sign-key", "owner.sign")
    return shell("seal", "model", *keys, "--out", out, *more, code=code)


def make_keys(shell: Shell) -> str:
    shell("keys", "new", "owner.key")
    return str(json.loads(shell("keys", "new", "--signing", "owner.sign", "--json"))["public_key"])


def test_an_owner_seals_and_unseals(shell: Shell) -> None:
    signer = make_keys(shell)
    outcome = json.loads(seal(shell, "--json"))
    assert (outcome["files"], outcome["bytes"], outcome["version"]) == (2, 2_000_002, 1)
    assert outcome["signer"] == signer
    arguments = ("--key-file", "owner.key", "--signer", signer, "--out", "back", "--json")
    assert json.loads(shell("unseal", "sealed", *arguments))["index_digest"] == outcome["index_digest"]
    for name in ("weights", "config"):
        assert (shell.place / "back" / name).read_bytes() == (shell.place / "model" / name).read_bytes()


def test_without_json_the_outcome_is_said_in_words(shell: Shell) -> None:
    signer = make_keys(shell)
    said = seal(shell)
    assert "sealed 2 files, 2,000,002 bytes, into sealed (version 1)" in said
    assert f"cloister broker put {URI} --file owner.key" in said
    said = shell("unseal", "sealed", "--key-file", "owner.key", "--signer", signer, "--out", "back")
    assert said.startswith("unsealed 2 files")


def test_keys_show_what_is_public(shell: Shell) -> None:
    signer = make_keys(shell)
    assert signer in shell("keys", "show", "owner.sign")
    shown = json.loads(shell("keys", "show", "owner.key", "--json"))
    assert set(shown) == {"file", "kind", "fingerprint"}
    for name in ("owner.key", "owner.sign"):
        assert stat.S_IMODE((shell.place / name).stat().st_mode) == 0o600


def test_keys_are_made_on_the_way_only_when_asked(shell: Shell) -> None:
    assert "there is no key file" in seal(shell, code=EXIT_USAGE)
    assert not (shell.place / "owner.key").exists()
    seal(shell, "--create-keys")
    key = (shell.place / "owner.key").read_bytes()
    seal(shell, "--create-keys", out="again")
    assert (shell.place / "owner.key").read_bytes() == key


def test_a_new_version_counts_on(shell: Shell) -> None:
    signer = make_keys(shell)
    seal(shell)
    assert json.loads(seal(shell, "--after", "sealed", "--json", out="newer"))["version"] == 2
    old = ("--key-file", "owner.key", "--signer", signer, "--out", "back", "--minimum-version", 2)
    assert "at least 2 is asked for" in shell("unseal", "sealed", *old, code=EXIT_VERIFICATION)


def test_what_is_wrong_is_one_line_and_an_exit_code_of_its_class(shell: Shell) -> None:
    signer = make_keys(shell)
    seal(shell)
    shell("keys", "new", "other.key")
    unseal = ("unseal", "sealed", "--out", "back")
    mine, trusted = ("--key-file", "owner.key"), ("--signer", signer)
    for expected, code, arguments in [
        ("not an empty directory", EXIT_USAGE, ("unseal", "sealed", "--out", "model", *mine, *trusted)),
        ("no sealed directory", EXIT_USAGE, ("unseal", "absent", "--out", "back", *mine, *trusted)),
        ("not a sealed directory", EXIT_VERIFICATION, ("unseal", "model", "--out", "back", *mine, *trusted)),
        ("not one of the accepted", EXIT_VERIFICATION, (*unseal, *mine, "--signer", "00" * 32)),
        ("hexadecimal", EXIT_USAGE, (*unseal, *mine, "--signer", "me")),
        ("--signer", EXIT_USAGE, (*unseal, *mine)),
        ("does not open", EXIT_VERIFICATION, (*unseal, "--key-file", "other.key", *trusted)),
        ("owner.key holds the key at", EXIT_POLICY, (*unseal, *mine, *trusted, "--key", "kbs:///a/b/c")),
        ("never overwritten", EXIT_USAGE, ("keys", "new", "owner.key")),
        ("not a Cloister key file", EXIT_USAGE, ("keys", "show", "model/config")),
    ]:
        (shell.place / "model" / "config").chmod(0o600)
        assert expected in shell(*arguments, code=code)
    assert "is not a key URI" in seal(shell, code=EXIT_USAGE, out="more", key="kbs:///default")
    assert "not an empty directory" in seal(shell, code=EXIT_USAGE)
    assert {path.name for path in shell.place.iterdir()} == {
        "model",
        "sealed",
        "owner.key",
        "owner.sign",
        "other.key",
    }


def test_a_tampered_file_is_refused_and_nothing_is_written(shell: Shell) -> None:
    signer = make_keys(shell)
    seal(shell)
    weights = max((shell.place / "sealed").iterdir(), key=lambda path: path.stat().st_size)
    alter(weights, -1)
    arguments = ("--key-file", "owner.key", "--signer", signer, "--out", "back")
    error = shell("unseal", "sealed", *arguments, code=EXIT_VERIFICATION)
    assert error.startswith("sealing: segment 1 of weights does not authenticate")
    assert not (shell.place / "back").exists()
