"""The graph of a decoder for OpenVINO, made from a GGUF file: LLaMA's shape and what is a variation of it.

OpenVINO GenAI has a reader of its own, which refuses 32-bit floats and files that lack a key it wants, and knows nothing of
stretched positions. Here the graph is made node by node, in the form in which GenAI finds the attention that it replaces by
its paged one. Refused by name: every other architecture, and files with tensors that no node asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from cloister.errors import InferenceError
from cloister.inference.engines.openvino_gguf import Layer
from cloister.inference.engines.openvino_import import openvino

Node = Any
ARCHITECTURES: Final = ("llama", "qwen2", "qwen3")
MAX_LAYERS: Final = 512
_NEIGHBOURS: Final = ("llama",)
"""Architectures whose files have the halves of each head interleaved: llama.cpp rotates neighbours, this graph halves."""


class Named(Protocol):
    """What names an architecture."""

    @property
    def architecture(self) -> str: ...


class Tensors(Protocol):
    """Where the numbers come from: :class:`~cloister.inference.engines.openvino_gguf.GgufModel`, or what looks like it."""

    @property
    def header(self) -> Named: ...

    @property
    def keys(self) -> Mapping[str, Any]: ...

    def __contains__(self, name: str) -> bool: ...

    def vector(self, name: str) -> npt.NDArray[np.float32]: ...

    def layer(self, name: str) -> Layer: ...

    def unread(self) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """The numbers of one decoder."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_length: int
    epsilon: float
    rope_base: float
    rope_factor: float
    """Positions are divided by this."""
    neighbours: bool


def decoder_shape(model: Tensors) -> DecoderShape:
    """What the keys of ``model`` say. Raises :class:`InferenceError`."""
    name = model.header.architecture
    if name not in ARCHITECTURES:
        raise InferenceError(
            f"the engine openvino has no graph for the architecture {name}",
            todo="serve the model with the engine llamacpp or torch",
        )

    def number(key: str, default: int | None = None) -> int:
        value = model.keys.get(f"{name}.{key}", default)
        if type(value) is not int or not 0 < value <= 1 << 24:
            raise InferenceError(f"the model does not say its {key}, or not so that it can be")
        return value

    heads = number("attention.head_count")
    head_length = number("attention.key_length", number("embedding_length") // heads)
    scaling = model.keys.get(f"{name}.rope.scaling.type", "none")
    if scaling not in ("none", "linear") or number("rope.dimension_count", head_length) != head_length:
        raise InferenceError(
            "the engine openvino does not rotate positions as this model needs it",
            todo="serve the model with the engine llamacpp or torch",
        )
    shape = DecoderShape(
        layers=number("block_count"),
        width=number("embedding_length"),
        heads=heads,
        kv_heads=number("attention.head_count_kv", heads),
        head_length=head_length,
        epsilon=float(model.keys.get(f"{name}.attention.layer_norm_rms_epsilon", 0)),
        rope_base=float(model.keys.get(f"{name}.rope.freq_base", 10000.0)),
        rope_factor=float(model.keys.get(f"{name}.rope.scaling.factor", 1.0)) if scaling == "linear" else 1.0,
        neighbours=name in _NEIGHBOURS,
    )
    if (
        shape.layers > MAX_LAYERS
        or shape.heads % shape.kv_heads
        or shape.head_length % 2
        or not shape.epsilon > 0
    ):
        raise InferenceError("the model's numbers do not fit each other")
    return shape


def decoder(model: Tensors) -> Any:
    """The ``openvino.Model`` of ``model``, its weights in memory of its own. Raises :class:`InferenceError`."""
    return _Graph(model, decoder_shape(model)).whole()


class _Graph:
    def __init__(self, model: Tensors, shape: DecoderShape) -> None:
        self._ov: Any = openvino()
        self._ops: Any = import_module("openvino.opset13")
        self._model = model
        self._shape = shape
        self._sinks: list[Node] = []
        self._mask: Node | None = None
        ops, kind = self._ops, self._ov.Type
        self._tokens = ops.parameter([-1, -1], kind.i64, name="input_ids")
        self._attended = ops.parameter([-1, -1], kind.i64, name="attention_mask")
        self._positions = ops.parameter([-1, -1], kind.i64, name="position_ids")
        self._order = ops.parameter([-1], kind.i32, name="beam_idx")
        self._inputs = [self._tokens, self._attended, self._positions, self._order]
        for node in self._inputs:
            node.output(0).set_names({node.get_friendly_name()})
        sides = ops.shape_of(self._tokens, output_type="i64")
        self._batch = ops.gather(sides, self._int([0]), self._int(0))
        self._length = ops.gather(sides, self._int([1]), self._int(0))
        self._cosine, self._sine = self._rotation()

    def whole(self) -> Any:
        ops, model = self._ops, self._model
        embeddings = self._weights(model.layer("token_embd.weight"))
        hidden = ops.gather(embeddings, ops.convert(self._tokens, "i32"), self._int(0))
        for layer in range(self._shape.layers):
            hidden = self._layer(hidden, f"blk.{layer}", layer)
        hidden = self._normed(hidden, "output_norm")
        tied = "output.weight" not in model
        output = embeddings if tied else self._weights(model.layer("output.weight"))
        if unread := model.unread():
            raise InferenceError(
                f"the model has {unread[0]} and {len(unread) - 1} more, for which the engine openvino has no node",
                todo="serve it with the engine llamacpp",
            )
        told = ops.result(ops.matmul(hidden, output, False, True))
        told.get_output_tensor(0).set_names({"logits"})
        return self._ov.Model([told], self._sinks, self._inputs, "decoder")

    def _layer(self, hidden: Node, name: str, number: int) -> Node:
        ops = self._ops
        hidden = ops.add(hidden, self._attention(self._normed(hidden, f"{name}.attn_norm"), name, number))
        normed = self._normed(hidden, f"{name}.ffn_norm")
        gate = self._through(normed, f"{name}.ffn_gate")
        gated = ops.multiply(ops.multiply(gate, ops.sigmoid(gate)), self._through(normed, f"{name}.ffn_up"))
        return ops.add(hidden, self._through(gated, f"{name}.ffn_down"))

    def _attention(self, hidden: Node, name: str, number: int) -> Node:
        ops, shape = self._ops, self._shape
        query = self._rotated(self._heads(hidden, f"{name}.attn_q", shape.heads))
        key = self._rotated(self._heads(hidden, f"{name}.attn_k", shape.kv_heads))
        value = self._heads(hidden, f"{name}.attn_v", shape.kv_heads)
        past_key, key = self._cached(key, number, "key")
        _, value = self._cached(value, number, "value")
        if self._mask is None:
            self._mask = self._causal(past_key)
        found = ops.scaled_dot_product_attention(
            query, self._repeated(key), self._repeated(value), self._mask, causal=False
        )
        together = ops.reshape(
            ops.transpose(found, self._int([0, 2, 1, 3])),
            self._int([0, 0, shape.heads * shape.head_length]),
            True,
        )
        return self._through(together, f"{name}.attn_output")

    def _heads(self, hidden: Node, name: str, heads: int) -> Node:
        """(batch, length, width) → (batch, heads, length, head)."""
        ops, shape = self._ops, self._shape
        turned = self._shape.neighbours and not name.endswith("attn_v")
        apart = ops.reshape(
            self._through(hidden, name, heads if turned else 0),
            self._int([0, 0, heads, shape.head_length]),
            True,
        )
        if f"{name}_norm.weight" in self._model:
            apart = self._normed(apart, f"{name}_norm")
        return ops.transpose(apart, self._int([0, 2, 1, 3]))

    def _rotation(self) -> tuple[Node, Node]:
        """Cosine and sine of every position: (batch, 1, length, head)."""
        ops, shape = self._ops, self._shape
        steps = np.arange(0, shape.head_length, 2, dtype=np.float64) / shape.head_length
        speeds = 1.0 / (shape.rope_base**steps * shape.rope_factor)
        if "rope_freqs.weight" in self._model:
            speeds = speeds / self._model.vector("rope_freqs.weight")
        column = ops.constant(speeds.astype(np.float32).reshape(1, -1, 1))
        wide = ops.broadcast(
            column,
            ops.concat([self._batch, self._int([1]), self._int([1])], 0),
            broadcast_spec="BIDIRECTIONAL",
        )
        places = ops.convert(ops.unsqueeze(self._positions, self._int(1)), "f32")
        angles = ops.transpose(ops.matmul(wide, places, False, False), self._int([0, 2, 1]))
        both = ops.concat([angles, angles], -1)
        return ops.unsqueeze(ops.cos(both), self._int(1)), ops.unsqueeze(ops.sin(both), self._int(1))

    def _rotated(self, heads: Node) -> Node:
        ops = self._ops
        half, one = self._int([self._shape.head_length // 2]), self._int([1])
        last, end, axis = self._int([0]), self._int([np.iinfo(np.int64).max]), self._int([3])
        second = ops.multiply(ops.slice(heads, half, end, one, axis), ops.constant(np.float32(-1.0)))
        turned = ops.concat([second, ops.slice(heads, last, half, one, axis)], -1)
        return ops.add(ops.multiply(heads, self._cosine), ops.multiply(turned, self._sine))

    def _cached(self, fresh: Node, number: int, what: str) -> tuple[Node, Node]:
        """What was there before, and all of it with what is new."""
        ops, shape = self._ops, self._shape
        sides = [self._batch, *(self._int([side]) for side in (shape.kv_heads, 0, shape.head_length))]
        nothing = ops.broadcast(ops.constant(np.float32(0)), ops.concat(sides, 0))
        info = self._ov.op.util.VariableInfo()
        info.data_shape = self._ov.PartialShape([-1, shape.kv_heads, -1, shape.head_length])
        info.data_type = self._ov.Type.f32
        info.variable_id = f"past_key_values.{number}.{what}present.{number}.{what}"
        variable = self._ov.op.util.Variable(info)
        past = ops.gather(ops.read_value(nothing, variable), self._order, self._int(0))
        whole = ops.concat([past, fresh], 2)
        self._sinks.append(ops.assign(whole, variable))
        return past, whole

    def _repeated(self, heads: Node) -> Node:
        """Each key or value for every query that shares it."""
        ops, shape = self._ops, self._shape
        times = shape.heads // shape.kv_heads
        if times == 1:
            return heads
        sides = [self._batch, *(self._int([side]) for side in (shape.kv_heads, times, 0, shape.head_length))]
        # A side of 0 is not broadcast to, where the mode is bidirectional it is 1 that stands for "as it is".
        sides[3] = self._int([1])
        wide = ops.broadcast(
            ops.unsqueeze(heads, self._int(2)), ops.concat(sides, 0), broadcast_spec="BIDIRECTIONAL"
        )
        return ops.reshape(wide, self._int([0, shape.heads, -1, shape.head_length]), True)

    def _causal(self, past: Node) -> Node:
        """What is added to attention: nothing where a token may look, a number beyond all others elsewhere."""
        ops = self._ops
        before = ops.gather(ops.shape_of(past, output_type="i64"), self._int([2]), self._int(0))
        begin, length = ops.squeeze(before, self._int(0)), ops.squeeze(self._length, self._int(0))
        end = ops.add(begin, length)
        rows = ops.unsqueeze(ops.range(begin, end, self._int(1), "i64"), self._int(1))
        columns = ops.unsqueeze(ops.range(self._int(0), end, self._int(1), "i64"), self._int(0))
        late = ops.unsqueeze(ops.unsqueeze(ops.greater(columns, rows), self._int(0)), self._int(0))
        padded = ops.equal(
            ops.unsqueeze(ops.unsqueeze(self._attended, self._int(1)), self._int(1)), self._int(0)
        )
        return ops.select(
            ops.logical_or(late, padded), ops.constant(np.float32(-65504.0)), ops.constant(np.float32(0))
        )

    def _normed(self, hidden: Node, name: str) -> Node:
        ops = self._ops
        square = ops.power(hidden, ops.constant(np.float32(2.0)))
        mean = ops.reduce_mean(square, self._int([-1]), True)
        root = ops.sqrt(ops.add(mean, ops.constant(np.float32(self._shape.epsilon))))
        scaled = ops.multiply(hidden, ops.divide(ops.constant(np.float32(1.0)), root))
        return ops.multiply(scaled, ops.constant(self._model.vector(f"{name}.weight")))

    def _through(self, hidden: Node, name: str, heads: int = 0) -> Node:
        """A layer of weights, and its bias; with ``heads`` their rows become halves, where neighbours were pairs."""
        ops = self._ops
        layer = self._model.layer(f"{name}.weight")
        bias = self._model.vector(f"{name}.bias") if f"{name}.bias" in self._model else None
        if heads:
            order = np.arange(len(layer.numbers)).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)
            layer = layer.picked(order)
            bias = None if bias is None else bias[order]
        out = ops.matmul(hidden, self._weights(layer), False, True)
        return out if bias is None else ops.add(out, ops.constant(bias))

    def _weights(self, layer: Layer) -> Node:
        ops, kind = self._ops, self._ov.Type
        if layer.scales is None:
            if layer.numbers.dtype == np.uint16:
                data = self._ov.Tensor(kind.bf16, self._ov.Shape(list(layer.numbers.shape)))
                data.data.view(np.uint16)[:] = layer.numbers
                return ops.convert(self._ov.op.Constant(data), "f32")
            plain = ops.constant(np.ascontiguousarray(layer.numbers))
            return plain if layer.numbers.dtype == np.float32 else ops.convert(plain, "f32")
        rows, columns = len(layer.numbers), layer.columns
        form = kind.i4 if layer.bits == 4 else kind.i8
        apart = [rows, columns // layer.group, layer.group]
        data = self._ov.Tensor(form, self._ov.Shape(apart))
        data.data.reshape(-1)[:] = np.ascontiguousarray(layer.numbers).view(data.data.dtype).reshape(-1)
        numbers = ops.convert(self._ov.op.Constant(data), "f16")
        scaled = ops.multiply(numbers, ops.constant(np.ascontiguousarray(layer.scales)[..., None]))
        return ops.convert(ops.reshape(scaled, self._int([rows, columns]), False), "f32")

    def _int(self, value: int | list[int]) -> Node:
        return self._ops.constant(np.array(value, np.int64))
