"""A workload's mesh identity: when it renews, what it retries, and which answers of a broker it does not believe."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import broker_parts
import mesh_parts as mesh
from cloister.broker.mesh import encode_bundle
from cloister.broker.mesh_client import MeshIdentity
from cloister.broker.mesh_peer import MeshRefused
from cloister.broker.mesh_request import make_request
from cloister.broker.mesh_tls import client_context
from cloister.errors import BrokerError, NetworkError, ReleaseRefused
from mesh_parts import APPLICATION, NOW, Broker


@dataclass
class Clock:
    now: int = NOW

    def __call__(self) -> int:
        return self.now


@dataclass
class Line:
    """The way to the broker: it breaks when it is told to, and counts."""

    broker: Broker
    broken: int = 0
    error: Exception = field(default_factory=lambda: NetworkError("the line is down"))
    asked: int = 0
    slept: list[float] = field(default_factory=list)

    def request(self, csr: bytes) -> Any:
        self.asked += 1
        if self.broken:
            self.broken -= 1
            raise self.error
        return self.broker.request(csr)


def identity(line: Line, clock: Clock, **changes: Any) -> MeshIdentity:
    fields: dict[str, Any] = {
        "bundle": line.broker.bundle,
        "workload": "scorer",
        "application": APPLICATION,
        "root_sha256": mesh.root_sha256(),
        "now": clock,
        "sleep": line.slept.append,
    }
    return MeshIdentity(line.request, **{**fields, **changes})


def test_the_first_credential_is_asked_for_when_it_is_needed_and_then_kept() -> None:
    line, clock = Line(Broker()), Clock()
    it = identity(line, clock)
    assert line.asked == 0
    first = it.credential()
    assert it.credential() is first
    assert line.asked == 1
    assert first.own.workload == "scorer"
    assert first.bundle == mesh.bundle()


def test_it_is_renewed_after_two_thirds_of_its_life_with_another_key() -> None:
    line, clock = Line(Broker()), Clock()
    it = identity(line, clock)
    first = it.credential()
    assert first.renew_at == NOW + 3600 - 1220
    clock.now = first.renew_at - 1
    assert it.credential() is first
    clock.now = line.broker.now = first.renew_at
    second = it.credential()
    assert second.own.public_key != first.own.public_key
    assert line.asked == 2


def test_a_clock_that_was_set_back_before_the_certificate_renews_it() -> None:
    line, clock = Line(Broker()), Clock()
    it = identity(line, clock)
    it.credential()
    clock.now = line.broker.now = NOW - 61
    with pytest.raises(MeshRefused):  # the broker's own certificate has not begun then either
        it.credential()
    assert line.asked == 2


def test_a_broken_line_is_tried_a_bounded_number_of_times() -> None:
    line = Line(Broker(), broken=3)
    it = identity(line, Clock())
    assert it.credential().own.workload == "scorer"
    assert (line.asked, line.slept) == (4, [0.25, 0.5, 1.0])
    line.broken = 100
    with pytest.raises(NetworkError):
        it.renew()
    assert line.asked == 8


@pytest.mark.parametrize("error", [ReleaseRefused("no"), BrokerError("no"), MeshRefused("no")])
def test_a_refusal_is_not_tried_again(error: Exception) -> None:
    line = Line(Broker(), broken=1, error=error)
    with pytest.raises(type(error)):
        identity(line, Clock()).credential()
    assert (line.asked, line.slept) == (1, [])


def test_what_stands_is_used_while_the_broker_is_away_and_not_a_second_longer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    line, clock = Line(Broker()), Clock()
    it = identity(line, clock)
    first = it.credential()
    line.broken = 1000
    clock.now = NOW + 3599
    assert it.credential() is first
    assert "was not renewed" in caplog.text
    clock.now = NOW + 3600
    with pytest.raises(NetworkError, match="the line is down"):
        it.credential()


def another(**changes: Any) -> Callable[[bytes], Any]:
    """A broker that answers something else than was asked."""

    def answer(csr: bytes) -> Any:
        del csr
        member = mesh.member(**changes)
        return member.chain, encode_bundle(member.bundle)

    return answer


def with_bundle(body: bytes) -> Callable[[bytes], Any]:
    return lambda csr: (Broker().request(csr)[0], body)


UNBELIEVED: dict[str, tuple[Callable[[bytes], Any], str]] = {
    "a certificate for another key": (another(), "another key"),
    "a certificate of another workload": (another(workload="asker"), "the peer is asker"),
    "a bundle of another mesh": (another(application="other"), "another application"),
    "a bundle whose root is another": (
        with_bundle(
            encode_bundle(mesh.bundle(1, "other")).replace(b'"application":"other"', b'"application":"clinic"')
        ),
        "its root",
    ),
    "a certificate of another generation than the bundle": (
        with_bundle(encode_bundle(mesh.bundle(2))), "not of the manifest in force",
    ),
    "no certificate": (lambda csr: ((), Broker().bundle()), "chain of one"),
    "a certificate that has ended": (Broker(now=NOW - 7200).request, "cannot be used"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNBELIEVED)
def test_an_answer_is_not_believed(name: str) -> None:
    request, words = UNBELIEVED[name]
    it = MeshIdentity(
        request, bundle=Broker().bundle, workload="scorer", application=APPLICATION,
        root_sha256=mesh.root_sha256(), now=Clock(),
    )  # fmt: skip
    with pytest.raises(MeshRefused, match=words):
        it.credential()


def test_a_new_manifest_is_followed_and_an_older_one_never_again() -> None:
    line, clock = Line(Broker()), Clock()
    it = identity(line, clock)
    it.credential()
    assert it.refresh() is False
    line.broker.version = 2
    assert it.refresh() is True
    assert it.credential().bundle == mesh.bundle(2)
    line.broker.version = 1
    with pytest.raises(MeshRefused, match="version 1, but 2"):
        it.refresh()
    with pytest.raises(MeshRefused, match="version 1, but 2"):
        it.renew()
    assert it.credential().bundle == mesh.bundle(2)


def test_a_newer_manifest_ends_the_certificate_before_the_next_one_is_there() -> None:
    line, clock = Line(Broker()), Clock()
    it = identity(line, clock, attempts=1)
    it.credential()
    line.broker.version, line.broken = 2, 2
    for ask in (it.refresh, it.credential):  # the bundle comes, and certificates do not
        with pytest.raises(NetworkError):
            ask()
    assert it.credential().bundle == mesh.bundle(2)


def test_a_server_follows_renewals_and_manifests_while_it_runs() -> None:
    line, clock = Line(Broker()), Clock()
    it = identity(line, clock)
    first = it.credential()
    asker, other = mesh.member("asker"), mesh.member("asker", 2)
    with mesh.answering(it.context) as (port, told):
        assert mesh.talk(asker.client(), port) == b"welcome"
        line.broker.version = 2
        assert it.refresh()
        assert it.credential() is not first
        assert mesh.talk(other.client(), port) == b"welcome"
        with pytest.raises(ssl.SSLError):
            mesh.talk(asker.client(), port)
        assert len(told) == 2
        clock.now += 3600
        with pytest.raises((ssl.SSLError, ConnectionError)):
            mesh.talk(other.client(), port)
        assert len(told) == 2


def test_threads_renew_once_and_do_not_wait_for_it_while_one_stands() -> None:
    line, clock = Line(Broker()), Clock()
    gate, inside = threading.Event(), threading.Event()

    def request(csr: bytes) -> Any:
        inside.set()
        assert gate.wait(10)
        return line.request(csr)

    it = identity(line, clock)
    first = it.credential()
    it._request = request
    clock.now = line.broker.now = first.renew_at
    renewing = threading.Thread(target=it.credential)
    renewing.start()
    assert inside.wait(10)
    assert it.credential() is first
    gate.set()
    renewing.join(10)
    assert it.credential() is not first
    assert line.asked == 2


def test_keeping_it_renewed_goes_on_after_failures(caplog: pytest.LogCaptureFixture) -> None:
    line, clock = Line(Broker(), broken=4), Clock()
    it = identity(line, clock)

    async def run() -> None:
        task = asyncio.create_task(it.keep_renewed(pause=0.01))
        while it._held is None or it._held.bundle.manifest_version != 2:
            await asyncio.sleep(0.01)
            if it._held is not None:
                line.broker.version = 2
        task.cancel()

    asyncio.run(asyncio.wait_for(run(), 30))
    assert "was not renewed" in caplog.text
    assert line.asked == 6


def test_a_brokers_own_state_issues_and_its_next_manifest_revokes(tmp_path: Path) -> None:
    """The authority of a real laptop state, over two manifests and a restart."""
    bench = broker_parts.Bench(tmp_path, clock=broker_parts.Clock(NOW))
    authority = bench.laptop.state.mesh
    application = bench.laptop.state.authority.manifest.manifest.application

    def member(workload: str) -> MeshIdentity:
        return MeshIdentity(
            lambda csr: (
                authority.issue(
                    csr,
                    manifest=bench.laptop.state.authority.manifest,
                    workload=workload,
                    evidence_sha256=mesh.EVIDENCE,
                ), authority.bundle(),
            ),
            bundle=authority.bundle, workload=workload, application=application,
            root_sha256=authority.root_sha256, now=Clock(NOW),
        )  # fmt: skip

    scorer, asker, late = member("scorer"), member("asker"), member("asker")
    first = asker.credential()
    old_key = mesh.new_key()
    old_csr = make_request(old_key, workload="asker", application=application)
    old_chain = authority.issue(
        old_csr,
        manifest=bench.laptop.state.authority.manifest,
        workload="asker",
        evidence_sha256=mesh.EVIDENCE,
    )
    shown = bench.desk.shown()
    assert shown.mesh_root_sha256 == authority.root_sha256
    scorer.credential()
    with mesh.answering(scorer.context) as (port, told):
        assert mesh.talk(first.client, port, application=application) == b"welcome"
        bench.put("other/key/demo")  # a repository that no manifest had yet: its owners sign the next one
        assert scorer.refresh()
        assert scorer.credential().bundle.manifest_version == first.bundle.manifest_version + 1
        stale = client_context(scorer.credential().bundle, old_chain, old_key)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            mesh.talk(stale, port, application=application)
        assert mesh.talk(late.credential().client, port, application=application) == b"welcome"
        assert len(told) == 2
    again = bench.start()
    assert again.custody.state.mesh.bundle() == authority.bundle()


def test_no_key_shows_in_a_representation() -> None:
    shown = repr(identity(Line(Broker()), Clock()).credential())
    assert "PrivateKey" not in shown
    assert "SSLContext" not in shown
