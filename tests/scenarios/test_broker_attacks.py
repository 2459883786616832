"""Named attacks on a key broker that runs as its own process: its operator's disk, its network, its callers."""

from __future__ import annotations

import functools
import itertools
import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from broker_parts import CHEAP, PASSPHRASE
from cloister.appraisal.draft import draft_policy
from cloister.appraisal.policy import load_policy
from cloister.attester.launch import launch_events
from cloister.attester.simulated import SimulatedPlatform, SimulatedTee
from cloister.broker import administration, protocol
from cloister.broker.audit import FILE, verify
from cloister.broker.client import BrokerKeys, collect
from cloister.broker.configuration import broker_events
from cloister.broker.jwe import TeeKeyPair
from cloister.broker.protocol import Attestation, RuntimeData, TeeEvidence, TokenAnswer
from cloister.broker.store import DATABASE, Store
from cloister.channel.transport import SealedClient, connect
from cloister.encoding import decode_json, encode_json
from cloister.errors import BrokerError, CloisterError, ReleaseRefused
from cloister.sealing.key_file import create_key

CANARY = b"CANARY-9c-KEY-THAT-NOBODY-SEES!!"


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-c", "from cloister.cli import main; main()", *map(str, words)]


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), capture_output=True, text=True, timeout=60, check=False)


class Site:
    """One broker's machine: a simulated TEE, a state directory, and a broker process when it runs."""

    def __init__(self, root: Path) -> None:
        self.root, self.state = root, root / "state"
        self.platform = SimulatedPlatform.create(root / "tee", now=int(time.time()))
        self.passphrase = root / "passphrase"
        self.passphrase.touch(0o600)
        self.passphrase.write_bytes(PASSPHRASE + b"\n")
        self.options: list[str | Path] = ["--state", self.state, "--passphrase-file", self.passphrase]
        self.store = Store.create(self.state, PASSPHRASE, cost=CHEAP)
        self.process: subprocess.Popen[str] | None = None
        self._numbers = itertools.count()

    @functools.cache  # noqa: B019 -- a site lives as long as its test module
    def workload(self, config: bytes = b"right") -> SimulatedTee:
        events = launch_events(config=config, program=bytes(32), model_index=None)
        return self.platform.tee("tdx", launch=events)

    def policy(self, tee: SimulatedTee) -> str:
        return draft_policy(
            tee="tdx",
            measurements=tee.measurements,
            events=tee.launch,
            min_tcb_evaluation_number=1,
            simulated_root=self.platform.root_sha256,
        )

    def put(self, content: bytes, tee: SimulatedTee) -> str:
        """A new resource that ``tee`` may read; its path."""
        path = f"models/key/k{next(self._numbers)}"
        administration.put_resource(self.store, self.state, path, content)
        text = self.policy(tee)
        policy = load_policy(text, name="test")
        administration.put_rule(self.store, self.state, path, text.encode(), policy)
        return path

    def serve(self) -> None:
        """Start the broker and wait until it listens."""
        words = [
            "broker",
            "serve",
            *self.options,
            "--simulated-tee",
            self.root / "tee",
            "--port",
            "0",
            "--json",
        ]
        self.broker_policy = load_policy(
            self.policy(self.platform.tee("tdx", launch=broker_events())), name="broker policy"
        )
        with (self.root / "broker.log").open("a") as log:
            self.process = subprocess.Popen(command(*words), stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, (self.root / "broker.log").read_text()
        self.url: str = json.loads(line)["listening"]

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(20)
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None

    def keys(self, config: bytes = b"right") -> BrokerKeys:
        return BrokerKeys(self.url, policy=self.broker_policy, attester=self.workload(config))

    def channel(self) -> SealedClient:
        return connect(self.url, policy=self.broker_policy)

    def disk(self, statements: str) -> None:
        """What whoever holds the disk can do to the database."""
        database = sqlite3.connect(self.state / DATABASE, isolation_level=None)
        database.executescript(statements)
        database.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("broker"))
    site.serve()
    yield site
    site.stop()


@pytest.fixture
def one(site: Site) -> str:
    """A resource of the right workload."""
    return site.put(CANARY, site.workload())


@pytest.fixture
def two(site: Site) -> str:
    """A resource of the other workload."""
    return site.put(b"2" * 32, site.workload(b"other"))


def test_each_workload_gets_its_own_key_and_no_other(site: Site, one: str, two: str) -> None:
    with site.keys() as right, site.keys(b"other") as other, site.keys(b"third") as third:
        assert right.key(f"kbs:///{one}") == CANARY
        assert other.key(f"kbs:///{two}") == b"2" * 32
        for keys, path, why in (
            (right, two, "release"),
            (other, one, "release"),
            (third, one, "attestation"),
        ):
            with pytest.raises(ReleaseRefused, match=f"{why}-refused"):
                keys.key(f"kbs:///{path}")
    assert verify(site.state / FILE)[0] == len((site.state / FILE).read_bytes().splitlines())


OPERATOR_ATTACKS = {
    "rules swapped": """
        UPDATE records SET path = 'x' WHERE kind = 'rule' AND path = 'ONE';
        UPDATE records SET path = 'ONE' WHERE kind = 'rule' AND path = 'TWO';
        UPDATE records SET path = 'TWO' WHERE kind = 'rule' AND path = 'x';""",
    "rule copied": """
        UPDATE records SET (version, policy, wrapped_key, body) = (SELECT version, policy, wrapped_key, body
        FROM records WHERE kind = 'rule' AND path = 'TWO') WHERE kind = 'rule' AND path = 'ONE';""",
    "rule edited": "UPDATE records SET body = randomblob(900) WHERE kind = 'rule' AND path = 'ONE';",
    "rule deleted": "DELETE FROM records WHERE kind = 'rule' AND path = 'ONE';",
    "resource row in place of another": """
        DELETE FROM records WHERE kind = 'resource' AND path = 'ONE';
        UPDATE records SET path = 'ONE' WHERE kind = 'resource' AND path = 'TWO';""",
    "resource rows swapped": """
        UPDATE records SET path = 'x' WHERE kind = 'resource' AND path = 'ONE';
        UPDATE records SET path = 'ONE' WHERE kind = 'resource' AND path = 'TWO';
        UPDATE records SET path = 'TWO' WHERE kind = 'resource' AND path = 'x';""",
    "wrapped key copied": """
        UPDATE records SET wrapped_key = (SELECT wrapped_key FROM records WHERE kind = 'resource' AND path = 'TWO')
        WHERE kind = 'resource' AND path = 'ONE';""",
}


@pytest.mark.parametrize("statements", OPERATOR_ATTACKS.values(), ids=OPERATOR_ATTACKS.keys())
def test_an_operator_who_edits_the_database_releases_nothing(
    site: Site, one: str, two: str, statements: str
) -> None:
    with site.keys() as right, site.keys(b"other") as other:
        site.disk(statements.replace("ONE", one).replace("TWO", two))
        for keys in (right, other):
            with pytest.raises(BrokerError) as caught:
                keys.key(f"kbs:///{one}")
            assert "state-damaged" in str(caught.value) or isinstance(caught.value, ReleaseRefused)


def _attestation(site: Site, client: SealedClient) -> tuple[TeeKeyPair, bytes, str]:
    """Through a challenge: key pair, body of the attestation, session cookie."""
    response = client.post(protocol.AUTH_PATH, content=protocol.auth_request("tdx"))
    text, nonce = protocol.parse_challenge(response.content)
    pair = TeeKeyPair.generate()
    runtime = RuntimeData(nonce=text, tee_pubkey=pair.public)
    bundle = collect(site.workload(), nonce, encode_json(runtime))
    body = encode_json(Attestation(runtime_data=runtime, tee_evidence=TeeEvidence(primary_evidence=bundle)))
    return pair, body, response.headers["set-cookie"].split(";")[0]


def _attest(client: SealedClient, body: bytes, cookie: str) -> httpx2.Response:
    client.cookies.clear()
    return client.post(protocol.ATTEST_PATH, content=body, headers={"cookie": cookie})


def _name(response: httpx2.Response) -> str:
    return str(response.json()["type"]).removeprefix(protocol.PROBLEM_PREFIX)


def test_a_replayed_attestation_is_refused(site: Site, one: str) -> None:
    with site.channel() as client:
        _, body, cookie = _attestation(site, client)
        assert _attest(client, body, cookie).status_code == 200
        assert _name(_attest(client, body, cookie)) == "session-refused"
        _, _, fresh = _attestation(site, client)
        assert _name(_attest(client, body, fresh)) == "attestation-refused"


def test_evidence_relayed_from_another_session_is_refused(site: Site) -> None:
    with site.channel() as victim, site.channel() as thief:
        _, body, _ = _attestation(site, victim)
        _, _, cookie = _attestation(site, thief)
        assert _name(_attest(thief, body, cookie)) == "attestation-refused"


def test_a_planted_session_does_not_become_attested(site: Site, one: str) -> None:
    with site.channel() as client:
        _, body, planted = _attestation(site, client)
        assert _attest(client, body, planted).status_code == 200
        client.cookies.clear()
        response = client.get(f"{protocol.RESOURCE_PATH}{one}", headers={"cookie": planted})
        assert _name(response) == "session-refused"


def test_the_token_of_another_session_opens_nothing(site: Site, one: str) -> None:
    with site.channel() as client:
        (pair, body, cookie), (_, other, other_cookie) = (_attestation(site, client) for _ in range(2))
        own = _attest(client, body, cookie).headers["set-cookie"].split(";")[0]
        answer = _attest(client, other, other_cookie).content
        token = decode_json(answer, TokenAnswer, what="answer").token
        client.cookies.clear()
        path = f"{protocol.RESOURCE_PATH}{one}"
        both = client.get(path, headers={"cookie": own, "authorization": f"Bearer {token}"})
        assert _name(both) == "session-refused"
        stolen = client.get(path, headers={"authorization": f"Bearer {token}"})
        with pytest.raises(CloisterError, match="does not open"):
            pair.decrypt(stolen.content, f"kbs:///{one}")


def test_an_oversized_body_is_refused(site: Site) -> None:
    with site.channel() as client:
        response = client.post(protocol.AUTH_PATH, content=b" " * (protocol.MAX_AUTH + 1))
        assert (response.status_code, _name(response)) == (413, "too-large")


@pytest.mark.parametrize(
    "rest", ["models/../demo", "models/%2e%2e/demo", "models%2fkey/one/x", "models/key/d%C3%A9mo"]
)
def test_a_traversal_names_no_resource(site: Site, rest: str) -> None:
    with site.channel() as client:
        request = client.build_request("GET", "/x")
        request.url = request.url.copy_with(raw_path=f"{protocol.RESOURCE_PATH}{rest}".encode())
        response = client.send(request)
        assert (response.status_code, _name(response)) == (400, "bad-resource")


def test_no_secret_is_in_the_process_its_log_or_its_files(site: Site, one: str) -> None:
    with site.keys() as keys, site.keys(b"third") as third:
        assert keys.key(f"kbs:///{one}") == CANARY
        with pytest.raises(ReleaseRefused):
            third.key(f"kbs:///{one}")
    assert site.process is not None
    process = Path(f"/proc/{site.process.pid}")
    seen = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
    seen += (site.root / "broker.log").read_bytes()
    seen += b"".join(path.read_bytes() for path in site.state.iterdir())
    for secret in (CANARY, CANARY.hex().encode(), PASSPHRASE):
        assert secret not in seen


def test_a_broker_killed_outright_serves_again_with_an_unbroken_log(site: Site, one: str) -> None:
    with site.keys() as keys:
        assert keys.key(f"kbs:///{one}") == CANARY
    site.stop(signal.SIGKILL)
    verify(site.state / FILE)
    site.serve()
    with site.keys() as keys:
        assert keys.key(f"kbs:///{one}") == CANARY


PUTTER = """
import sys
from pathlib import Path
from cloister.broker import administration
from cloister.broker.store import Store
state, passphrase, path = sys.argv[1:]
store = Store.open(Path(state), Path(passphrase).read_bytes().strip())
print("ready", flush=True)
while True:
    for letter in b"ab":
        administration.put_resource(store, Path(state), path, bytes([letter]) * 32)
"""


def test_puts_killed_at_any_moment_leave_every_record_and_the_log_whole(site: Site, one: str) -> None:
    words = [sys.executable, "-c", PUTTER, str(site.state), str(site.passphrase), one]
    for delay in (0.0, 0.003, 0.011, 0.017, 0.023, 0.05):
        with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(delay)
            process.kill()
        assert site.store.get("resource", one) in (CANARY, b"a" * 32, b"b" * 32)
        administration.put_resource(site.store, site.state, one, CANARY)
        verify(site.state / FILE)


def _wrong_passphrase(site: Site, folder: Path) -> list[str | Path]:
    (folder / "wrong").touch(0o600)
    (folder / "wrong").write_text("not the passphrase\n")
    return ["list", "--state", site.state, "--passphrase-file", folder / "wrong"]


def _open_passphrase(site: Site, folder: Path) -> list[str | Path]:
    (folder / "open").write_bytes(PASSPHRASE)
    (folder / "open").chmod(0o644)
    return ["list", "--state", site.state, "--passphrase-file", folder / "open"]


def _no_state(site: Site, folder: Path) -> list[str | Path]:
    return ["list", "--state", folder / "none", "--passphrase-file", site.passphrase]


def _no_tee(site: Site, _: Path) -> list[str | Path]:
    return ["serve", *site.options]


def _occupied_port(site: Site, _: Path) -> list[str | Path]:
    port = site.url.rpartition(":")[2]
    return ["serve", *site.options, "--simulated-tee", site.root / "tee", "--port", port]


def _bad_uri(site: Site, _: Path) -> list[str | Path]:
    return ["put", "kbs:///models/../one", "--file", site.passphrase, "--raw", *site.options]


def _not_a_key(site: Site, _: Path) -> list[str | Path]:
    return ["put", "kbs:///models/key/new", "--file", site.passphrase, *site.options]


def _empty_policy(site: Site, folder: Path) -> list[str | Path]:
    (folder / "empty.toml").write_text('format = "cloister/policy/v1"\n')
    return ["policy", "kbs:///models/key/new", "--file", folder / "empty.toml", *site.options]


def _no_policy(site: Site, folder: Path) -> list[str | Path]:
    return ["policy", "kbs:///models/key/new", "--file", folder / "none.toml", *site.options]


def _altered_log(site: Site, folder: Path) -> list[str | Path]:
    lines = (site.state / FILE).read_bytes().splitlines(keepends=True)
    (folder / FILE).write_bytes(b"".join(lines[1:]))
    return ["audit", "--state", folder]


MISTAKES: list[tuple[Callable[[Site, Path], list[str | Path]], int, str]] = [
    (_wrong_passphrase, 1, "broker: the passphrase does not open this state"),
    (_open_passphrase, 2, "usage: the passphrase file"),
    (_no_state, 2, "usage: "),
    (_no_tee, 2, "usage: no TEE was found"),
    (_occupied_port, 4, "network: port "),
    (_bad_uri, 2, "usage: "),
    (_not_a_key, 2, "usage: "),
    (_empty_policy, 2, "policy: "),
    (_no_policy, 2, "usage: cannot read"),
    (_altered_log, 1, "broker: the audit log breaks at line 0"),
]


@pytest.mark.parametrize(
    ("mistake", "code", "line"), MISTAKES, ids=[mistake.__name__.strip("_") for mistake, _, _ in MISTAKES]
)
def test_a_mistake_is_one_clear_line_and_changes_nothing(
    site: Site, tmp_path: Path, mistake: Callable[[Site, Path], list[str | Path]], code: int, line: str
) -> None:
    words = mistake(site, tmp_path)
    before, listed = (site.state / FILE).read_bytes(), site.store.entries()
    result = run("broker", *words)
    assert result.returncode == code
    assert result.stderr.splitlines()[-1].startswith(line)
    assert "Traceback" not in result.stderr
    assert PASSPHRASE.decode() not in result.stderr
    assert ((site.state / FILE).read_bytes(), site.store.entries()) == (before, listed)
    assert not (tmp_path / "none").exists()


def test_an_owner_s_key_goes_in_and_out_by_the_command_line(site: Site, tmp_path: Path) -> None:
    def done(*words: str | Path) -> str:
        result = run("broker", *words)
        assert result.returncode == 0, result.stderr
        return result.stdout

    key, uri = create_key(tmp_path / "owner.key"), "kbs:///models/key/owned"
    state = tmp_path / "state"
    options = ["--state", state, "--passphrase-file", site.passphrase]
    (tmp_path / "rule.toml").write_text(site.policy(site.workload()))
    done("put", uri, "--file", tmp_path / "owner.key", "--init", *options)
    assert json.loads(done("list", "--json", *options)) == [{"uri": uri, "resource": 1, "rule": 0}]
    assert "nobody may read it" in done("list", *options)
    facts = json.loads(done("policy", uri, "--file", tmp_path / "rule.toml", "--json", *options))
    assert facts["version"] == 1
    assert json.loads(done("audit", "--json", "--state", state))["lines"] == 2
    assert Store.open(state, PASSPHRASE).get("resource", "models/key/owned") == key


def test_a_request_in_the_clear_is_refused(site: Site) -> None:
    response = httpx2.post(f"{site.url}{protocol.AUTH_PATH}", content=protocol.auth_request("tdx"))
    assert response.status_code == 403
    assert _name(response) == "sealed-request-required"
