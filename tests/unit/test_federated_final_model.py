"""The final model: written by a receiver's workload alone, of the run that the aggregator vouches for, and sealed."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from cloister.encoding import encode_json
from cloister.errors import CloisterError, FederationError, KeyUnavailable, UsageError, WrongKey
from cloister.federated.agreement import AgreedFederation
from cloister.federated.exchange import Request
from cloister.federated.final_model import write_model
from cloister.federated.messages import ModelOrder, TaskOrder, Vouched
from cloister.federated.opening import Places
from cloister.federated.progress import RoundDone
from cloister.federated.provenance import SEALED, FilesStated, RunStated, run_stated, verify_files, verify_run
from cloister.federated.rounds import digest_of
from cloister.federated.tasks import Scored, Step, Trained
from cloister.federated.updates import Arrays, encode_arrays
from cloister.federated.workload import Workload
from cloister.manifest.signed import encode_signed
from cloister.sealing.access import Access
from cloister.sealing.check import check_files
from cloister.sealing.index import open_index
from cloister.sealing.key_file import KeyFile
from cloister.sealing.opening import open as open_sealed
from federation_parts import MODEL, NOW, agreed, attested, identity, vouched

WORD, RUN, URI = "ab" * 32, "5e" * 16, "kbs:///north/model/key"
KEY = bytes(range(32))
FINAL = digest_of(encode_arrays(MODEL))


@functools.cache
def federation() -> AgreedFederation:
    return agreed(attested(rounds=1, receivers=("north",)))


@dataclass
class Means:
    """A task of few words: a model is its arrays, and a file says what they sum to."""

    seen: list[Path] = field(default_factory=list)

    def arrays(self) -> Arrays:
        return MODEL

    def train(self, arrays: Arrays, *, number: int, seed: int, step: Step) -> Trained:
        step(1, 1)
        return Trained(arrays, number + seed, {})

    def score(self, arrays: Arrays) -> Scored:
        return Scored(len(arrays), {"f1": 0.5})

    def save(self, arrays: Arrays, folder: Path) -> None:
        self.seen.append(folder)
        (folder / "model.safetensors").write_bytes(encode_arrays(arrays))
        sums: Mapping[str, float] = {name: float(one.sum()) for name, one in arrays.items()}
        (folder / "sums.json").write_text(json.dumps(sums))


def workload(root: Path, *, party: str = "north", held: bool = True, **changes: Any) -> Workload:
    """One that has its task, and has scored the last round's model as every round asks."""
    for name in ("memory", "out"):
        (root / name).mkdir(exist_ok=True)
    found = Workload(
        identity(f"{party} workload"), Places(memory=root / "memory", data=root, model=root), now=lambda: NOW
    )
    plain: dict[str, Any] = {
        "federation": (encode_signed(federation().signed),), "digest": federation().digest, "word": WORD, "lease": 60,
        "party": party, "run": RUN, "chain": (), "bundle": b"", "root": "", "tunnel": "", "keys": {URI: KEY}, "signers": (),
        "output": URI, "peers": {},
    }  # fmt: skip
    found.order, found.agreed, found.training = TaskOrder(**(plain | changes)), federation(), Means()
    found.leased = math.inf
    if held:
        found.work(Request("score", RUN, 1, FINAL, encode_arrays(MODEL)))
    return found


def stated(**changes: Any) -> RunStated:
    one = RoundDone(
        at=NOW, number=1, seconds=1.0, shares={}, refused={}, scores={}, epsilon=None, model=FINAL, down=1
    )
    return structs.replace(run_stated(federation().digest, RUN, "f1" * 32, [one], {}, at=NOW), **changes)


def order(found: Vouched | None = None, word: str = WORD) -> ModelOrder:
    return ModelOrder(word=word, vouched=found or vouched("aggregator", "host", encode_json(stated())))


def write(
    found: Workload, root: Path, asked: ModelOrder | None = None, *, party: str = "north", **changes: Any
) -> Vouched:
    plain: dict[str, Any] = {
        "memory": root / "memory", "out": root / "out", "vouch": lambda data: vouched("workload", party, data),
        "now": lambda: NOW,
    }  # fmt: skip
    return write_model(found, asked or order(), **(plain | changes)).vouched


def believed(found: Vouched) -> FilesStated:
    return verify_files(found, verify_run(order().vouched, federation()), federation())


def test_a_receiver_gets_the_model_of_the_run_sealed_and_vouched_for(tmp_path: Path) -> None:
    files = believed(write(workload(tmp_path), tmp_path))
    assert (files.party, files.model, files.run, files.at) == ("north", FINAL, RUN, NOW)
    sealed = tmp_path / "out" / SEALED
    signer = bytes.fromhex(files.signer)
    index = open_index(sealed, signers=[signer])
    assert index.digest.hex() == files.index
    assert set(index.files) == {"model.safetensors", "sums.json"}
    keys = KeyFile(KEY, URI)
    check_files(sealed, index.files, keys=keys)
    access = Access(keys=keys, signers=frozenset({signer}))
    with open_sealed(sealed / "model.safetensors", "rb", access=access) as file:
        assert file.read() == encode_arrays(MODEL)
    with pytest.raises(WrongKey):
        check_files(sealed, index.files, keys=KeyFile(bytes(32), URI))


def test_nothing_of_it_is_ever_on_the_disk_in_the_clear_or_stays_in_memory(tmp_path: Path) -> None:
    found = workload(tmp_path)
    write(found, tmp_path)
    weights = MODEL["linear.weight"].tobytes()
    for path in (tmp_path / "out").rglob("*"):
        assert path.is_dir() or (
            weights not in path.read_bytes() and b"linear.weight" not in path.read_bytes()
        )
    assert list((tmp_path / "memory").iterdir()) == []
    assert isinstance(found.training, Means)
    assert [path.parent for path in found.training.seen] == [tmp_path / "memory"]


def test_its_signing_key_is_another_one_each_time(tmp_path: Path) -> None:
    signers = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        signers.add(believed(write(workload(tmp_path / name), tmp_path / name)).signer)
    assert len(signers) == 2


def test_who_asks_again_since_the_answer_was_lost_gets_the_same_model(tmp_path: Path) -> None:
    found = workload(tmp_path)
    first = believed(write(found, tmp_path))
    again = believed(write(found, tmp_path, now=lambda: NOW + 5))
    assert again == structs.replace(first, at=NOW + 5)


def by(role: Any, organisation: str, **changes: Any) -> ModelOrder:
    return order(vouched(role, organisation, encode_json(stated(**changes))))


OTHER_MODEL = {"model": "ba" * 32, "rounds": (structs.replace(stated().rounds[0], model="ba" * 32),)}


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        pytest.param(order(word="00" * 32), FederationError, "not the agent that gave", id="by another agent"),
        pytest.param(order(word=""), FederationError, "not the agent that gave", id="by nobody"),
        pytest.param(order(word="wörd"), FederationError, "not the agent that gave", id="by no word of ours"),
        pytest.param(by("workload", "north"), CloisterError, "root", id="of a run that a workload vouches for"),
        pytest.param(by("agent", "host"), CloisterError, "rtmr3", id="of a run that an agent vouches for"),
        pytest.param(by("aggregator", "host", federation="00" * 32), FederationError, "another federation", id="elsewhere"),
        pytest.param(by("aggregator", "host", rounds=()), FederationError, "1 rounds", id="of a run that is not over"),
        pytest.param(by("aggregator", "host", **OTHER_MODEL), FederationError, "not have the final", id="another model"),
    ],
)  # fmt: skip
def test_nothing_is_written_for(
    tmp_path: Path, asked: ModelOrder, error: type[CloisterError], words: str
) -> None:
    found = workload(tmp_path)
    with pytest.raises(error, match=words):
        write(found, tmp_path, asked)
    assert list((tmp_path / "out").iterdir()) == []
    assert found.written is None


@pytest.mark.parametrize(
    ("how", "changes", "error", "words"),
    [
        pytest.param(
            {"party": "south"}, {}, FederationError, "south does not receive", id="that is no receiver"
        ),
        pytest.param(
            {"held": False}, {}, FederationError, "does not have the final", id="that missed the last round"
        ),
        pytest.param({"keys": {}}, {}, KeyUnavailable, "no key at", id="that was given no key for it"),
        pytest.param({}, {"out": None}, UsageError, "not told where", id="that was not told where it goes"),
    ],
)
def test_nothing_is_written_by_a_workload(
    tmp_path: Path, how: dict[str, Any], changes: dict[str, Any], error: type[CloisterError], words: str
) -> None:
    found = workload(tmp_path, **how)
    with pytest.raises(error, match=words):
        write(found, tmp_path, party=how.get("party", "north"), **changes)
    assert list((tmp_path / "out").iterdir()) == []
    assert list((tmp_path / "memory").iterdir()) == []


def test_a_workload_without_a_task_writes_nothing(tmp_path: Path) -> None:
    found = Workload(identity("north workload"), Places(memory=tmp_path, data=tmp_path, model=tmp_path))
    with pytest.raises(FederationError, match="not the agent"):
        write(found, tmp_path)


def test_a_folder_that_is_taken_is_not_written_over(tmp_path: Path) -> None:
    found = workload(tmp_path)
    taken = tmp_path / "out" / SEALED
    taken.mkdir()
    (taken / "mine").write_text("mine")
    with pytest.raises(UsageError):
        write(found, tmp_path)
    assert (taken / "mine").read_text() == "mine"
    assert list((tmp_path / "memory").iterdir()) == []
