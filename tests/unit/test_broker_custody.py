"""Custody: nothing before enough owners keep their shares, locked after a restart, open at the threshold and not before."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

import manifest_parts
from broker_parts import PATH, SECRET, Bench, OwnersBench, attested, owners_manifest, workload
from cloister.broker.audit import AuditDamaged, Fact
from cloister.broker.custody import Custody, Locked, Progress, holds_state
from cloister.broker.state import kept_name, read_document
from cloister.broker.state_key import Share, ShareLock, encode_document
from cloister.broker.tables import DATABASE, open_database, sqlite_url
from cloister.broker.transaction import Transaction
from cloister.broker.tree_head import RollbackFound
from cloister.encoding import encode_json
from cloister.errors import BrokerError, KeystoreError, ManifestError, UnknownResource, UsageError
from cloister.manifest.signed import Signed, encode_signed


@pytest.fixture
def bench(tmp_path: Path) -> OwnersBench:
    return OwnersBench(tmp_path / "state")


def progress(custody: Custody) -> tuple[bool, int, int]:
    found = custody.progress()
    return found.open, found.have, found.need


# -- a new state -------------------------------------------------------------------------------------------------------


def test_a_share_is_handed_out_until_its_owner_keeps_it_and_never_after(bench: OwnersBench) -> None:
    share = bench.custody.hand_out("alice")
    assert bench.custody.hand_out("alice") == share
    assert bench.keep("alice") == Progress(open=True, have=1, need=2)
    with pytest.raises(UnknownResource, match="handed out once"):
        bench.custody.hand_out("alice")
    with pytest.raises(UnknownResource):
        bench.keep("alice")
    assert [entry.reason for entry in bench.told("share")][-1].startswith(
        "alice keeps its share; 1 of 3, 2 needed"
    )


@pytest.mark.parametrize("name", ["mallory", "oscar", "audrey", "", "Alice"])
def test_there_is_no_share_for_anybody_else(bench: OwnersBench, name: str) -> None:
    with pytest.raises(UnknownResource):
        bench.custody.hand_out(name)
    with pytest.raises(UnknownResource):
        bench.custody.acknowledge(name, manifest_parts.signed(bench.genesis, "alice"))


def test_nothing_is_put_before_enough_owners_keep_their_shares(bench: OwnersBench) -> None:
    for kept in (0, 1):
        with pytest.raises(UsageError, match=f"{kept} of 2 owners have their share"):
            bench.have_done("put", PATH, SECRET)
        bench.share_out(("alice", "carol")[kept])
    assert bench.have_done("put", PATH, SECRET).version == 1


def test_shares_that_were_not_kept_are_gone_after_a_crash_and_nothing_was_lost(bench: OwnersBench) -> None:
    bench.share_out("alice")
    share = bench.custody.hand_out("bob")
    again = bench.again()
    assert progress(again) == (False, 0, 2)
    again.offer(share)
    with pytest.raises(UnknownResource):
        again.hand_out("carol")


def test_a_state_is_never_made_twice(bench: OwnersBench) -> None:
    with pytest.raises(UsageError, match="already"):
        bench.again().create(manifest_parts.signed(bench.genesis, "alice", "bob", "carol"))


def test_a_state_is_not_made_under_another_manifest_than_the_measured_one(tmp_path: Path) -> None:
    mallory = manifest_parts.manifest(
        owners=manifest_parts.keys("mallory"), update=manifest_parts.quorum("mallory"), resources={}
    )
    bench = OwnersBench(tmp_path / "state")
    (tmp_path / "other").mkdir(mode=0o700)
    custody = Custody(
        open_database(sqlite_url(tmp_path / "other")),
        clock=bench.custody.clock,
        origin=bench.state.authority.origin,
    )
    with pytest.raises(ManifestError):
        custody.create(manifest_parts.signed(mallory, "mallory"))
    with pytest.raises(ManifestError):
        custody.create(manifest_parts.signed(bench.genesis, "alice"))
    assert not holds_state(open_database(sqlite_url(tmp_path / "other")))


NOT_KEPT: dict[str, dict[str, Any]] = {
    "signed by another owner": {"by": "bob"},
    "signed by a stranger": {"by": "mallory"},
    "of another application": {"application": "bank"},
    "of another state": {"state": "00" * 16},
    "under another log": {"log_key": "00" * 32},
    "another share": {"commitment": "00" * 32},
}


@pytest.mark.parametrize("changes", NOT_KEPT.values(), ids=NOT_KEPT.keys())
def test_only_its_owner_s_signature_over_this_very_state_says_that_a_share_is_kept(
    bench: OwnersBench, changes: dict[str, Any]
) -> None:
    share = bench.custody.hand_out("alice")
    with pytest.raises(ManifestError):
        bench.keep("alice", **changes)
    assert bench.custody.hand_out("alice") == share
    assert bench.told("share")[1:] == []


def test_a_state_that_somebody_outside_made_under_the_owners_manifest_stays_closed(tmp_path: Path) -> None:
    """The manifest is public, so the host can make a whole state under it, whose shares and key it knows."""
    hosts = OwnersBench(tmp_path / "state")
    shares = {owner: hosts.custody.hand_out(owner) for owner in ("alice", "bob", "carol")}
    again = hosts.again()
    again.offer(shares["alice"])
    with pytest.raises(AuditDamaged, match="did not sign"):
        again.offer(shares["bob"])
    assert not again.opened


@pytest.mark.parametrize("way", ["shares", "peer"])
def test_records_that_nobody_signed_do_not_open_a_state_that_somebody_outside_made(
    tmp_path: Path, way: str
) -> None:
    """A signed document may have no signatures, and nothing about it is then wrong: it just says nothing."""
    hosts = OwnersBench(tmp_path / "state")
    lock = hosts.custody.document().lock
    assert isinstance(lock, ShareLock)
    shares = {owner: hosts.custody.hand_out(owner) for owner in ("alice", "bob", "carol")}

    def forge(transaction: Transaction) -> None:
        for owner in shares:
            unsigned = Signed(document=encode_json(hosts.state.kept(lock, owner)), signatures=())
            transaction.put("share", kept_name(lock, owner), encode_signed(unsigned))
        transaction.log(Fact("share", "done"))

    hosts.state.journal.transact(forge)
    again = hosts.again()
    if way == "peer":
        with pytest.raises(AuditDamaged, match="did not sign"):
            again.open_from_peer(hosts.state.key_for_peer())
    else:
        again.offer(shares["alice"])
        with pytest.raises(AuditDamaged, match="did not sign"):
            again.offer(shares["bob"])
    assert not again.opened


def test_a_state_whose_owners_signed_nothing_yet_is_not_opened_by_a_peer(bench: OwnersBench) -> None:
    again = bench.again()
    with pytest.raises(AuditDamaged, match="did not sign"):
        again.open_from_peer(bench.state.key_for_peer())
    assert not again.opened


# -- opening -----------------------------------------------------------------------------------------------------------


def test_after_a_restart_a_state_is_locked_and_does_nothing(bench: OwnersBench) -> None:
    again = bench.again()
    assert not again.opened
    with pytest.raises(Locked, match="cloister owner unlock"):
        _ = again.state
    assert progress(again) == (False, 0, 2)


@pytest.mark.parametrize("owners", [("alice", "bob"), ("carol", "alice"), ("bob", "carol")], ids="+".join)
def test_any_quorum_of_owners_opens_it(bench: OwnersBench, owners: tuple[str, str]) -> None:
    shares = bench.share_out()
    bench.have_done("put", PATH, SECRET)
    again = bench.again()
    assert again.offer(shares[owners[0]]) == Progress(open=False, have=1, need=2)
    with pytest.raises(Locked):
        _ = again.state
    assert again.offer(shares[owners[1]]) == Progress(open=True, have=0, need=0)
    assert again.state.resources.read(PATH) == (1, SECRET)
    assert [entry.reason for entry in bench.told("start")][
        -1
    ] == f"opened by shares of {', '.join(sorted(owners))}"


def test_one_owner_offering_again_and_again_opens_nothing(bench: OwnersBench) -> None:
    shares = bench.share_out()
    again = bench.again()
    for _ in range(100):
        assert again.offer(shares["alice"]).have == 1
    assert not again.opened
    assert len(again._offered) == 1


FORGED: dict[str, dict[str, Any]] = {
    "another owner's name": {"owner": "bob"},
    "a stranger's name": {"owner": "mallory"},
    "another state's": {"state": "00" * 16},
    "another index": {"index": 3},
    "guessed": {"share": bytes(32)},
    "too long": {"share": bytes(1000)},
}


@pytest.mark.parametrize("change", FORGED.values(), ids=FORGED.keys())
def test_a_forged_share_is_refused_and_keeps_nobody_out(bench: OwnersBench, change: dict[str, Any]) -> None:
    shares = bench.share_out()
    again = bench.again()
    again.offer(shares["carol"])
    with pytest.raises(KeystoreError, match="not one of this state's"):
        again.offer(structs.replace(shares["alice"], **change))
    assert progress(again) == (False, 1, 2)
    assert again.offer(shares["alice"]).open


def test_a_share_for_an_open_broker_is_not_kept(bench: OwnersBench) -> None:
    share = bench.custody.hand_out("alice")
    assert bench.custody.offer(share).open
    assert len(bench.custody._offered) == 0


def test_shares_are_forgotten_once_the_state_is_open(bench: OwnersBench) -> None:
    shares = bench.share_out()
    again = bench.again()
    for owner in ("alice", "bob"):
        again.offer(shares[owner])
    assert len(again._offered) == 0
    assert again._shares._shares == {}


def test_owners_who_offer_at_once_open_it_once(bench: OwnersBench) -> None:
    shares = bench.share_out()
    again = bench.again()
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(again.offer, shares.values()))
    assert again.opened
    assert len(bench.told("start")) == 2


def test_a_passphrase_does_not_open_a_state_of_owners_nor_shares_one_of_laptop_mode(
    bench: OwnersBench, tmp_path: Path
) -> None:
    share = bench.custody.hand_out("alice")
    with pytest.raises(UsageError, match="owners' shares"):
        bench.again().open_by_passphrase(b"correct horse battery staple")
    laptop = Bench(tmp_path / "laptop")
    custody = Custody(open_database(sqlite_url(laptop.directory)), clock=bench.custody.clock, origin=None)
    with pytest.raises(KeystoreError):
        custody.offer(share)
    assert progress(custody) == (False, 0, 1)


def test_a_state_of_other_owners_is_refused_whoever_has_its_shares(bench: OwnersBench) -> None:
    """The operator swaps the whole database for one of his own making, and opens it by his own shares."""
    shares = bench.share_out()
    again = bench.again(pinned="00" * 32)
    again.offer(shares["alice"])
    with pytest.raises(ManifestError):
        again.offer(shares["bob"])
    assert not again.opened


def test_a_damaged_state_stays_closed_and_opens_when_it_is_whole_again(bench: OwnersBench) -> None:
    shares = bench.share_out()
    bench.have_done("put", PATH, SECRET)
    bench.execute(
        "CREATE TABLE kept AS SELECT * FROM records; UPDATE records SET version = 9 WHERE kind = 'resource'"
    )
    again = bench.again()
    again.offer(shares["alice"])
    with pytest.raises(AuditDamaged):
        again.offer(shares["bob"])
    assert not again.opened
    bench.execute("DELETE FROM records; INSERT INTO records SELECT * FROM kept")
    assert again.offer(shares["bob"]).open


def test_an_older_document_of_how_it_is_opened_is_refused(bench: OwnersBench) -> None:
    """Old owners would like their shares to count again."""
    shares = bench.share_out()
    old = encode_document(read_document(bench.custody._engine)).hex()
    _renew(bench, "alice", "dora")
    new = bench.share_out("alice", "dora")
    bench.execute(f"UPDATE state SET document = x'{old}'")  # noqa: S608
    again = bench.again()
    again.offer(shares["alice"])
    with pytest.raises(AuditDamaged, match="not the newest"):
        again.offer(shares["bob"])
    assert not again.opened
    with pytest.raises(KeystoreError):
        bench.again().offer(new["dora"])


EDITED = {
    "the threshold lowered": {"threshold": 1},
    "the wrapped key exchanged": {"wrapped": bytes(60)},
    "the commitments exchanged": {"commitments": {"mallory": "00" * 32}},
}


@pytest.mark.parametrize("change", EDITED.values(), ids=EDITED.keys())
def test_a_document_edited_on_disk_opens_nothing(bench: OwnersBench, change: dict[str, Any]) -> None:
    shares = bench.share_out()
    document = read_document(bench.custody._engine)
    edited = structs.replace(document, lock=structs.replace(document.lock, **change))
    bench.execute(f"UPDATE state SET document = x'{encode_document(edited).hex()}'")  # noqa: S608
    again = bench.again()
    with pytest.raises(BrokerError):
        _offer_all(again, shares.values())
    assert not again.opened


@pytest.mark.parametrize(
    "script",
    [
        "DELETE FROM state",
        "UPDATE state SET document = x'7b7d'",
        "UPDATE state SET id = 'other'",
        "DROP TABLE state",
    ],
)
def test_a_state_without_its_document_is_refused(bench: OwnersBench, script: str) -> None:
    bench.execute(script)
    with pytest.raises((BrokerError, UsageError)):
        bench.again().progress()


def test_a_peer_opens_it_with_the_key_and_with_no_other(bench: OwnersBench) -> None:
    bench.share_out()
    again = bench.again()
    with pytest.raises(BrokerError):
        again.open_from_peer(bytes(32))
    with pytest.raises(KeystoreError):
        again.open_from_peer(bytes(31))
    assert not again.opened
    again.open_from_peer(bench.state.key_for_peer())
    assert again.opened


def test_one_owner_who_claims_to_know_a_newer_manifest_does_not_keep_the_others_out(
    bench: OwnersBench,
) -> None:
    shares = bench.share_out()
    again = bench.again()
    again.offer(shares["carol"], floor=2**53)
    with pytest.raises(RollbackFound, match="knows version"):
        again.offer(shares["alice"])
    assert not again.opened
    assert again.offer(shares["bob"]).open


# -- other owners ------------------------------------------------------------------------------------------------------


def _renew(bench: OwnersBench, *update: str, threshold: int | None = None) -> None:
    """A new manifest whose update quorum is these."""
    owners = manifest_parts.keys("alice", "bob", "carol", *update)
    signed = bench.succeed(
        "alice", "bob", "carol", owners=owners, update=manifest_parts.quorum(*update, threshold=threshold)
    )
    bench.custody.submit_manifest(signed)


def _offer_all(custody: Custody, shares: Iterable[Share]) -> None:
    for share in shares:
        custody.offer(share)


def opens(bench: OwnersBench, *shares: Share) -> bool:
    """Would they open it? Asked of a copy: who opens it makes lost shares anew."""
    with tempfile.TemporaryDirectory() as folder:
        one = sqlite3.connect(bench.directory / DATABASE)
        two = sqlite3.connect(Path(folder) / DATABASE)
        one.backup(two)
        one.close()
        two.close()
        custody = Custody(
            open_database(sqlite_url(Path(folder))),
            clock=bench.custody.clock,
            origin=bench.state.authority.origin,
        )
        try:
            _offer_all(custody, shares)
        except KeystoreError:
            return False
        return custody.opened


def test_a_manifest_that_leaves_its_owners_as_they_are_makes_no_new_shares(bench: OwnersBench) -> None:
    shares = bench.share_out()
    signed = bench.succeed("alice", "bob", auditors=manifest_parts.keys("anna"))
    bench.custody.submit_manifest(signed)
    with pytest.raises(UnknownResource):
        bench.custody.hand_out("alice")
    assert opens(bench, shares["alice"], shares["bob"])


def test_new_owners_get_shares_while_the_old_still_open_it_until_enough_new_ones_are_kept(
    bench: OwnersBench,
) -> None:
    old = bench.share_out()
    bench.have_done("put", PATH, SECRET)
    _renew(bench, "alice", "dora", "emil", threshold=2)
    handed = {owner: bench.custody.hand_out(owner) for owner in ("alice", "dora", "emil")}
    with pytest.raises(UnknownResource):
        bench.custody.hand_out("bob")
    assert bench.keep("dora") == Progress(open=True, have=1, need=2)
    # Between: either opens it, and one of each does not.
    assert opens(bench, old["alice"], old["bob"])
    assert opens(bench, handed["dora"], handed["emil"])
    assert opens(bench, handed["alice"], old["alice"], handed["emil"])
    assert not opens(bench, old["bob"], handed["dora"])
    assert bench.keep("emil") == Progress(open=True, have=2, need=2)
    # After: the new ones alone.
    assert not opens(bench, old["alice"], old["bob"], old["carol"])
    assert opens(bench, handed["alice"], handed["dora"])
    assert isinstance(read_document(bench.custody._engine).lock, ShareLock)
    assert read_document(bench.custody._engine).next is None
    # Who was handed a share and had not said so yet still can.
    assert bench.keep("alice") == Progress(open=True, have=3, need=2)


def test_putting_goes_on_while_shares_are_renewed(bench: OwnersBench) -> None:
    bench.share_out()
    _renew(bench, "alice", "dora")
    assert bench.have_done("put", PATH, SECRET).version == 1
    bench.share_out("alice", "dora")
    assert bench.have_done("put", PATH, SECRET).version == 2


def test_only_the_newest_shares_are_made_when_owners_change_twice(bench: OwnersBench) -> None:
    old = bench.share_out()
    _renew(bench, "alice", "dora")
    skipped = {owner: bench.custody.hand_out(owner) for owner in ("alice", "dora")}
    owners = {**bench.state.authority.manifest.manifest.owners, **manifest_parts.keys("emil")}
    signed = bench.succeed("alice", "dora", owners=owners, update=manifest_parts.quorum("dora", "emil"))
    bench.custody.submit_manifest(signed)
    assert not opens(bench, *skipped.values())
    assert opens(bench, old["alice"], old["bob"])
    new = bench.share_out("dora", "emil")
    assert opens(bench, *new.values())
    assert not opens(bench, old["alice"], old["bob"])


def test_old_shares_open_it_after_a_crash_while_one_owner_of_both_locks_keeps_only_the_new_share(
    bench: OwnersBench,
) -> None:
    """What alice signed about her new share does not stand in the place of what she signed about her old one."""
    old = bench.share_out("alice", "bob")
    _renew(bench, "alice", "dora", "emil", threshold=2)
    new = bench.share_out("alice")
    assert opens(bench, old["alice"], old["bob"])
    assert not opens(bench, new["alice"], old["bob"])


def test_a_key_that_is_opened_anew_is_the_same_state(bench: OwnersBench) -> None:
    bench.share_out()
    bench.have_done("put", PATH, SECRET)
    bench.allow()
    _renew(bench, "alice", "dora")
    new = bench.share_out("alice", "dora")
    bench.custody = bench.again()
    for share in new.values():
        bench.custody.offer(share)
    bench.desk = bench.desk_over(bench.custody)
    assert attested(bench, workload()).get() == SECRET


# -- witnesses that do not answer ----------------------------------------------------------------------------------------


def test_a_state_that_waits_for_its_witnesses_is_closed_and_asks_again(tmp_path: Path) -> None:
    nobody = {"wanda": "http://127.0.0.1:9", "willy": "http://127.0.0.1:9"}
    genesis = owners_manifest(witnesses=manifest_parts.two_witnesses())
    bench = OwnersBench(tmp_path / "state", genesis=genesis, witnesses=nobody)
    assert not bench.custody.opened
    with pytest.raises(Locked, match="witnesses"):
        _ = bench.custody.state
    found = bench.custody.progress()
    assert (found.open, found.have, found.need) == (False, 0, 0)
    assert len(found.log_key) == 64
    with pytest.raises(Locked):
        bench.keep("alice")
    bench.custody.close()


def test_no_secret_is_shown(bench: OwnersBench) -> None:
    share = bench.custody.hand_out("alice")
    again = bench.again()
    again.offer(share)
    shown = (
        repr(bench.custody)
        + repr(again)
        + repr(again._offered)
        + repr(again._offered.shares)
        + repr(bench.state)
        + repr(bench.custody._shares)
        + repr(bench.custody._shares._shares)
    )
    for secret in (share.share, bench.state.key_for_peer()):
        assert secret.hex() not in shown
        assert repr(secret) not in shown
