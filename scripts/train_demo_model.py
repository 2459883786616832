#!/usr/bin/env python3
"""Train Cloister's demonstration model from scratch, export it to GGUF and write its model card.

    python scripts/train_demo_model.py train  --budget 7200     # resumes where it stopped
    python scripts/train_demo_model.py export --check           # Q8_0 GGUF, compared with an in-process llama.cpp
    python scripts/train_demo_model.py card                     # MODEL_CARD.md with measured numbers and answers

The corpus is read from $CLOISTER_SHARED/data/medquad/corpus.jsonl.gz. Requires torch, numpy, tokenizers, gguf and
rich; `export --check` and `card` also need xllamacpp.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "src" / "cloister" / "inference" / "models"


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "demo-model", help="checkpoints and tokenizer"
    )
    parser.add_argument(
        "--gguf", type=Path, default=MODELS / "medquad-demo-q8_0.gguf", help="the exported model"
    )
    commands = parser.add_subparsers(dest="command", required=True)

    train = commands.add_parser("train", help="train, or go on training from the last checkpoint")
    train.add_argument(
        "--budget", type=float, default=7200, help="seconds of training in all, earlier runs included"
    )
    train.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's choice)")
    train.add_argument(
        "--focus-after", type=float, default=0.3, help="share of the run before the second phase"
    )
    train.add_argument("--batch", type=int, default=4, help="rows per step, each one context window long")
    train.add_argument("--lr", type=float, default=0.003, help="peak rate of Muon, for the matrices")
    train.add_argument(
        "--embed-lr", type=float, default=0.0025, help="peak rate of AdamW, for embedding and norms"
    )
    train.add_argument(
        "--seed", type=int, default=1, help="seed of the held-out split, the sampling and the weights"
    )
    train.add_argument("--save-every", type=float, default=120, help="seconds between checkpoints")
    train.add_argument(
        "--evaluate-every", type=float, default=600, help="seconds between held-out evaluations"
    )
    train.add_argument("--compile", action="store_true", help="use torch.compile (needs a C++ compiler)")

    export = commands.add_parser("export", help="write the last checkpoint as GGUF")
    export.add_argument(
        "--check", action="store_true", help="compare the file with the checkpoint through llama.cpp"
    )

    card = commands.add_parser("card", help="write MODEL_CARD.md beside the GGUF")
    card.add_argument(
        "--output", type=Path, default=None, help="the card (default: MODEL_CARD.md beside the GGUF)"
    )
    card.add_argument("--machine", default="a CPU", help="what the training ran on, for the card")
    card.add_argument("--note", default="", help="a remark on the run, for the card")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    # Imported late so that --help answers without torch.
    importlib.import_module(f"demo_model.{args.command}").run(args)


if __name__ == "__main__":
    main()
