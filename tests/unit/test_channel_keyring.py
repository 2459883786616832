"""Private keys of the channel: shown, rotated, erased, whatever the host's clock says."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from cloister.channel.hpke import Kem
from cloister.channel.keyring import MAX_GENERATIONS, KeyRing
from cloister.channel.ohttp import KeyConfig, parse_key_configs
from cloister.errors import ReplayedRequest, UnknownKey, UsageError
from cloister.evidence.key_material import KeyMaterial, parse_key_material

NOW = 1_800_000_000


class Clock:
    """A wall clock that the host turns, and ticks that it does not."""

    def __init__(self) -> None:
        self.wall = NOW
        self.ticks = 100.0

    def pass_time(self, seconds: int) -> None:
        self.wall += seconds
        self.ticks += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def ring_of(clock: Clock, **settings: object) -> KeyRing:
    return KeyRing(now=lambda: clock.wall, ticks=lambda: clock.ticks, **settings)


def shown(ring: KeyRing) -> tuple[KeyConfig, ...]:
    return parse_key_configs(material(ring).ohttp_keys)


def material(ring: KeyRing) -> KeyMaterial:
    return parse_key_material(ring.material())


def test_the_post_quantum_key_comes_first_and_both_end_within_the_hour(clock: Clock):
    ring = ring_of(clock, replica="r1")
    assert [config.kem for config in shown(ring)] == [Kem.X_WING, Kem.X25519]
    assert material(ring).not_after == NOW + 3600
    assert material(ring).replica == "r1"
    assert ring.configs() == material(ring).ohttp_keys


def test_every_shown_key_is_found_by_its_identifier(clock: Clock):
    ring = ring_of(clock)
    for config in shown(ring):
        assert ring.find(config.key_id).config == config


def test_the_material_stays_the_same_bytes_until_it_rotates(clock: Clock):
    ring = ring_of(clock)
    first = ring.material(clock.wall)
    clock.pass_time(1799)
    assert ring.material() == first
    clock.pass_time(1)
    assert ring.material() != first


def test_a_rotated_key_opens_until_its_end_and_is_then_erased(clock: Clock):
    ring = ring_of(clock)
    old = shown(ring)[0]
    pair = ring.find(old.key_id).pair
    clock.pass_time(3599)
    assert ring.find(old.key_id).config == old
    clock.pass_time(1)
    with pytest.raises(UnknownKey):
        ring.find(old.key_id)
    with pytest.raises(UnknownKey, match="erased"):
        pair.decapsulate(bytes(Kem.X_WING.enc_length))


def test_keys_that_nobody_asks_for_are_erased_by_a_sweep(clock: Clock):
    ring = ring_of(clock)
    pair = ring.find(shown(ring)[0].key_id).pair
    waits = []
    for _ in range(10):
        waits.append(ring.sweep())
        clock.pass_time(waits[-1])
        if clock.wall >= NOW + 3600:
            break
    ring.sweep()
    assert waits == [1800, 1800]
    with pytest.raises(UnknownKey, match="erased"):
        pair.decapsulate(bytes(Kem.X_WING.enc_length))


@pytest.mark.parametrize(
    ("wall", "ticks"),
    [
        pytest.param(0, 3600, id="the host holds the clock back"),
        pytest.param(-86_400, 3600, id="the host turns it back"),
        pytest.param(3600, 0, id="the ticks stood still in a snapshot"),
    ],
)
def test_keys_end_by_whichever_clock_says_so_first(clock: Clock, wall: int, ticks: int):
    ring = ring_of(clock)
    old = shown(ring)[0]
    clock.wall += wall
    clock.ticks += ticks
    with pytest.raises(UnknownKey):
        ring.find(old.key_id)


def test_identifiers_are_not_drawn_again_soon(clock: Clock):
    ring = ring_of(clock)
    seen: list[int] = []
    for _ in range(40):
        seen += [config.key_id for config in shown(ring)]
        ring.rotate(revoke=True)
    assert len(set(seen)) == len(seen)


def test_rotating_for_ever_never_runs_out_of_identifiers(clock: Clock):
    ring = ring_of(clock, kems=[Kem.X25519])
    for _ in range(600):
        ring.rotate()
    assert len(ring._generations) == MAX_GENERATIONS


def test_the_second_use_of_an_encapsulated_key_is_refused(clock: Clock):
    ring = ring_of(clock)
    one, other = shown(ring)
    ring.admit(one.key_id, b"enc")
    with pytest.raises(ReplayedRequest):
        ring.admit(one.key_id, b"enc")
    ring.admit(other.key_id, b"enc")


def test_replay_protection_outlives_a_rotation(clock: Clock):
    ring = ring_of(clock)
    key = shown(ring)[0]
    ring.admit(key.key_id, b"enc")
    ring.rotate()
    with pytest.raises(ReplayedRequest):
        ring.admit(key.key_id, b"enc")


def test_a_full_table_rotates_the_key_and_evicts_nothing(clock: Clock):
    ring = ring_of(clock, capacity=4)
    old = shown(ring)[0]
    for number in range(3):
        ring.admit(old.key_id, bytes([number]))
    new = shown(ring)[0]
    assert new.key_id != old.key_id  # three quarters full: another is shown
    with pytest.raises(ReplayedRequest):
        ring.admit(old.key_id, bytes([0]))
    ring.admit(old.key_id, bytes([3]))
    with pytest.raises(UnknownKey):
        ring.admit(old.key_id, bytes([4]))
    with pytest.raises(UnknownKey):
        ring.find(old.key_id)


def test_a_revoked_key_is_unknown_at_once(clock: Clock):
    ring = ring_of(clock)
    old = shown(ring)[0]
    ring.rotate(revoke=True)
    with pytest.raises(UnknownKey):
        ring.find(old.key_id)
    with pytest.raises(UnknownKey):
        ring.admit(old.key_id, b"enc")


def test_a_closed_ring_has_no_keys(clock: Clock):
    ring = ring_of(clock)
    key = shown(ring)[0]
    ring.close()
    for use in (ring.material, ring.configs, ring.sweep, ring.rotate, lambda: ring.find(key.key_id)):
        with pytest.raises(UnknownKey):
            use()


@pytest.mark.parametrize(
    "settings",
    [{"lifetime": 3601}, {"lifetime": 1}, {"kems": []}, {"kems": [Kem.X_WING, Kem.X_WING]}],
    ids=["over an hour", "too short", "no KEM", "a KEM twice"],
)
def test_settings_that_cannot_be_meant_are_refused(clock: Clock, settings: dict[str, object]):
    with pytest.raises(UsageError):
        ring_of(clock, **settings)


def test_no_private_key_shows_in_text(clock: Clock):
    ring = ring_of(clock)
    key = ring.find(shown(ring)[0].key_id)
    assert "rivate" not in repr(key)
    assert "rivate" not in repr(ring)


def test_many_threads_admit_each_key_once(clock: Clock):
    ring = ring_of(clock)
    key_id = shown(ring)[0].key_id
    refused: list[bytes] = []

    def admit() -> None:
        for number in range(200):
            try:
                ring.admit(key_id, b"%d" % number)
            except ReplayedRequest:
                refused.append(b"%d" % number)

    threads = [threading.Thread(target=admit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 3 * 200


_FORKED = """
import os, sys
from cloister.channel.keyring import KeyRing
from cloister.channel.ohttp import parse_key_configs
from cloister.errors import UnknownKey

ring = KeyRing()
key = parse_key_configs(ring.configs())[0].key_id
child = os.fork()
if not child:
    for use in (ring.material, ring.configs, lambda: ring.find(key), lambda: ring.admit(key, b"x")):
        try:
            use()
        except UnknownKey:
            continue
        os._exit(1)
    os._exit(0)
assert ring.find(key)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_copy_of_a_key_ring_opens_nothing():
    # Two processes with one key and a replay table each would answer every request twice.
    assert subprocess.run([sys.executable, "-c", _FORKED], timeout=60, check=False).returncode == 0
