"""Attention over rows: right for the architectures that it takes, and the others are refused when they are opened."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from cloister.errors import InferenceError, UsageError
from cloister.inference.engines.torch_attention import KvMemory, Segment, _neighbours
from cloister.inference.engines.torch_layers import LeanLayer
from cloister.inference.engines.torch_model import TorchModel, load, prove
from cloister.inference.model_files import ModelFiles
from torch_engines import opened, stories

SMALL: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}

WIDE: dict[str, Any] = SMALL | {"hidden_size": 128, "intermediate_size": 192}
"""Whose every linear layer is large enough to be stored in few bits."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stories(tmp_path_factory.mktemp("attention") / "stories")


def random_model(base: Path, target: Path, config: Any) -> Path:
    """A model of this configuration with random weights, and the stories' tokenizer."""
    torch.manual_seed(3)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(target)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, target)
    return target


def loaded(folder: Path) -> TorchModel:
    with ModelFiles.of_path(folder) as files:
        model = load(files, precision=None, adapter=None)
    prove(model)
    return model


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(lambda: transformers.LlamaConfig(**SMALL), id="llama"),
        pytest.param(
            lambda: transformers.MistralConfig(**SMALL, sliding_window=8), id="mistral with a window"
        ),
        pytest.param(lambda: transformers.Qwen2Config(**SMALL), id="qwen 2"),
        pytest.param(lambda: transformers.Qwen3Config(**SMALL, head_dim=16), id="qwen 3"),
        pytest.param(
            lambda: transformers.Gemma3TextConfig(
                **SMALL, head_dim=16, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
            ),
            id="gemma 3, windows and none",
        ),
        pytest.param(
            lambda: transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=512), id="gpt-2"
        ),
    ],
)
def test_rows_of_mixed_lengths_have_the_logits_of_transformers(
    base: Path, tmp_path: Path, config: Any
) -> None:
    folder = random_model(base, tmp_path / "model", config())
    model = loaded(folder)
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder)
    draw = torch.Generator().manual_seed(5)
    rows = [torch.randint(3, 512, (length,), generator=draw).tolist() for length in (40, 3, 17)]
    memory = KvMemory(rows=3, length=64)
    # Read in pieces of different sizes, always beside the other rows.
    done = [0, 0, 0]
    last: dict[int, torch.Tensor] = {}
    for pieces in ((16, 1, 5), (0, 1, 1), (20, 1, 10), (4, 0, 1)):
        segments, tokens, wanted, whose = [], [], [], []
        for row, count in enumerate(pieces):
            if count:
                segments.append(Segment(row, done[row], count))
                tokens += rows[row][done[row] : done[row] + count]
                done[row] += count
                wanted.append(len(tokens) - 1)
                whose.append(row)
        logits = model.logits(memory, segments, tokens, wanted)
        last |= dict(zip(whose, logits, strict=True))
    for row, tokens in enumerate(rows):
        with torch.no_grad():
            expected = reference(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
        torch.testing.assert_close(last[row], expected, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(
            lambda: transformers.BloomConfig(hidden_size=64, n_layer=2, n_head=4, vocab_size=512),
            id="position biases",
        ),
        pytest.param(lambda: transformers.Gemma2Config(**SMALL, head_dim=16), id="soft caps"),
        pytest.param(
            lambda: transformers.GptOssConfig(
                **SMALL, head_dim=16, num_local_experts=2, num_experts_per_tok=1
            ),
            id="sinks",
        ),
        pytest.param(
            lambda: transformers.MambaConfig(hidden_size=64, num_hidden_layers=2, vocab_size=512),
            id="no attention",
        ),
    ],
)
def test_what_is_not_computed_is_refused_at_opening(base: Path, tmp_path: Path, config: Any) -> None:
    folder = random_model(base, tmp_path / "model", config())
    with pytest.raises(UsageError), opened(folder):
        pass


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("config.json", b"{", id="a configuration that is no JSON"),
        pytest.param("config.json", b'{"model_type": "nothing"}', id="an architecture nobody knows"),
        pytest.param("model.safetensors", b"\x08\0\0\0\0\0\0\0{}", id="damaged weights"),
        pytest.param("tokenizer.json", b"{}", id="a damaged tokenizer"),
    ],
)
def test_a_damaged_folder_is_refused_with_one_line(
    base: Path, tmp_path: Path, name: str, content: bytes
) -> None:
    folder = shutil.copytree(base, tmp_path / "model")
    (folder / name).write_bytes(content)
    with pytest.raises((UsageError, InferenceError)), opened(folder):
        pass


def test_weights_of_other_shapes_than_the_configuration_names_are_refused(base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base, tmp_path / "model")
    save_file({"model.norm.weight": torch.ones(7)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises((UsageError, InferenceError)), opened(folder):
        pass


def test_missing_weights_are_refused_and_not_made_up(base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base, tmp_path / "model")
    save_file({"model.norm.weight": torch.ones(64)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InferenceError, match="lack"), opened(folder):
        pass


def test_a_longer_context_than_the_model_was_trained_for_is_cut(base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 64}))
    with opened(folder) as engine:
        assert engine.context_length == 64


def test_rows_that_lie_together_decode_in_one_piece_as_they_do_alone(base: Path, tmp_path: Path) -> None:
    model = loaded(random_model(base, tmp_path / "model", transformers.LlamaConfig(**SMALL)))
    draw = torch.Generator().manual_seed(6)
    rows = [torch.randint(3, 512, (length,), generator=draw).tolist() for length in (30, 7, 19, 2)]
    together, alone = KvMemory(rows=4, length=64), [KvMemory(rows=1, length=64) for _ in rows]
    for row, tokens in enumerate(rows):
        model.logits(together, [Segment(row, 0, len(tokens))], tokens, [len(tokens) - 1])
        model.logits(alone[row], [Segment(0, 0, len(tokens))], tokens, [len(tokens) - 1])
    for order in ([0, 1, 2, 3], [3, 1, 0], [2, 0]):  # all, in another order, with a gap
        segments = [Segment(row, len(rows[row]), 1) for row in order]
        found = model.logits(together, segments, [5 + row for row in order], list(range(len(order))))
        for place, row in enumerate(order):
            expected = model.logits(alone[row], [Segment(0, len(rows[row]), 1)], [5 + row], [0])[0]
            torch.testing.assert_close(found[place], expected, atol=2e-5, rtol=1e-4)


def test_what_a_row_held_before_does_not_reach_who_has_it_now(base: Path, tmp_path: Path) -> None:
    """Even numbers that are none, which spread through whatever they are multiplied with."""
    model = loaded(random_model(base, tmp_path / "model", transformers.LlamaConfig(**SMALL)))
    memory = KvMemory(rows=2, length=64)
    tokens = list(range(3, 43))
    model.logits(memory, [Segment(0, 0, 40)], tokens, [39])
    with torch.inference_mode():
        for keys, values in memory._layers.values():
            keys[:40] = torch.nan
            values[:40] = torch.nan
        memory.clear(0, 40)
    model.logits(memory, [Segment(0, 0, 4), Segment(1, 0, 30)], [*tokens[:4], *tokens[:30]], [3, 33])
    found = model.logits(memory, [Segment(0, 4, 1), Segment(1, 30, 1)], [9, 9], [0, 1])
    assert torch.isfinite(found).all()
    fresh = KvMemory(rows=2, length=64)
    model.logits(fresh, [Segment(0, 0, 4)], tokens[:4], [3])
    torch.testing.assert_close(found[0], model.logits(fresh, [Segment(0, 4, 1)], [9], [0])[0])


def test_rows_of_very_different_lengths_are_not_read_to_the_longest_ones_end() -> None:
    segments = [Segment(0, 50, 1), Segment(1, 60, 1), Segment(2, 3000, 1), Segment(3, 2900, 1)]
    groups = _neighbours(segments)
    assert [(group.first, group.ends) for group in groups] == [(0, (51, 61)), (2, (3001, 2901))]


@pytest.mark.parametrize(
    ("config", "lean"),
    [
        pytest.param(lambda: transformers.LlamaConfig(**WIDE), True, id="llama"),
        pytest.param(lambda: transformers.Qwen2Config(**WIDE), True, id="qwen 2, with biases"),
        pytest.param(lambda: transformers.Qwen3Config(**WIDE, head_dim=32), True, id="qwen 3, with norms"),
        pytest.param(
            lambda: transformers.MistralConfig(**WIDE, sliding_window=8), True, id="mistral with a window"
        ),
        pytest.param(
            lambda: transformers.Gemma3TextConfig(**WIDE, head_dim=16, layer_types=["full_attention"] * 2),
            False,
            id="gemma 3",
        ),
    ],
)
def test_lean_layers_compute_what_the_layers_of_transformers_do(
    base: Path, tmp_path: Path, config: Any, lean: bool
) -> None:
    folder = random_model(base, tmp_path / "model", config())
    with ModelFiles.of_path(folder) as files:
        theirs, ours = (load(files, precision="int8", adapter=None) for _ in range(2))
    prove(ours)
    assert any(isinstance(module, LeanLayer) for module in ours.model.modules()) == lean
    tokens = [(37 * place + 11) % 512 for place in range(20)]
    expected = theirs.model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].detach()
    memory = KvMemory(rows=1, length=32)
    ours.logits(memory, [Segment(0, 0, 12)], tokens[:12], [11])
    found = ours.logits(memory, [Segment(0, 12, 8)], tokens[12:], [7])[0]
    # An input on the border between two whole numbers may be rounded to either.
    assert float(torch.cosine_similarity(found, expected, dim=0)) > 0.9995


def test_lean_layers_that_compute_something_else_are_not_used(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = random_model(base, tmp_path / "model", transformers.LlamaConfig(**WIDE))
    with ModelFiles.of_path(folder) as files:
        model = load(files, precision="int8", adapter=None)
    monkeypatch.setattr(LeanLayer, "_turned", lambda self, whole, cosine, sine: -whole.flip(0))
    prove(model)
    assert not any(isinstance(module, LeanLayer) for module in model.model.modules())
