"""Keys of the launcher and its mounts: asked for once, held in secret memory, gone when they are let go."""

from __future__ import annotations

import threading

import pytest

from cloister.errors import KeyUnavailable
from cloister.workload.held_keys import MAX_KEYS, GivenKeys, HeldKeys, held

URI = "kbs:///default/key/demo"
KEK = bytes(range(32))


class Counting:
    def __init__(self, key: bytes = KEK) -> None:
        self.asked: list[str] = []
        self._key = key

    def key(self, uri: str) -> bytes:
        self.asked.append(uri)
        return self._key


def test_a_key_is_asked_for_once() -> None:
    source = Counting()
    keys = HeldKeys(source)
    assert [keys.key(URI) for _ in range(3)] == [KEK] * 3
    assert source.asked == [URI]
    keys.close()


def test_several_keys_do_not_lie_on_each_other() -> None:
    given = {f"kbs:///default/key/{number}": bytes([number]) * 32 for number in range(50)}
    keys = held(dict(given))
    assert {uri: keys.key(uri) for uri in given} == given
    keys.close()


def test_what_was_given_is_nowhere_else_and_nobody_is_asked_for_more() -> None:
    given = {URI: KEK}
    keys = held(given)
    assert given == {}
    assert keys.key(URI) == KEK
    with pytest.raises(KeyUnavailable, match="gave no key"):
        keys.key("kbs:///default/key/other")
    keys.close()


def test_a_refusal_is_not_remembered() -> None:
    keys = HeldKeys(GivenKeys({}))
    for _ in range(2):
        with pytest.raises(KeyUnavailable):
            keys.key(URI)
    keys.close()


def test_a_key_of_another_length_is_none() -> None:
    keys = HeldKeys(Counting(b"short"))
    with pytest.raises(KeyUnavailable, match="5 bytes"):
        keys.key(URI)
    keys.close()


def test_there_is_a_bound() -> None:
    keys = HeldKeys(Counting())
    for number in range(MAX_KEYS):
        keys.key(f"kbs:///default/key/{number}")
    with pytest.raises(KeyUnavailable, match="more than"):
        keys.key(URI)
    keys.close()


def test_threads_that_ask_at_once_ask_once() -> None:
    source = Counting()
    keys = HeldKeys(source)
    threads = [threading.Thread(target=keys.key, args=(URI,)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert source.asked == [URI]
    keys.close()


def test_nothing_shows_a_key() -> None:
    keys = held({URI: KEK})
    assert KEK.hex() not in repr(keys)
    assert repr(GivenKeys({URI: KEK})) == "GivenKeys(1 keys)"
    keys.close()
