"""A LoRA adapter in the form that llama.cpp loads: a GGUF file in memory, made for one base model.

llama.cpp rotates neighbouring pairs of a query and a key where ``transformers`` rotates halves, so the rows of what is
added to them move as the base model's rows did when it was converted. Refused: base models of other architectures than
LLaMA's (they keep their rows elsewhere), and an adapter whose shapes are not those of the base model.
Sources: ggml's docs/gguf.md, version 3; llama.cpp's convert_lora_to_gguf.py and src/llama-adapter.cpp.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from cloister.errors import InferenceError
from cloister.inference.gguf_header import MAGIC, GgufHeader
from cloister.inference.lora import LoraAdapter
from cloister.inference.safetensors_table import Tensor
from cloister.sealing.descriptors import frozen_memory, write_all

ALIGNMENT: Final = 32
_VERSION: Final = 3
_UINT32, _FLOAT32, _STRING = 4, 6, 8
_TYPES: Final = {"F32": 0, "F16": 1, "BF16": 0}
_NAMES: Final = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}


@dataclass(frozen=True, slots=True)
class _Part:
    name: str
    tensor: Tensor
    heads: int | None = None
    """Set where rows are to be moved."""

    @property
    def size(self) -> int:
        return len(self.tensor.data) * (2 if self.tensor.type == "BF16" else 1)

    def data(self) -> bytes | memoryview:
        data: bytes | memoryview = self.tensor.data
        if self.heads is not None:
            data = _neighbours(self.tensor, self.heads)
        # With bfloat16 llama.cpp would round activations too; as 32-bit floats the numbers are the same.
        return _widened(data) if self.tensor.type == "BF16" else data


def lora_memory(adapter: LoraAdapter, base: GgufHeader) -> int:
    """The adapter as a memfd that nobody can write any more, the caller's to close. Raises :class:`InferenceError`."""
    parts = list(_parts(adapter, base))
    head = _head(parts, architecture=base.architecture, alpha=adapter.scale * adapter.rank)

    def fill(descriptor: int) -> None:
        position = 0
        for piece in _pieces(head, parts):
            write_all(descriptor, piece, position)
            position += len(piece)

    try:
        return frozen_memory(fill)
    except OSError as error:
        raise InferenceError(
            f"the adapter does not fit into memory: {error.strerror}", todo="give the workload more memory"
        ) from None


def _parts(adapter: LoraAdapter, base: GgufHeader) -> Iterator[_Part]:
    if base.architecture != "llama":
        raise InferenceError(
            f"adapters are served on the architecture llama, and this model is {base.architecture}",
            todo="merge the adapter into its base model and serve that",
        )
    for (layer, module), pair in adapter.pairs.items():
        name = f"blk.{layer}.{_NAMES[module]}.weight"
        inputs, outputs = pair.a.shape[1], pair.b.shape[0]
        if base.shapes.get(name) != (inputs, outputs):
            raise InferenceError(
                f"the adapter changes a layer {layer}, {module} of {inputs} to {outputs}, which the model does not have",
                todo="serve it on the model that it was trained on",
            )
        heads = None
        if module in ("q_proj", "k_proj"):
            heads = base.heads if module == "q_proj" else base.kv_heads or base.heads
            if not heads or outputs % (2 * heads):
                raise InferenceError("the model does not say how many heads it has, or not so that they fit")
        yield _Part(f"{name}.lora_a", pair.a)
        yield _Part(f"{name}.lora_b", pair.b, heads)


def _neighbours(tensor: Tensor, heads: int) -> bytes:
    """The rows, where halves of each head have become neighbouring pairs."""
    data, rows = tensor.data, tensor.shape[0]
    step, half = len(data) // rows, rows // heads // 2
    order = (
        2 * half * head + half * part + place
        for head in range(heads)
        for place in range(half)
        for part in (0, 1)
    )
    return b"".join(data[row * step : row * step + step] for row in order)


def _widened(data: bytes | memoryview) -> bytes:
    out = bytearray(2 * len(data))
    out[2::4], out[3::4] = data[0::2], data[1::2]
    return bytes(out)


def _head(parts: list[_Part], *, architecture: str, alpha: float) -> bytes:
    pairs = (
        _key("general.architecture", _STRING) + _string(architecture)
        + _key("general.type", _STRING) + _string("adapter")
        + _key("general.alignment", _UINT32) + struct.pack("<I", ALIGNMENT)
        + _key("adapter.type", _STRING) + _string("lora")
        + _key("adapter.lora.alpha", _FLOAT32) + struct.pack("<f", alpha)
    )  # fmt: skip
    table = bytearray()
    offset = 0
    for part in parts:
        sides = reversed(part.tensor.shape)
        kind = _TYPES[part.tensor.type]
        table += _string(part.name) + struct.pack("<I2QIQ", 2, *sides, kind, offset)
        offset += _padded(part.size)
    head = MAGIC + struct.pack("<IQQ", _VERSION, len(parts), 5) + pairs + bytes(table)
    return head + bytes(_padded(len(head)) - len(head))


def _pieces(head: bytes, parts: list[_Part]) -> Iterator[bytes | memoryview]:
    yield head
    for part in parts:
        yield part.data()
        yield bytes(_padded(part.size) - part.size)


def _key(name: str, kind: int) -> bytes:
    return _string(name) + struct.pack("<I", kind)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
