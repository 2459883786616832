"""Turn the TinyLlamas checkpoint (llama2.c, 260 thousand parameters, 32-bit floats) into a GGUF file.

The legacy layout of llama2.c: seven 32-bit integers, then the float tensors one after another. It rotates
neighbouring pairs, as llama.cpp's ``llama`` architecture does, so no tensor has to be permuted.
"""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np

from shared_data import data

TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}{% if not loop.last %}\n{% endif %}{% endfor %}"
)
"""The least chat template: a story teller has no roles, the messages are the beginning of the story."""

_ENCODED = "tinyllamas/stories260K.bin"
_VOCABULARY = "tinyllamas/tok512.vocab"


def expected_text() -> str:
    """What the checkpoint says at temperature 0 from the beginning token on, as its authors printed it."""
    page = data("tinyllamas/stories260K.md").read_text(encoding="utf-8")
    block = page.split("-t 0.0\n", 1)[1]
    return block.split("\n```", 1)[0]


def write_gguf(target: Path) -> Path:
    """Write the checkpoint with its vocabulary as ``target`` (F32, 1 MB). Skips the test without the data."""
    raw = data(_ENCODED).read_bytes()
    dim, hidden, layers, heads, kv_heads, vocabulary, length = struct.unpack_from("<7i", raw)
    floats = np.frombuffer(raw, dtype="<f4", offset=28)
    head = dim // heads
    kv_dim = head * kv_heads
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_name("stories260K")
    writer.add_context_length(length)
    writer.add_embedding_length(dim)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(head)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _add_tokenizer(writer, vocabulary)
    writer.add_chat_template(TEMPLATE)

    cursor = 0

    def take(*shape: int) -> np.ndarray:
        nonlocal cursor
        size = int(np.prod(shape))
        part = floats[cursor : cursor + size].reshape(shape)
        cursor += size
        return np.ascontiguousarray(part)

    writer.add_tensor("token_embd.weight", take(vocabulary, dim))
    stacked = {
        "attn_norm": take(layers, dim),
        "attn_q": take(layers, dim, dim),
        "attn_k": take(layers, kv_dim, dim),
        "attn_v": take(layers, kv_dim, dim),
        "attn_output": take(layers, dim, dim),
        "ffn_norm": take(layers, dim),
        "ffn_gate": take(layers, hidden, dim),
        "ffn_down": take(layers, dim, hidden),
        "ffn_up": take(layers, hidden, dim),
    }
    for name, tensor in stacked.items():
        for layer in range(layers):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ascontiguousarray(tensor[layer]))
    writer.add_tensor("output_norm.weight", take(dim))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _add_tokenizer(writer: gguf.GGUFWriter, vocabulary: int) -> None:
    pieces: list[bytes] = []
    scores: list[float] = []
    kinds: list[int] = []
    lines = data(_VOCABULARY).read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines[:vocabulary]):
        piece, score = line.rsplit("\t", 1)
        pieces.append(piece.encode())
        scores.append(float(score))
        if number == 0:
            kinds.append(gguf.TokenType.UNKNOWN)
        elif number < 3:
            kinds.append(gguf.TokenType.CONTROL)
        elif number < 259:
            kinds.append(gguf.TokenType.BYTE)
        else:
            kinds.append(gguf.TokenType.NORMAL)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(True)
