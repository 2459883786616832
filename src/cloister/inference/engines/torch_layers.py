"""Decoder layers in as few operations as they take: a token's time is, beside its weights, the number of operations.

A layer of ``transformers`` is replaced where it is built as LLaMA's is (Mistral, Qwen 2 and 3 are, too) and its linear
layers are in few bits, the projections that read the same input merged. Positions come from the model as they are. That
the replacement computes the same is not believed but tried, as everything is when a model is opened (torch_model.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from cloister.inference.engines.torch_attention import attend
from cloister.inference.lowbit.layer import FusedRmsNorm, LowBitLinear, Merged, Part

_ATTENTION = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"})
_MLP = frozenset({"gate_proj", "up_proj", "down_proj", "act_fn"})
_LAYER = frozenset({"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"})


class LeanLayer(nn.Module):
    """One decoder layer over packed rows (1, tokens, width), attending by :func:`torch_attention.attend`."""

    def __init__(self, layer: Any, attending: Merged, feeding: Merged) -> None:
        super().__init__()
        attention = layer.self_attn
        self.layer_idx = attention.layer_idx
        self._size = attention.head_dim
        self._heads = attention.q_proj.out_features // self._size
        self._shared = attention.k_proj.out_features // self._size
        self._scaling = attention.scaling
        self._window = _window(attention)
        self._norms = (layer.input_layernorm, layer.post_attention_layernorm)
        self._query_norm: nn.Module | None = getattr(attention, "q_norm", None)
        self._key_norm: nn.Module | None = getattr(attention, "k_norm", None)
        self._attending, self._output = attending.whole, attention.o_proj
        self._feeding, self._down = feeding.whole, layer.mlp.down_proj
        self._inner = feeding.sizes[0]

    def forward(
        self, hidden_states: Tensor, *, position_embeddings: tuple[Tensor, Tensor], **_: Any
    ) -> Tensor:
        before, after = self._norms
        tokens, heads = hidden_states.shape[1], self._heads
        whole = self._attending(before(hidden_states)).view(tokens, -1, self._size)
        turned = self._turned(whole[:, : heads + self._shared], *position_embeddings)
        query, key = (
            part.transpose(0, 1).unsqueeze(0) for part in torch.split(turned, [heads, self._shared], 1)
        )
        value = whole[:, heads + self._shared :].transpose(0, 1).unsqueeze(0)
        answers, _weights = attend(
            self, query, key, value, None, scaling=self._scaling, sliding_window=self._window
        )
        hidden_states = hidden_states + self._output(answers.reshape(1, tokens, -1))
        fed = self._feeding(after(hidden_states))
        return hidden_states.add_(self._down(silu(fed[..., : self._inner]).mul_(fed[..., self._inner :])))

    def _turned(self, whole: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """Queries and keys (tokens, heads, size) at their positions (RoPE, arXiv 2104.09864, in halves)."""
        if self._query_norm is not None and self._key_norm is not None:
            query, key = torch.split(whole, [self._heads, self._shared], 1)
            whole = torch.cat((self._query_norm(query), self._key_norm(key)), dim=1)
        half = self._size // 2
        signed = torch.cat((-sine[0, :, :half], sine[0, :, half:]), dim=1).unsqueeze(1)
        return torch.addcmul(whole * cosine[0].unsqueeze(1), whole.roll(half, -1), signed)


def lean_layers(model: nn.Module) -> dict[str, LeanLayer]:
    """The layers of ``model`` that can be replaced, by name, with what would replace them."""
    found: dict[str, LeanLayer] = {}
    for name, module in model.named_modules():
        made = _lean(module)
        if name and made is not None:
            found[name] = made
    return found


def put(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Put ``layers`` into ``model``; those that were there before."""
    before = {name: model.get_submodule(name) for name in layers}
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    return before


def _lean(layer: Any) -> LeanLayer | None:
    names = {name for name, _ in layer.named_children()} if isinstance(layer, nn.Module) else set()
    if names != _LAYER or not all(
        isinstance(getattr(layer, name), FusedRmsNorm)
        for name in ("input_layernorm", "post_attention_layernorm")
    ):
        return None
    attention, mlp = layer.self_attn, layer.mlp
    if not (
        {name for name, _ in attention.named_children()} <= _ATTENTION
        and {name for name, _ in mlp.named_children()} <= _MLP
        and _is_silu(getattr(mlp, "act_fn", None))
        and hasattr(attention, "q_norm") == hasattr(attention, "k_norm")
    ):
        return None
    attending = _merged(attention, "q_proj", "k_proj", "v_proj")
    feeding = _merged(mlp, "gate_proj", "up_proj")
    single = (getattr(attention, "o_proj", None), getattr(mlp, "down_proj", None))
    if attending is None or feeding is None or not all(isinstance(one, LowBitLinear) for one in single):
        return None
    needed = ("head_dim", "scaling", "layer_idx")
    return LeanLayer(layer, attending, feeding) if all(hasattr(attention, name) for name in needed) else None


def _window(attention: Any) -> int | None:
    """Tokens that a layer sees at most: its own word, or for families without one the model's."""
    if hasattr(attention, "sliding_window"):
        return attention.sliding_window  # type: ignore[no-any-return]
    return getattr(getattr(attention, "config", None), "sliding_window", None)


def _is_silu(activation: Any) -> bool:
    numbers = torch.linspace(-8, 8, 33)
    return isinstance(activation, nn.Module) and torch.allclose(activation(numbers), silu(numbers))


def _merged(parent: nn.Module, *names: str) -> Merged | None:
    """The one multiplication that these layers share, in this order."""
    parts = [getattr(parent, name, None) for name in names]
    first = parts[0]
    if not isinstance(first, Part):
        return None
    together = [isinstance(part, Part) and part.merged is first.merged for part in parts]
    places = [getattr(part, "index", -1) for part in parts]
    whole = all(together) and places == list(range(len(first.merged.sizes)))
    return first.merged if whole else None
