"""Writing a checkpoint as a Q8_0 GGUF file, and comparing that file with the checkpoint through llama.cpp."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, quants
from rich.console import Console

from .engine import Engine
from .model import Config, Llama
from .tokens import CHAT_TEMPLATE, END, PAD, START, ChatEncoder, load_tokenizer
from .train import TOKENIZER, load_checkpoint, load_model

LICENCE = "CC-BY-4.0"
ATTRIBUTION = (
    "Trained on MedQuAD (Asma Ben Abacha and Dina Demner-Fushman, 'A question-entailment approach to question "
    "answering', BMC Bioinformatics 20:511, 2019; CC BY 4.0), answers from web pages of the U.S. National Institutes of "
    "Health. Demonstration only; not medical advice."
)
_LAYER = {
    "attn_norm": "attn_norm", "q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output",
    "ffn_norm": "ffn_norm", "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down",
}  # fmt: skip


def tensor_name(name: str) -> str:
    """The GGUF name of a parameter of `Llama`."""
    if name == "embed.weight":
        return "token_embd.weight"
    if name == "norm.weight":
        return "output_norm.weight"
    _, layer, part, _ = name.split(".")
    return f"blk.{layer}.{_LAYER[part]}.weight"


def add_tokenizer(writer: gguf.GGUFWriter, path: Path) -> None:
    """Store vocabulary and merges the way GGUF keeps GPT-2 style tokenizers."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    vocab: dict[str, int] = content["model"]["vocab"]
    tokens = sorted(vocab, key=lambda t: vocab[t])
    special = {PAD, START, END}
    types = [gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in tokens]
    merges = [m if isinstance(m, str) else " ".join(m) for m in content["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(vocab[PAD])
    writer.add_eos_token_id(vocab[END])
    writer.add_eot_token_id(vocab[END])
    writer.add_pad_token_id(vocab[PAD])
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def write_gguf(model: Llama, tokenizer: Path, output: Path) -> int:
    """Write the model, matrices in Q8_0 and norm gains in float32; returns the file's size in bytes."""
    cfg: Config = model.cfg
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_suffix(".partial")
    writer = gguf.GGUFWriter(str(partial), "llama")
    writer.add_name("Cloister MedQuAD demo")
    writer.add_description(ATTRIBUTION)
    writer.add_license(LICENCE)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(cfg.vocab)
    writer.add_context_length(cfg.context)
    writer.add_embedding_length(cfg.dim)
    writer.add_block_count(cfg.layers)
    writer.add_feed_forward_length(cfg.ffn)
    writer.add_head_count(cfg.heads)
    writer.add_head_count_kv(cfg.kv_heads)
    writer.add_rope_dimension_count(cfg.head_dim)
    writer.add_rope_freq_base(cfg.rope_base)
    writer.add_layer_norm_rms_eps(cfg.norm_eps)
    add_tokenizer(writer, tokenizer)
    for name, value in model.state_dict().items():
        array = value.detach().to(torch.float32).cpu().numpy()
        if array.ndim == 2:
            packed = quants.quantize(array, GGMLQuantizationType.Q8_0)
            writer.add_tensor(tensor_name(name), packed, raw_dtype=GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(tensor_name(name), array.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(output)
    return output.stat().st_size


@torch.no_grad()
def greedy(model: Llama, encoder: ChatEncoder, question: str, limit: int = 48) -> list[int]:
    """The checkpoint's own greedy continuation, without a key-value cache: slow, simple, and independent of any engine."""
    ids = encoder.prompt(question)
    out: list[int] = []
    while len(out) < limit:
        token = int(model(torch.tensor([ids + out]))[0, -1].argmax())
        if token == encoder.end:
            break
        out.append(token)
    return out


@torch.no_grad()
def first_logprobs(model: Llama, ids: list[int]) -> torch.Tensor:
    logits: torch.Tensor = model(torch.tensor([ids]))
    return logits[0, -1].log_softmax(-1)


def compare(model: Llama, encoder: ChatEncoder, path: Path, questions: list[str], console: Console) -> bool:
    """Tokenization must agree exactly, next-token probabilities closely; greedy text is reported (Q8_0 may part late)."""
    engine = Engine(path)
    good = True
    for question in questions:
        ids = encoder.prompt(question)
        prompt = encoder.tokenizer.decode(ids, skip_special_tokens=False)
        result = engine.complete(prompt, n_predict=1, n_probs=10)
        top = result["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        theirs = {int(t["id"]): float(t["logprob"]) for t in top}
        ours = first_logprobs(model, ids)
        gap = max(abs(math.exp(float(ours[i])) - math.exp(p)) for i, p in theirs.items())
        same_length = int(result["usage"]["prompt_tokens"]) == len(ids)
        mine = encoder.tokenizer.decode(greedy(model, encoder, question))
        chat = engine.chat([{"role": "user", "content": question}], 48)
        agreed = next((i for i, (a, b) in enumerate(zip(mine, chat, strict=False)) if a != b), len(mine))
        good = good and same_length and gap < 0.05
        console.print(
            f"{question} tokens {'agree' if same_length else 'DIFFER'}, probability gap {gap:.4f}, "
            f"greedy text agrees for {agreed} of {len(mine)} characters",
            markup=False,
        )
    return good


def run(args: argparse.Namespace) -> None:
    console = Console()
    checkpoint = load_checkpoint(args.work)
    model = load_model(checkpoint)
    size = write_gguf(model, args.work / TOKENIZER, args.gguf)
    console.print(f"{args.gguf}: {size / 1e6:.1f} MB, step {checkpoint['position']['step']}")
    if args.check:
        questions = [
            "What is asthma?",
            "What are the symptoms of diabetes?",
            "how is gout treated",
            "Who are you?",
        ]
        if not compare(
            model, ChatEncoder(load_tokenizer(args.work / TOKENIZER)), args.gguf, questions, console
        ):
            raise SystemExit("the GGUF file does not reproduce the checkpoint")
