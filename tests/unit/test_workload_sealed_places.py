"""A tree's newest version at the broker: lost answers are made up for, and another writer is never overwritten."""

from __future__ import annotations

from contextlib import ExitStack
from types import SimpleNamespace
from typing import cast

import pytest

from cloister.broker.wire import TreeVersion
from cloister.errors import NetworkError, Superseded
from cloister.sealing.tree import Head
from cloister.workload.broker_session import BrokerSession
from cloister.workload.configuration import Mounted
from cloister.workload.isolation import User
from cloister.workload.plan import Plan
from cloister.workload.sealed_places import SealedPlaces

TREE = "11" * 32
WANTED = Mounted(source="out.tree", path="/out", write=True, key="kbs:///default/key/out")


class Broker:
    """Remembers the newest version as a broker does; ``loses`` says which answers do not arrive."""

    def __init__(self) -> None:
        self.newest: TreeVersion | None = None
        self.loses: list[str] = []

    def tree(self, _uri: str) -> TreeVersion | None:
        return self.newest

    def record_tree(self, _uri: str, newest: TreeVersion, *, after: TreeVersion | None) -> None:
        lost = self.loses.pop(0) if self.loses else ""
        if lost == "request":
            raise NetworkError("the broker cannot be reached")
        if after != self.newest:
            raise Superseded("does not follow")
        self.newest = newest
        if lost == "answer":
            raise NetworkError("the broker cannot be reached")


def _head(version: int) -> Head:
    return Head(TREE, version, f"{version:064x}")


def _version(version: int) -> TreeVersion:
    head = _head(version)
    return TreeVersion(tree=head.tree, version=head.version, digest=head.digest)


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def places(broker: Broker) -> SealedPlaces:
    return SealedPlaces(
        cast(Plan, None),
        cast(BrokerSession, SimpleNamespace(keys=broker)),
        user=User(uid=0, gid=0),
        undo=ExitStack(),
        progress=lambda _step, _fact: None,
    )


@pytest.mark.parametrize(
    "losses",
    [
        pytest.param(["answer"], id="one answer is lost"),
        pytest.param(["answer", "request", "request"], id="an answer is lost, and then the broker is away"),
        pytest.param(["request", "answer"], id="the broker is away, and then an answer is lost"),
        pytest.param(["request", "request"], id="requests are lost"),
    ],
)
def test_a_lost_answer_does_not_end_the_program(
    broker: Broker, places: SealedPlaces, losses: list[str]
) -> None:
    record = places._recorder(WANTED)
    record(_head(1))
    broker.loses = list(losses)
    version = 1
    while broker.loses:
        version += 1
        with pytest.raises(NetworkError):
            record(_head(version))
    record(_head(version + 1))
    assert broker.newest == _version(version + 1)
    assert places.broken() is None


def test_a_version_that_somebody_else_recorded_ends_the_program_also_after_a_lost_answer(
    broker: Broker, places: SealedPlaces
) -> None:
    record = places._recorder(WANTED)
    record(_head(1))
    broker.loses = ["answer"]
    with pytest.raises(NetworkError):
        record(_head(2))
    broker.newest = _version(7)
    with pytest.raises(Superseded):
        record(_head(3))
    assert broker.newest == _version(7)
    assert "newer version" in str(places.broken())
