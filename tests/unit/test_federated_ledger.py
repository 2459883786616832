"""What a party has spent of its people's privacy: once written down it counts, whoever starts what again."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import CloisterError, FederationError, KeyUnavailable, UsageError, WrongKey
from cloister.federated.ledger import Ledger, ledger_name
from cloister.federated.privacy import Charge, spent
from cloister.federated.tasks import ExamplePrivacy
from cloister.sealing.key_file import KeyFile
from cloister.sealing.reader import SealedReader
from cloister.sealing.writer import SealedWriter

FIRST, SECOND, OTHER = ("ab" * 32, "cd" * 32, "ef" * 32)
URI = "kbs:///north/key/data"
KEY = bytes(range(32))
RULES = ExamplePrivacy(noise=1.0, clip=1.0, delta=1e-5, epsilon=6.0)
ROUND = Charge(noise=1.0, rate=0.1, steps=10)
Open = Any


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    with ExitStack() as stack:

        def open_it(folder: Path = tmp_path, **changes: Any) -> Ledger:
            settings: dict[str, Any] = {
                "first": FIRST, "version": FIRST, "party": "north", "privacy": RULES, "keys": KeyFile(KEY, URI),
                "key_uri": URI,
            }  # fmt: skip
            found = Ledger(folder, **(settings | changes))
            stack.callback(found.close)
            return found

        yield open_it


def book(folder: Path, *, first: str = FIRST) -> dict[str, Any]:
    """What the file has in it."""
    with (folder / ledger_name(first, "north")).open("rb") as file:
        reader = SealedReader(file, KeyFile(KEY, URI), name="the ledger")
        found: dict[str, Any] = json.loads(reader.read(0, reader.size))
    return found


def put(folder: Path, data: bytes, *, key: bytes = KEY, uri: str = URI) -> Path:
    """Another file in the ledger's place, rightly sealed."""
    path = folder / ledger_name(FIRST, "north")
    with path.open("wb") as file, SealedWriter(file, key_uri=uri, kek=key) as writer:
        writer.write(data)
    return path


def test_two_rounds_are_two_charges_and_each_has_noise_of_its_own(opened: Open, tmp_path: Path) -> None:
    ledger = opened()
    assert ledger.spent() == 0
    one, two = ledger.spend(b"round 1", ROUND), ledger.spend(b"round 2", ROUND)
    assert (one.before, two.before) == ((), (ROUND,))
    assert one.source(64) != two.source(64)
    assert ledger.spent() == spent([ROUND, ROUND], delta=1e-5) > spent([ROUND], delta=1e-5)
    assert len(book(tmp_path)["entries"]) == 2


def test_a_charge_is_on_the_disk_when_the_round_begins_and_outlives_the_process(
    opened: Open, tmp_path: Path
) -> None:
    first = opened()
    noise = first.spend(b"round 1", ROUND).source(64)
    assert len(book(tmp_path)["entries"]) == 1
    first.close()
    again = opened()
    assert again.spent() == spent([ROUND], delta=1e-5)
    repeated = again.spend(b"round 1", ROUND)
    assert (repeated.before, repeated.source(64)) == ((), noise)
    assert again.spend(b"round 2", ROUND).before == (ROUND,)


def test_a_round_that_is_computed_again_costs_nothing_more_and_is_not_its_own_past(opened: Open) -> None:
    ledger = opened()
    noise = [ledger.spend(name, ROUND).source(64) for name in (b"1", b"2", b"1", b"2", b"1")]
    assert noise == [noise[0], noise[1], noise[0], noise[1], noise[0]]
    assert ledger.spent() == spent([ROUND, ROUND], delta=1e-5)


@pytest.mark.parametrize(
    ("changes", "charge"),
    [
        pytest.param({"version": SECOND}, ROUND, id="another version, whose clip may be another"),
        pytest.param({}, Charge(noise=1.0, rate=0.1, steps=11), id="other steps"),
        pytest.param({}, Charge(noise=1.5, rate=0.1, steps=10), id="other noise"),
    ],
)
def test_the_same_noise_is_never_on_two_different_things(
    changes: dict[str, Any], charge: Charge, opened: Open
) -> None:
    first = opened()
    noise = first.spend(b"round", ROUND).source(64)
    first.close()
    other = opened(**changes).spend(b"round", charge)
    assert other.before == (ROUND,)
    assert other.source(64) != noise


def test_a_new_version_of_the_federation_goes_on_spending_where_the_last_one_was(opened: Open) -> None:
    first = opened()
    first.spend(b"round", ROUND)
    first.close()
    assert opened(version=SECOND).spent() == spent([ROUND], delta=1e-5)


def test_what_would_exceed_the_budget_is_refused_and_not_written_down(opened: Open, tmp_path: Path) -> None:
    ledger = opened()
    rounds = 0
    while spent([ROUND] * (rounds + 1), delta=1e-5) <= RULES.epsilon:
        ledger.spend(b"%d" % rounds, ROUND)
        rounds += 1
    assert rounds > 1
    kept = book(tmp_path)
    for _ in range(2):
        with pytest.raises(FederationError, match="the privacy budget is spent: this round would come to 6"):
            ledger.spend(b"one more", ROUND)
    assert book(tmp_path) == kept
    assert len(kept["entries"]) == rounds
    # What is paid for is not refused.
    assert len(ledger.spend(b"0", ROUND).before) == rounds - 1
    ledger.close()
    with pytest.raises(FederationError, match="the privacy budget is spent"):
        opened().spend(b"one more", ROUND)


def test_what_cannot_be_written_down_is_not_begun(opened: Open, tmp_path: Path) -> None:
    ledger = opened()
    path = tmp_path / ledger_name(FIRST, "north")
    path.unlink()
    path.mkdir()  # where no file can be put, also by root
    with pytest.raises(UsageError, match="cannot be written"):
        ledger.spend(b"round", ROUND)
    assert ledger.spent() == 0
    path.rmdir()
    ledger.spend(b"round", ROUND)
    assert ledger.spent() > 0
    ledger.close()
    with pytest.raises(UsageError, match="closed"):
        ledger.spend(b"another", ROUND)


def test_any_flipped_byte_and_any_missing_end_is_refused_and_nothing_begins_anew(
    opened: Open, tmp_path: Path
) -> None:
    ledger = opened()
    ledger.spend(b"round", ROUND)
    ledger.close()
    path = tmp_path / ledger_name(FIRST, "north")
    good = path.read_bytes()
    places = range(0, len(good), 7)
    for bad in (*(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :] for at in places), good[:-1], b""):
        path.write_bytes(bad)
        with pytest.raises(CloisterError) as refused:
            opened()
        assert "\n" not in str(refused.value)
        assert path.read_bytes() == bad
    path.write_bytes(good)
    assert opened().spent() > 0


def test_a_ledger_of_another_federation_or_party_is_refused(opened: Open, tmp_path: Path) -> None:
    opened(first=OTHER).close()
    opened(party="south").close()
    for name in (ledger_name(OTHER, "north"), ledger_name(FIRST, "south")):
        (tmp_path / ledger_name(FIRST, "north")).write_bytes((tmp_path / name).read_bytes())
        with pytest.raises(FederationError, match="of another party or federation"):
            opened()


def test_a_ledger_of_a_federation_whose_digest_begins_alike_is_refused(opened: Open) -> None:
    opened().close()
    with pytest.raises(FederationError, match="of another party or federation"):
        opened(first=FIRST[:32] + OTHER[:32])


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"B-PLACE", id="a file of the party's data"),
        pytest.param(b'{"format":"cloister/federation-ledger/v2"}', id="another format"),
        pytest.param(
            json.dumps(
                {"format": "cloister/federation-ledger/v1", "federation": FIRST, "party": "north", "secret": "AAAA",
                 "entries": []}
            ).encode(),
            id="a secret that can be guessed",
        ),
    ],
)  # fmt: skip
def test_what_is_no_ledger_is_refused_though_the_key_sealed_it(
    data: bytes, opened: Open, tmp_path: Path
) -> None:
    put(tmp_path, data)
    with pytest.raises(CloisterError) as refused:
        opened()
    assert "\n" not in str(refused.value)


def test_another_key_opens_nothing(opened: Open, tmp_path: Path) -> None:
    opened().close()
    with pytest.raises(WrongKey):
        opened(keys=KeyFile(bytes(32), URI))
    with pytest.raises(KeyUnavailable):
        opened(keys=KeyFile(KEY, "kbs:///north/key/new"), key_uri="kbs:///north/key/new")


def test_nothing_is_on_the_disk_in_the_clear(opened: Open, tmp_path: Path) -> None:
    ledger = opened()
    ledger.spend(b"round", ROUND)
    on_disk = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"steps" not in on_disk
    assert book(tmp_path)["secret"].encode() not in on_disk
    assert repr(ledger) == f"Ledger('{ledger_name(FIRST, 'north')}')"
    assert "Stream" not in repr(ledger.spend(b"round", ROUND))


def _try_to_open(folder: Path, answers: Any) -> None:
    try:
        Ledger(
            folder, first=FIRST, version=FIRST, party="north", privacy=RULES, keys=KeyFile(KEY, URI), key_uri=URI
        ).close()  # fmt: skip
        answers.put("opened")
    except UsageError as error:
        answers.put(error.what)


def test_two_processes_do_not_spend_on_one_ledger(opened: Open, tmp_path: Path) -> None:
    held = opened()
    with pytest.raises(UsageError, match="another workload uses"):
        opened()
    spawned = multiprocessing.get_context("spawn")
    answers = spawned.Queue()
    for expected in ("another workload uses", "opened"):
        process = spawned.Process(target=_try_to_open, args=(tmp_path, answers))
        process.start()
        process.join(60)
        assert expected in answers.get(timeout=10)
        held.close()


def test_a_folder_that_cannot_be_used_is_said_to_be_so(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="cannot be used") as refused:
        opened(tmp_path / "file")
    assert "--state" in str(refused.value)


def test_what_a_rolled_back_ledger_shows_again_was_shown_before(opened: Open, tmp_path: Path) -> None:
    path = tmp_path / ledger_name(FIRST, "north")
    ledger = opened()
    older = path.read_bytes()
    noise = ledger.spend(b"round", ROUND).source(64)
    ledger.close()
    path.write_bytes(older)
    assert opened().spend(b"round", ROUND).source(64) == noise
