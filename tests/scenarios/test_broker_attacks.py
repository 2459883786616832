"""Named attacks on a key broker that runs as its own process: its operator's disk, its network, its callers."""

from __future__ import annotations

import contextlib
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

from broker_parts import CHEAP, PASSPHRASE, Attempt, Bench, attested, call, workload
from cloister.appraisal.draft import draft_policy
from cloister.appraisal.policy import load_policy
from cloister.attester.launch import launch_events
from cloister.attester.simulated import SimulatedPlatform, SimulatedTee
from cloister.broker import protocol, tables
from cloister.broker.app import create_broker
from cloister.broker.client import BrokerKeys, collect
from cloister.broker.configuration import broker_events
from cloister.broker.jwe import TeeKeyPair
from cloister.broker.laptop import Laptop
from cloister.broker.protocol import Attestation, RuntimeData, TeeEvidence, TokenAnswer
from cloister.channel.transport import SealedClient, connect
from cloister.encoding import decode_json, encode_json
from cloister.errors import BrokerError, CloisterError, ReleaseRefused, SessionRefused
from cloister.sealing.key_file import create_key
from owners_site import Service, rows, run, snapshot

CANARY = b"CANARY-9c-KEY-THAT-NOBODY-SEES!!"


class Site:
    """One broker's machine: a simulated TEE, a state directory, and a broker process when it runs."""

    def __init__(self, root: Path) -> None:
        self.root, self.state = root, root / "state"
        self.platform = SimulatedPlatform.create(root / "tee", now=int(time.time()))
        self.passphrase = root / "passphrase"
        self.passphrase.touch(0o600)
        self.passphrase.write_bytes(PASSPHRASE + b"\n")
        self.options: list[str | Path] = ["--state", self.state, "--passphrase-file", self.passphrase]
        self.laptop = Laptop.create(self.state, PASSPHRASE, cost=CHEAP)
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
        self.laptop.put(path, content)
        self.laptop.allow(path, (self.policy(tee),))
        return path

    def content(self, path: str) -> bytes:
        read = self.laptop.state.resources.read(path)
        assert read is not None
        return read[1]

    def serve(self) -> None:
        """Start the broker and wait until it listens."""
        options: list[str | Path] = [*self.options, "--simulated-tee", self.root / "tee", "--port", "0"]
        self.broker_policy = load_policy(
            self.policy(self.platform.tee("tdx", launch=broker_events())), name="broker policy"
        )
        self.service = Service(self.root / "broker.log", "broker", "serve", *options)
        self.url = self.service.url

    def keys(self, config: bytes = b"right") -> BrokerKeys:
        return BrokerKeys(self.url, policy=self.broker_policy, attester=self.workload(config))

    def channel(self) -> SealedClient:
        return connect(self.url, policy=self.broker_policy)

    @contextlib.contextmanager
    def disk(self, statements: str) -> Iterator[None]:
        """What whoever holds the disk can do to the records; afterwards they are as they were."""
        before = rows(self.state)["records"]
        with contextlib.closing(
            sqlite3.connect(self.state / tables.DATABASE, isolation_level=None)
        ) as database:
            database.executescript(statements)
            assert rows(self.state)["records"] != before
            try:
                yield
            finally:
                database.execute("DELETE FROM records")
                database.executemany("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?)", before)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("broker"))
    site.serve()
    yield site
    site.service.stop()


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
    site.laptop.state.journal.load()


OPERATOR_ATTACKS = {
    "rules swapped": """
        UPDATE records SET name = 'x' WHERE kind = 'rule' AND name = 'ONE';
        UPDATE records SET name = 'ONE' WHERE kind = 'rule' AND name = 'TWO';
        UPDATE records SET name = 'TWO' WHERE kind = 'rule' AND name = 'x';""",
    "rule copied": """
        UPDATE records SET (version, body) = (SELECT version, body FROM records WHERE kind = 'rule' AND name = 'TWO')
        WHERE kind = 'rule' AND name = 'ONE';""",
    "rule edited": "UPDATE records SET body = randomblob(900) WHERE kind = 'rule' AND name = 'ONE';",
    "rule deleted": "DELETE FROM records WHERE kind = 'rule' AND name = 'ONE';",
    "resource row in place of another": """
        DELETE FROM records WHERE kind = 'resource' AND name = 'ONE';
        UPDATE records SET name = 'ONE' WHERE kind = 'resource' AND name = 'TWO';""",
    "resource rows swapped": """
        UPDATE records SET name = 'x' WHERE kind = 'resource' AND name = 'ONE';
        UPDATE records SET name = 'ONE' WHERE kind = 'resource' AND name = 'TWO';
        UPDATE records SET name = 'TWO' WHERE kind = 'resource' AND name = 'x';""",
    "wrapped key copied": """
        UPDATE records SET wrapped = (SELECT wrapped FROM records WHERE kind = 'resource' AND name = 'TWO')
        WHERE kind = 'resource' AND name = 'ONE';""",
}


@pytest.mark.parametrize("statements", OPERATOR_ATTACKS.values(), ids=OPERATOR_ATTACKS.keys())
def test_an_operator_who_edits_the_database_releases_nothing(
    site: Site, one: str, two: str, statements: str
) -> None:
    with site.keys() as right, site.keys(b"other") as other:
        for keys, path in ((right, one), (other, two)):
            keys.key(f"kbs:///{path}")
        with site.disk(statements.replace("ONE", one).replace("TWO", two)):
            with pytest.raises(BrokerError, match="state-damaged"):
                right.key(f"kbs:///{one}")
            with pytest.raises((BrokerError, ReleaseRefused), match=r"state-damaged|release-refused"):
                other.key(f"kbs:///{one}")
        assert right.key(f"kbs:///{one}") == CANARY


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


def _cookie(response: httpx2.Response) -> str:
    return str(response.headers["set-cookie"]).split(";")[0].partition("=")[2]


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


TRAVERSALS = [
    b"models/key/demo/../demo",
    b"models/key/./demo",
    b"models//key/demo",
    b"/models/key/demo",
    b"models/key/demo/",
    b"models/../models/key/demo",
    b"models/key/%2e%2e%2fdemo",
    b"models/key%2Fdemo",
    b"models/key/%252e%252e",
    b"models/key/%64emo",
    b"models/key/..%5cdemo",
    b"models\\key\\demo",
    b"models/key/demo%00",
    b"models/key/demo\x00",
    b"models/key/demo%20",
    b"models/key/d\xc3\xa9mo",
    "models/key/\uff44emo".encode(),
    b"models/key/%ef%bd%84emo",
    b"models/key/demo;x",
    b"models/key/demo?x=1",
    b"models/key",
    b"..",
    b"",
]


@pytest.mark.parametrize("rest", TRAVERSALS, ids=[ascii(rest)[2:-1] for rest in TRAVERSALS])
def test_only_one_spelling_of_a_path_reaches_what_a_session_may_read(tmp_path: Path, rest: bytes) -> None:
    bench = Bench(tmp_path / "state")
    bench.put()
    bench.allow(workload())
    session = {"cookie": f"{protocol.COOKIE}={attested(bench, workload()).session}"}
    app, prefix = create_broker(bench.desk), protocol.RESOURCE_PATH.encode()
    assert call(app, "GET", prefix + b"models/key/demo", headers=session).status == 200
    reply = call(app, "GET", prefix + rest, headers=session)
    assert (reply.status, reply.problem) == (400, "bad-resource")


def test_a_token_for_another_key_opens_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "state")
    bench.put()
    bench.allow(workload())
    first, second = attested(bench, workload()), attested(bench, workload())
    second.session = None  # the token alone names the session, and answers go to the session's own key
    second.token, stolen = first.token, second.pair
    assert first.pair.public != stolen.public
    with pytest.raises(CloisterError, match="does not open"):
        second.get()
    first.session = second.session = attested(bench, workload()).session
    with pytest.raises(SessionRefused, match="another session or key"):
        first.get()


@pytest.mark.parametrize("name", ["token", "session"])
def test_an_expired_token_or_session_opens_nothing_and_a_clock_turned_back_revives_none(
    tmp_path: Path, name: str
) -> None:
    bench = Bench(tmp_path / "state")
    bench.put()
    bench.allow(workload())
    attempt: Attempt = attested(bench, workload())
    setattr(attempt, name, None)
    attempt.get()
    bench.clock.now += 300
    for turned_back in (0, 299, 86_400):
        bench.clock.now -= turned_back
        with pytest.raises(SessionRefused):
            attempt.get()


def test_no_secret_is_in_the_process_its_log_or_its_files(site: Site, one: str) -> None:
    with site.keys() as keys, site.keys(b"third") as third:
        assert keys.key(f"kbs:///{one}") == CANARY
        with pytest.raises(ReleaseRefused):
            third.key(f"kbs:///{one}")
    with site.channel() as client:
        pair, body, challenge = _attestation(site, client)
        nonce = decode_json(body, Attestation, what="body").runtime_data.nonce
        answer = _attest(client, body, challenge)
        cookie, token = _cookie(answer), decode_json(answer.content, TokenAnswer, what="answer").token
        client.cookies.clear()
        path = f"{protocol.RESOURCE_PATH}{one}"
        bearer = {"authorization": f"Bearer {token}"}
        assert pair.decrypt(client.get(path, headers=bearer).content, f"kbs:///{one}") == CANARY
        answers = [
            client.get(path, headers={"cookie": "kbs-session-id=" + cookie[:-1]}),
            client.get(path, headers={"authorization": f"Bearer {token[:-4]}"}),
            client.get(f"{protocol.RESOURCE_PATH}models/key/none", headers=bearer),
            client.post(protocol.ATTEST_PATH, content=body, headers={"cookie": challenge}),
        ]
    assert all(answer.status_code >= 400 for answer in answers)
    seen = site.service.seen() + b"".join(answer.content for answer in answers)
    seen += b"".join(path.read_bytes() for path in site.state.iterdir())
    identifier = challenge.partition("=")[2]
    for secret in (
        CANARY,
        CANARY.hex().encode(),
        PASSPHRASE,
        *(one.encode() for one in (cookie, token, identifier)),
    ):
        assert secret not in seen
    # A spent challenge is in the evidence that is kept for audits, and nowhere else.
    elsewhere = [table for name, table in rows(site.state).items() if name != "evidence"]
    assert nonce not in repr(elsewhere)
    assert nonce.encode() not in site.service.seen()


def test_a_broker_killed_outright_serves_again_with_an_unbroken_log(site: Site, one: str) -> None:
    with site.keys() as keys:
        assert keys.key(f"kbs:///{one}") == CANARY
    site.service.stop(signal.SIGKILL)
    Laptop.open(site.state, PASSPHRASE)
    site.serve()
    with site.keys() as keys:
        assert keys.key(f"kbs:///{one}") == CANARY


PUTTER = """
import sys
from pathlib import Path
from cloister.broker.laptop import Laptop
state, passphrase, path = sys.argv[1:]
laptop = Laptop.open(Path(state), Path(passphrase).read_bytes().strip())
print("ready", flush=True)
while True:
    for letter in b"ab":
        laptop.put(path, bytes([letter]) * 32)
"""


def test_puts_killed_at_any_moment_leave_every_record_and_the_log_whole(site: Site, one: str) -> None:
    words = [sys.executable, "-c", PUTTER, str(site.state), str(site.passphrase), one]
    for delay in (0.0, 0.003, 0.011, 0.017, 0.023, 0.05):
        with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(delay)
            process.kill()
        assert site.content(one) in (CANARY, b"a" * 32, b"b" * 32)
        site.laptop.put(one, CANARY)
        Laptop.open(site.state, PASSPHRASE)


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
    copy = snapshot(site.state, folder / "copy")
    with contextlib.closing(sqlite3.connect(copy / tables.DATABASE, isolation_level=None)) as database:
        database.execute("UPDATE entries SET body = CAST(replace(body, 'manifest', 'manifesT') AS BLOB)")
    return ["audit", "--state", copy, "--passphrase-file", site.passphrase]


MISTAKES: list[tuple[Callable[[Site, Path], list[str | Path]], int, str]] = [
    (_wrong_passphrase, 1, "broker: the passphrase does not open this state"),
    (_open_passphrase, 2, "usage: the passphrase file"),
    (_no_state, 2, "usage: "),
    (_no_tee, 2, "usage: no TEE was found"),
    (_occupied_port, 4, "network: port "),
    (_bad_uri, 2, "usage: "),
    (_not_a_key, 2, "usage: "),
    (_empty_policy, 2, "policy: "),
    (_no_policy, 2, "policy: "),
    (_altered_log, 3, "broker: the log is not the one of its head"),
]


@pytest.mark.parametrize(
    ("mistake", "code", "line"), MISTAKES, ids=[mistake.__name__.strip("_") for mistake, _, _ in MISTAKES]
)
def test_a_mistake_is_one_clear_line_and_changes_nothing(
    site: Site, tmp_path: Path, mistake: Callable[[Site, Path], list[str | Path]], code: int, line: str
) -> None:
    words = mistake(site, tmp_path)
    before = rows(site.state)
    result = run("broker", *words)
    assert result.returncode == code
    assert result.stderr.splitlines()[-1].startswith(line)
    assert "Traceback" not in result.stderr
    assert PASSPHRASE.decode() not in result.stderr
    assert rows(site.state) == before
    assert not (tmp_path / "none").exists()


def test_an_owner_s_key_goes_in_and_out_by_the_command_line(site: Site, tmp_path: Path) -> None:
    def done(*words: str | Path) -> str:
        result = run("broker", *words)
        assert result.returncode == 0, result.stderr
        return result.stdout

    key, uri = create_key(tmp_path / "owner.key"), "kbs:///models/key/owned"
    state = tmp_path / "state"
    options: list[str | Path] = ["--state", state, "--passphrase-file", site.passphrase]
    (tmp_path / "rule.toml").write_text(site.policy(site.workload()))
    done("put", uri, "--file", tmp_path / "owner.key", "--init", *options)
    assert json.loads(done("list", "--json", *options)) == [{"uri": uri, "resource": 1, "rule": 0}]
    assert "nobody may read it" in done("list", *options)
    facts = json.loads(done("policy", uri, "--file", tmp_path / "rule.toml", "--json", *options))
    assert facts["version"] == 1
    assert [entry["event"] for entry in json.loads(done("audit", "--json", *options))["entries"]][-2:] == [
        "resource",
        "rule",
    ]
    read = Laptop.open(state, PASSPHRASE).state.resources.read("models/key/owned")
    assert read is not None
    assert read[1] == key


def test_a_request_in_the_clear_is_refused(site: Site) -> None:
    response = httpx2.post(f"{site.url}{protocol.AUTH_PATH}", content=protocol.auth_request("tdx"))
    assert response.status_code == 403
    assert _name(response) == "sealed-request-required"
