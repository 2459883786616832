"""A GGUF of LLaMA shape with random Q4_0 weights: real arithmetic and sizes, no meaning.

Usage: random_model.py OUT.gguf [--layers 22 --hidden 2048 …]; the default is the 1.1 B shape. The tokenizer is the
demonstration model's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gguf
import numpy as np
from rich.progress import track

from cloister.inference.demo_model import demo_model

Q4_0_BLOCK = 32
Q4_0_BYTES = 18


def random_q4_0(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Rows of Q4_0 blocks: a half-precision scale and 32 nibbles; scaled to keep activations near 1."""
    blocks = rng.integers(0, 256, (rows, columns // Q4_0_BLOCK, Q4_0_BYTES), dtype=np.uint8)
    scale = np.float16(1 / (4.6 * np.sqrt(columns)))  # nibbles minus 8 have a standard deviation of 4.6
    blocks[:, :, :2] = np.frombuffer(scale.tobytes(), dtype=np.uint8)
    return blocks.reshape(rows, -1)


def write(
    path: Path, *, layers: int, hidden: int, heads: int, kv_heads: int, feed_forward: int, context: int
) -> None:
    rng = np.random.default_rng(7)
    reader = gguf.GGUFReader(demo_model())
    writer = gguf.GGUFWriter(str(path.with_suffix(".part")), "llama")
    vocab = 0
    for name, field in reader.fields.items():
        if name.startswith("tokenizer."):
            value = field.contents()
            vocab = len(value) if name == "tokenizer.ggml.tokens" else vocab
            kind = field.types[0]
            writer.add_key_value(name, value, kind, field.types[1] if len(field.types) > 1 else None)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_vocab_size(vocab)
    writer.add_context_length(context)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(feed_forward)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_layer_norm_rms_eps(1e-5)
    kv = hidden // heads * kv_heads
    shapes = {
        "attn_q": (hidden, hidden), "attn_k": (kv, hidden), "attn_v": (kv, hidden), "attn_output": (hidden, hidden),
        "ffn_gate": (feed_forward, hidden), "ffn_up": (feed_forward, hidden), "ffn_down": (hidden, feed_forward),
    }  # fmt: skip
    q4 = gguf.GGMLQuantizationType.Q4_0
    writer.add_tensor("token_embd.weight", random_q4_0(rng, vocab, hidden), raw_dtype=q4)
    writer.add_tensor("output.weight", random_q4_0(rng, vocab, hidden), raw_dtype=q4)
    writer.add_tensor("output_norm.weight", np.ones(hidden, dtype=np.float32))
    for layer in track(range(layers), description="random weights"):
        for name, (rows, columns) in shapes.items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", random_q4_0(rng, rows, columns), raw_dtype=q4)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(hidden, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".part").replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    for name, value in {
        "layers": 22, "hidden": 2048, "heads": 32, "kv-heads": 4, "feed-forward": 5632, "context": 2048,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    options = vars(parser.parse_args())
    path = options.pop("out")
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, **options)


if __name__ == "__main__":
    main()
