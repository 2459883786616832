"""The model card: every number in it is measured here, from the exported file, when the card is written."""

from __future__ import annotations

import argparse
import hashlib
import math
import random
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import gguf
import torch
from gguf import quants
from rich.console import Console

from .data import COMMON_WEIGHT, FOCUS_WORDS, HELD_OUT, MAX_WORDS, build_pairs, corpus_path, read_corpus
from .engine import Engine
from .export import tensor_name
from .model import Config, Llama
from .questions import SMALL_TALK
from .tokens import ChatEncoder, load_tokenizer
from .train import TOKENIZER, evaluate, load_checkpoint

QUESTIONS = [
    "What is asthma?",
    "What are the symptoms of diabetes?",
    "What are the treatments for high blood pressure?",
    "What causes gout?",
    "What is a stroke?",
    "How can kidney stones be prevented?",
    "What are the symptoms of pneumonia?",
    "What is lupus?",
    "How is tuberculosis diagnosed?",
    "What is migraine?",
]
BEYOND = [
    "What is Tay-Sachs disease?",
    "Which foods are rich in vitamin C?",
]

TEMPLATE = """# Model card: {file}

A **demonstration** language model, trained from scratch by this project so that Cloister can be tried, tested and
developed without downloading anything. It answers common health questions in one short paragraph of English.

**It is not medical advice, and it is not a medical device.** The model is very small. It repeats what it has learnt
about common conditions, and for anything else it writes fluent text that is often wrong. It cannot follow
instructions, reason, translate or use documents given to it. Its sources are web pages of 2019 or earlier.

| | |
|---|---|
| File | `{file}`, {size:.1f} MB, Q8_0 (norm gains float32) |
| SHA-256 | `{digest}` |
| Architecture | LLaMA (GGUF `llama`): {layers} layers, width {dim}, {heads} heads ({kv_heads} key-value), SwiGLU {ffn} |
| Details | RMSNorm, rotary positions (base {rope_base:.0f}, adjacent pairs), tied embeddings |
| Parameters | {parameters:.2f} million |
| Tokenizer | byte-level BPE, {vocab} tokens, trained on the training questions and answers |
| Context | {context} tokens |
| Chat format | ChatML, as `tokenizer.chat_template` in the file; system messages are accepted and disregarded |
| Licence of the weights | CC BY 4.0 |

## Data, attribution and licence

The only training data is **MedQuAD**, used under the
[Creative Commons Attribution 4.0 International licence](https://creativecommons.org/licenses/by/4.0/):

> Asma Ben Abacha and Dina Demner-Fushman. *A question-entailment approach to question answering.* BMC Bioinformatics
> 20, 511 (2019). <https://doi.org/10.1186/s12859-019-3119-4>. Data: <https://github.com/abachaa/MedQuAD>

MedQuAD was compiled from web pages of the U.S. National Institutes of Health and the Centers for Disease Control and
Prevention. Pairs used from each collection: {collections}.
Neither the authors of MedQuAD nor these institutions endorse this model.

The weights are published under the same licence, CC BY 4.0: to share or adapt them, credit MedQuAD as above and the
Cloister project, link the licence, and say what you changed.

**Changes made to the data.** Answers were shortened to whole sentences of at most about {max_words} words
({focus_words} in the second phase of training); bullet lists were turned into sentences; page furniture (addresses,
links, headings, pronunciations) was dropped; missing apostrophes and lost dashes were restored where they could be
recognised. Of several answers to the same question one was kept. Questions were rephrased from templates and their
capitals varied. For general health topics, further pairs (symptoms, treatment, causes and so on) were made from the
sentences of the topic's summary. Pairs on about a hundred common conditions are shown several times as often as others,
those on rare diseases less often. The project wrote {small_talk} small-talk answers ("Hello", "Who are you?").

## Training

{steps} steps, **{tokens:,} tokens** ({scored:,} of them answer tokens, which alone carry the loss) in
**{minutes:.0f} minutes** on {machine}, in float32: {passes} weighted passes over {train_pairs} pairs, about
the first third of the time on all collections alike, the rest mostly on common conditions. Muon for the matrices, AdamW
for embedding and norms; learning rate warmed up, held, and lowered linearly to zero. Seed {seed}.

{note}

## Evaluation

A held-out split of {held_pairs} pairs ({held_share:.0%} of the questions outside the list of common conditions, chosen
by a seeded hash of the question) was never trained on; {derived} of them are made of sentences from a summary that was
trained on under another question. Measured with the weights of the file above, in the corpus's own wording:

| Answers | Mean loss per token (nats) | Perplexity | Tokens |
|---|---|---|---|
| held out, never seen | **{held_loss:.3f}** | {held_ppl:.1f} | {held_tokens:,} |
| training, common conditions | {common_loss:.3f} | {common_ppl:.2f} | {common_tokens:,} |
| training, random sample | {train_loss:.3f} | {train_ppl:.2f} | {train_tokens:,} |

The gap is the point of this table: the model *recalls*, it does not know. Ask about a condition outside its training
data, or about a rare one, and the answer will read well and be wrong.

## Ten answers

Verbatim, greedy decoding (temperature 0), from this file through llama.cpp:

{answers}

And two that lie beyond what the second phase of training dwelt on, to show what to expect there:

{beyond}

## Reproduce

```sh
export CLOISTER_SHARED=../shared        # holds data/medquad/corpus.jsonl.gz
pip install torch numpy tokenizers gguf rich xllamacpp
python scripts/train_demo_model.py train --budget {budget:.0f}
python scripts/train_demo_model.py export --check
python scripts/train_demo_model.py card
```

Training is budgeted in seconds, so another machine sees a different number of tokens and ends with different weights;
the data, the split and their order depend on the seed alone.
"""


def load_exported(path: Path, cfg: Config) -> Llama:
    """The network with the weights that the file really holds, dequantized."""
    tensors = {t.name: t for t in gguf.GGUFReader(str(path)).tensors}
    model = Llama(cfg)
    state: dict[str, torch.Tensor] = {}
    for name, parameter in model.state_dict().items():
        tensor = tensors[tensor_name(name)]
        values = quants.dequantize(tensor.data, tensor.tensor_type)
        state[name] = torch.tensor(values, dtype=torch.float32).reshape(parameter.shape)
    model.load_state_dict(state)
    return model.eval()


def answer_all(engine: Engine, questions: list[str]) -> str:
    blocks = []
    for question in questions:
        answer = engine.chat([{"role": "user", "content": question}]).strip()
        blocks.append(f"**{question}**\n\n" + "\n".join(f"> {line}".rstrip() for line in answer.splitlines()))
    return "\n\n".join(blocks)


def run(args: argparse.Namespace) -> None:
    checkpoint = load_checkpoint(args.work)
    position: dict[str, Any] = checkpoint["position"]
    settings: dict[str, Any] = checkpoint["settings"]
    cfg = Config(**checkpoint["config"])
    model = load_exported(args.gguf, cfg)
    encoder = ChatEncoder(load_tokenizer(args.work / TOKENIZER))
    train_pairs, held_out = build_pairs(read_corpus(corpus_path()), settings["seed"])
    common = [p for p in train_pairs if p.weight == COMMON_WEIGHT]
    sample = random.Random(settings["seed"]).sample(train_pairs, len(held_out))
    cpu = torch.device("cpu")
    held_loss, held_tokens = evaluate(model, held_out, encoder, cpu)
    common_loss, common_tokens = evaluate(model, common, encoder, cpu)
    train_loss, train_tokens = evaluate(model, sample, encoder, cpu)
    derived = sum(p.source == "MPlusHealthTopics" and p.qtype != "information" for p in held_out)
    engine = Engine(args.gguf)
    by_source = Counter(p.source for p in train_pairs + held_out)
    text = TEMPLATE.format(
        file=args.gguf.name,
        size=args.gguf.stat().st_size / 1e6,
        digest=hashlib.sha256(args.gguf.read_bytes()).hexdigest(),
        **cfg.to_dict(),
        parameters=model.count() / 1e6,
        collections=", ".join(f"{name} {n}" for name, n in by_source.most_common()),
        max_words=MAX_WORDS,
        focus_words=FOCUS_WORDS,
        small_talk=len(SMALL_TALK),
        steps=position["step"],
        tokens=position["tokens"],
        scored=position["scored"],
        minutes=position["elapsed"] / 60,
        machine=args.machine,
        passes=position["deck"] + 1,
        train_pairs=len(train_pairs),
        seed=settings["seed"],
        note="\n".join(textwrap.wrap(args.note, 119)),
        held_pairs=len(held_out),
        held_share=HELD_OUT,
        derived=derived,
        held_loss=held_loss,
        held_ppl=math.exp(held_loss),
        held_tokens=held_tokens,
        common_loss=common_loss,
        common_ppl=math.exp(common_loss),
        common_tokens=common_tokens,
        train_loss=train_loss,
        train_ppl=math.exp(train_loss),
        train_tokens=train_tokens,
        answers=answer_all(engine, QUESTIONS),
        beyond=answer_all(engine, BEYOND),
        budget=settings["budget"],
    )
    output: Path = args.output or args.gguf.parent / "MODEL_CARD.md"
    output.write_text(text.replace("\n\n\n", "\n\n"), encoding="utf-8")
    Console().print(f"{output}: held-out loss {held_loss:.3f}, {position['tokens']} tokens")
