"""A broker of owners, its whole way by the command line: every party its own process, keys of three kinds."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx2
import pytest

from broker_parts import PASSPHRASE, Clock, OwnersBench, owners_manifest, platform, policy_for, served
from cloister.appraisal.policy import Policy, load_policy
from cloister.broker import protocol, tables
from cloister.broker.client import BrokerKeys, collect
from cloister.broker.configuration import broker_events, owners_configuration
from cloister.broker.jwe import TeeKeyPair
from cloister.broker.protocol import Attestation, RuntimeData, TeeEvidence, TokenAnswer
from cloister.broker.serving import seal_broker
from cloister.broker.signed_request import credential
from cloister.channel.transport import SealedClient, connect
from cloister.encoding import decode_json, encode_json
from cloister.errors import CloisterError, ReleaseRefused
from cloister.manifest.manifest import origin
from cloister.manifest.signers import Ed25519Signer
from cloister.manifest.storage import write_signed
from cloister.sealing.key_file import SIGNING_KIND, create_key, read_secret, write_secret
from owners_site import WITNESSES, OwnersSite, Service, deployed, here, rows, run

DEMO = "default/key/demo"
URI = f"kbs:///{DEMO}"
CANARY = b"CANARY-8a-OWNERS-KEY-UNSEEN-32B!"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnersSite]:
    """Deployed, with alice's key in it, which the workload may read without end."""
    with deployed(tmp_path_factory.mktemp("owners")) as site:
        key = site.root / "demo.raw"
        key.write_bytes(CANARY)
        site.owner("put-key", URI, "--file", key, "--raw", by="alice", process=True)
        allow(site, DEMO)
        yield site


def allow(site: OwnersSite, path: str, *words: str) -> Path:
    """A rule for the workload, signed by alice (a key file) and bob (SSH)."""
    rule = site.root / f"{path.replace('/', '-')}.rule.json"
    site.ok(
        *("manifest", "rule-new", path, "--application", "clinic", "--workload", "inference"),
        *words,
        *("--out", rule),
    )
    site.owner("submit", site.sign(rule, "alice", "bob"), process=True)
    return rule


def keys(site: OwnersSite, config: bytes = b"right") -> BrokerKeys:
    return BrokerKeys(site.broker.url, policy=broker_policy(site), attester=site.workload(config))


def broker_policy(site: OwnersSite) -> Policy:
    return load_policy((site.root / "broker.toml").read_text(), name="broker")


def channel(site: OwnersSite) -> SealedClient:
    return connect(site.broker.url, policy=site.root / "broker.toml")


def test_a_workload_gets_the_key_of_owners_whom_nobody_else_can_replace(site: OwnersSite) -> None:
    with keys(site) as right, keys(site, b"other") as other:
        assert right.key(URI) == CANARY
        with pytest.raises(ReleaseRefused, match="attestation-refused"):
            other.key(URI)
    status = site.status()
    assert (status["laptop"], status["witnesses"], status["origin"]) == (False, 2, site.origin)
    listed = json.loads(site.owner("list", "--json", by="carol"))["resources"]
    assert [one["uri"] for one in listed if one["rule"]] == [URI]


def test_a_rule_takes_both_of_its_owners_and_each_kind_of_key(site: OwnersSite) -> None:
    """carol's P-256 key alone for what is hers; alice's and bob's, a file and SSH, for the rest."""
    mine = site.root / "carols.key"
    content = create_key(mine)
    path = "default/key/carols"
    site.owner("put-key", f"kbs:///{path}", "--file", mine, by="carol")
    rule = site.root / "carols.json"
    site.ok(
        *("manifest", "rule-new", path, "--application", "clinic", "--workload", "inference", "--out", rule)
    )
    site.sign(rule, "alice")
    result = run("owner", *site.told("submit", rule))
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    rule.unlink()
    site.ok(
        *("manifest", "rule-new", path, "--application", "clinic", "--workload", "inference", "--out", rule)
    )
    site.owner("submit", site.sign(rule, "carol"))
    with keys(site) as right:
        assert right.key(f"kbs:///{path}") == content


def test_a_counted_rule_ends_and_outlives_a_restart(site: OwnersSite) -> None:
    path = "default/key/counted"
    file = site.root / "counted.key"
    content = create_key(file)
    site.owner("put-key", f"kbs:///{path}", "--file", file, by="bob")
    allow(site, path, "--releases", "2")
    with keys(site) as right:
        assert right.key(f"kbs:///{path}") == content
    site.broker.stop(signal.SIGKILL)
    site.serve()
    assert site.status()["open"] is False
    with keys(site) as right, pytest.raises(CloisterError, match="locked"):
        right.key(f"kbs:///{path}")
    site.unlock("alice")
    assert site.status()["have"] == 1
    site.unlock("carol")
    site.wait_open()
    with keys(site) as right:
        assert right.key(f"kbs:///{path}") == content
        with pytest.raises(ReleaseRefused, match="none-left"):
            right.key(f"kbs:///{path}")


def test_two_of_three_witnesses_are_enough_and_one_is_not(site: OwnersSite) -> None:
    path = "default/key/seen"
    file = site.root / "seen.key"
    content = create_key(file)
    site.owner("put-key", f"kbs:///{path}", "--file", file, by="alice")
    allow(site, path, "--releases", "5")
    uri = f"kbs:///{path}"
    try:
        with keys(site) as right:
            site.witnesses["wim"].stop(signal.SIGKILL)
            assert right.key(uri) == content
            site.witnesses["willy"].stop(signal.SIGKILL)
            with pytest.raises(CloisterError, match="unwitnessed"):
                right.key(uri)
            site.witness("willy")
            assert right.key(uri) == content
    finally:
        for name in ("willy", "wim"):
            site.witnesses[name].stop()
            site.witness(name)
    listed = json.loads(site.owner("list", "--json", by="audrey"))["resources"]
    assert [one["released"] for one in listed if one["uri"] == uri] == [2]


def test_the_second_version_of_the_manifest_takes_effect_at_once(site: OwnersSite) -> None:
    """It adds a workload that the rule does not name and an owner's auditor; a downgrade is refused afterwards."""
    if site.status()["manifest_version"] == 1:
        following = site.root / "clinic-2.toml"
        text = site.toml.read_text().replace(
            "[operators]", '[workloads.second]\npolicies = ["second.toml"]\n[operators]'
        )
        (site.root / "second.toml").write_text(site.policy(site.workload(b"second")))
        following.write_text(text)
        second = site.signed(following, site.root / "v2.json", "alice", previous=site.manifest)
        result = run("owner", *site.told("submit", second))
        assert (result.returncode, "quorum" in result.stderr) == (5, True)
        site.sign(second, "carol")
        site.owner("submit", second)
    assert site.status()["manifest_version"] == 2
    with keys(site, b"second") as second_keys, pytest.raises(ReleaseRefused, match="release-refused"):
        second_keys.key(URI)
    with keys(site) as right:
        assert right.key(URI) == CANARY
    result = run("owner", *site.told("submit", site.manifest))
    assert result.returncode != 0
    assert site.status()["manifest_version"] == 2


def test_the_log_is_exported_verified_and_extends_a_head_that_was_kept(
    site: OwnersSite, tmp_path: Path
) -> None:
    head, log = tmp_path / "head.json", tmp_path / "log.jsonl"
    where: list[str | Path] = ["--broker", site.broker.url, "--manifest", site.manifest]
    site.ok("audit", "head", *where, "--out", head)
    with keys(site) as right:
        right.key(URI)
    site.ok("audit", "verify", *where, "--head", head)
    site.ok("audit", "export", *where, *site.pen("audrey"), "--out", log)
    shown = site.ok("audit", "verify", log, "--manifest", site.manifest, "--head", head)
    assert "co-signed by" in shown
    lines = log.read_bytes().splitlines(keepends=True)
    for name, edited in {
        "cut": lines[:-3],
        "edited": [lines[0], *lines[1:4], lines[4].replace(b'"done"', b'"Done"'), *lines[5:]],
        "swapped": [lines[0], lines[2], lines[1], *lines[3:]],
    }.items():
        (tmp_path / name).write_bytes(b"".join(edited))
        result = run("audit", "verify", tmp_path / name, "--manifest", site.manifest)
        assert result.returncode not in (0, 2), name
        assert "Traceback" not in result.stderr


# -- an owner sends nothing to what is not the owners' broker --------------------------------------------------------


def _put(
    site: OwnersSite, url: str, *, manifest: Path | None = None, policy: Path | None = None
) -> list[str | Path]:
    words: list[str | Path] = ["owner", "put-key", URI, "--file", site.root / "demo.raw", "--raw"]
    words += ["--broker", url, *site.pen("alice"), "--manifest", manifest or site.manifest]
    return words if policy is None else [*words, "--policy", policy]


@pytest.fixture(scope="module")
def laptop(site: OwnersSite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A broker in laptop mode, whoever runs it."""
    root = tmp_path_factory.mktemp("laptop")
    passphrase = root / "passphrase"
    passphrase.touch(0o600)
    passphrase.write_bytes(PASSPHRASE)
    options: list[str | Path] = ["--state", root / "state", "--passphrase-file", passphrase, "--init"]
    options += ["--simulated-tee", site.root / "tee", "--port", "0"]
    service = Service(root / "log", "broker", "serve", *options)
    site.measure(None, site.root / "laptop.toml")
    yield service
    service.stop()


@pytest.fixture(scope="module")
def strangers(site: OwnersSite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The same program for other owners: mallory alone, and everything named as at the clinic."""
    root = tmp_path_factory.mktemp("strangers")
    site.ok("keys", "new", "--signing", root / "mallory.key")
    key = site.ok("manifest", "key", "--key", root / "mallory.key").strip()
    toml = root / "clinic.toml"
    (root / "workload.toml").write_text((site.root / "workload.toml").read_text())
    toml.write_text(
        f'application = "clinic"\nwitnesses = "none"\n[owners]\nalice = "{key}"\n[update]\nowners = ["alice"]\n'
        'threshold = 1\n[workloads.inference]\npolicies = ["workload.toml"]\n[resources."default/key"]\n'
        'owners = ["alice"]\nthreshold = 1\n[broker]\npolicies = ["broker.toml"]\n'
    )
    pinned = site.ok("manifest", "origin", toml).strip()
    site.measure(pinned, root / "broker.toml")
    site.measure(pinned, site.root / "strangers.toml")
    site.ok("manifest", "new", toml, "--out", root / "v1.json")
    site.ok("manifest", "sign", root / "v1.json", "--key", root / "mallory.key")
    options: list[str | Path] = ["--state", root / "state", "--manifest", root / "v1.json"]
    options += ["--simulated-tee", site.root / "tee", "--port", "0"]
    service = Service(root / "log", "broker", "serve", *options)
    yield service
    service.stop()


def _entries(directory: Path) -> int:
    return len(rows(directory)["entries"])


def test_a_key_is_not_put_into_a_broker_of_another_measurement(
    site: OwnersSite, laptop: Service, strangers: Service
) -> None:
    for url in (laptop.url, strangers.url):
        result = run(*_put(site, url))
        assert result.returncode == 5, result.stderr
        assert "not list" in result.stderr or "does not" in result.stderr
        assert CANARY.decode() not in result.stderr


def test_a_key_is_not_put_into_a_broker_in_laptop_mode_even_if_its_measurement_is_accepted(
    site: OwnersSite, laptop: Service
) -> None:
    result = run(*_put(site, laptop.url, policy=site.root / "laptop.toml"))
    assert (result.returncode, "laptop mode" in result.stderr) == (2, True)


def test_a_key_is_not_put_into_a_broker_of_other_owners_even_if_its_measurement_is_accepted(
    site: OwnersSite, strangers: Service
) -> None:
    result = run(*_put(site, strangers.url, policy=site.root / "strangers.toml"))
    assert result.returncode == 3, result.stderr
    assert result.stderr.splitlines()[-1].startswith("manifest: ")


def test_a_key_is_not_put_into_a_broker_whose_evidence_names_another_manifest(
    site: OwnersSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The right program for the right owners, in this process so that what its evidence binds can be bent."""
    start = int(time.time())
    genesis = owners_manifest(issued=start - 60)
    tee = platform(start).tee("tdx", launch=broker_events(owners_configuration(origin(genesis))))
    genesis = owners_manifest(issued=start - 60, broker=(policy_for(tee, now=start),))
    bench = OwnersBench(tmp_path / "state", genesis, Clock(start))
    bench.share_out()
    pinned, pen = tmp_path / "v1.json", tmp_path / "alice.key"
    write_signed(pinned, bench.state.authority.manifest.signed, replace=False)
    write_secret(pen, SIGNING_KIND, hashlib.sha256(b"alice").digest())
    words: list[str | Path] = ["owner", "put-key", "kbs:///models/key/demo", "--raw", "--file"]
    words += [site.root / "demo.raw", "--key", pen, "--manifest", pinned, "--broker"]

    def put() -> subprocess.CompletedProcess[str]:
        gateway, keyring = seal_broker(bench.desk, tee)
        with served(gateway) as url:
            result = here(*words, url)
        keyring.close()
        return result

    shown = bench.desk.shown()
    monkeypatch.setattr(
        bench.desk, "shown", lambda: dataclasses.replace(shown, manifest_sha256=bytes(32).hex())
    )
    result = put()
    assert (result.returncode, bench.told("resource")) == (3, [])
    assert "evidence names another manifest" in result.stderr
    monkeypatch.undo()
    assert put().returncode == 0
    assert [one.signers for one in bench.told("resource")] == [("alice",)]


def test_a_share_is_not_given_to_a_broker_of_another_state_or_measurement(
    site: OwnersSite, strangers: Service, laptop: Service
) -> None:
    words: list[str | Path] = ["owner", "unlock", "--share", site.shares["alice"], "--broker"]
    refused = run(*words, strangers.url, "--manifest", site.manifest)
    assert refused.returncode == 5, refused.stderr
    for url, policy in ((strangers.url, "strangers.toml"), (laptop.url, "laptop.toml")):
        result = run(*words, url, "--policy", site.root / policy)
        assert result.returncode == 2, result.stderr
        assert "another state" in result.stderr


# -- an operator who tries ------------------------------------------------------------------------------------------


def _passphrase_mode(site: OwnersSite, folder: Path) -> list[str | Path]:
    secret = folder / "passphrase"
    secret.touch(0o600)
    secret.write_bytes(PASSPHRASE)
    words: list[str | Path] = [
        "broker",
        "serve",
        "--state",
        site.state,
        "--passphrase-file",
        secret,
        "--init",
    ]
    return [*words, "--simulated-tee", site.root / "tee", "--port", "0"]


def _list_by_passphrase(site: OwnersSite, folder: Path) -> list[str | Path]:
    secret = folder / "passphrase"
    secret.touch(0o600)
    secret.write_bytes(PASSPHRASE)
    return ["broker", "list", "--state", site.state, "--passphrase-file", secret]


def _put_as_operator(site: OwnersSite, _: Path) -> list[str | Path]:
    return ["owner", *site.told("put-key", URI, "--file", site.root / "demo.raw", "--raw", by="oscar")]


def _destroy_as_auditor(site: OwnersSite, _: Path) -> list[str | Path]:
    return ["owner", *site.told("destroy", URI, by="audrey")]


def _destroy_by_one(site: OwnersSite, _: Path) -> list[str | Path]:
    return ["owner", *site.told("destroy", URI, by="alice")]


def _share_as_operator(site: OwnersSite, folder: Path) -> list[str | Path]:
    return ["owner", *site.told("share", "--out", folder / "stolen.share", by="oscar")]


def _share_twice(site: OwnersSite, folder: Path) -> list[str | Path]:
    return ["owner", *site.told("share", "--out", folder / "again.share", by="alice")]


def _second_manifest_as_genesis(site: OwnersSite, folder: Path) -> list[str | Path]:
    text = site.toml.read_text().replace("threshold = 2\n[broker]", "threshold = 1\n[broker]")
    weaker = site.root / f"weaker-{folder.name}.toml"
    weaker.write_text(text)
    made = site.signed(weaker, folder / "weaker.json", "alice")
    words: list[str | Path] = ["broker", "serve", "--state", site.state, "--manifest", made]
    return [*words, "--simulated-tee", site.root / "tee", "--port", "0"]


OPERATORS: list[tuple[Callable[[OwnersSite, Path], list[str | Path]], int]] = [
    (_passphrase_mode, 2),
    (_list_by_passphrase, 2),
    (_put_as_operator, 5),
    (_destroy_as_auditor, 3),
    (_destroy_by_one, 5),
    (_share_as_operator, 5),
    (_share_twice, 5),
]


@pytest.mark.parametrize(
    ("attempt", "code"), OPERATORS, ids=[attempt.__name__.strip("_") for attempt, _ in OPERATORS]
)
def test_who_may_not_is_told_in_one_line_and_changes_nothing(
    site: OwnersSite, tmp_path: Path, attempt: Callable[[OwnersSite, Path], list[str | Path]], code: int
) -> None:
    before = rows(site.state)["records"]
    result = run(*attempt(site, tmp_path))
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()[-1]) > 20
    assert rows(site.state)["records"] == before
    assert not list(tmp_path.glob("*.share"))


def test_a_state_is_not_opened_under_a_manifest_of_weaker_owners(site: OwnersSite, tmp_path: Path) -> None:
    """The operator starts the state under one owner's manifest: that broker measures another origin, and no owner's
    client gives it a share."""
    service = Service(tmp_path / "log", *_second_manifest_as_genesis(site, tmp_path))
    try:
        result = run(
            "owner",
            "unlock",
            "--share",
            site.shares["alice"],
            "--broker",
            service.url,
            "--manifest",
            site.manifest,
        )
        assert result.returncode == 5, result.stderr
    finally:
        service.stop()


# -- signed requests ------------------------------------------------------------------------------------------------


def test_a_signed_request_works_once_and_for_one_path_body_and_broker(site: OwnersSite) -> None:
    signer = Ed25519Signer(read_secret(site.root / "audrey.key", SIGNING_KIND))
    prefix = "/cloister/v1"
    with channel(site) as client:

        def fresh(
            path: str, *, broker: str | None = None, method: str = "GET", body: bytes = b""
        ) -> dict[str, str]:
            nonce = client.post(f"{prefix}/nonce").json()
            header = credential(
                signer,
                broker=broker or nonce["broker"],
                method=method,
                path=f"{prefix}{path}",
                body=body,
                nonce=nonce["nonce"],
            )
            return {"authorization": header}

        def status(path: str, headers: dict[str, str]) -> int:
            return client.get(f"{prefix}{path}", headers=headers).status_code

        once = fresh("/resources")
        assert [status("/resources", once) for _ in range(3)] == [200, 401, 401]
        assert status("/keys", fresh("/resources")) == 401
        assert status("/log/entries?from=1&count=1", fresh("/log/entries?from=0&count=1")) == 401
        assert status("/log/entries?from=0&count=1", fresh("/log/entries?from=0&count=1")) == 200
        assert status("/resources", fresh("/resources", broker="ab" * 16)) == 401
        assert status("/resources", fresh("/resources", method="POST")) == 401
        assert status("/resources", fresh("/resources", body=b"{}")) == 401
        bent = fresh("/resources")
        bent["authorization"] = bent["authorization"][:-8] + "AAAAAAAA"
        assert status("/resources", bent) == 401
        assert client.post(f"{prefix}/share", headers=fresh("/share", method="POST")).status_code == 401


# -- a second broker on the same disk --------------------------------------------------------------------------------


def test_a_peer_gets_the_state_key_by_its_evidence_and_serves_the_same_state(site: OwnersSite) -> None:
    named = [word for name in WITNESSES for word in ("--witness", f"{name}={site.witness_url(name)}")]
    options: list[str | Path] = ["--state", site.state, "--manifest", site.manifest, *named]
    options += ["--simulated-tee", site.root / "tee", "--port", "0", "--peer", site.broker.url]
    peer = Service(site.root / "peer.log", "broker", "serve", *options)
    try:
        assert httpx2.get(f"{peer.url}/readyz").status_code == 200
        with BrokerKeys(peer.url, policy=broker_policy(site), attester=site.workload()) as right:
            assert right.key(URI) == CANARY
        with keys(site) as right:
            assert right.key(URI) == CANARY
    finally:
        peer.stop()


def test_a_full_snapshot_restored_does_not_start(site: OwnersSite, tmp_path: Path) -> None:
    with (
        closing(sqlite3.connect(site.state / tables.DATABASE)) as live,
        closing(sqlite3.connect(tmp_path / "old.sqlite")) as old,
    ):
        live.backup(old)
        with keys(site) as right:
            right.key(URI)
        # What the newest co-signed head covers is what witnesses know.
        site.ok("audit", "head", "--broker", site.broker.url, "--manifest", site.manifest)
        site.broker.stop()
        with closing(sqlite3.connect(tmp_path / "new.sqlite")) as newest:
            live.backup(newest)
            old.backup(live)
            try:
                site.serve()
                site.unlock("alice")
                result = run("owner", *site.told("unlock", "--share", site.shares["bob"]))
                assert result.returncode == 3, result.stderr
                assert "rollback-found" in result.stderr
                assert site.status()["open"] is False
            finally:
                site.broker.stop()
                newest.backup(live)
    site.serve()
    site.unlock("alice", "bob")
    site.wait_open()
    with keys(site) as right:
        assert right.key(URI) == CANARY


# -- the canary -----------------------------------------------------------------------------------------------------


def _secrets(site: OwnersSite) -> list[bytes]:
    """Shares and private keys, as they are and as they might be written."""
    found = [CANARY, PASSPHRASE]
    for path in site.shares.values():
        found.append(json.loads(path.read_bytes())["share"].encode())
    for name in ("alice", *WITNESSES, "oscar", "audrey"):
        found.append(read_secret(site.root / f"{name}.key", SIGNING_KIND))
    found += [line for line in (site.root / "carol.pem").read_bytes().splitlines() if b"-" not in line]
    found += [line for line in (site.root / "bob.ssh").read_bytes().splitlines()[2:-1] if b"-" not in line]
    return [*found, *(one.hex().encode() for one in found)]


def test_no_secret_is_in_any_process_log_file_or_error(site: OwnersSite, tmp_path: Path) -> None:
    with channel(site) as client:
        response = client.post(protocol.AUTH_PATH, content=protocol.auth_request("tdx"))
        text, nonce = protocol.parse_challenge(response.content)
        challenge = response.headers["set-cookie"].split(";")[0].partition("=")[2]
        runtime = RuntimeData(nonce=text, tee_pubkey=(pair := TeeKeyPair.generate()).public)
        bundle = collect(site.workload(), nonce, encode_json(runtime))
        body = encode_json(
            Attestation(runtime_data=runtime, tee_evidence=TeeEvidence(primary_evidence=bundle))
        )
        answer = client.post(
            protocol.ATTEST_PATH, content=body, headers={"cookie": f"{protocol.COOKIE}={challenge}"}
        )
        cookie = answer.headers["set-cookie"].split(";")[0].partition("=")[2]
        token = decode_json(answer.content, TokenAnswer, what="answer").token
        client.cookies.clear()
        bearer = {"authorization": f"Bearer {token}"}
        released = client.get(f"{protocol.RESOURCE_PATH}{DEMO}", headers=bearer)
        assert pair.decrypt(released.content, URI) == CANARY
        request_nonce = client.post("/cloister/v1/nonce").json()["nonce"]
        share = json.loads(site.shares["bob"].read_bytes())
        answers = [
            client.get(f"{protocol.RESOURCE_PATH}default/key/none", headers=bearer),
            client.post("/cloister/v1/rules", content=json.dumps({**share, "index": 9}).encode()),
            client.post("/cloister/v1/unlock", content=site.shares["bob"].read_bytes()[:-9]),
            client.post("/cloister/v1/orders", content=b'{"order":' + site.shares["bob"].read_bytes() + b"}"),
            client.get("/cloister/v1/resources", headers={"authorization": f"Cloister {token}"}),
        ]
        assert [one.status_code for one in answers] == [403, 422, 400, 400, 401]
    wrong = [
        run("owner", *site.told("unlock", "--share", site.root / "alice.key")),
        run("owner", *site.told("share", "--out", tmp_path / "x", by="alice")),
        run(
            "owner",
            *site.told(
                "put-key", "kbs:///elsewhere/key/x", "--file", site.root / "demo.raw", "--raw", by="bob"
            ),
        ),
    ]
    assert all(one.returncode for one in wrong)
    secrets = [*_secrets(site), *(one.encode() for one in (challenge, cookie, token, request_nonce))]
    told = (
        b"".join(one.content for one in answers) + "".join(one.stdout + one.stderr for one in wrong).encode()
    )
    processes = (site.broker, *site.witnesses.values())
    seen = told + b"".join(one.seen() for one in processes)
    seen += b"".join(path.read_bytes() for path in site.state.iterdir())
    for name in WITNESSES:
        seen += b"".join(path.read_bytes() for path in (site.root / f"witness-{name}").iterdir())
    for path in ("/healthz", "/readyz", "/metrics"):
        seen += httpx2.get(site.broker.url + path).content
    for secret in secrets:
        assert len(secret) >= 16
        assert secret not in seen
    # A spent challenge stays in the evidence that is kept for audits, and nowhere else.
    elsewhere = {name: table for name, table in rows(site.state).items() if name != "evidence"}
    assert text not in repr(elsewhere)
    assert text.encode() not in b"".join(one.seen() for one in processes)
