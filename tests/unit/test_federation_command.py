"""`cloister federation`, its document: from a file that a person wrote to what every party signed; and its how-to."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from msgspec import structs
from typer.testing import CliRunner

from cloister.attester.launch import this_program
from cloister.cli.federation import app
from cloister.cli.manifest import app as manifest_app
from cloister.encoding import encode_json
from cloister.errors import (
    CloisterError,
    ManifestError,
    PolicyError,
    SignatureRefused,
    Superseded,
    UsageError,
)
from cloister.federated.federation import Federation, Privacy, read_federation
from cloister.inference.model import find_model
from cloister.manifest.signed import Signature, Signed, sign
from cloister.manifest.storage import read_signed, write_signed
from cloister.sealing.signing import SigningKey
from federation_parts import federation, signed
from manifest_parts import owner, policy_text
from ssh_keys import make_ssh_key

HOW_TO = (Path(__file__).resolve().parents[2] / "docs/how-to/federation.md").read_text()
SIGNING = {"north": ("--key", "north.key"), "south": ("--es256", "south.pem"), "west": ("--ssh", "west")}
MODEL = {"config.json": b"{}", "model.safetensors": b"weights", "tokenizer.json": b"{}"}


def run(*arguments: str | Path, raises: type[CloisterError] | None = None) -> str:
    result: Result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if raises is None:
        assert result.exception is None, result.exception
        return result.output
    assert isinstance(result.exception, raises), result.exception
    assert len(str(result.exception).splitlines()) == 1
    return str(result.exception)


def run_json(*arguments: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(*arguments, "--json"))
    return found


def public_key(option: str, file: Path) -> str:
    result = CliRunner().invoke(manifest_app, ["key", option, str(file)])
    return result.output.strip()


def read(file: Path) -> Federation:
    return read_federation(read_signed(file).document)[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """North has a key file, south a P-256 key, west an SSH key; the TOML names all three, policies and a model."""
    SigningKey.create(tmp_path / "north.key")
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    (tmp_path / "south.pem").touch(mode=0o600)
    (tmp_path / "south.pem").write_bytes(pem)
    make_ssh_key(tmp_path / "west")
    for name, mark in (("agent", "a1"), ("workload", "b2"), ("aggregator", "c3")):
        (tmp_path / f"{name}.toml").write_text(policy_text(mark))
    (tmp_path / "encoder").mkdir()
    for name, content in MODEL.items():
        (tmp_path / "encoder" / name).write_bytes(content)
    parties = "\n".join(
        f'[parties.{name}]\nkey = "{public_key(option, tmp_path / file)}"\nagent = ["agent.toml"]\n'
        'workload = ["workload.toml"]'
        for name, (option, file) in SIGNING.items()
    )
    (tmp_path / "hospitals.toml").write_text(f"""\
name = "hospitals"
rounds = 5
deadline = 600
minimum = 2
attest-minutes = 30
everyone = true
metrics = ["f1"]
receivers = ["north"]
aggregator = ["aggregator.toml"]
{parties}
[task]
plugin = "ner"
code = "this"
model = "encoder"
[task.settings]
rate = 0.00005
[aggregation]
method = "fedavg"
secure = false
largest = 12.5
[privacy]
of = "clients"
noise = 0.5
clip = 1.0
epsilon = 8
delta = 0.00001
""")
    return tmp_path


@pytest.fixture
def first(folder: Path) -> Path:
    run("create", folder / "hospitals.toml", "--out", folder / "v1.json")
    return folder / "v1.json"


def key_of(folder: Path, party: str) -> tuple[str, Path]:
    option, file = SIGNING[party]
    return option, folder / file


def approve_all(file: Path, folder: Path, *more: str | Path) -> str:
    return [run("approve", file, *key_of(folder, party), *more) for party in SIGNING][-1]


class TestCreate:
    def test_policies_digests_and_fractions_are_taken_in(self, first: Path, folder: Path) -> None:
        found = read(first)
        assert found.aggregator == (policy_text("c3"),)
        assert found.task.code == this_program().hex()
        assert found.task.model == find_model(folder / "encoder", signers=()).digest.hex()
        assert found.task.settings == {"rate-ppm": 50}
        assert found.aggregation.largest_ppm == 12_500_000
        assert isinstance(found.privacy, Privacy)
        assert (found.privacy.noise_ppm, found.privacy.delta_inverse) == (500_000, 100_000)
        assert read_signed(first).signatures == ()
        assert abs(found.issued - time.time()) < 60

    def test_it_is_shown_in_words_with_its_digest_and_who_has_to_sign(self, folder: Path) -> None:
        said = run("create", folder / "hospitals.toml", "--out", folder / "x.json")
        assert f"digest {read_signed(folder / 'x.json').digest}" in said
        assert "SIMULATED TEE" in said
        assert "signed by nobody yet" in said
        assert "still to sign: north, south, west" in said

    def test_a_sealed_model_is_measured_by_its_index_under_a_signer(self, folder: Path) -> None:
        from sealing_shell import key_files
        from sealing_shell import run as shell

        key_files(folder)
        sealing = shell(
            "seal", folder / "encoder", "--key", "kbs:///default/key/encoder", "--key-file", folder / "k",
            "--sign-key", folder / "s", "--out", folder / "encoder.sealed",
        )  # fmt: skip
        assert sealing.code == 0, sealing
        text = (folder / "hospitals.toml").read_text().replace('"encoder"', '"encoder.sealed"')
        (folder / "sealed.toml").write_text(text)
        out = folder / "sealed.json"
        assert "--index-signer" in run("create", folder / "sealed.toml", "--out", out, raises=UsageError)
        signer = SigningKey.load(folder / "s").public_key
        run("create", folder / "sealed.toml", "--out", out, "--index-signer", signer.hex())
        assert read(out).task.model == find_model(folder / "encoder.sealed", signers=[signer]).digest.hex()
        run(
            "create",
            folder / "sealed.toml",
            "--out",
            folder / "x",
            "--index-signer",
            "00" * 32,
            raises=CloisterError,
        )

    @pytest.mark.parametrize(
        ("old", "new", "error"),
        [
            pytest.param('"agent.toml"', '"nowhere.toml"', CloisterError, id="a policy that is not there"),
            pytest.param('"agent.toml"', '"hospitals.toml"', ManifestError, id="a policy that is none"),
            pytest.param('"encoder"', '"nowhere"', UsageError, id="a model that is not there"),
            pytest.param('"encoder"', '"agent.toml"', UsageError, id="a model that is none"),
            pytest.param("minimum = 2", "minimum = 1", ManifestError, id="a round of one"),
            pytest.param("[task]", "[task", ManifestError, id="no TOML"),
        ],
    )
    def test_bad_input_is_one_line_and_nothing_is_written(
        self, folder: Path, old: str, new: str, error: type[CloisterError]
    ) -> None:
        text = (folder / "hospitals.toml").read_text()
        assert old in text
        (folder / "bad.toml").write_text(text.replace(old, new))
        run("create", folder / "bad.toml", "--out", folder / "bad.json", raises=error)
        assert not (folder / "bad.json").exists()

    def test_nothing_is_overwritten(self, first: Path, folder: Path) -> None:
        before = first.read_bytes()
        assert "exists" in run("create", folder / "hospitals.toml", "--out", first, raises=UsageError)
        assert first.read_bytes() == before


class TestInvite:
    def test_a_party_gets_the_document_its_signatures_and_the_command_to_sign_it(
        self, first: Path, folder: Path
    ) -> None:
        run("approve", first, *key_of(folder, "north"))
        said = run("invite", first, "--party", "south", "--out", folder / "for south.json")
        assert (folder / "for south.json").read_bytes() == first.read_bytes()
        digest = read_signed(first).digest
        assert f"cloister federation approve 'for south.json' --es256 YOUR.pem --digest {digest}" in said
        assert "COMPARE THE DIGEST BY PHONE" in said

    def test_the_command_that_it_prints_works(self, first: Path, folder: Path) -> None:
        found = run_json("invite", first, "--party", "west", "--out", folder / "for-west.json")
        words = shlex.split(found["approve"].replace("YOUR_SSH_KEY", str(folder / "west")))
        assert words[:2] == ["cloister", "federation"]
        run("approve", folder / words[3], *words[4:])
        assert [one["name"] for one in run_json("show", folder / words[3])["signatures"]] == ["west"]

    def test_who_is_no_party_is_not_invited(self, first: Path, folder: Path) -> None:
        said = run("invite", first, "--party", "east", "--out", folder / "east.json", raises=UsageError)
        assert "it has north, south, west" in said
        assert not (folder / "east.json").exists()

    def test_a_signature_that_does_not_hold_is_not_passed_on(self, first: Path, folder: Path) -> None:
        plain = read_signed(first)
        bad = Signature(key=read(first).parties["north"].key, signature=bytes(64))
        write_signed(first, structs.replace(plain, signatures=(bad,)), replace=True)
        run("invite", first, "--party", "south", "--out", folder / "x.json", raises=SignatureRefused)


class TestApprove:
    def test_what_is_signed_is_shown_first_and_who_is_missing_last(self, first: Path, folder: Path) -> None:
        digest = read_signed(first).digest
        said = run("approve", first, *key_of(folder, "north"), "--digest", digest)
        assert said.startswith(f"This is what you sign, the federation {digest}:\n  Version 1")
        assert said.endswith("signed by north\nstill to sign: south, west\n")

    def test_when_all_have_signed_it_is_in_force(self, first: Path, folder: Path) -> None:
        assert "version 1 of hospitals is signed by all its parties: it is in force" in approve_all(
            first, folder
        )
        assert run_json("show", first)["in_force"] is True

    def test_signing_twice_leaves_one_signature(self, first: Path, folder: Path) -> None:
        for _ in range(2):
            run("approve", first, *key_of(folder, "south"))
        assert len(read_signed(first).signatures) == 1

    def test_copies_that_were_signed_apart_come_together(self, first: Path, folder: Path) -> None:
        for party in SIGNING:
            run("approve", first, *key_of(folder, party), "--out", folder / f"{party}.json")
        assert read_signed(first).signatures == ()
        others = [str(one) for party in SIGNING for one in ("--add", folder / f"{party}.json")]
        found = run_json("approve", first, *others)
        assert (found["in_force"], found["missing"]) == (True, [])
        assert [one["refusal"] for one in found["signatures"]] == [""] * 3

    def test_the_signatures_of_others_and_ones_own_go_in_at_once(self, first: Path, folder: Path) -> None:
        run("approve", first, *key_of(folder, "west"), "--out", folder / "w.json")
        found = run_json("approve", first, *key_of(folder, "north"), "--add", folder / "w.json")
        assert found["missing"] == ["south"]

    @pytest.fixture
    def refused(self, first: Path, folder: Path) -> Any:
        """Runs `approve` to a refusal, and holds that the file is as it was."""

        def check(*arguments: str | Path, raises: type[CloisterError]) -> str:
            before = first.read_bytes()
            said = run("approve", first, *arguments, raises=raises)
            assert first.read_bytes() == before
            return said

        return check

    def test_a_key_that_is_no_partys_signs_nothing(self, refused: Any, folder: Path) -> None:
        SigningKey.create(folder / "mallory.key")
        assert "no party's" in refused("--key", folder / "mallory.key", raises=UsageError)

    def test_another_digest_than_the_one_heard_by_phone_signs_nothing(
        self, refused: Any, folder: Path
    ) -> None:
        said = refused(*key_of(folder, "north"), "--digest", "00" * 32, raises=ManifestError)
        assert "not the one that you named" in said

    def test_signatures_of_another_document_are_not_taken_over(
        self, refused: Any, first: Path, folder: Path
    ) -> None:
        other = folder / "other.json"
        document = encode_json(structs.replace(read(first), rounds=6))
        write_signed(other, Signed(document=document, signatures=()), replace=False)
        run("approve", other, *key_of(folder, "west"))
        assert "another document" in refused("--add", other, raises=ManifestError)

    @pytest.mark.parametrize(
        "forge",
        [
            pytest.param(lambda plain: sign("federation", plain.document, [owner("mallory")]), id="of somebody else"),
            pytest.param(
                lambda plain: structs.replace(
                    plain,
                    signatures=(
                        Signature(
                            key=read_federation(plain.document)[0].parties["north"].key,
                            signature=owner("mallory").sign(b"x"),
                        ),
                    ),
                ),
                id="under the key of another",
            ),
        ],
    )  # fmt: skip
    def test_a_signature_that_would_keep_it_from_being_in_force_is_not_taken_over(
        self, refused: Any, first: Path, folder: Path, forge: Any
    ) -> None:
        write_signed(folder / "forged.json", forge(read_signed(first)), replace=False)
        said = refused("--add", folder / "forged.json", raises=SignatureRefused)
        assert "forged.json" in said
        refused(*key_of(folder, "north"), "--add", folder / "forged.json", raises=SignatureRefused)
        write_signed(first, read_signed(folder / "forged.json"), replace=True)
        refused(*key_of(folder, "north"), raises=SignatureRefused)
        assert "NOT IN FORCE" in run("show", first)
        assert run_json("show", first)["in_force"] is False

    def test_a_key_signs_in_the_form_in_which_it_is_named(self, folder: Path) -> None:
        from cloister.manifest.owner_key import ssh_key_text
        from cloister.manifest.ssh import ssh_string

        key = SigningKey.load(folder / "north.key").public_key
        as_ssh = ssh_key_text(ssh_string(b"ssh-ed25519") + ssh_string(key))
        parties = federation().parties
        document = federation(parties={**parties, "north": structs.replace(parties["north"], key=as_ssh)})
        write_signed(folder / "ssh.json", signed(document, "south"), replace=False)
        said = run("approve", folder / "ssh.json", *key_of(folder, "north"), raises=UsageError)
        assert "north has this key in another form: ssh; sign with --ssh" in said

    def test_nothing_to_add_or_two_keys_are_bad_usage(self, refused: Any, folder: Path) -> None:
        assert "nothing to add" in refused(raises=UsageError)
        refused(*key_of(folder, "north"), *key_of(folder, "south"), raises=UsageError)

    def test_what_is_no_federation_is_not_signed(self, folder: Path) -> None:
        file = folder / "manifest.json"
        write_signed(file, Signed(document=b"{}", signatures=()), replace=False)
        run("approve", file, *key_of(folder, "north"), raises=ManifestError)
        file.write_bytes(b"x")
        run("show", file, raises=ManifestError)


class TestSuccessor:
    @pytest.fixture
    def second(self, first: Path, folder: Path) -> Path:
        approve_all(first, folder)
        text = (folder / "hospitals.toml").read_text().replace("rounds = 5", "rounds = 8")
        (folder / "more.toml").write_text(text)
        said = run("create", folder / "more.toml", "--previous", first, "--out", folder / "v2.json")
        assert "New: There are 8 rounds" in said
        return folder / "v2.json"

    def test_it_is_in_force_where_its_predecessor_was(self, second: Path, first: Path, folder: Path) -> None:
        said = approve_all(second, folder)
        assert "it is in force where the document" in said
        assert run_json("show", second)["in_force"] is False
        found = run_json("show", second, "--previous", first)
        assert found["in_force"] is True
        assert any("There are 8 rounds" in line for line in found["changes"])

    def test_the_third_needs_both_before_it_in_any_order(
        self, second: Path, first: Path, folder: Path
    ) -> None:
        approve_all(second, folder, "--previous", first)
        third = folder / "v3.json"
        run("create", folder / "hospitals.toml", "--previous", second, "--out", third)
        assert "it is in force" in approve_all(third, folder, "--previous", second, "--previous", first)
        run("show", third, "--previous", second, raises=Superseded)
        run("show", third, "--previous", first, raises=Superseded)

    def test_what_does_not_follow_is_not_signed(self, second: Path, first: Path, folder: Path) -> None:
        document = encode_json(structs.replace(read(second), previous="ab" * 32))
        forked = folder / "forked.json"
        write_signed(forked, Signed(document=document, signatures=()), replace=False)
        run("approve", forked, *key_of(folder, "north"), "--previous", first, raises=Superseded)
        assert read_signed(forked).signatures == ()

    def test_a_predecessor_that_was_never_in_force_is_none(self, second: Path, first: Path) -> None:
        plain = read_signed(first)
        write_signed(first, structs.replace(plain, signatures=plain.signatures[1:]), replace=True)
        run("show", second, "--previous", first, raises=ManifestError)


def test_a_policy_that_is_not_there_is_named(folder: Path) -> None:
    (folder / "agent.toml").unlink()
    said = run("create", folder / "hospitals.toml", "--out", folder / "x.json", raises=PolicyError)
    assert "agent.toml" in said


def test_the_command_line_says_errors_in_one_line_or_as_json(folder: Path) -> None:
    command = [Path(sys.executable).parent / "cloister", "federation", "show", folder / "nowhere.json"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert json.loads(done.stderr)["layer"] == "usage"


def test_the_how_to_leads_from_keys_to_a_federation_in_force(tmp_path: Path) -> None:
    script = ["set -euo pipefail", *re.findall(r"```console\n(.*?)```", HOW_TO, re.DOTALL), "echo THE-END"]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    shell = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=tmp_path, env=environment, check=False, capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    said = shell.stdout + shell.stderr
    assert "THE-END" in said, said[-3000:]
    assert "Traceback" not in said
    assert "COMPARE THE DIGEST BY PHONE" in said
    assert "version 1 of hospitals is signed by all its parties: it is in force" in said
    assert "version 2 of hospitals is signed by all its parties: it is in force" in said
    assert "PROGRAM" not in said  # the policies ask for the task's code
    assert run_json("show", tmp_path / "v1.json")["in_force"] is True
