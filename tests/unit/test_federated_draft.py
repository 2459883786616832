"""A federation out of what a person wrote: taken as it stands there, or refused in one line."""

from __future__ import annotations

import contextlib
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from cloister.encoding import encode_json
from cloister.errors import ManifestError, Superseded, UsageError
from cloister.federated.draft import draft_federation
from cloister.federated.federation import MILLION, Federation, Task
from cloister.manifest.signed import MAX_DOCUMENT, Signed
from federation_parts import NAMES, federation, privacy, signed
from manifest_parts import NOW, owner, policy_text

POLICIES = {
    "agent.toml": policy_text("a1"),
    "workload.toml": policy_text("b2"),
    "aggregator.toml": policy_text("c3"),
}
CODE, MODEL = "11" * 32, "22" * 32


def parties(*names: str) -> str:
    return "\n".join(
        f'[parties.{name}]\nkey = "{owner(name).key}"\nagent = ["agent.toml"]\nworkload = ["workload.toml"]'
        for name in names
    )


WRITTEN = f"""\
name = "hospitals"
rounds = 5
deadline = 600
minimum = 2
attest-minutes = 30
everyone = true
metrics = ["f1", "loss"]
receivers = ["north"]
aggregator = ["aggregator.toml"]
privacy = "none"
{parties(*NAMES)}
[task]
plugin = "ner"
code = "{CODE}"
model = "{MODEL}"
[task.settings]
kinds = ["Disease"]
epochs = 1
[aggregation]
method = "fedavg"
secure = false
largest = 50
"""
PRIVATE = """\
[privacy]
of = "clients"
noise = 1
clip = 1.0
epsilon = 8
delta = 1e-5
"""


def no_model(path: str) -> str:
    raise UsageError(f"there is no model at {path}")


def draft(text: str = WRITTEN, **changes: Any) -> Federation:
    given: dict[str, Any] = {
        "name": "hospitals.toml", "read_policy": POLICIES.__getitem__, "this_code": lambda: "33" * 32,
        "model_digest": no_model, "issued": NOW, "previous": None,
    }  # fmt: skip
    return draft_federation(text, **(given | changes))


def written(old: str, new: str) -> str:
    assert old in WRITTEN
    return WRITTEN.replace(old, new)


def test_what_was_written_is_in_the_document() -> None:
    assert draft() == federation()


def test_privacy_is_taken_in_with_its_fractions() -> None:
    assert draft(written('privacy = "none"\n', "") + PRIVATE) == federation(privacy=privacy())


def test_code_and_model_are_digests_of_what_is_there() -> None:
    asked: list[str] = []

    def digest(path: str) -> str:
        asked.append(path)
        return "44" * 32

    text = WRITTEN.replace(f'"{CODE}"', '"this"').replace(f'"{MODEL}"', '"models/minilm"')
    assert draft(text, model_digest=digest).task == Task(
        plugin="ner", code="33" * 32, model="44" * 32, settings={"kinds": ("Disease",), "epochs": 1}
    )
    assert asked == ["models/minilm"]
    with pytest.raises(UsageError, match="no model at"):
        draft(text)


def test_a_setting_with_a_fraction_is_counted_in_millionths_under_its_own_name() -> None:
    found = draft(written("epochs = 1", 'rate = 5e-5\nclip = 1.0\nformat = "conll"\nepochs = 2'))
    assert found.task.settings == {
        "kinds": ("Disease",), "rate-ppm": 50, "clip-ppm": MILLION, "format": "conll", "epochs": 2
    }  # fmt: skip


def test_keys_stand_there_as_people_have_them() -> None:
    bare = written(f'"{owner("north").key}"', f'"{owner("north").key.removeprefix("ed25519:")}"')
    assert draft(bare) == federation()


@given(st.integers(1, 10**9 * MILLION))
def test_every_number_of_millionths_can_be_written_and_is_what_was_written(count: int) -> None:
    text = format(Decimal(count) / MILLION, "f")
    assert draft(written("largest = 50", f"largest = {text}")).aggregation.largest_ppm == count


@given(st.text(alphabet='0123456789.eE+-_infa"[]{} \n', max_size=30))
def test_whatever_stands_for_a_number_is_one_or_is_refused(text: str) -> None:
    with contextlib.suppress(ManifestError):
        found = draft(written("largest = 50", f"largest = {text}"))
        assert 1 <= found.aggregation.largest_ppm <= 10**9 * MILLION


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        pytest.param("largest = 50", "largest = 0.0000001", "more than six digits", id="less than a millionth"),
        pytest.param(
            "largest = 50", "largest = 0.10000000000000000000000000000000001", "more than six digits",
            id="a digit that arithmetic would round away",
        ),
        pytest.param("largest = 50", "largest = 1e-999999999", "is too small", id="a digit beyond all memory"),
        pytest.param("largest = 50", "largest = 1e999999", "not a number from 0", id="a number beyond all memory"),
        pytest.param("largest = 50", "largest = " + "9" * 5000, "without bound", id="a number of 5000 digits"),
        pytest.param("largest = 50", "largest = nan", "not a number from 0", id="no number"),
        pytest.param("largest = 50", "largest = inf", "not a number from 0", id="without end"),
        pytest.param("largest = 50", "largest = -1.5", "not a number from 0", id="less than nothing"),
        pytest.param("largest = 50", 'largest = "50"', "is not a number", id="a number as a text"),
        pytest.param("largest = 50", "largest = true", "is not a number", id="a number that is a word"),
        pytest.param("largest = 50", "largest = 0", "largest norm", id="updates of no size"),
        pytest.param("largest = 50\n", "", "largest", id="updates of any size"),
        pytest.param("rounds = 5", "rounds = 5.0", "rounds", id="a fraction of a round"),
        pytest.param("rounds = 5\n", "", "rounds", id="rounds that nobody wrote"),
        pytest.param("secure = false\n", "", "secure", id="protection that nobody decided about"),
        pytest.param('privacy = "none"\n', "", "privacy", id="privacy that nobody decided about"),
        pytest.param('privacy = "none"', 'privacy = "some"', "privacy", id="some privacy"),
        pytest.param("everyone = true\n", "", "everyone", id="verification that nobody decided about"),
        pytest.param("everyone = true", "everyone = true\nexcept = 1", "except", id="a field that is unknown"),
        pytest.param("rounds = 5", "rounds = 5\nversion = 2", "version", id="a version by hand"),
        pytest.param('"fedavg"', '"average"', "average", id="a method that is unknown"),
        pytest.param('"fedavg"', '"median"\ntolerated = 1', "may be poisoned", id="what the document refuses"),
        pytest.param(f'"{CODE}"', '"that"', "the code of the task is no digest", id="code that is no digest"),
        pytest.param("epochs = 1", "epochs = true", "'epochs' is neither", id="a setting of another kind"),
        pytest.param("epochs = 1", "epochs = [1, 2]", "'epochs' is neither", id="a setting of numbers"),
        pytest.param("epochs = 1", "when = 2026-01-01", "'when' is neither", id="a setting of time"),
        pytest.param("epochs = 1", "rate = 0.1\nrate-ppm = 1", "are one", id="a setting twice"),
        pytest.param("epochs = 1", "rate = 1e-7", "more than six digits", id="a setting of less than a millionth"),
        pytest.param("epochs = 1", f"epochs = {2**60}", "over 2^53", id="a setting beyond all numbers"),
        pytest.param('name = "hospitals"', "name = hospitals", "is not TOML", id="no TOML"),
        pytest.param('name = "hospitals"', "x = " + "[" * 50_000, "", id="tables without end"),
        pytest.param('name = "hospitals"', "x = '" + "x" * MAX_DOCUMENT + "'", "longer than", id="a long file"),
        pytest.param(owner("north").key, "ed25519:00", "Ed25519", id="a key that is none"),
        pytest.param(owner("north").key, owner("south").key, "are one key", id="one key twice"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_in_one_line(old: str, new: str, words: str) -> None:
    with pytest.raises(ManifestError) as refusal:
        draft(written(old, new))
    assert words in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("delta", "inverse"),
    [("1e-5", 100_000), ("0.00001", 100_000), ("0.01", 100), ("0.008", 125), ("1e-15", 10**15)],
)
def test_delta_is_one_over_a_whole_number(delta: str, inverse: int) -> None:
    text = written('privacy = "none"\n', "") + PRIVATE.replace("1e-5", delta)
    assert draft(text).privacy == privacy(delta_inverse=inverse)


@pytest.mark.parametrize("delta", ["0.00003", "0", "0.0", "1.0", "2", "-0.00001", "1e-16", "nan", '"1e-5"'])
def test_another_delta_is_refused(delta: str) -> None:
    with pytest.raises(ManifestError):
        draft(written('privacy = "none"\n', "") + PRIVATE.replace("1e-5", delta))


def test_a_document_that_nobody_could_read_is_not_drafted() -> None:
    long = policy_text("a1") + "#" * MAX_DOCUMENT
    with pytest.raises(ManifestError, match="over its bound"):
        draft(read_policy=lambda name: long if name == "agent.toml" else POLICIES[name])


class TestSuccessor:
    FIRST = signed(federation())

    def test_the_next_version_names_the_one_before(self) -> None:
        text = written(parties(*NAMES), parties("north", "south", "east"))
        found = draft(text, previous=self.FIRST, issued=NOW + 1)
        assert (found.version, found.previous, found.issued) == (2, self.FIRST.digest, NOW + 1)
        assert set(found.parties) == {"north", "south", "east"}

    @pytest.mark.parametrize(
        ("changes", "issued", "error", "words"),
        [
            pytest.param({"name": "banks"}, NOW, ManifestError, "of banks, not of 'hospitals'", id="another federation"),
            pytest.param({"issued": NOW + 1}, NOW, Superseded, "later than now", id="issued later"),
            pytest.param(
                {
                    "parties": {
                        **federation().parties,
                        "north": structs.replace(federation().parties["north"], key=owner("old").key),
                    }
                },
                NOW, ManifestError, "the key of north", id="a party whose key changed",
            ),
        ],
    )  # fmt: skip
    def test_what_would_be_refused_once_all_have_signed_is_refused_now(
        self, changes: dict[str, Any], issued: int, error: type[ManifestError], words: str
    ) -> None:
        before = Signed(document=encode_json(federation(**changes)), signatures=())
        with pytest.raises(error) as refusal:
            draft(previous=before, issued=issued)
        assert words in str(refusal.value)
