"""What every key store over a network is tried with, beside :mod:`keystore_contract`: answers that are none, and lost ones.

A test module inherits :class:`NetworkContract` as ``TestNetwork`` and gives it ``server``, ``open_store`` and the names of
its service's operations.
"""

from __future__ import annotations

import base64
import logging
import secrets
import traceback
from collections.abc import Callable
from typing import ClassVar

import pytest

from cloister.broker.keystores import Keystore, foreign
from cloister.errors import KeystoreError, KeystoreUnavailable
from keystore_contract import AAD, NOW, OWNER, SECRET, is_one_line
from keystore_servers import KeyServer, Unasked, broken_answers
from vendor_services import Closed

BROKEN = broken_answers()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the pauses between attempts."""
    monkeypatch.setattr(foreign, "PAUSE", 0.0)


class NetworkContract:
    """Inherit it; name operations as patterns of :meth:`KeyServer.fail`."""

    wraps: ClassVar[str]
    unwraps: ClassVar[str]
    reads: ClassVar[str]
    makes: ClassVar[tuple[str, ...]]
    """Every request of `rotate` that changes something, in order."""
    destroys: ClassVar[tuple[str, ...]]
    canaries: ClassVar[tuple[str, ...]]
    """Texts of the credentials, which may appear nowhere."""

    @pytest.fixture
    def store(self, open_store: Callable[[], Keystore]) -> Keystore:
        return open_store()

    @pytest.fixture
    def key(self) -> str:
        return f"net{secrets.token_hex(6)}"

    @pytest.mark.parametrize("broken", BROKEN)
    def test_a_broken_answer_to_an_unwrap_is_refused_and_the_next_whole_one_taken(
        self, store: Keystore, server: KeyServer, key: str, broken: str
    ) -> None:
        fault, unavailable = BROKEN[broken]
        store.generate(key, owner=OWNER, now=NOW)
        wrapped = store.wrap(key, SECRET, AAD)
        server.fail(self.unwraps, *[fault] * foreign.ATTEMPTS)
        with pytest.raises(KeystoreError) as refusal:
            store.unwrap(key, wrapped, AAD)
        assert isinstance(refusal.value, KeystoreUnavailable) == unavailable, refusal.value
        is_one_line(refusal.value)
        server.faults.clear()
        assert store.unwrap(key, wrapped, AAD) == SECRET

    @pytest.mark.parametrize("broken", BROKEN)
    @pytest.mark.parametrize("operation", ["reads", "wraps"])
    def test_a_broken_answer_never_makes_a_wrap(
        self, store: Keystore, server: KeyServer, key: str, broken: str, operation: str
    ) -> None:
        fault, unavailable = BROKEN[broken]
        store.generate(key, owner=OWNER, now=NOW)
        store.wrap(key, SECRET, AAD)
        server.fail(getattr(self, operation), *[fault] * foreign.ATTEMPTS)
        with pytest.raises(KeystoreError) as refusal:
            store.wrap(key, SECRET, AAD)
        assert isinstance(refusal.value, KeystoreUnavailable) == unavailable, refusal.value
        is_one_line(refusal.value)
        server.faults.clear()
        assert store.unwrap(key, store.wrap(key, SECRET, AAD), AAD) == SECRET

    @pytest.mark.parametrize("broken", ["no answer", "half an answer", "internal error", "too many requests"])
    def test_one_failure_is_not_noticed(
        self, store: Keystore, server: KeyServer, key: str, broken: str
    ) -> None:
        store.generate(key, owner=OWNER, now=NOW)
        wrapped = store.wrap(key, SECRET, AAD)
        server.fail(self.unwraps, BROKEN[broken][0])
        assert store.unwrap(key, wrapped, AAD) == SECRET

    def test_attempts_are_few(self, store: Keystore, server: KeyServer, key: str) -> None:
        store.generate(key, owner=OWNER, now=NOW)
        wrapped = store.wrap(key, SECRET, AAD)
        before = server.asked(self.unwraps)
        server.fail(self.unwraps, *[BROKEN["overloaded"][0]] * 50)
        with pytest.raises(KeystoreUnavailable):
            store.unwrap(key, wrapped, AAD)
        assert server.asked(self.unwraps) - before == foreign.ATTEMPTS

    @pytest.mark.parametrize("lost", [Closed, Unasked], ids=["done, not answered", "not done"])
    def test_a_rotation_whose_answer_is_lost_at_any_point_makes_one_version_when_it_is_repeated(
        self, store: Keystore, server: KeyServer, key: str, lost: type[Closed]
    ) -> None:
        for number, operation in enumerate(self.makes):
            name = f"{key}{number}"
            store.generate(name, owner=OWNER, now=NOW)
            wrapped = store.wrap(name, SECRET, AAD)
            server.fail(operation, *[lost()] * foreign.ATTEMPTS)
            with pytest.raises(KeystoreUnavailable):
                store.rotate(name, now=NOW + 1)
            server.faults.clear()
            assert store.unwrap(name, wrapped, AAD) == SECRET
            versions = len(store.describe(name))
            # Whatever was lost: the version that is ordered next is made, and never one before given for it.
            assert store.rotate(name, now=NOW + 2, number=versions + 1).version == versions + 1
            store.generate(f"{name}b", owner=OWNER, now=NOW)
            name, wrapped = f"{name}b", store.wrap(f"{name}b", SECRET, AAD)
            server.fail(operation, *[lost()] * foreign.ATTEMPTS)
            with pytest.raises(KeystoreUnavailable):
                store.rotate(name, now=NOW + 1)
            server.faults.clear()
            assert store.unwrap(name, wrapped, AAD) == SECRET
            assert store.rotate(name, now=NOW + 2).version == 2
            assert [one.state for one in store.describe(name)] == ["retired", "active"]
            assert store.wrap(name, SECRET, AAD)[:4] == (2).to_bytes(4, "big")
            assert store.rotate(name, now=NOW + 3).version == 3

    @pytest.mark.parametrize("lost", [Closed, Unasked], ids=["done, not answered", "not done"])
    def test_a_key_whose_making_was_not_answered_is_made_once_when_it_is_repeated(
        self, store: Keystore, server: KeyServer, key: str, lost: type[Closed]
    ) -> None:
        for number, operation in enumerate(self.makes):
            name = f"{key}{number}"
            server.fail(operation, *[lost()] * foreign.ATTEMPTS)
            with pytest.raises(KeystoreUnavailable):
                store.generate(name, owner=OWNER, now=NOW)
            server.faults.clear()
            assert store.generate(name, owner=OWNER, now=NOW + 1).version == 1
            assert [one.state for one in store.describe(name)] == ["active"]
            with pytest.raises(KeystoreError):
                store.generate(name, owner=OWNER, now=NOW + 2)

    @pytest.mark.parametrize("lost", [Closed, Unasked], ids=["done, not answered", "not done"])
    def test_a_destruction_whose_answer_is_lost_at_any_point_is_finished_by_the_next(
        self, store: Keystore, server: KeyServer, key: str, lost: type[Closed]
    ) -> None:
        for number, operation in enumerate(self.destroys):
            name = f"{key}{number}"
            store.generate(name, owner=OWNER, now=NOW)
            wrapped = store.wrap(name, SECRET, AAD)
            server.fail(operation, *[lost()] * foreign.ATTEMPTS)
            with pytest.raises(KeystoreUnavailable):
                store.destroy(name, 1)
            server.faults.clear()
            assert store.destroy(name, 1).state == "destroyed"
            self.is_shredded(server, name)
            with pytest.raises(KeystoreError, match="was destroyed"):
                store.unwrap(name, wrapped, AAD)

    def is_shredded(self, server: KeyServer, key: str) -> None:
        """Asserts that the service itself has nothing left of version 1 to decrypt with."""
        raise NotImplementedError

    def test_credentials_and_plaintexts_appear_in_no_log_error_or_repr(
        self,
        open_store: Callable[[], Keystore],
        server: KeyServer,
        key: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        shown = []
        with caplog.at_level(logging.DEBUG):
            store = open_store()
            store.generate(key, owner=OWNER, now=NOW)
            wrapped = store.wrap(key, SECRET, AAD)
            assert store.unwrap(key, wrapped, AAD) == SECRET
            for fault, _ in BROKEN.values():
                server.fail(self.unwraps, *[fault] * foreign.ATTEMPTS)
                with pytest.raises(KeystoreError) as refusal:
                    store.unwrap(key, wrapped, AAD)
                server.faults.clear()
                shown += traceback.format_exception(refusal.value)
            store.destroy(key, 1)
            shown += [repr(store), caplog.text]
        everything = "".join(shown)
        for canary in (*self.canaries, SECRET.hex(), base64.b64encode(SECRET).decode(), repr(SECRET)[2:-1]):
            assert canary not in everything, canary
