"""Who is in a run: sessions that are used once, tokens that are somebody's, and who is out until it attests anew."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cloister.encoding import b64url_decode, b64url_encode
from cloister.errors import FederationError, StaleNonce
from cloister.federated.messages import NONCE, TOKEN_SIZE
from cloister.federated.roster import Member, Roster
from cloister.federated.sessions import MAX_USED, SALT, SESSION_SECONDS, Sessions
from federation_parts import NAMES, identity

HOUR = 3600.0


def roster(*, everyone: bool = True, seed: int = 7) -> Roster:
    return Roster(NAMES, everyone=everyone, entropy=random.Random(seed).randbytes)


def member(party: str, *, until: float = HOUR, workload: str = "", mark: int = 0) -> Member:
    return Member(
        party=party, agent_key=identity(f"{party} agent").spki, delegation=b"the word of " + party.encode(),
        workload_key=identity(workload or f"{party} workload").spki, nonce=party.encode().ljust(NONCE, b"\0"),
        vouched=b"vouched %d" % mark, until=until,
    )  # fmt: skip


def admitted(found: Roster, *parties: str, **changes: Any) -> dict[str, str]:
    """Tokens of these parties, or of all."""
    return {party: found.admit(member(party, **changes)) for party in parties or NAMES}


def test_a_session_is_a_partys_own_fresh_and_used_once() -> None:
    found = roster()
    (first, nonce), (second, other) = (found.open_session("north", now=0.0) for _ in range(2))
    assert first != second
    assert nonce != other
    assert len(nonce) == NONCE
    assert found.session(first, now=1.0) == ("north", nonce)
    assert found.session(first, now=1.0) == ("north", nonce)  # until somebody was admitted in it
    found.use_session(first, now=1.0)
    for replayed in (found.session, found.use_session):
        with pytest.raises(StaleNonce, match="no such session"):
            replayed(first, now=1.0)
    assert found.session(second, now=SESSION_SECONDS) == ("north", other)


@pytest.mark.parametrize(
    ("change", "after"),
    [
        pytest.param(lambda _: "", 0.0, id="without a name"),
        pytest.param(lambda _: "00" * TOKEN_SIZE, 0.0, id="of nobody"),
        pytest.param(lambda name: name, SESSION_SECONDS + 0.1, id="over"),
        pytest.param(lambda name: name + "A" * 4000, 0.0, id="too long"),
        pytest.param(lambda _: roster(seed=8).open_session("north", now=0.0)[0], 0.0, id="of another aggregator"),
        pytest.param(
            lambda name: b64url_encode(b64url_decode(name, what="it").replace(b"north", b"south")), 0.0,
            id="of another party",
        ),
        pytest.param(
            lambda name: b64url_encode(b"\xff" * 8 + b64url_decode(name, what="it")[8:]), 0.0, id="made to last"
        ),
    ],
)  # fmt: skip
def test_a_session_that_is_none_any_more_is_refused(change: Callable[[str], str], after: float) -> None:
    found = roster()
    session, _ = found.open_session("north", now=0.0)
    for use in (found.session, found.use_session):
        with pytest.raises(StaleNonce):
            use(change(session), now=after)


def test_a_flood_of_sessions_in_a_partys_name_keeps_nobody_out_not_even_that_party() -> None:
    found = roster()
    own, nonce = found.open_session("north", now=0.0)
    for _ in range(1000):
        found.open_session("north", now=0.0)
    assert found.session(own, now=1.0) == ("north", nonce)


def test_used_sessions_are_forgotten_when_they_would_have_ended_and_never_before() -> None:
    found = Sessions(bytes(32))
    names = [found.open("north", number.to_bytes(SALT, "big"), now=0.0)[0] for number in range(MAX_USED + 1)]
    for name in names[:MAX_USED]:
        found.use(name, now=1.0)
    with pytest.raises(FederationError, match="too many admissions"):
        found.use(names[MAX_USED], now=2.0)
    later, _ = found.open("north", bytes(SALT), now=100.0)
    found.use(later, now=100.0)
    with pytest.raises(StaleNonce):
        found.use(later, now=101.0)


def test_who_is_no_party_gets_no_session_and_is_not_admitted() -> None:
    found = roster()
    with pytest.raises(FederationError, match="'mallory' is no party"):
        found.open_session("mallory", now=0.0)
    with pytest.raises(FederationError, match="no party"):
        found.admit(member("mallory"))
    with pytest.raises(FederationError, match="no party"):
        found.leave("x" * 10_000)


def test_parties_come_and_are_ready_each_by_its_own_token() -> None:
    found = roster()
    assert found.states() == dict.fromkeys(NAMES, "awaited")
    tokens = admitted(found)
    assert len(set(tokens.values())) == len(NAMES)
    for party, token in tokens.items():
        assert not found.complete()
        one = found.member(token, now=0.0)
        assert one.party == party
        assert found.set_ready(one)
        assert not found.set_ready(one)  # no news
    assert found.complete()
    assert found.states() == dict.fromkeys(NAMES, "ready")
    assert list(found.ready()) == sorted(NAMES)


def test_a_token_is_shown_in_no_representation() -> None:
    found = roster()
    token = admitted(found)["north"]
    assert token not in repr(found.member(token, now=0.0))


@pytest.mark.parametrize(
    "token",
    [
        pytest.param("00" * TOKEN_SIZE, id="of nobody"),
        pytest.param("", id="empty"),
        pytest.param("tökén", id="that no program of ours sends"),
        pytest.param("x" * 100_000, id="giant"),
    ],
)
def test_a_token_of_nobody_is_refused(token: str) -> None:
    found = roster()
    admitted(found)
    with pytest.raises(FederationError, match="nobody's"):
        found.member(token, now=0.0)


def test_the_token_before_a_renewal_is_nobodys() -> None:
    found = roster()
    before = admitted(found)["north"]
    after = found.admit(member("north"))
    with pytest.raises(FederationError, match="nobody's"):
        found.member(before, now=0.0)
    assert found.member(after, now=0.0).party == "north"


def test_no_round_asks_a_party_whose_workload_is_gone_until_it_is_ready_again() -> None:
    found = roster()
    north = found.member(admitted(found)["north"], now=0.0)
    assert not found.set_waiting(north)  # it was not ready: no news
    found.set_ready(north)
    assert found.set_waiting(north)
    assert "north" not in found.ready()
    assert found.states()["north"] == "admitted"
    assert found.set_ready(north)
    assert "north" in found.ready()


def test_the_token_of_who_is_excluded_counts_no_more_until_it_attests_anew() -> None:
    found = roster()
    tokens = admitted(found)
    found.set_ready(found.member(tokens["north"], now=0.0))
    assert found.exclude("north")
    assert not found.exclude("north")  # no news
    with pytest.raises(FederationError, match="north is excluded until it attests anew"):
        found.member(tokens["north"], now=0.0)
    assert "north" not in found.ready()
    assert found.by_key(identity("north workload").spki) is None
    again = found.admit(member("north"))
    assert found.member(again, now=0.0).state == "admitted"  # and not ready: others look first
    with pytest.raises(FederationError, match="nobody's"):
        found.member(tokens["north"], now=0.0)


def test_a_party_whose_evidence_ends_is_out_by_that() -> None:
    found = roster()
    token = found.admit(member("north", until=10.0))
    found.admit(member("south", until=20.0))
    assert found.ended(now=10.0) == []
    with pytest.raises(FederationError, match="excluded"):
        found.member(token, now=10.1)  # also before anybody looked
    assert found.ended(now=10.1) == ["north"]
    assert found.ended(now=10.1) == []
    assert found.states() == {"north": "excluded", "south": "admitted", "west": "awaited"}


def test_who_left_does_not_come_back_by_session_token_or_evidence() -> None:
    found = roster()
    session, _ = found.open_session("north", now=0.0)
    tokens = admitted(found)
    found.leave("north")
    assert found.states()["north"] == "left"
    for attempt in (
        lambda: found.open_session("north", now=0.0),
        lambda: found.session(session, now=0.0),
        lambda: found.admit(member("north")),
        lambda: found.leave("north"),
    ):
        with pytest.raises(FederationError, match="north has left"):
            attempt()
    with pytest.raises(FederationError, match="nobody's"):
        found.member(tokens["north"], now=0.0)
    for party in ("south", "west"):
        found.set_ready(found.member(tokens[party], now=0.0))
    assert found.complete()  # the others are all that there are


def test_who_is_ready_stays_so_while_its_evidence_is_renewed() -> None:
    found = roster()
    found.set_ready(found.member(admitted(found)["north"], now=0.0))
    assert found.member(found.admit(member("north")), now=0.0).state == "ready"


def test_a_workload_that_was_started_anew_has_to_begin_before_its_party_is_ready() -> None:
    found = roster()
    found.set_ready(found.member(admitted(found)["north"], now=0.0))
    token = found.admit(member("north", workload="another workload"))
    assert found.member(token, now=0.0).state == "admitted"
    assert found.by_key(identity("north workload").spki) is None


def test_one_workload_is_not_two_parties() -> None:
    """Its update would count twice, and a round of two would be a round of one."""
    found = roster()
    found.admit(member("north"))
    with pytest.raises(FederationError, match="the workload of south is that of north"):
        found.admit(member("south", workload="north workload"))
    assert found.states()["south"] == "awaited"
    owner = found.by_key(identity("north workload").spki)
    assert owner is not None
    assert owner.party == "north"


def test_evidence_is_asked_for_and_shown_by_the_nonce_that_it_is_over() -> None:
    found = roster()
    tokens = admitted(found)
    north, south = (found.member(tokens[party], now=0.0) for party in ("north", "south"))
    assert found.asked_of(north) == {party: member(party).nonce for party in ("south", "west")}
    found.show(
        north, {south.nonce.hex(): b"evidence", north.nonce.hex(): b"to itself", "00" * NONCE: b"to nobody"}
    )
    assert found.asked_of(north) == {"west": member("west").nonce}
    shown = found.presented_to(south)
    assert shown.keys() == {"north"}
    assert (shown["north"].evidence, shown["north"].agent_key) == (b"evidence", north.agent_key)
    assert (shown["north"].workload_key, shown["north"].vouched) == (north.workload_key, north.vouched)
    assert found.presented_to(north) == {}


def test_what_was_shown_over_an_old_nonce_counts_no_more() -> None:
    found = roster()
    tokens = admitted(found)
    north, south = (found.member(tokens[party], now=0.0) for party in ("north", "south"))
    found.show(north, {south.nonce.hex(): b"evidence"})
    found.admit(member("south"))
    assert "south" in found.asked_of(north)
    assert found.presented_to(found.member(tokens["west"], now=0.0)) == {}


def test_of_who_is_excluded_nothing_is_asked_or_shown() -> None:
    found = roster()
    tokens = admitted(found)
    north, south = (found.member(tokens[party], now=0.0) for party in ("north", "south"))
    found.show(north, {south.nonce.hex(): b"evidence"})
    found.exclude("north")
    assert found.presented_to(south) == {}
    assert found.asked_of(south).keys() == {"west"}


def test_where_only_the_aggregator_verifies_nobody_is_asked_for_evidence() -> None:
    found = roster(everyone=False)
    tokens = admitted(found)
    assert found.asked_of(found.member(tokens["north"], now=0.0)) == {}


class Life(RuleBasedStateMachine):
    """Whatever happens in whatever order: tables stay bounded, and only whose evidence holds is ready."""

    def __init__(self) -> None:
        super().__init__()
        self.found = roster()
        self.now = 0.0
        self.tokens: dict[str, str] = {}
        self.until: dict[str, float] = {}
        self.gone: set[str] = set()

    party = st.sampled_from((*NAMES, "mallory"))

    @rule(party=party, seconds=st.floats(0, 100))
    def admits(self, party: str, seconds: float) -> None:
        try:
            token = self.found.admit(member(party, until=self.now + seconds))
        except FederationError:
            assert party in self.gone | {"mallory"}
        else:
            self.tokens[party], self.until[party] = token, self.now + seconds

    @rule(party=party)
    def is_ready(self, party: str) -> None:
        try:
            one = self.found.member(self.tokens.get(party, ""), now=self.now)
        except FederationError:
            return
        assert one.party == party
        assert self.now <= self.until[party]
        self.found.set_ready(one)

    @rule(party=party)
    def opens(self, party: str) -> None:
        try:
            self.found.open_session(party, now=self.now)
        except FederationError:
            assert party in self.gone | {"mallory"}

    @rule(party=st.sampled_from(NAMES))
    def excludes(self, party: str) -> None:
        if self.found.exclude(party):
            self.until[party] = -1.0

    @rule(party=party)
    def leaves(self, party: str) -> None:
        try:
            self.found.leave(party)
        except FederationError:
            assert party in self.gone | {"mallory"}
        else:
            self.gone.add(party)

    @rule(seconds=st.floats(0, 200))
    def waits(self, seconds: float) -> None:
        self.now += seconds
        for party in self.found.ended(now=self.now):
            self.until[party] = -1.0

    @invariant()
    def holds(self) -> None:
        assert set(self.found.states()) == set(NAMES)
        for party in self.found.ready():
            assert party not in self.gone
            assert self.now <= self.until[party]


Life.TestCase.settings = hypothesis_settings(max_examples=30, stateful_step_count=30)
TestWhateverHappens = Life.TestCase
