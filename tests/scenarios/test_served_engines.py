"""Every engine, from sealed files to a sealed answer; `auto` is what the owner measured."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

import cloister
from broker_parts import served
from cloister.appraisal.draft import draft_policy
from cloister.appraisal.policy import load_policy
from cloister.attester.simulated import SimulatedPlatform
from cloister.inference.api_keys import ApiKeys
from cloister.inference.configuration import ServeConfiguration, serving_events, upstream_index
from cloister.inference.machine import read_machine
from cloister.inference.model import find_model
from cloister.inference.optimized import (
    Choice,
    ChosenSettings,
    MeasuredMachine,
    MeasuredRow,
    MeasuredSpeed,
    write_choice,
)
from cloister.inference.workload import start
from llama_models import write_llama
from sealing_samples import OWNER, Keys, sealed_folder
from tinyllamas_gguf import write_gguf

GREEDY = ", there was a little girl named Lily. She"
SPEED = MeasuredSpeed(
    rounds=1, prompt_tokens=1, first_token_us=1, prefill_per_1000_s=1, decode_per_1000_s=1, streams=1,
    streams_per_1000_s=1, memory_bytes=1,
)  # fmt: skip


@dataclasses.dataclass
class Served:
    """A running service: its client, and what it said while it came up."""

    client: openai.OpenAI
    steps: dict[str, str]

    def continued(self) -> str:
        answer = self.client.completions.create(
            model="story", prompt="Once upon a time", max_tokens=16, temperature=0
        )
        return answer.choices[0].text


@contextmanager
def serving(model: Path | None, **changes: Any) -> Iterator[Served]:
    values: dict[str, Any] = {
        "model_name": "story", "engine": "auto", "context_length": 256, "slots": 2,
        "index_signers": (OWNER.public_key.hex(),), "broker_policy": None, "api_keys_required": False,
    }  # fmt: skip
    configuration = ServeConfiguration(**values | changes)
    found = None if model is None else find_model(model, signers=[OWNER.public_key])
    index = upstream_index(configuration.upstream or "") if found is None else found.digest
    platform = SimulatedPlatform.generate(now=int(time.time()))
    tee = platform.tee("tdx", launch=serving_events(configuration, index))
    steps: dict[str, str] = {}
    service = start(
        configuration,
        model=found,
        attester=tee,
        keys=Keys(),
        api_keys=ApiKeys.nobody_asks(),
        threads=1,
        replica="replica-0",
        progress=steps.__setitem__,
    )
    text = draft_policy(
        tee="tdx",
        measurements=tee.measurements,
        events=tee.launch,
        min_tcb_evaluation_number=1,
        simulated_root=platform.root_sha256,
    )
    try:
        with (
            served(service.gateway) as url,
            cloister.connect(url, policy=load_policy(text, name="test")) as sealed,
            openai.OpenAI(
                base_url=f"{url}/v1", api_key="unused", http_client=sealed, max_retries=0
            ) as client,
        ):
            yield Served(client, steps)
    finally:
        service.close()


def choice(engine: str, **settings: Any) -> bytes:
    row = MeasuredRow(name="row", engine=engine, state="measured", speed=SPEED, chosen=True)
    machine = read_machine()
    return write_choice(
        Choice(
            engine=engine, settings=ChosenSettings(**settings), goal="latency", max_loss_ppm=0, rows=(row,),
            packages={}, machine=MeasuredMachine(fingerprint=machine.fingerprint.hex(), words=machine.words),
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "story.gguf").read_bytes()


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = write_llama(tmp_path_factory.mktemp("hf") / "story")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_sealed_hugging_face_folder_is_served_by_torch(
    tmp_path: Path, hugging_face: dict[str, bytes]
) -> None:
    sealed, _ = sealed_folder(tmp_path, hugging_face)
    with serving(sealed) as service:
        assert service.steps["engine"] == "torch"
        assert service.continued().startswith(GREEDY)


@pytest.mark.parametrize("engine", ["llamacpp", "openvino"])
def test_a_sealed_gguf_file_is_served_by_the_engine_that_its_owner_measured(
    tmp_path: Path, gguf: bytes, engine: str
) -> None:
    sealed, _ = sealed_folder(tmp_path, {"story.gguf": gguf, "optimized.json": choice(engine)})
    with serving(sealed) as service:
        assert service.steps["engine"] == engine
        assert service.continued().startswith(GREEDY)


def test_the_measured_configuration_goes_before_the_model_s_own_choice(tmp_path: Path, gguf: bytes) -> None:
    sealed, _ = sealed_folder(tmp_path, {"story.gguf": gguf, "optimized.json": choice("openvino")})
    with serving(sealed, engine="llamacpp") as service:
        assert service.steps["engine"] == "llamacpp"
        assert service.continued().startswith(GREEDY)


def test_the_answers_of_a_small_model_s_guesses_are_the_large_one_s(tmp_path: Path, gguf: bytes) -> None:
    """A draft changes when a token comes, and never which."""
    sealed, _ = sealed_folder(tmp_path, {"story.gguf": gguf})
    with serving(sealed, speculation="ngram") as service:
        assert service.continued().startswith(GREEDY)
