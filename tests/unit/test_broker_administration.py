"""Orders: what owners signed, once, at this broker, and what the act leaves behind."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from msgspec import structs

import manifest_parts
from broker_parts import PATH, SECRET, OwnersBench, attested, workload
from cloister.broker.administration import Administration
from cloister.broker.resources import MAX_RESOURCE
from cloister.errors import (
    CloisterError,
    KeystoreError,
    ManifestError,
    QuorumMissing,
    Superseded,
    UnknownResource,
    UsageError,
)
from cloister.manifest.signed import Signed, sign

BOBS = "models/key/bobs"
BOTH = ("alice", "bob")


@pytest.fixture
def bench(tmp_path: Path) -> OwnersBench:
    bench = OwnersBench(tmp_path / "state")
    bench.share_out()
    bench.have_done("put", PATH, SECRET)
    return bench


def execute(bench: OwnersBench, signed: Signed, content: bytes = b"") -> object:
    return administration(bench).execute(signed, content)


def administration(bench: OwnersBench) -> Administration:
    return Administration(bench.state, bench.clock, bench.custody.document)


# -- who ---------------------------------------------------------------------------------------------------------------

ACTS: list[tuple[str, str, bytes]] = [
    ("put", PATH, b"another secret"),
    ("destroy", PATH, b""),
    ("rotate-key", "models", b""),
    ("destroy-key", "models", b""),
]


@pytest.mark.parametrize(("action", "subject", "content"), ACTS, ids=[act[0] for act in ACTS])
@pytest.mark.parametrize("by", [("alice",), ("bob",), ("carol",), ("alice", "carol")], ids="+".join)
def test_what_takes_something_away_needs_the_whole_quorum(
    bench: OwnersBench, action: str, subject: str, content: bytes, by: tuple[str, ...]
) -> None:
    size = bench.state.journal.size
    with pytest.raises(QuorumMissing):
        bench.have_done(action, subject, content, by=by)  # type: ignore[arg-type]
    assert bench.state.journal.size == size
    assert bench.state.resources.read(PATH) == (1, SECRET)


@pytest.mark.parametrize("by", ["oscar", "audrey", "mallory"])
def test_nobody_but_an_owner_orders_anything(bench: OwnersBench, by: str) -> None:
    for action, subject, content in (*ACTS, ("put", "models/key/new", b"x")):
        with pytest.raises(ManifestError):
            bench.have_done(action, subject, content, by=(by,))  # type: ignore[arg-type]
        with pytest.raises(ManifestError):
            bench.have_done(action, subject, content, by=(*BOTH, by))  # type: ignore[arg-type]


def test_something_where_nothing_was_needs_one_owner(bench: OwnersBench) -> None:
    assert bench.have_done("put", "models/key/new", b"x", by=("alice",)).version == 1
    with pytest.raises(QuorumMissing):
        bench.have_done("put", "models/key/new", b"y", by=("alice",))
    with pytest.raises(QuorumMissing):
        bench.have_done("put", "models/key/other", b"x", by=("carol",))


def test_what_was_destroyed_is_something_so_replacing_it_needs_them_all(bench: OwnersBench) -> None:
    bench.have_done("destroy", PATH)
    with pytest.raises(QuorumMissing):
        bench.have_done("put", PATH, b"mine", by=("alice",))
    assert bench.have_done("put", PATH, b"ours").version == 3


def test_one_owner_cannot_replace_what_is_put_at_the_same_moment(
    bench: OwnersBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An order for version 2 is looked at while there is nothing yet: it still needs the quorum of a replacement."""
    path = "models/key/raced"
    late = bench.order("put", path, b"mine", by=("alice",), version=2)
    resources = bench.state.resources
    version = resources.version
    raced = threading.Event()

    def then_put(asked: str) -> int:
        found = version(asked)
        if asked == path and not raced.is_set():
            raced.set()
            bench.have_done("put", path, b"theirs", by=("bob",))
        return found

    monkeypatch.setattr(resources, "version", then_put)
    with pytest.raises((QuorumMissing, Superseded)):
        execute(bench, late, b"mine")
    monkeypatch.undo()
    if not raced.is_set():
        bench.have_done("put", path, b"theirs", by=("bob",))
        with pytest.raises(QuorumMissing):
            execute(bench, late, b"mine")
    assert resources.read(path) == (1, b"theirs")


def test_the_most_specific_owners_decide(bench: OwnersBench) -> None:
    bench.have_done("put", BOBS, b"1", by=("bob",))
    assert bench.have_done("put", BOBS, b"2", by=("bob",)).version == 2
    with pytest.raises(ManifestError):
        bench.have_done("put", BOBS, b"3", by=("alice",))


def test_a_resource_that_nobody_owns_is_put_by_nobody(bench: OwnersBench) -> None:
    with pytest.raises(ManifestError, match="no owners"):
        bench.have_done("put", "elsewhere/key/x", b"x", by=("alice", "bob", "carol"))


# -- which -------------------------------------------------------------------------------------------------------------


def _another_content(bench: OwnersBench) -> object:
    return execute(bench, bench.order("put", PATH, b"what was signed"), b"what was not")


def _no_content(bench: OwnersBench) -> object:
    return execute(bench, bench.order("put", PATH, b"what was signed"))


def _content_to_destroy(bench: OwnersBench) -> object:
    return execute(bench, bench.order("destroy", PATH), b"x")


def _another_broker(bench: OwnersBench) -> object:
    return execute(bench, bench.order("destroy", PATH, broker="00" * 16))


def _another_application(bench: OwnersBench) -> object:
    return execute(bench, bench.order("destroy", PATH, application="bank"))


def _replayed(bench: OwnersBench) -> object:
    signed = bench.order("put", PATH, b"second")
    execute(bench, signed, b"second")
    return execute(bench, signed, b"second")


def _replayed_after_the_next(bench: OwnersBench) -> object:
    signed = bench.order("put", PATH, b"second")
    execute(bench, signed, b"second")
    bench.have_done("put", PATH, b"third")
    return execute(bench, signed, b"second")


def _destroyed_twice(bench: OwnersBench) -> object:
    signed = bench.order("destroy", PATH)
    execute(bench, signed)
    return execute(bench, signed)


def _rotated_twice(bench: OwnersBench) -> object:
    signed = bench.order("rotate-key", "models")
    execute(bench, signed)
    return execute(bench, signed)


def _a_version_ahead(bench: OwnersBench) -> object:
    return execute(bench, bench.order("put", PATH, b"x", version=3), b"x")


def _a_version_behind(bench: OwnersBench) -> object:
    return execute(bench, bench.order("put", PATH, b"x", version=1), b"x")


def _a_key_version_that_is_not_there(bench: OwnersBench) -> object:
    return execute(bench, bench.order("destroy-key", "models", version=2))


def _signed_as_a_rule(bench: OwnersBench) -> object:
    document = bench.order("destroy", PATH).document
    return execute(bench, sign("rule", document, [manifest_parts.owner(name) for name in BOTH]))


def _the_subject_rewritten(bench: OwnersBench) -> object:
    signed = bench.order("destroy", PATH)
    return execute(bench, structs.replace(signed, document=signed.document.replace(b"demo", b"bobs")))


def _one_signature_twice(bench: OwnersBench) -> object:
    signed = bench.order("destroy", PATH, by=("alice",))
    return execute(bench, structs.replace(signed, signatures=signed.signatures * 2))


def _too_large(bench: OwnersBench) -> object:
    content = b"x" * (MAX_RESOURCE + 1)
    return execute(bench, bench.order("put", PATH, content), content)


ATTACKS: dict[str, tuple[Callable[[OwnersBench], object], type[CloisterError]]] = {
    "the content swapped": (_another_content, ManifestError),
    "the content left out": (_no_content, ManifestError),
    "a content to destroy": (_content_to_destroy, ManifestError),
    "too large": (_too_large, ManifestError),
    "of another broker": (_another_broker, ManifestError),
    "of another application": (_another_application, ManifestError),
    "a put replayed": (_replayed, Superseded),
    "a put replayed later": (_replayed_after_the_next, Superseded),
    "destroyed twice": (_destroyed_twice, Superseded),
    "rotated twice": (_rotated_twice, Superseded),
    "a version ahead": (_a_version_ahead, Superseded),
    "a version behind": (_a_version_behind, Superseded),
    "a key version that is not there": (_a_key_version_that_is_not_there, UsageError),
    "signed as a rule": (_signed_as_a_rule, ManifestError),
    "the subject rewritten": (_the_subject_rewritten, ManifestError),
    "one owner's signature twice": (_one_signature_twice, ManifestError),
}


@pytest.mark.parametrize(("attack", "error"), ATTACKS.values(), ids=ATTACKS.keys())
def test_an_order_that_is_not_this_one_now_does_nothing(
    bench: OwnersBench, attack: Callable[[OwnersBench], object], error: type[CloisterError]
) -> None:
    with pytest.raises(error):
        attack(bench)


def test_an_order_to_the_broker_before_it_was_made_anew_is_refused(
    bench: OwnersBench, tmp_path: Path
) -> None:
    other = OwnersBench(tmp_path / "other")
    other.share_out()
    signed = bench.order("put", "models/key/new", b"x")
    with pytest.raises(ManifestError, match="another broker"):
        execute(other, signed, b"x")


def test_of_many_who_send_one_order_one_has_it_done(bench: OwnersBench) -> None:
    signed = bench.order("put", PATH, b"second")

    def send(_number: int) -> bool:
        try:
            execute(bench, signed, b"second")
        except (Superseded, UsageError):
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(send, range(16))) == 1
    assert bench.state.resources.read(PATH) == (2, b"second")


def test_first_puts_into_a_new_repository_at_once_are_all_done(bench: OwnersBench) -> None:
    resources = {**bench.genesis.resources, "fresh": manifest_parts.quorum("carol")}
    bench.state.authority.submit_manifest(bench.succeed("alice", "bob", resources=resources))

    def put(number: int) -> int:
        return bench.have_done("put", f"fresh/key/n{number}", b"x", by=("carol",)).version

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(put, range(16))) == [1] * 16
    assert len(bench.state.resources.describe("fresh")[1]) == 1


def test_orders_and_rules_at_once_never_wait_for_each_other(bench: OwnersBench) -> None:
    """Whoever holds the writers' lock asks nobody whose lock is held by a reader that waits for the writers."""
    bench.allow()
    stop = threading.Event()

    def attest() -> None:
        while not stop.is_set():
            bench.state.authority.policies()
            _ = bench.state.authority.manifest

    readers = [threading.Thread(target=attest, daemon=True) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(12):
        bench.have_done("put", f"models/key/n{number}", b"x")
        bench.allow(f"models/key/n{number}")
    stop.set()
    for reader in readers:
        reader.join(20)
    assert not any(reader.is_alive() for reader in readers)


# -- what is left ------------------------------------------------------------------------------------------------------


def test_what_is_destroyed_is_in_no_byte_of_the_database(bench: OwnersBench) -> None:
    """Not even for whoever has the state key: its data key is gone, from the table and from freed pages."""
    stored = bench.state.journal.read("resource", PATH)
    assert stored is not None
    bench.have_done("destroy", PATH)
    assert bench.state.resources.read(PATH) is None
    bench.state.journal._engine.dispose()
    bench.custody._engine.dispose()
    bench.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    disk = b"".join(path.read_bytes() for path in bench.directory.iterdir())
    for shredded in (stored.wrapped, stored.wrapped[20:60], stored.body, stored.body[:24]):
        assert shredded not in disk


def test_rotation_by_order_touches_no_body(bench: OwnersBench) -> None:
    before = bench.state.journal.read("resource", PATH)
    done = bench.have_done("rotate-key", "models")
    after = bench.state.journal.read("resource", PATH)
    assert (done.version, done.rewrapped) == (2, 1)
    assert before is not None
    assert after is not None
    assert (after.body, after.version) == (before.body, before.version)
    assert after.wrapped != before.wrapped
    assert bench.state.resources.read(PATH) == (1, SECRET)


def test_a_destroyed_key_version_ends_what_it_alone_wrapped(bench: OwnersBench) -> None:
    bench.allow()
    attempt = attested(bench, workload())
    assert attempt.get() == SECRET
    bench.have_done("destroy-key", "models")
    with pytest.raises(KeystoreError, match="version 1 of the key models was destroyed"):
        attempt.get()
    with pytest.raises(KeystoreError, match="was destroyed"):
        bench.have_done("put", PATH, b"x")


@pytest.mark.parametrize("action", ["rotate-key", "destroy-key"])
def test_a_key_that_was_never_made_is_unknown(bench: OwnersBench, action: str) -> None:
    resources = {**bench.genesis.resources, "fresh": manifest_parts.quorum("carol")}
    bench.state.authority.submit_manifest(bench.succeed("alice", "bob", resources=resources))
    with pytest.raises(UnknownResource):
        administration(bench).next_version(action, "fresh")
    with pytest.raises(UnknownResource):
        bench.have_done(action, "fresh", by=("carol",), version=1)  # type: ignore[arg-type]


def test_what_is_not_there_is_not_destroyed(bench: OwnersBench) -> None:
    with pytest.raises(UsageError, match="no resource"):
        bench.have_done("destroy", "models/key/none")


def test_every_act_is_logged_with_who_signed(bench: OwnersBench) -> None:
    bench.have_done("put", PATH, b"second")
    bench.have_done("rotate-key", "models")
    bench.have_done("destroy-key", "models", version=1)
    bench.have_done("destroy", PATH)
    told = [
        entry for entry in bench.entries() if entry.signers == BOTH and entry.event in ("resource", "key")
    ]
    assert [entry.reason for entry in told] == [
        "version 1 put",
        "version 2 put",
        "version 2 active, 1 data keys wrapped anew",
        "version 1 destroyed",
        "destroyed; version 3 is nothing",
    ]


def test_the_listing_says_what_there_is_and_no_content(bench: OwnersBench) -> None:
    bench.allow(releases=5)
    attested(bench, workload()).get()
    bench.have_done("put", BOBS, b"x", by=("bob",))
    bench.have_done("destroy", BOBS, by=("bob",))
    bench.allow("models/key/later")
    found = {one.uri.removeprefix("kbs:///"): one for one in administration(bench).listing()}
    assert set(found) == {PATH, BOBS, "models/key/later"}
    one = found[PATH]
    assert (one.resource, one.rule, one.destroyed, one.released) == (1, 1, False, 1)
    assert (found[BOBS].resource, found[BOBS].destroyed, found[BOBS].owners) == (2, True, "bob")
    assert (found["models/key/later"].resource, found["models/key/later"].rule) == (0, 1)
    assert one.owners == "all of alice, bob"
    (key,) = administration(bench).keys()
    assert (key.id, key.store, key.version, key.state) == ("models", "local", 1, "active")
