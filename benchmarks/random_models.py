"""Models with random weights, in the shapes that people run: real arithmetic and sizes, no meaning, nothing downloaded.

A GGUF is written block by block at the disk's speed, a Hugging Face folder tensor by tensor, both in little memory. Weights
are drawn so that a token's own direction survives to the logits, as in trained models. A word of :data:`CYCLE` is followed
by the next one: a prompt that ends there is answered by that passage again and again, which is repetitive text for
speculation. The tokenizer is a byte-level BPE trained on the project's own text.

    python -m benchmarks.random_models SHAPE OUT      (llama-1b, llama-7b, chatglm-6b, … : Q4_0; OUT a folder: Hugging Face)
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import gguf
import numpy as np
from rich.progress import track

from benchmarks.local_tokenizer import SPECIAL, tokenizer_json

Q4_BLOCK: Final = 32
Q4_BYTES: Final = 18
CYCLE: Final = tuple(range(1000, 1024))
"""Ordinary words of the vocabulary, by number."""
_UNIFORM: Final = 4.61
"""Standard deviation of a nibble, 0 to 15."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides how long a token takes."""

    architecture: Literal["llama", "chatglm"]
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocabulary: int
    context: int

    @property
    def kv(self) -> int:
        return self.hidden // self.heads * self.kv_heads


SHAPES: Final = {
    "llama-1b": Shape("llama", 22, 2048, 32, 4, 5632, 32000, 8192),
    "llama-7b": Shape("llama", 32, 4096, 32, 32, 11008, 32000, 4096),
    "chatglm-6b": Shape("chatglm", 28, 4096, 32, 2, 13696, 65024, 8192),
    "llama-draft": Shape("llama", 4, 512, 8, 8, 1408, 32000, 4096),
}
"""``chatglm-6b`` is that of ChatGLM2-6B and ChatGLM3-6B; ``llama-draft`` guesses for the LLaMA shapes."""

LLAMA_TEMPLATE: Final = (
    "{% for m in messages %}{{ '<|user|>' if m['role'] == 'user' else '<|assistant|>' }}{{ m['content'] }}</s>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CHATGLM_TEMPLATE: Final = (
    "{% for message in messages %}{% if loop.first %}[gMASK]sop<|{{ message['role'] }}|>\n {{ message['content'] }}"
    "{% else %}<|{{ message['role'] }}|>\n {{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""As ChatGLM3-6B's own tokenizer_config.json has it."""


def q4_0(models: Path, name: str) -> Path:
    """The GGUF of that shape, made if it is not there."""
    path = models / f"{name}-Q4_0.gguf"
    if not path.exists():
        models.mkdir(parents=True, exist_ok=True)
        write_gguf(SHAPES[name], path)
    return path


def hugging_face(models: Path, name: str) -> Path:
    """The folder of that shape in bfloat16, made if it is not there."""
    folder = models / name
    if not (folder / "config.json").exists():
        write_hugging_face(SHAPES[name], folder)
    return folder


def shapes_of(shape: Shape) -> Iterator[tuple[str, tuple[int, ...], float]]:
    """Every tensor by llama.cpp's name, its shape and its standard deviation; 0 stands for all ones, below it for zeros."""
    usual, into_stream = 1.0, 1 / math.sqrt(2 * shape.layers)

    def matrix(name: str, rows: int, columns: int, gain: float = usual) -> tuple[str, tuple[int, ...], float]:
        return name, (rows, columns), gain / math.sqrt(columns)

    yield "token_embd.weight", (shape.vocabulary, shape.hidden), 1.0
    yield matrix("output.weight", shape.vocabulary, shape.hidden)
    yield "output_norm.weight", (shape.hidden,), 0.0
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        yield f"{block}attn_norm.weight", (shape.hidden,), 0.0
        if shape.architecture == "chatglm":
            together = shape.hidden + 2 * shape.kv
            yield matrix(f"{block}attn_qkv.weight", together, shape.hidden)
            yield f"{block}attn_qkv.bias", (together,), -1.0
            yield matrix(f"{block}ffn_up.weight", 2 * shape.feed_forward, shape.hidden)
        else:
            yield matrix(f"{block}attn_q.weight", shape.hidden, shape.hidden)
            yield matrix(f"{block}attn_k.weight", shape.kv, shape.hidden)
            yield matrix(f"{block}attn_v.weight", shape.kv, shape.hidden)
            yield matrix(f"{block}ffn_gate.weight", shape.feed_forward, shape.hidden)
            yield matrix(f"{block}ffn_up.weight", shape.feed_forward, shape.hidden)
        yield matrix(f"{block}attn_output.weight", shape.hidden, shape.hidden, into_stream)
        yield f"{block}ffn_norm.weight", (shape.hidden,), 0.0
        yield matrix(f"{block}ffn_down.weight", shape.hidden, shape.feed_forward, into_stream)


def write_gguf(shape: Shape, path: Path, *, seed: int = 7) -> None:
    """A GGUF in Q4_0 throughout, of one tensor at a time."""
    rng = np.random.default_rng(seed)
    part = path.with_suffix(".part")
    writer = gguf.GGUFWriter(str(part), shape.architecture)
    _describe(writer, shape, path.parent)
    tensors = list(shapes_of(shape))
    q4 = gguf.GGMLQuantizationType.Q4_0
    for name, size, _ in tensors:
        if len(size) == 1:
            writer.add_tensor_info(name, size, np.dtype(np.float32), 4 * size[0])
        else:
            packed = (size[0], size[1] // Q4_BLOCK * Q4_BYTES)
            writer.add_tensor_info(name, packed, np.dtype(np.uint8), packed[0] * packed[1], raw_dtype=q4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    embedding = np.empty(0, dtype=np.uint8)
    for name, size, deviation in track(tensors, description=path.name):
        if len(size) == 1:
            writer.write_tensor_data(np.full(size, 1.0 if deviation == 0 else 0.0, dtype=np.float32))
            continue
        blocks = _random_q4_0(rng, size[0], size[1], deviation)
        if name == "token_embd.weight":
            embedding = blocks[list(CYCLE)].copy()
        elif name == "output.weight":
            scale = np.frombuffer(np.float16(deviation / _UNIFORM).tobytes(), dtype=np.uint8)
            rows = embedding.copy()
            rows[:, :, 1] &= 0x80  # the sign of the embedding's scale stays, its size is this tensor's
            rows[:, :, 1] |= scale[1]
            rows[:, :, 0] = scale[0]
            blocks[list(CYCLE[1:] + CYCLE[:1])] = rows
        writer.write_tensor_data(blocks.reshape(size[0], -1))
    writer.close()
    part.replace(path)


def _random_q4_0(rng: np.random.Generator, rows: int, columns: int, deviation: float) -> np.ndarray:
    """[rows, blocks, 18] bytes: a half-precision scale of either sign, so that the mean is zero, and 32 nibbles."""
    count = rows * columns // Q4_BLOCK
    blocks = np.frombuffer(bytearray(rng.bytes(count * Q4_BYTES)), dtype=np.uint8).reshape(-1, Q4_BYTES)
    scale = np.frombuffer(np.float16(deviation / _UNIFORM).tobytes(), dtype=np.uint8)
    blocks[:, 0] = scale[0]
    blocks[:, 1] &= 0x80
    blocks[:, 1] |= scale[1]
    return blocks.reshape(rows, columns // Q4_BLOCK, Q4_BYTES)


def _describe(writer: gguf.GGUFWriter, shape: Shape, folder: Path) -> None:
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    turned = shape.hidden // shape.heads
    writer.add_rope_dimension_count(turned // 2 if shape.architecture == "chatglm" else turned)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocabulary)
    tokenizer = json.loads(tokenizer_json(folder, shape.vocabulary, special=_special(shape)))["model"]
    words = {number: word for word, number in tokenizer["vocab"].items()}
    special = len(_special(shape))
    kinds = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([words.get(number, f"[PAD{number}]") for number in range(shape.vocabulary)])
    writer.add_token_types(
        [
            kinds.CONTROL if number < special else kinds.NORMAL if number in words else kinds.UNUSED
            for number in range(shape.vocabulary)
        ]
    )
    writer.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in tokenizer["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHATGLM_TEMPLATE if shape.architecture == "chatglm" else LLAMA_TEMPLATE)


def _special(shape: Shape) -> tuple[str, ...]:
    return (*SPECIAL, "[gMASK]", "sop", "<|system|>") if shape.architecture == "chatglm" else SPECIAL


_NAMES: Final = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip
_TOP: Final = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output.weight": "lm_head.weight",
    "output_norm.weight": "model.norm.weight",
}


def write_hugging_face(shape: Shape, folder: Path, *, seed: int = 7) -> None:
    """``config.json``, the tokenizer, and one ``model.safetensors`` in bfloat16, of one tensor at a time."""
    if shape.architecture != "llama":
        raise ValueError("only LLaMA shapes are written for transformers")
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    (part / "tokenizer.json").write_text(tokenizer_json(folder.parent, shape.vocabulary), "utf-8")
    _json(part / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
        "chat_template": LLAMA_TEMPLATE, "model_max_length": shape.context,
    })  # fmt: skip
    rng = np.random.default_rng(seed)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    tensors, end = list(shapes_of(shape)), 0
    for name, size, _ in tensors:
        begin, end = end, end + 2 * math.prod(size)
        header[_transformers_name(name)] = {
            "dtype": "BF16",
            "shape": list(size),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    embedding = np.empty(0, dtype=np.uint16)
    with (part / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, size, deviation in track(tensors, description=folder.name):
            values = np.full(size, 0x3F80, dtype=np.uint16)
            if deviation > 0:
                values = _bf16(rng.standard_normal(size, dtype=np.float32) * np.float32(deviation))
            if name == "token_embd.weight":
                embedding = values[list(CYCLE)].astype(np.uint32) << 16
            elif name == "output.weight":
                values[list(CYCLE[1:] + CYCLE[:1])] = _bf16(
                    embedding.view(np.float32) * np.float32(deviation)
                )
            values.tofile(file)
    _json(part / "config.json", {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": shape.hidden,
        "intermediate_size": shape.feed_forward, "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads, "vocab_size": shape.vocabulary, "max_position_embeddings": shape.context,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
        "dtype": "bfloat16", "hidden_act": "silu",
    })  # fmt: skip
    part.replace(folder)


def _transformers_name(name: str) -> str:
    if name in _TOP:
        return _TOP[name]
    _, layer, rest, kind = name.split(".")
    return f"model.layers.{layer}.{_NAMES[rest]}.{kind}"


def _bf16(values: np.ndarray) -> np.ndarray:
    """Rounded to the nearest, ties away from zero."""
    return ((values.view(np.uint32) + 0x8000) >> 16).astype(np.uint16)


def _json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("out", type=Path, help="a .gguf file, or a folder for Hugging Face's form")
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write = write_gguf if given.out.suffix == ".gguf" else write_hugging_face
    write(SHAPES[given.shape], given.out)


if __name__ == "__main__":
    main()
