"""A workload's side of rounds whose updates nobody sees: whom it believes, what it does not answer, what it remembers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import structs

from cloister.attester.launch import this_program
from cloister.encoding import encode_json
from cloister.errors import CloisterError, FederationError, UpdateRefused, UsageError
from cloister.federated.exchange import Request
from cloister.federated.federation import Task
from cloister.federated.flower.workshop import Answer
from cloister.federated.identity import Identity
from cloister.federated.messages import (
    Renewal,
    TaskOrder,
    WorkAsked,
)
from cloister.federated.opening import Places
from cloister.federated.secure.masks import Tried
from cloister.federated.secure.memory import Memory, memory_name
from cloister.federated.secure.sum import MaskedSum
from cloister.federated.secure.terms import Terms
from cloister.federated.secure.wire import BEGUN, STEPS, Asked, key_digest, pack, threshold, unpack
from cloister.federated.secure.work import SecureWork
from cloister.federated.tasks import Trained
from cloister.federated.updates import encode_arrays
from cloister.federated.workload import Workload
from cloister.inference.model import find_model
from cloister.manifest.signed import encode_signed
from cloister.sealing.key_file import KeyFile
from cloister.sealing.seal import seal_directory
from cloister.sealing.signing import SigningKey
from federation_parts import NAMES, aggregation, signed
from secure_parts import KEY, LARGEST, MILLION, MODEL, RUN, URI, Party, Room, memory_at, secure
from task_parts import save_encoder

BLOB = encode_arrays(MODEL)
DIGEST = key_digest(BLOB)


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(secure(), tmp_path)


def asked_of(room: Room, *names: str, **keys: bytes) -> bytes:
    """Step 1 as the aggregator asks for it, with other keys than it should have for some."""
    known = {name: room.keys()[name] for name in names or NAMES} | keys
    return pack(encode_json(Asked(parties={name: key_digest(key) for name, key in known.items()})), BLOB)


def request(kind: str, content: bytes, **changes: Any) -> Request:
    return Request(**({"kind": kind, "run": RUN, "number": 1, "model": DIGEST, "content": content} | changes))


def says(party: Party, kind: str, content: bytes, **changes: Any) -> Answer:
    return party.work.answer(request(kind, content, **changes), party.train)


class Aggregator:
    """An honest one, step by step."""

    def __init__(self, room: Room, *names: str, number: int = 1) -> None:
        self.room, self.names, self.number = room, names or NAMES, number
        keys = {name: room.parties[name].identity.key.public_key() for name in self.names}
        self.sum = MaskedSum(
            Terms(
                run=RUN, number=number, parties=keys, threshold=threshold(2, len(keys)), largest_ppm=LARGEST * MILLION,
                model=DIGEST, shapes={name: one.shape for name, one in MODEL.items()},
            )
        )  # fmt: skip
        self.told: dict[str, bytes] = dict.fromkeys(self.names, asked_of(room, *self.names))
        self.heard: dict[str, dict[str, bytes]] = {}

    def until(self, step: str) -> Aggregator:
        """Everything before it."""
        for one in STEPS[: STEPS.index(step)]:
            self.step(one)
        return self

    def step(self, step: str, *silent: str) -> None:
        self.heard[step] = {}
        for name in self.told:
            if name in silent:
                continue
            content = says(self.room.parties[name], step, self.told[name], number=self.number).content
            self.heard[step][name] = content
            head, vector = unpack(content) if step == "masked" else (content, memoryview(b""))
            self.sum.take(head, vector)
        if step != "reveal":
            self.told = dict(self.sum.close())


def test_a_workload_answers_the_steps_and_says_neither_weight_nor_unlisted_metrics(room: Room) -> None:
    north = room.parties["north"]
    answer = says(north, "keys", asked_of(room))
    assert (answer.examples, answer.metrics, answer.error) == (0, {"loss": 0.25}, "")
    aggregator = Aggregator(room).until("reveal")
    aggregator.step("reveal")
    found = aggregator.sum.result()
    assert found.parties == set(NAMES)
    assert found.examples == sum(party.trained[1][1] for party in room.parties.values())


# --- whom it believes


OTHER = Identity.generate().spki


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        pytest.param(
            lambda room: asked_of(room, west=OTHER), "workload key of west is not one that this party's agent",
            id="a key that the aggregator made",
        ),
        pytest.param(
            lambda room: asked_of(room, **dict.fromkeys(("south", "west"), OTHER)), "workload key of south, west",
            id="two keys that the aggregator made",
        ),
        pytest.param(
            lambda room: asked_of(room, west=room.keys()["south"]), "workload key of west",
            id="another party's key",
        ),
        pytest.param(
            lambda room: asked_of(room, north=OTHER), "workload key of north", id="another key in its own name",
        ),
        pytest.param(
            lambda room: asked_of(room, mallory=OTHER), "workload key of mallory", id="a party that nobody verified",
        ),
        pytest.param(lambda room: asked_of(room, "south", "west"), "this one among them", id="without this party"),
        pytest.param(lambda room: asked_of(room, "north"), "has 2 parties at least", id="this party alone"),
        pytest.param(lambda _: b"", "cut short", id="nothing"),
        pytest.param(lambda _: b"\0\0\0\x09{}", "cut short", id="less than it says"),
        pytest.param(lambda _: pack(b"{}", BLOB), "parties", id="no list"),
        pytest.param(
            lambda _: pack(b'{ "parties": {} }', BLOB), "not canonical JSON", id="a list in another spelling",
        ),
    ],
)  # fmt: skip
def test_a_workload_says_nothing_to_a_round_of_others_than_its_agent_verified(
    room: Room, listed: Callable[[Room], bytes], words: str
) -> None:
    north = room.parties["north"]
    with pytest.raises(UpdateRefused, match=words):
        says(north, "keys", listed(room))
    assert not north.trainings  # nothing is learned for such a round either
    with pytest.raises(UpdateRefused, match="takes no part in that round"):
        says(north, "shares", b"{}")


def test_keys_that_come_in_time_are_waited_for(room: Room) -> None:
    north = room.parties["north"]
    work = SecureWork(room.federation, "north", north.identity, north.memory, patience=20.0)
    work.know({"south": room.keys()["south"]})
    late = threading.Timer(
        0.2, work.know, [{name: key for name, key in room.keys().items() if name != "north"}]
    )
    late.start()
    assert work.answer(request("keys", asked_of(room)), north.train).content
    late.join()


def test_a_key_that_is_none_is_not_taken_from_the_agent_either(room: Room) -> None:
    north = room.parties["north"]
    with pytest.raises(FederationError, match="cannot be read"):
        north.work.know({"south": b"no key"})
    assert says(north, "keys", asked_of(room)).content  # the ones before hold


# --- what it does not answer


@pytest.mark.parametrize("step", STEPS[1:])
def test_no_step_is_answered_before_the_one_before_it(room: Room, step: str) -> None:
    north = room.parties["north"]
    with pytest.raises(UpdateRefused, match="takes no part in that round"):
        says(north, step, b"{}")
    says(north, "keys", asked_of(room))
    with pytest.raises(CloisterError):
        says(north, "masked" if step == "shares" else step, b"{}")


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"run": "cd" * 16}, id="of another run"),
        pytest.param({"number": 2}, id="of another round"),
        pytest.param({"model": "00" * 32}, id="from another model"),
    ],
)
def test_a_step_is_of_the_round_that_was_begun(room: Room, changes: dict[str, Any]) -> None:
    aggregator = Aggregator(room).until("shares")
    with pytest.raises(UpdateRefused, match="takes no part in that round"):
        says(room.parties["north"], "shares", aggregator.told["north"], **changes)


def test_no_step_is_answered_twice(room: Room) -> None:
    aggregator = Aggregator(room)
    told = {}
    for step in STEPS:
        told[step] = aggregator.told["north"]
        aggregator.step(step)
    for step in STEPS[1:]:
        with pytest.raises(UpdateRefused, match="takes no part in that round"):
            says(room.parties["north"], step, told[step])
    with pytest.raises(UpdateRefused, match="takes no part"):
        says(room.parties["north"], "open", b"")


def test_a_party_whose_update_may_not_be_used_says_so_before_anybody_counts_on_it(room: Room) -> None:
    north = room.parties["north"]

    def too_far(asked: Request) -> Any:
        model, trained = north.train(asked)
        return model, replace(trained, arrays={name: one + 100 for name, one in trained.arrays.items()})

    def of_nothing(asked: Request) -> Any:
        model, trained = north.train(asked)
        return model, Trained(trained.arrays, 0, trained.metrics)

    for train, words in ((too_far, "at most is taken"), (of_nothing, "examples, not of 0")):
        with pytest.raises(UpdateRefused, match=words):
            north.work.answer(request("keys", asked_of(room)), train)
    assert north.memory.before(RUN, 1) is None


# --- what it remembers


def test_what_was_learned_in_a_round_is_not_learned_again_for_another_try(room: Room) -> None:
    Aggregator(room).until("masked")
    aggregator = Aggregator(room).until("reveal")
    aggregator.step("reveal")
    assert {party.trainings for party in room.parties.values()} == {1}
    assert aggregator.sum.result().parties == set(NAMES)
    says(room.parties["north"], "keys", asked_of(room), number=2)
    assert room.parties["north"].trainings == 2


@pytest.mark.parametrize("step", ["keys", "shares"])
def test_before_its_vector_went_out_a_party_may_try_again_with_others(room: Room, step: str) -> None:
    Aggregator(room).until(step).step(step)
    assert says(room.parties["north"], "keys", asked_of(room, "north", "south")).content


def test_once_its_vector_went_out_a_party_tries_a_round_with_the_same_others_alone(room: Room) -> None:
    Aggregator(room).until("masked").step("masked")
    for listed in (asked_of(room, "north", "south"), asked_of(room, "north", "west")):
        with pytest.raises(UpdateRefused) as refused:
            says(room.parties["north"], "keys", listed)
        assert refused.value.what == BEGUN
    aggregator = Aggregator(room).until("reveal")
    aggregator.step("reveal")
    assert aggregator.sum.result().parties == set(NAMES)


def test_it_is_written_down_before_a_vector_or_a_share_is_sent(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise UsageError("the disk is full")

    aggregator = Aggregator(room).until("masked")
    north = room.parties["north"]
    monkeypatch.setattr("cloister.federated.sealed_record.write_whole", full)
    with pytest.raises(UsageError, match="disk is full"):
        says(north, "masked", aggregator.told["north"])
    monkeypatch.undo()
    assert north.memory.before(RUN, 1) is None  # nothing went out, and nothing binds
    aggregator = Aggregator(room).until("reveal")
    tried = north.memory.before(RUN, 1)
    assert tried is not None
    assert tried.opened == ()
    monkeypatch.setattr("cloister.federated.sealed_record.write_whole", full)
    with pytest.raises(UsageError, match="disk is full"):
        says(north, "reveal", aggregator.told["north"])
    monkeypatch.undo()
    assert north.memory.before(RUN, 1) == tried
    aggregator = Aggregator(room).until("reveal")
    aggregator.step("reveal")
    assert north.memory.before(RUN, 1) == Tried(terms=tried.terms, opened=tuple(sorted(NAMES)))


def test_a_restarted_workload_takes_no_part_in_a_round_for_which_its_vector_went_out(room: Room) -> None:
    Aggregator(room).until("masked").step("masked")
    room.restart("north")
    with pytest.raises(UpdateRefused) as refused:
        says(room.parties["north"], "keys", asked_of(room))
    assert refused.value.what == BEGUN
    assert says(room.parties["north"], "keys", asked_of(room), number=2).content


def test_a_restarted_workload_takes_part_again_where_nothing_had_gone_out(room: Room) -> None:
    Aggregator(room).until("masked")
    room.restart("north")
    aggregator = Aggregator(room).until("reveal")
    aggregator.step("reveal")
    assert aggregator.sum.result().parties == set(NAMES)


def test_a_round_before_the_last_is_over(room: Room) -> None:
    Aggregator(room, number=3).until("masked").step("masked")
    with pytest.raises(UpdateRefused, match="has taken part in round 3, which is later"):
        says(room.parties["north"], "keys", asked_of(room), number=2)


# --- its file


TRIED = Tried(terms=bytes(32), opened=())


@contextmanager
def memory(folder: Path, **changes: Any) -> Iterator[Memory]:
    plain: dict[str, Any] = {"first": "11" * 32, "party": "north", "keys": KeyFile(KEY, URI), "key_uri": URI}
    found = Memory(folder, **(plain | changes))
    try:
        yield found
    finally:
        found.close()


def test_the_file_has_nothing_in_the_clear_and_outlives_the_process(tmp_path: Path) -> None:
    with memory(tmp_path) as first:
        first.keep(RUN, 2, TRIED)
        first.keep("another run", 1, TRIED)
        assert repr(first) == f"Memory('{memory_name('11' * 32, 'north')}')"
    data = (tmp_path / memory_name("11" * 32, "north")).read_bytes()
    assert RUN.encode() not in data
    assert KEY not in data
    with memory(tmp_path) as again:
        assert again.before(RUN, 2) == again.before("another run", 1) == TRIED
        assert again.before(RUN, 3) is None
        assert again.before("a third", 1) is None


def test_one_process_has_it_at_a_time_and_after_its_end_nobody(tmp_path: Path) -> None:
    with memory(tmp_path) as first:
        with pytest.raises(UsageError, match="another workload uses"):
            memory_at(tmp_path, "north")
        memory_at(tmp_path, "south").close()
    with pytest.raises(UsageError, match="is closed"):
        first.keep(RUN, 1, TRIED)
    first.close()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"keys": KeyFile(bytes(32), URI)}, "does not open", id="another key"),
        pytest.param({"party": "south"}, "another party", id="another party"),
        pytest.param({"first": "22" * 32}, "another party or federation", id="another federation"),
    ],
)
def test_a_file_of_somebody_else_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with memory(tmp_path) as first:
        first.keep(RUN, 1, TRIED)
    name = memory_name(changes.get("first", "11" * 32), changes.get("party", "north"))
    written = tmp_path / memory_name("11" * 32, "north")
    written.rename(tmp_path / name)
    with pytest.raises(CloisterError, match=words), memory(tmp_path, **changes):
        pass


def test_any_flipped_bit_and_any_shorter_file_is_refused(tmp_path: Path) -> None:
    with memory(tmp_path) as first:
        first.keep(RUN, 1, TRIED)
    path = tmp_path / memory_name("11" * 32, "north")
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(CloisterError), memory(tmp_path):
            pass
        path.write_bytes(whole[:place])
        with pytest.raises(CloisterError), memory(tmp_path):
            pass


def test_what_it_remembers_is_bounded_and_never_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloister.federated.secure.memory.MAX_RUNS", 2)
    with memory(tmp_path) as full:
        full.keep("run 1", 1, TRIED)
        full.keep("run 2", 1, TRIED)
        with pytest.raises(FederationError, match="takes no more"):
            full.keep("run 3", 1, TRIED)
        full.keep("run 2", 2, TRIED)
        assert full.before("run 1", 1) == TRIED


# --- the whole workload, but for Flower's node


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("model") / "encoder")


@pytest.fixture
def ordered(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Workload]]:
    """Workloads of ``north`` that have taken their task."""
    made: list[Workload] = []
    node = SimpleNamespace(running=True, renew=lambda _: None, close=lambda: None)
    monkeypatch.setattr("cloister.federated.workload.PartyNode", lambda *_, **__: node)
    plain = tmp_path / "plain"
    plain.mkdir()
    words = "in\tO\nrome\tB-Place\n\nhe\tO\nwent\tO\n\n"
    for name in ("train.tsv", "test.tsv"):
        (plain / name).write_text(words * 4)
    signing = SigningKey(bytes(32))
    seal_directory(plain, tmp_path / "data", key_uri=URI, kek=KEY, signing_key=signing)
    settings: dict[str, Any] = {
        "kinds": ("Place",), "train": "train.tsv", "test": "test.tsv", "format": "conll", "word-column": 0,
        "tag-column": 1, "length": 64, "stride": 16, "epochs": 1, "batch": 4, "rate-ppm": 100, "head-rate-ppm": 1000,
        "precision": "fp32",
    }  # fmt: skip

    def workload(*, state: str | None = "state", how: Any = None) -> Workload:
        document = secure(
            aggregation=how or aggregation(secure=True),
            task=Task(
                plugin="ner", code=this_program().hex(), model=find_model(encoder, signers=frozenset()).digest.hex(),
                settings=settings,
            ),
        )  # fmt: skip
        found = signed(document)
        order = TaskOrder(
            federation=(encode_signed(found),), digest=found.digest, word="word", lease=600, party="north", run=RUN,
            chain=(), bundle=b"", root="", tunnel="", keys={URI: KEY}, signers=(signing.public_key.hex(),), output=URI,
            peers={"south": OTHER},
        )  # fmt: skip
        places = Places(
            memory=tmp_path, data=tmp_path / "data", model=encoder,
            state=None if state is None else tmp_path / state,
        )  # fmt: skip
        one = Workload(Identity.generate(), places)
        made.append(one)
        one.begin(order)
        return one

    yield workload
    for one in made:
        one.close()


def asks(workload: Workload, kind: str) -> Request:
    """With the model that training begins with, from a round of the parties that it knows."""
    assert workload.training is not None
    blob = encode_arrays(workload.training.arrays())
    keys = {"north": workload.identity.spki, "south": OTHER}
    asked = encode_json(Asked(parties={name: key_digest(key) for name, key in keys.items()}))
    return Request(kind, RUN, 1, key_digest(blob), pack(asked, blob) if kind in STEPS else blob)


def test_a_workload_whose_federation_hides_updates_never_shows_one(ordered: Callable[..., Workload]) -> None:
    workload = ordered()
    with pytest.raises(UpdateRefused, match="nobody is shown an update"):
        workload.work(asks(workload, "train"))
    assert workload.work(asks(workload, "keys")).examples == 0
    assert workload.work(asks(workload, "score")).examples == 8
    with pytest.raises(UpdateRefused, match="nobody is shown an update"):
        workload.work(asks(workload, "train"))


def test_a_workload_whose_federation_hides_none_takes_no_step_of_it(
    ordered: Callable[..., Workload],
) -> None:
    workload = ordered(how=aggregation(), state=None)
    for step in STEPS:
        with pytest.raises(UpdateRefused, match="are not added under masks"):
            workload.work(asks(workload, step))
    assert workload.work(asks(workload, "train")).examples == 8


def test_a_workload_that_has_nowhere_to_remember_does_not_begin(ordered: Callable[..., Workload]) -> None:
    with pytest.raises(UsageError, match="not told where to keep in which rounds"):
        ordered(state=None)


def test_a_workload_believes_the_keys_of_its_agent_s_newest_word(ordered: Callable[..., Workload]) -> None:
    workload = ordered()
    renewal = Renewal(word="word", lease=600, chain=(), bundle=b"", root="", tunnel="", run=RUN, peers={})
    with pytest.raises(FederationError, match="not the agent"):
        workload.renew(structs.replace(renewal, word="another"))
    assert workload.work(asks(workload, "keys")).content
    workload.renew(renewal)
    assert workload._secure is not None
    workload._secure._patience = 0.0
    with pytest.raises(UpdateRefused, match="workload key of south is not one"):
        workload.work(asks(workload, "keys"))
    workload.renew(structs.replace(renewal, peers={"south": OTHER}))
    assert workload.work(asks(workload, "keys")).content


def test_an_order_that_comes_again_is_a_renewal_and_another_agent_s_is_refused(
    ordered: Callable[..., Workload],
) -> None:
    workload = ordered()
    assert workload.order is not None
    again = structs.replace(workload.order, peers={})
    with pytest.raises(FederationError, match="has its task"):
        workload.begin(structs.replace(again, word="another"))
    workload.leased = 0.0
    workload.begin(again)
    assert workload.leased > 0.0
    with pytest.raises(UpdateRefused):  # south's key is not believed any more
        workload.work(asks(workload, "keys"))


def test_an_order_that_came_before_its_agent_had_it_hold_gives_no_lease_after_that(
    ordered: Callable[..., Workload],
) -> None:
    workload = ordered()
    assert workload.order is not None
    early = workload._clock()
    workload.state(WorkAsked(word="word", hold=True))
    workload._lease(600, early)
    with pytest.raises(FederationError, match="has not verified the aggregator in time"):
        workload.work(asks(workload, "keys"))
    workload.begin(workload.order)
    assert workload.work(asks(workload, "keys")).content


def test_an_update_is_kept_back_whose_agent_had_it_hold_while_it_was_computed(
    ordered: Callable[..., Workload],
) -> None:
    workload = ordered(how=aggregation(), state=None)
    training = workload.training
    assert training is not None
    train = training.train

    def held(*arguments: Any, **more: Any) -> Any:
        workload.state(WorkAsked(word="word", hold=True))
        return train(*arguments, **more)

    assert workload.work(asks(workload, "train")).content
    training.train = held  # type: ignore[method-assign]
    with pytest.raises(FederationError, match="has not verified the aggregator in time"):
        workload.work(asks(workload, "train"))


def test_a_round_before_one_that_was_trained_is_over_and_its_agent_hears_so(
    ordered: Callable[..., Workload],
) -> None:
    workload = ordered(how=aggregation(), state=None)
    first = asks(workload, "train")
    workload.work(first)
    assert workload.state(WorkAsked(word="word", hold=False)).rounds == 0
    workload.work(replace(first, number=2))
    assert workload.state(WorkAsked(word="word", hold=False)).rounds == 1
    with pytest.raises(UpdateRefused, match="round 1 is over"):
        workload.work(first)
    assert workload.work(replace(first, number=2)).content
