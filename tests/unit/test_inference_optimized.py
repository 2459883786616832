"""`optimized.json` is what its page says, shows what it chose, and can name nothing but an engine and its settings."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.encoding import encode_json, labelled_hash
from cloister.errors import FormatError
from cloister.inference.machine import FINGERPRINT_LABEL, Machine, Node
from cloister.inference.machine_limits import Limits
from cloister.inference.optimized import MAX_SIZE, read_choice, write_choice
from spec_vectors import spec_vectors

VECTOR = spec_vectors("optimized-model.md")


def changed(change: Callable[[dict[str, Any]], None]) -> bytes:
    document = copy.deepcopy(VECTOR["choice"])
    change(document)
    return json.dumps(document).encode()


def test_the_page_s_vector_is_read_and_written_again() -> None:
    choice = read_choice(json.dumps(VECTOR["choice"]).encode())
    data = write_choice(choice)
    assert hashlib.sha256(data).hexdigest() == VECTOR["sha256"]
    assert read_choice(data) == choice
    assert choice.chosen.name == "llamacpp q4_0"
    assert choice.settings.threads == 2


def test_the_page_s_fingerprint_is_that_of_such_a_machine() -> None:
    assert labelled_hash(FINGERPRINT_LABEL, encode_json(VECTOR["machine"])).hex() == VECTOR["fingerprint"]
    machine = Machine(
        architecture="x86_64",
        vendor="GenuineIntel",
        model="Some CPU",
        features=frozenset({"avx2", "fma"}),
        cores=(frozenset({0, 2}), frozenset({1, 3})),
        nodes=(Node(0, frozenset({0, 1, 2, 3}), 0),),
        limits=Limits(processors=2.5, memory=1 << 34, available=1),
        page_size=4096,
        huge_pages="madvise",
    )
    assert machine.fingerprint.hex() == VECTOR["fingerprint"] == VECTOR["choice"]["machine"]["fingerprint"]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda d: d.update(engine="upstream"), id="an engine that asks another server"),
        pytest.param(lambda d: d.update(engine="auto"), id="an engine that is none"),
        pytest.param(lambda d: d.update(engine="../evil"), id="an engine named like a path"),
        pytest.param(lambda d: d.update(engine="torch"), id="another engine than the chosen row's"),
        pytest.param(lambda d: d.update(format="cloister/optimized-model/v2"), id="another version"),
        pytest.param(lambda d: d.update(upstream="http://127.0.0.1:1"), id="an unknown field"),
        pytest.param(lambda d: d["settings"].update(draft="x.gguf"), id="an unknown setting"),
        pytest.param(lambda d: d["settings"].update(speculation="draft"), id="a draft model"),
        pytest.param(lambda d: d["settings"].update(threads=0), id="no threads"),
        pytest.param(lambda d: d["settings"].update(threads=5000), id="too many threads"),
        pytest.param(lambda d: d["settings"].update(kv_cache="q2"), id="an unknown cache"),
        pytest.param(lambda d: d["settings"].update(prefill_chunk=1), id="a chunk out of bounds"),
        pytest.param(lambda d: d["rows"][0].update(chosen=False), id="nothing chosen"),
        pytest.param(lambda d: d["rows"][1].update(chosen=True), id="two chosen"),
        pytest.param(lambda d: d["rows"][0].update(speed=None), id="chosen without figures"),
        pytest.param(lambda d: d["rows"][2].update(speed=d["rows"][0]["speed"]), id="left out, with figures"),
        pytest.param(lambda d: d["rows"][1].update(name="llamacpp q4_0"), id="two rows of one name"),
        pytest.param(lambda d: d["rows"][1].update(name="a\nb"), id="a name of two lines"),
        pytest.param(lambda d: d["rows"][1].update(reason="\x1b[2J"), id="a reason that steers a terminal"),
        pytest.param(lambda d: d["rows"].clear(), id="no rows"),
        pytest.param(lambda d: d["rows"].extend(dict(d["rows"][2], name=str(n)) for n in range(64)), id="too many rows"),
        pytest.param(lambda d: d["rows"][0]["quality"].update(reference="nobody"), id="compared with nobody"),
        pytest.param(lambda d: d["rows"][0]["quality"].update(agreement_ppm=1_000_001), id="more than all places"),
        pytest.param(lambda d: d["rows"][0]["speed"].update(decode_per_1000_s=-1), id="a negative speed"),
        pytest.param(lambda d: d["rows"][0]["speed"].update(decode_per_1000_s=24.1), id="a fraction"),
        pytest.param(lambda d: d["machine"].update(fingerprint="AB" * 32), id="a fingerprint in capitals"),
        pytest.param(lambda d: d.pop("machine"), id="no machine"),
    ],
)  # fmt: skip
def test_what_is_not_as_the_page_says_is_refused(change: Callable[[dict[str, Any]], None]) -> None:
    with pytest.raises(FormatError):
        read_choice(changed(change))


def test_a_field_that_occurs_twice_is_refused() -> None:
    data = json.dumps(VECTOR["choice"]).replace('"goal"', '"engine": "torch", "goal"').encode()
    with pytest.raises(FormatError, match="twice"):
        read_choice(data)


def test_what_is_too_large_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(FormatError, match="over its bound"):
        read_choice(b" " * (MAX_SIZE + 1))


@given(st.binary(max_size=200))
def test_bytes_are_a_choice_or_a_format_error(data: bytes) -> None:
    with pytest.raises(FormatError):
        read_choice(data)


@given(st.data())
def test_any_byte_changed_is_refused_or_another_valid_choice(data: st.DataObject) -> None:
    whole = bytearray(json.dumps(VECTOR["choice"]).encode())
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    try:
        choice = read_choice(bytes(whole))
    except FormatError:
        return
    assert read_choice(write_choice(choice)) == choice
