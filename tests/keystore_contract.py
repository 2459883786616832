"""The behaviour that every key store shows, as one set of tests.

A test module inherits :class:`KeystoreContract` as ``TestContract`` and gives it ``open_store``: a fixture whose value makes
another :class:`~cloister.broker.keystores.Keystore` over the same service at every call, as a restarted broker would.
``key`` is another id in every test, so a service may be shared by all of them.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from cloister.broker.keystores import MAX_PLAINTEXT, KeyDescription, Keystore
from cloister.errors import KeystoreError, KeystoreUnavailable

NOW = 1_800_000_000
OWNER = "ada"
AAD = bytes(range(32))
SECRET = bytes(range(100, 132))

BAD_IDS = ("", "a/b", "..", "../a", ".a", "a b", "a\n", "a\x00", "a:b", "a%2fb", "ключ", "k" * 65)


def _prefix(length: int) -> Callable[[bytes], bytes]:
    return lambda wrapped: wrapped[:length]


ALTERED: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda wrapped: b"",
    "part of the version": _prefix(3),
    "the version alone": _prefix(4),
    "one byte more": lambda wrapped: wrapped + b"\x00",
    "one byte less": lambda wrapped: wrapped[:-1],
    "half": lambda wrapped: wrapped[: len(wrapped) // 2],
    "version 0": lambda wrapped: bytes(4) + wrapped[4:],
    "a version that is not there yet": lambda wrapped: (2).to_bytes(4, "big") + wrapped[4:],
    "the highest version": lambda wrapped: b"\xff" * 4 + wrapped[4:],
    "another version's number": lambda wrapped: b"\x01" + wrapped[1:],
    "zeros": lambda wrapped: wrapped[:4] + bytes(len(wrapped) - 4),
    "a thousand zeros": lambda wrapped: wrapped[:4] + bytes(1000),
    "a megabyte": lambda wrapped: wrapped + bytes(1 << 20),
    "two of them": lambda wrapped: wrapped + wrapped,
}
"""What a database's owner may do to a wrapped key, by name."""


def refuses(store: Keystore, key: str, wrapped: bytes, aad: bytes = AAD) -> None:
    """``unwrap`` raises :class:`KeystoreError`, and not because nobody answered."""
    with pytest.raises(KeystoreError) as refusal:
        store.unwrap(key, wrapped, aad)
    assert not isinstance(refusal.value, KeystoreUnavailable), refusal.value
    is_one_line(refusal.value)


def is_one_line(error: KeystoreError, *secret: bytes) -> None:
    """An error is one printable line without any of ``secret``, nor does it hold on to a cause that has them."""
    text = str(error)
    assert text.isprintable(), text
    assert len(text) < 400, text
    shown = repr(error) + text + repr(error.__cause__)
    for one in (SECRET, *secret):
        assert one.hex() not in shown
        assert repr(one)[2:-1] not in shown


class KeystoreContract:
    """Inherit it, give ``open_store``."""

    flip_step = 1
    """Every which byte is flipped: 1 where a call is cheap."""

    @pytest.fixture
    def open_store(self) -> Callable[[], Keystore]:
        raise NotImplementedError

    @pytest.fixture
    def store(self, open_store: Callable[[], Keystore]) -> Keystore:
        return open_store()

    @pytest.fixture
    def key(self) -> str:
        return f"K.{secrets.token_hex(8)}_-"

    # Life of a key

    def test_a_new_key_is_version_1_and_active(self, store: Keystore, key: str) -> None:
        made = store.generate(key, owner=OWNER, now=NOW)
        assert (made.id, made.version, made.owner, made.created, made.state) == (key, 1, OWNER, NOW, "active")
        assert made.algorithm
        assert store.describe(key) == (made,)

    def test_an_id_that_exists_is_refused(self, store: Keystore, key: str) -> None:
        made = store.generate(key, owner=OWNER, now=NOW)
        with pytest.raises(KeystoreError) as refusal:
            store.generate(key, owner="eve", now=NOW + 1)
        is_one_line(refusal.value)
        assert store.describe(key) == (made,)

    def test_an_id_whose_versions_are_all_destroyed_still_exists(self, store: Keystore, key: str) -> None:
        store.generate(key, owner=OWNER, now=NOW)
        store.destroy(key, 1)
        with pytest.raises(KeystoreError):
            store.generate(key, owner="eve", now=NOW)
        assert [one.owner for one in store.describe(key)] == [OWNER]

    def test_rotation_makes_the_next_version_and_retires_those_before(
        self, store: Keystore, key: str
    ) -> None:
        store.generate(key, owner=OWNER, now=NOW)
        second = store.rotate(key, now=NOW + 10)
        third = store.rotate(key, now=NOW + 20)
        assert (second.version, second.state, second.created) == (2, "active", NOW + 10)
        assert third.owner == OWNER
        assert [(one.version, one.state, one.created) for one in store.describe(key)] == [
            (1, "retired", NOW),
            (2, "retired", NOW + 10),
            (3, "active", NOW + 20),
        ]

    def test_a_version_that_is_asked_for_by_its_number_is_made_once_and_no_other(
        self, store: Keystore, key: str
    ) -> None:
        store.generate(key, owner=OWNER, now=NOW)
        assert store.rotate(key, now=NOW + 10, number=2).version == 2
        again = store.rotate(key, now=NOW + 20, number=2)
        assert (again.version, again.created) == (2, NOW + 10)
        for number in (1, 4):
            with pytest.raises(KeystoreError, match="cannot be made, the newest is 2"):
                store.rotate(key, now=NOW + 20, number=number)
        assert [one.version for one in store.describe(key)] == [1, 2]
        assert store.rotate(key, now=NOW + 20, number=3).version == 3

    def test_a_destroyed_version_stays_in_the_description(self, store: Keystore, key: str) -> None:
        store.generate(key, owner=OWNER, now=NOW)
        store.rotate(key, now=NOW + 10)
        gone = store.destroy(key, 1)
        assert (gone.version, gone.state, gone.created, gone.owner) == (1, "destroyed", NOW, OWNER)
        assert [(one.version, one.state) for one in store.describe(key)] == [(1, "destroyed"), (2, "active")]

    def test_destroying_twice_is_safe(self, store: Keystore, key: str) -> None:
        store.generate(key, owner=OWNER, now=NOW)
        assert store.destroy(key, 1) == store.destroy(key, 1)

    def test_no_number_is_given_twice(self, store: Keystore, key: str) -> None:
        store.generate(key, owner=OWNER, now=NOW)
        store.rotate(key, now=NOW)
        store.destroy(key, 2)
        store.destroy(key, 1)
        assert store.rotate(key, now=NOW).version == 3
        assert [one.state for one in store.describe(key)] == ["destroyed", "destroyed", "active"]

    def test_every_state_survives_a_restart(self, open_store: Callable[[], Keystore], key: str) -> None:
        before = open_store()
        before.generate(key, owner=OWNER, now=NOW)
        wrapped = [before.wrap(key, SECRET, AAD)]
        before.rotate(key, now=NOW + 1)
        wrapped.append(before.wrap(key, SECRET, AAD))
        before.rotate(key, now=NOW + 2)
        wrapped.append(before.wrap(key, SECRET, AAD))
        before.destroy(key, 1)
        described = before.describe(key)
        after = open_store()
        assert after.describe(key) == described
        refuses(after, key, wrapped[0])
        assert [after.unwrap(key, one, AAD) for one in wrapped[1:]] == [SECRET, SECRET]
        assert after.wrap(key, SECRET, AAD)[:4] == (3).to_bytes(4, "big")

    def test_two_brokers_over_one_store_see_one_state(
        self, open_store: Callable[[], Keystore], key: str
    ) -> None:
        one, other = open_store(), open_store()
        one.generate(key, owner=OWNER, now=NOW)
        wrapped = one.wrap(key, SECRET, AAD)
        assert other.unwrap(key, wrapped, AAD) == SECRET
        other.rotate(key, now=NOW)
        assert one.wrap(key, SECRET, AAD)[:4] == (2).to_bytes(4, "big")
        other.destroy(key, 1)
        refuses(one, key, wrapped)
        assert one.describe(key) == other.describe(key)

    # Names

    def test_an_unknown_key_is_refused_by_every_method(self, store: Keystore, key: str) -> None:
        wrapped = (1).to_bytes(4, "big") + bytes(60)
        calls: dict[str, Callable[[], object]] = {
            "rotate": lambda: store.rotate(key, now=NOW),
            "wrap": lambda: store.wrap(key, SECRET, AAD),
            "unwrap": lambda: store.unwrap(key, wrapped, AAD),
            "describe": lambda: store.describe(key),
            "destroy": lambda: store.destroy(key, 1),
        }
        for name, call in calls.items():
            with pytest.raises(KeystoreError) as refusal:
                call()
            assert not isinstance(refusal.value, KeystoreUnavailable), name
            is_one_line(refusal.value)

    @pytest.mark.parametrize("bad", BAD_IDS, ids=ascii)
    def test_what_is_no_id_is_refused(self, store: Keystore, bad: str) -> None:
        wrapped = (1).to_bytes(4, "big") + bytes(60)
        calls: tuple[Callable[[], object], ...] = (
            lambda: store.generate(bad, owner=OWNER, now=NOW),
            lambda: store.rotate(bad, now=NOW),
            lambda: store.wrap(bad, SECRET, AAD),
            lambda: store.unwrap(bad, wrapped, AAD),
            lambda: store.describe(bad),
            lambda: store.destroy(bad, 1),
        )
        for call in calls:
            with pytest.raises(KeystoreError) as refusal:
                call()
            assert not isinstance(refusal.value, KeystoreUnavailable)
            is_one_line(refusal.value)

    @pytest.mark.parametrize("like", ["{0}.1", "{0}-1", "{0}_", "{0}0", "swapped case", "shorter"])
    def test_ids_that_look_alike_are_different_keys(self, store: Keystore, key: str, like: str) -> None:
        other = {"swapped case": key.swapcase(), "shorter": key[:-1]}.get(like) or like.format(key)
        store.generate(key, owner=OWNER, now=NOW)
        store.generate(other, owner="bob", now=NOW)
        store.rotate(other, now=NOW)
        wrapped = store.wrap(key, SECRET, AAD)
        assert [one.version for one in store.describe(key)] == [1]
        refuses(store, other, wrapped)
        store.destroy(other, 1)
        assert store.unwrap(key, wrapped, AAD) == SECRET

    def test_the_longest_id_works(self, store: Keystore) -> None:
        key = "Az09._-" + secrets.token_hex(29)[:57]
        assert len(key) == 64
        store.generate(key, owner=OWNER, now=NOW)
        assert store.unwrap(key, store.wrap(key, SECRET, AAD), AAD) == SECRET

    @pytest.mark.parametrize("version", [0, 2, -1, 2**32, 2**64])
    def test_a_version_that_does_not_exist_cannot_be_destroyed(
        self, store: Keystore, key: str, version: int
    ) -> None:
        made = store.generate(key, owner=OWNER, now=NOW)
        with pytest.raises(KeystoreError) as refusal:
            store.destroy(key, version)
        is_one_line(refusal.value)
        assert store.describe(key) == (made,)

    # Wrapping

    @pytest.mark.parametrize("size", [1, 15, 16, 17, 32, 60, MAX_PLAINTEXT])
    def test_what_was_wrapped_comes_back(self, store: Keystore, key: str, size: int) -> None:
        store.generate(key, owner=OWNER, now=NOW)
        plaintext = secrets.token_bytes(size)
        wrapped = store.wrap(key, plaintext, AAD)
        assert wrapped[:4] == (1).to_bytes(4, "big")
        if size >= 15:
            assert plaintext not in wrapped
        assert store.unwrap(key, wrapped, AAD) == plaintext

    @pytest.mark.parametrize(
        ("plaintext", "aad"),
        [
            (b"", AAD),
            (bytes(MAX_PLAINTEXT + 1), AAD),
            (SECRET, b""),
            (SECRET, AAD[:-1]),
            (SECRET, AAD + b"\x00"),
        ],
        ids=["nothing", "too much", "no aad", "short aad", "long aad"],
    )
    def test_sizes_outside_their_bounds_are_refused(
        self, store: Keystore, key: str, plaintext: bytes, aad: bytes
    ) -> None:
        store.generate(key, owner=OWNER, now=NOW)
        with pytest.raises(KeystoreError) as refusal:
            store.wrap(key, plaintext, aad)
        is_one_line(refusal.value)

    def test_an_aad_of_another_length_never_unwraps(self, store: Keystore, key: str) -> None:
        store.generate(key, owner=OWNER, now=NOW)
        wrapped = store.wrap(key, SECRET, AAD)
        for aad in (b"", AAD[:-1], AAD + b"\x00", AAD + AAD):
            refuses(store, key, wrapped, aad)

    def test_one_secret_is_never_wrapped_to_the_same_bytes(self, store: Keystore, key: str) -> None:
        store.generate(key, owner=OWNER, now=NOW)
        assert len({store.wrap(key, SECRET, AAD) for _ in range(5)}) == 5

    def test_a_retired_version_unwraps_but_never_wraps(self, store: Keystore, key: str) -> None:
        store.generate(key, owner=OWNER, now=NOW)
        old = store.wrap(key, SECRET, AAD)
        store.rotate(key, now=NOW)
        assert {store.wrap(key, SECRET, AAD)[:4] for _ in range(3)} == {(2).to_bytes(4, "big")}
        assert store.unwrap(key, old, AAD) == SECRET

    def test_a_key_whose_active_version_is_destroyed_does_not_fall_back_on_a_retired_one(
        self, store: Keystore, key: str
    ) -> None:
        store.generate(key, owner=OWNER, now=NOW)
        old = store.wrap(key, SECRET, AAD)
        store.rotate(key, now=NOW)
        store.destroy(key, 2)
        with pytest.raises(KeystoreError) as refusal:
            store.wrap(key, SECRET, AAD)
        is_one_line(refusal.value)
        assert store.unwrap(key, old, AAD) == SECRET

    # Attacks on what is wrapped

    @pytest.mark.parametrize("attack", ALTERED)
    def test_an_altered_wrap_is_refused(self, store: Keystore, key: str, attack: str) -> None:
        store.generate(key, owner=OWNER, now=NOW)
        refuses(store, key, ALTERED[attack](store.wrap(key, SECRET, AAD)))

    def test_a_flip_in_any_byte_of_a_wrap_is_refused(self, store: Keystore, key: str) -> None:
        store.generate(key, owner=OWNER, now=NOW)
        wrapped = store.wrap(key, SECRET, AAD)
        for place in range(0, len(wrapped), self.flip_step):
            flipped = bytearray(wrapped)
            flipped[place] ^= 1 << (place % 8)
            refuses(store, key, bytes(flipped))
        assert store.unwrap(key, wrapped, AAD) == SECRET

    def test_every_prefix_of_a_wrap_is_refused(self, store: Keystore, key: str) -> None:
        store.generate(key, owner=OWNER, now=NOW)
        wrapped = store.wrap(key, SECRET, AAD)
        for length in range(0, len(wrapped), self.flip_step):
            refuses(store, key, wrapped[:length])

    def test_a_wrap_for_one_record_is_refused_for_another(self, store: Keystore, key: str) -> None:
        store.generate(key, owner=OWNER, now=NOW)
        wrapped = store.wrap(key, SECRET, AAD)
        for aad in (bytes(32), AAD[::-1], AAD[:-1] + b"\x1e", b"\x01" + AAD[1:]):
            refuses(store, key, wrapped, aad)

    def test_a_wrap_of_one_key_is_refused_by_another(self, store: Keystore, key: str) -> None:
        other = key + ".other"
        store.generate(key, owner=OWNER, now=NOW)
        store.generate(other, owner=OWNER, now=NOW)
        refuses(store, other, store.wrap(key, SECRET, AAD))

    def test_a_wrap_of_one_version_is_refused_under_the_number_of_another(
        self, store: Keystore, key: str
    ) -> None:
        store.generate(key, owner=OWNER, now=NOW)
        first = store.wrap(key, SECRET, AAD)
        store.rotate(key, now=NOW)
        second = store.wrap(key, SECRET, AAD)
        refuses(store, key, second[:4] + first[4:])
        refuses(store, key, first[:4] + second[4:])

    # Many at once

    def test_threads_share_one_store(self, store: Keystore, key: str) -> None:
        store.generate(key, owner=OWNER, now=NOW)

        def work(number: int) -> bool:
            plaintext = number.to_bytes(32, "big")
            aad = number.to_bytes(32, "little")
            return store.unwrap(key, store.wrap(key, plaintext, aad), aad) == plaintext

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(40)))

    def test_an_id_raced_by_threads_is_made_once(self, store: Keystore, key: str) -> None:
        def make(number: int) -> KeyDescription | KeystoreError:
            try:
                return store.generate(key, owner=f"owner{number}", now=NOW)
            except KeystoreError as error:
                return error

        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(make, range(4)))
        made = [one for one in answers if isinstance(one, KeyDescription)]
        assert len(made) == 1
        assert store.describe(key) == tuple(made)
