"""``cloister.optimize``: a model computes in few bits through the same API, or is refused with what to do instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import cloister
from cloister.errors import UsageError
from cloister.inference.engines.torch_model import load
from cloister.inference.lowbit import builder
from cloister.inference.lowbit.kernels import KernelName, usable
from cloister.inference.lowbit.layer import FusedRmsNorm, LowBitLinear, Part
from cloister.inference.lowbit.optimisation import optimize
from cloister.inference.lowbit.selection import Choice
from cloister.inference.model_files import ModelFiles
from cloister.inference.next_tokens import TransformersNext
from cloister.inference.quality import Prediction
from lowbit_models import VOCABULARY, bert, cosine, gpt2, llama, logits, t5
from torch_engines import stories

LEAST_COSINE = {"int8": 0.999, "int4": 0.96, "bf16": 0.999, "fp32": 0.999999}
"""Of the logits of small models with random weights, whose errors nothing averages out."""


@pytest.mark.parametrize("precision", sorted(LEAST_COSINE))
@pytest.mark.parametrize("make", [llama, gpt2, bert, t5])
def test_logits_stay_near_those_of_full_precision(make: Callable[[], Any], precision: Any) -> None:
    model = make()
    before = logits(model)
    assert optimize(model, precision=precision) is model
    assert cosine(logits(model), before) > LEAST_COSINE[precision]
    assert model.cloister_report.precision == precision


@pytest.mark.parametrize("memory", ["small", "fast", "auto"])
def test_every_way_to_spend_memory_computes_the_same_to_within_rounding(memory: Any) -> None:
    model = llama()
    before = logits(model, length=40)
    optimize(model, precision="int8", memory=memory)
    assert cosine(logits(model, length=40), before) > 0.999
    if memory == "small":
        assert all(len(layer.choice.kernels) == 1 for layer in model.cloister_report.layers)


def test_layers_that_read_one_input_are_multiplied_at_once_and_each_gets_its_part() -> None:
    model, whole = llama(), llama()
    optimize(model, precision="int8")
    attention = model.model.layers[0].self_attn
    assert isinstance(attention.k_proj, Part)
    rows = torch.randn(1, 5, 256, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for name in ("q_proj", "k_proj", "v_proj", "k_proj"):
            expected = getattr(whole.model.layers[0].self_attn, name)(rows)
            assert cosine(getattr(attention, name)(rows), expected) > 0.999
        # What was written into since is another input.
        held = attention.q_proj(rows)
        rows.mul_(2)
        assert not torch.equal(attention.k_proj(rows), attention.k_proj(rows / 2))
        assert cosine(attention.q_proj(rows / 2), held) > 0.9999


def test_the_report_says_what_was_replaced_and_what_was_not_and_why() -> None:
    model = bert()
    optimize(model, precision="int4")
    report = model.cloister_report
    assert report.kept == {"classifier": "128 × 2 is too small"}
    assert {layer.precision for layer in report.layers} == {"int4"}
    assert report.size < report.size_before
    assert "kept classifier: 128 × 2 is too small" in str(report)


def test_a_model_in_bfloat16_keeps_its_large_tables_and_computes_in_float32() -> None:
    model = llama(vocab_size=1 << 15)
    before = logits(model)
    optimize(model.bfloat16(), precision="int8")
    assert model.dtype == torch.float32
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16
    found = logits(model)
    assert found.dtype == torch.float32
    assert cosine(found, before) > 0.998


def test_normalisations_are_fused_only_where_they_compute_the_same() -> None:
    class OtherRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(8))
            self.eps = 1e-6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / (x.abs().amax(-1, keepdim=True) + self.eps) * self.weight

    model = llama()
    model.model.norm = OtherRMSNorm()
    optimize(model, precision="fp32")
    assert model.cloister_report.norms == 4
    assert isinstance(model.model.layers[0].input_layernorm, FusedRmsNorm)
    assert isinstance(model.model.norm, OtherRMSNorm)


def test_the_weight_of_a_layer_can_still_be_read() -> None:
    model, whole = llama(), llama()
    optimize(model, precision="int8")
    layer, own = model.model.layers[0], whole.model.layers[0]
    assert isinstance(layer.mlp.down_proj, LowBitLinear)
    assert cosine(layer.mlp.down_proj.weight, own.mlp.down_proj.weight.detach()) > 0.9999
    assert cosine(layer.self_attn.v_proj.weight, own.self_attn.v_proj.weight.detach()) > 0.9999
    assert torch.equal(layer.self_attn.v_proj.bias, own.self_attn.v_proj.bias.detach())


def test_no_rows_give_no_rows() -> None:
    model = optimize(llama(), precision="int8")
    assert model.lm_head(torch.zeros(2, 0, 256)).shape == (2, 0, VOCABULARY)


def test_a_damaged_weight_is_refused() -> None:
    model = llama()
    with torch.no_grad():
        model.lm_head.weight[3, 3] = float("nan")
    with pytest.raises(cloister.CloisterError, match="not a finite number"):
        optimize(model, precision="int8")


def adapted() -> Any:
    import warnings

    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5.24 by a name that is on its way out.
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(llama(), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        pytest.param(lambda: optimize(llama(), precision="int8"), "optimised already", id="twice"),
        pytest.param(adapted, "adapters of peft", id="with adapters"),
        pytest.param(lambda: adapted().get_base_model(), "adapters of peft", id="with adapters inside"),
        pytest.param(lambda: llama().to("meta"), "not on the CPU", id="on another device"),
        pytest.param(object, "no model of torch", id="no model"),
    ],
)
def test_what_cannot_be_optimised_is_refused(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        cloister.optimize(make())


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(UsageError, match="no precision 'int2'"):
        optimize(llama(), precision="int2")


def test_adapters_merged_are_optimised() -> None:
    model = adapted().merge_and_unload()
    before = logits(model)
    assert cosine(logits(optimize(model, precision="int8")), before) > 0.999


@pytest.mark.parametrize("name", ["save_pretrained", "push_to_hub", "resize_token_embeddings"])
def test_an_optimised_model_is_not_saved_as_if_it_were_in_full_precision(name: str) -> None:
    model = optimize(llama(), precision="int8")
    with pytest.raises(UsageError, match="full precision"):
        getattr(model, name)("anywhere")


def test_an_optimised_model_is_not_trained() -> None:
    model = optimize(llama(), precision="int8")
    assert not any(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(UsageError, match="not trained"):
        model.model(inputs_embeds=torch.zeros(1, 2, 256, requires_grad=True))


def test_quality_counts_the_weights_that_decode_where_prompts_are_read_with_better_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {"int4", "fbgemm"} <= usable()
    folder = stories(tmp_path / "stories")
    tokens = list(range(1, 33))
    kernels: tuple[KernelName, ...] = ("int4", "fbgemm")  # as it is where int8 reads prompts faster

    def kept(times: Any, first: Any, *, further: bool) -> Choice:
        return Choice((4,), kernels) if "int4" in first else Choice((), ("fbgemm",))

    def as_it_reads() -> list[Prediction]:
        with ModelFiles.of_path(folder) as files:
            model = TransformersNext(load(files, precision="int4", adapter=None).model)
            return list(model.predictions(tokens, 16))

    monkeypatch.setattr(builder, "choose", kept)
    monkeypatch.setattr(builder, "_MEASURED", 0)
    with (
        ModelFiles.of_path(folder) as files,
        TransformersNext.as_it_decodes(files, precision="int4") as model,
    ):
        decoding = list(model.predictions(tokens, 16))
    reading = as_it_reads()
    kernels = ("int4", "int4")
    assert distance(decoding, as_it_reads()) < 1e-4
    assert distance(decoding, reading) > 0.01


def distance(found: list[Prediction], expected: list[Prediction]) -> float:
    """The mean of how far the logarithms of all tokens' probabilities are apart."""
    pairs = zip(found, expected, strict=True)
    return float(np.mean([np.abs(one.logprobs - other.logprobs).mean() for one, other in pairs]))
