"""A served broker in owners' mode and a :class:`Watch` on it, for tests of the owners' page: real parts throughout."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import manifest_parts
from broker_parts import (
    PATH,
    SECRET,
    Clock,
    OwnersBench,
    attested,
    owners_manifest,
    platform,
    policy_for,
    served,
    workload,
)
from cloister.appraisal.policy import Policy, load_policy
from cloister.attester.simulated import SimulatedTee
from cloister.broker.configuration import broker_events, owners_configuration
from cloister.broker.desk import Desk
from cloister.broker.limits import Buckets
from cloister.broker.owner_client import OwnerClient
from cloister.broker.serving import seal_broker
from cloister.broker.state_key import Share
from cloister.channel.keyring import KeyRing
from cloister.channel.transport import connect, wall_clock
from cloister.client.guard import Guard, Secrets
from cloister.client.heads import Heads
from cloister.client.owners_ledger import Ledger
from cloister.client.owners_page import create_owners_page
from cloister.client.owners_seen import Seen
from cloister.client.owners_view import Overview, overview
from cloister.client.owners_watch import Watch
from cloister.manifest.manifest import Manifest, Workload, origin
from cloister.manifest.signers import Signer
from owners_site import WitnessedBench

START = int(time.time())
"""Servers and clients here go by the wall clock."""
SECRETS = Secrets(place="the-place", token="the-token", cookie="the-cookie")


@dataclass
class Deployed:
    """What is served at ``url`` can be exchanged (:meth:`serve`), as whoever runs the host can."""

    bench: OwnersBench
    url: str = ""
    rings: list[KeyRing] = field(default_factory=list)
    shares: dict[str, Share] = field(default_factory=dict)
    app: Callable[..., Any] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert self.app is not None
        await self.app(scope, receive, send)

    def serve(self, desk: Desk, *, origin_: str | None = None) -> None:
        """Let this broker answer from now on."""
        configuration = owners_configuration(origin_ or self.origin)
        tee = platform(START).tee("tdx", launch=broker_events(configuration))
        self.policy_text = policy_for(tee, now=START)
        self.policy: Policy = load_policy(self.policy_text, name="broker policy")
        self.app, ring = seal_broker(desk, tee, buckets=Buckets(rate=10_000, burst=10_000))
        self.rings.append(ring)

    @property
    def origin(self) -> str:
        return origin(self.bench.genesis)

    @contextlib.contextmanager
    def watch(
        self,
        heads: Heads,
        *,
        by: str | None = "audrey",
        pinned: str | None = "",
        signer: Signer | None = None,
    ) -> Iterator[Watch]:
        """What `cloister owner page` opens; ``pinned`` None pins nobody."""
        pen = signer or (None if by is None else manifest_parts.owner(by))
        channel = connect(self.url, policy=self.policy)
        watch = Watch(
            OwnerClient(channel, signer=pen),
            channel,
            address=self.url,
            origin=self.origin if pinned == "" else pinned,
            signing=pen is not None,
            heads=heads,
            now=wall_clock,
        )
        try:
            yield watch
        finally:
            watch.close()

    def released(self, count: int = 1, path: str = PATH, *, purpose: str | None = None) -> None:
        """A workload attests and receives ``path``, that many times."""
        for _ in range(count):
            attested(self.bench, reader(), purpose=purpose).get(path)

    def copied(self, directory: Path) -> OwnersBench:
        """A second broker on a copy of the state, opened with the same shares: a restored backup, or a fork."""
        shutil.copytree(self.bench.directory, directory)
        other = object.__new__(OwnersBench)
        other.directory, other.genesis = directory, self.bench.genesis
        other.clock, other.witnesses = self.bench.clock, {}
        other.custody = other.again()
        for share in list(self.shares.values())[: self.bench.genesis.update.threshold]:
            other.custody.offer(share)
        other.desk = other.desk_over(other.custody)
        return other


def reader() -> SimulatedTee:
    """The workload ``inference``."""
    return workload(now=START)


def manifest(**changes: Any) -> Manifest:
    """As :func:`broker_parts.owners_manifest`, of a platform of today."""
    known = Workload(policies=(policy_for(reader(), now=START),))
    return owners_manifest(**{"workloads": {"inference": known}, "issued": START, **changes})


@contextlib.contextmanager
def deployed(directory: Path, **changes: Any) -> Iterator[Deployed]:
    """A broker whose owners keep their shares, with one key, its rule and one release."""
    bench = OwnersBench(directory, genesis=manifest(**changes), clock=Clock(START))
    with filled(Deployed(bench, shares=bench.share_out())) as found:
        yield found


@contextlib.contextmanager
def witnessed(root: Path) -> Iterator[Deployed]:
    """The same, with wanda and willy as its witnesses, who serve."""
    root.mkdir()
    genesis = manifest(witnesses=manifest_parts.two_witnesses())
    bench = WitnessedBench.opened(root, genesis=genesis, clock=Clock(START))
    try:
        with filled(Deployed(bench, shares=dict(bench.shares))) as found:
            yield found
    finally:
        bench.witnesses_away()


@contextlib.contextmanager
def filled(found: Deployed) -> Iterator[Deployed]:
    """One key, its rule, one release; served."""
    bench = found.bench
    bench.have_done("put", PATH, SECRET)
    bench.allow()
    found.serve(bench.desk)
    found.released()
    with served(found) as url:
        found.url = url
        yield found
    for ring in found.rings:
        ring.close()


def view(watch: Watch) -> Overview:
    """Look until the log is read, and what the page would show."""
    while True:
        found = watch.look(overview)
        if found.reading is None:
            return found


def seen(watch: Watch) -> Seen:
    """As :func:`view`, before it is put in words."""

    def keep(found: Seen, _ledger: Ledger) -> Seen:
        return found

    while True:
        found = watch.look(keep)
        if found.reading is None:
            return found


def guarded(watch: Watch, *, port: int, secret: Secrets = SECRETS) -> Guard:
    """The page with its door, under known secrets."""
    from cloister.cli.owner_page import evidence_report

    return Guard(create_owners_page(watch, evidence_report), secret, port=port)
