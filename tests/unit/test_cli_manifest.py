"""`cloister manifest`: from a file that a person wrote to a document that owners signed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from typer.testing import CliRunner

from cloister.cli.manifest import app
from cloister.errors import CloisterError, ManifestError, PolicyError, QuorumMissing, UsageError
from cloister.manifest.manifest import Witnesses, parse_manifest
from cloister.manifest.rule import Window, parse_rule
from cloister.manifest.storage import read_signed
from cloister.sealing.signing import SigningKey
from manifest_parts import owner, policy_text
from ssh_keys import make_ssh_key


def run(*arguments: str | Path, raises: type[CloisterError] | None = None) -> str:
    result: Result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if raises is None:
        assert result.exception is None, result.exception
        return result.output
    assert isinstance(result.exception, raises), result.exception
    return str(result.exception)


def run_json(*arguments: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(*arguments, "--json"))
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Alice has a key file, bob an SSH key, carol a P-256 key; the manifest's TOML names all three."""
    alice = SigningKey.create(tmp_path / "alice.key").public_key.hex()
    make_ssh_key(tmp_path / "bob")
    bob = (tmp_path / "bob.pub").read_text().strip()
    pem = tmp_path / "carol.pem"
    pem.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        )
    )
    pem.chmod(0o600)
    carol = run("key", "--es256", pem).strip()
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "inference.toml").write_text(policy_text("11"))
    (tmp_path / "clinic.toml").write_text(f"""\
application = "clinic"
witnesses = "none"
[owners]
alice = "{alice}"
bob = "{bob}"
carol = "{carol}"
[update]
owners = ["alice", "bob", "carol"]
threshold = 2
[workloads.inference]
policies = ["policies/inference.toml"]
[resources."default/key"]
owners = ["bob"]
threshold = 1
""")
    return tmp_path


@pytest.fixture
def first(folder: Path) -> Path:
    run("new", folder / "clinic.toml", "--out", folder / "v1.json")
    return folder / "v1.json"


class TestNew:
    def test_the_policies_are_taken_in_from_their_files(self, first: Path, folder: Path) -> None:
        manifest = parse_manifest(read_signed(first).document)
        assert manifest.workloads["inference"].policies == (policy_text("11"),)
        assert (manifest.version, manifest.previous, manifest.broker, manifest.witnesses) == (
            1,
            "",
            (),
            "none",
        )
        assert [key.partition(":")[0] for key in manifest.owners.values()] == ["ed25519", "ssh", "es256"]

    def test_witnesses_operators_auditors_and_the_broker_are_taken_in(self, folder: Path) -> None:
        text = (folder / "clinic.toml").read_text().replace('witnesses = "none"\n', "")
        (folder / "broker.toml").write_text(policy_text("bb"))
        more = [
            f'[operators]\noscar = "{owner("oscar").key}"',
            f'[auditors]\naudrey = "{owner("audrey").key}"',
            '[broker]\npolicies = ["broker.toml"]',
            f'[witnesses]\nthreshold = 1\nkeys = {{ wanda = "{owner("wanda").key}" }}',
        ]
        (folder / "more.toml").write_text("\n".join([text, *more]))
        run("new", folder / "more.toml", "--out", folder / "more.json")
        manifest = parse_manifest(read_signed(folder / "more.json").document)
        assert manifest.operators == {"oscar": owner("oscar").key}
        assert manifest.auditors == {"audrey": owner("audrey").key}
        assert manifest.broker == (policy_text("bb"),)
        assert manifest.witnesses == Witnesses(keys={"wanda": owner("wanda").key}, threshold=1)

    def test_nothing_is_overwritten(self, first: Path, folder: Path) -> None:
        before = first.read_bytes()
        assert "exists" in run("new", folder / "clinic.toml", "--out", first, raises=UsageError)
        assert first.read_bytes() == before
        assert not list(folder.glob(".v1*"))

    @pytest.mark.parametrize(
        ("old", "new", "error"),
        [
            ("threshold = 2", "threshold = 4", ManifestError),
            ('witnesses = "none"', "", ManifestError),
            ('witnesses = "none"', 'witnesses = "nobody"', ManifestError),
            ("[update]", "[upgrade]", ManifestError),
            ('application = "clinic"', "application = clinic", ManifestError),
            ('owners = ["bob"]', 'owners = ["rob"]', ManifestError),
            ('bob = "ssh-ed25519 ', 'bob = "ssh-ed25519 A', ManifestError),
            ("policies/inference.toml", "policies/missing.toml", PolicyError),
        ],
    )
    def test_what_cannot_be_meant_is_refused_and_nothing_is_written(
        self, folder: Path, old: str, new: str, error: type[CloisterError]
    ) -> None:
        text = (folder / "clinic.toml").read_text()
        assert old in text
        (folder / "bad.toml").write_text(text.replace(old, new, 1))
        run("new", folder / "bad.toml", "--out", folder / "bad.json", raises=error)
        assert not (folder / "bad.json").exists()


class TestSign:
    def test_three_owners_sign_with_three_kinds_of_key(self, first: Path, folder: Path) -> None:
        said = run("sign", first, "--key", folder / "alice.key")
        assert said.index("The next version must be signed by") < said.index("Signed by ed25519:")
        run("sign", first, "--ssh", folder / "bob")
        state = run_json("sign", first, "--es256", folder / "carol.pem")
        assert {one["name"] for one in state["signatures"]} == {"alice", "bob", "carol"}
        assert not any(one["refusal"] for one in state["signatures"])
        origin = run("origin", first).strip()
        assert "version 1 of clinic is signed" in run("verify", first, "--origin", origin)
        assert run_json("verify", first, "--origin", origin)["accepted"] is True

    def test_who_is_missing_is_told_until_nobody_is(self, first: Path, folder: Path) -> None:
        origin = run("origin", first).strip()
        assert "signed by nobody yet" in run("show", first)
        run("sign", first, "--key", folder / "alice.key")
        assert "missing: bob, carol" in run("show", first)
        assert "only alice signed" in run("verify", first, "--origin", origin, raises=QuorumMissing)
        run("sign", first, "--es256", folder / "carol.pem")
        needs = {one["what"]: one["missing"] for one in run_json("show", first)["needs"]}
        assert needs == {"version 1": [], "what decides about default/key": ["bob"]}
        assert "default/key" in run("verify", first, "--origin", origin, raises=QuorumMissing)

    def test_signing_twice_leaves_one_signature(self, first: Path, folder: Path) -> None:
        for _ in range(2):
            run("sign", first, "--key", folder / "alice.key")
        assert len(read_signed(first).signatures) == 1

    def test_a_strangers_key_is_told_that_it_is_one(self, first: Path, folder: Path) -> None:
        SigningKey.create(folder / "mallory.key")
        assert "no owner's" in run("sign", first, "--key", folder / "mallory.key")
        assert "not named here" in run("show", first)

    def test_a_signature_that_does_not_hold_is_shown_as_such(self, first: Path, folder: Path) -> None:
        run("sign", first, "--key", folder / "alice.key")
        plain = json.loads(first.read_bytes())
        plain["signatures"][0]["signature"] = "A" * 86 + "=="
        first.write_text(json.dumps(plain, separators=(",", ":"), sort_keys=True))
        assert "DOES NOT HOLD" in run("show", first)

    @pytest.mark.parametrize("options", [[], ["--key", "a", "--ssh", "b"]])
    def test_one_key_signs(self, first: Path, options: list[str]) -> None:
        assert "one key signs" in run("sign", first, *options, raises=UsageError)

    def test_a_private_key_that_others_may_read_is_refused(self, first: Path, folder: Path) -> None:
        (folder / "carol.pem").chmod(0o644)
        run("sign", first, "--es256", folder / "carol.pem", raises=UsageError)

    def test_a_file_that_is_no_document_is_left_alone(self, folder: Path) -> None:
        other = folder / "clinic.toml"
        before = other.read_bytes()
        run("sign", other, "--key", folder / "alice.key", raises=ManifestError)
        assert other.read_bytes() == before


@pytest.fixture
def signed_first(first: Path, folder: Path) -> Path:
    run("sign", first, "--key", folder / "alice.key")
    run("sign", first, "--ssh", folder / "bob")
    return first


class TestSuccessor:
    def test_the_next_version_follows_and_is_verified_from_the_first_on(
        self, signed_first: Path, folder: Path
    ) -> None:
        origin = run("origin", signed_first).strip()
        (folder / "policies" / "inference.toml").write_text(policy_text("22"))
        second = folder / "v2.json"
        said = run("new", folder / "clinic.toml", "--previous", signed_first, "--out", second)
        assert "version 2 needs 2 of alice, bob, carol: missing" in said
        run("sign", second, "--key", folder / "alice.key")
        run("verify", second, "--origin", origin, "--previous", signed_first, raises=QuorumMissing)
        run("sign", second, "--es256", folder / "carol.pem")
        assert "version 2" in run("verify", second, "--origin", origin, "--previous", signed_first)
        run("verify", second, "--origin", origin, raises=ManifestError)
        run("verify", second, "--origin", "00" * 32, "--previous", signed_first, raises=ManifestError)
        run("verify", signed_first, "--origin", origin, "--previous", second, raises=UsageError)

    def test_a_resource_that_changes_hands_needs_its_owner(self, signed_first: Path, folder: Path) -> None:
        text = (folder / "clinic.toml").read_text().replace('owners = ["bob"]', 'owners = ["carol"]')
        (folder / "taken.toml").write_text(text)
        run("new", folder / "taken.toml", "--previous", signed_first, "--out", folder / "v2.json")
        said = run("show", folder / "v2.json", "--manifest", signed_first)
        assert "that default/key changes hands needs bob: missing: bob" in said


class TestRule:
    def test_a_rule_is_made_signed_and_verified(self, signed_first: Path, folder: Path) -> None:
        file = folder / "rule.json"
        run(
            "rule-new", "default/key/demo", "--application", "clinic", "--workload", "inference",
            "--purpose", "care", "--not-before", "2026-01-01", "--not-after", "2027-01-01T12:00:00Z",
            "--releases", "5", "--out", file,
        )  # fmt: skip
        rule = parse_rule(read_signed(file).document)
        assert rule.workloads == {"inference": "manifest"}
        assert (rule.purposes, rule.releases) == (("care",), 5)
        assert rule.window == Window(not_before=1767225600, not_after=1798804800)
        assert "missing: bob" in run("show", file, "--manifest", signed_first)
        origin = run("origin", signed_first).strip()
        run("verify", file, "--origin", origin, "--previous", signed_first, raises=QuorumMissing)
        assert "5 times in all" in run("sign", file, "--ssh", folder / "bob")
        assert "complete" in run("show", file, "--manifest", signed_first)
        assert "version 1 asks" in run("verify", file, "--origin", origin, "--previous", signed_first)

    def test_policies_are_pinned_by_digest_or_taken_in(self, folder: Path) -> None:
        file = folder / "rule.json"
        run(
            "rule-new", "default/key/demo", "--application", "clinic", "--out", file,
            "--workload", "inference=" + "aa" * 32, "--workload", "inference=" + "bb" * 32,
            "--policy", folder / "policies" / "inference.toml",
        )  # fmt: skip
        rule = parse_rule(read_signed(file).document)
        assert rule.workloads == {"inference": ("aa" * 32, "bb" * 32)}
        assert rule.policies == (policy_text("11"),)

    def test_the_next_rule_names_the_one_before(self, folder: Path) -> None:
        first, second = folder / "1.json", folder / "2.json"
        common = ["default/key/demo", "--application", "clinic", "--workload", "inference"]
        run("rule-new", *common, "--out", first)
        run("rule-new", *common, "--releases", "1", "--previous", first, "--out", second)
        rule = parse_rule(read_signed(second).document)
        assert (rule.version, rule.previous) == (2, read_signed(first).digest)
        run("rule-new", "default/key/other", *common[1:], "--previous", first, "--out", folder / "3.json",
            raises=UsageError)  # fmt: skip

    @pytest.mark.parametrize(
        "options",
        [
            [],
            ["--workload", "inference", "--workload", "inference"],
            ["--workload", "inference", "--workload", "inference=" + "aa" * 32],
            ["--workload", "inference=aa"],
            ["--workload", "inference", "--not-before", "2026-01-01"],
            ["--workload", "inference", "--not-before", "soon", "--not-after", "2026-01-01"],
            ["--workload", "inference", "--not-before", "2026-01-02", "--not-after", "2026-01-01"],
            ["--workload", "inference", "--releases", "0"],
            ["--workload", "inference", "--releases", "-1"],
            ["--workload", "inference", "--releases", "many"],
        ],
    )
    def test_what_cannot_be_meant_is_refused(self, folder: Path, options: list[str]) -> None:
        out = folder / "rule.json"
        run(
            "rule-new",
            "default/key/demo",
            "--application",
            "clinic",
            "--out",
            out,
            *options,
            raises=CloisterError,
        )
        assert not out.exists()


def test_keys_are_printed_as_manifests_name_them(folder: Path) -> None:
    assert run("key", "--ssh", folder / "bob.pub").startswith("ssh:AAAA")
    assert run_json("key", "--key", folder / "alice.key")["key"].startswith("ed25519:")
