"""What a serving workload takes from the network before it knows who asks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from broker_parts import served
from cloister.appraisal.draft import draft_policy
from cloister.appraisal.policy import load_policy
from cloister.attester.simulated import SimulatedPlatform
from cloister.channel.transport import connect
from cloister.errors import PlaintextResponse
from cloister.inference import workload
from cloister.inference.admission import MAX_WAITING
from cloister.inference.api_keys import ApiKeys
from cloister.inference.configuration import ServeConfiguration, serving_events
from cloister.inference.model import find_model
from scripted_engine import ScriptedEngine


def test_a_request_larger_than_any_that_the_api_reads_is_refused_while_it_arrives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = ServeConfiguration(
        model_name="demo", engine="scripted", context_length=512, slots=2,
        index_signers=(), broker_policy=None, api_keys_required=False,
    )  # fmt: skip
    (tmp_path / "m.gguf").write_bytes(b"GGUF and no more")
    model = find_model(tmp_path / "m.gguf", signers=())
    platform = SimulatedPlatform.generate(now=int(time.time()))
    tee = platform.tee("tdx", launch=serving_events(configuration, model.digest))

    def scripted(*_: Any, **__: Any) -> ScriptedEngine:
        return ScriptedEngine()

    monkeypatch.setattr(workload, "open_engine", scripted)
    service = workload.start(
        configuration,
        model=model,
        attester=tee,
        keys=None,
        api_keys=ApiKeys.nobody_asks(),
        threads=None,
        replica="replica-0",
        progress=lambda _step, _fact: None,
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
            connect(url, policy=load_policy(text, name="test")) as client,
        ):
            assert client.get(f"{url}/v1/models").status_code == 200
            # Who is one too many is told so by the queue, which knows when to come again, and not by the gateway.
            assert service.gateway._max_open > MAX_WAITING + configuration.slots
            with pytest.raises(PlaintextResponse, match="413"):
                client.post(f"{url}/v1/completions", content=bytes(2 * workload.MAX_REQUEST))
    finally:
        service.close()
