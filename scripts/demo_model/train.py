"""The training loop: time-budgeted, resumable, and always ending with a learning rate of zero.

The schedule follows elapsed training time rather than a step count, so a run on a busy machine still ends decayed,
when it was meant to end. A checkpoint holds weights, optimizer state, elapsed time and the position in the data (the
rows themselves are a function of seed and position), and is written to a temporary name, flushed and renamed.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from .data import Pair, ask, build_pairs, conversations, corpus_path, read_corpus
from .model import Config, Llama
from .optim import make_optimizers, set_progress
from .tokens import ChatEncoder, Row, load_tokenizer, pack, save_tokenizer, train_tokenizer

CHECKPOINT = "checkpoint.pt"
TOKENIZER = "tokenizer.json"


@dataclass
class Position:
    """How far training has come."""

    elapsed: float = 0.0
    step: int = 0
    tokens: int = 0
    scored: int = 0
    deck: int = 0
    row: int = 0
    focus: bool = False


def save_atomically(value: Any, path: Path) -> None:
    """Write, flush to disk, then rename, so that a killed run leaves either the old checkpoint or the new one."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(value, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load_checkpoint(work: Path) -> dict[str, Any]:
    path = work / CHECKPOINT
    if not path.is_file():
        raise SystemExit(f"no checkpoint at {path}: run the train command first")
    loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return loaded


def load_model(checkpoint: dict[str, Any]) -> Llama:
    model = Llama(Config(**checkpoint["config"]))
    model.load_state_dict(checkpoint["model"])
    return model.eval()


@torch.no_grad()
def evaluate(
    model: Llama, pairs: list[Pair], encoder: ChatEncoder, device: torch.device
) -> tuple[float, int]:
    """Mean loss per answer token over single-question samples in the corpus's wording, and how many tokens."""
    rows = [encoder.encode([(ask(pair, None), pair.brief)]) for pair in pairs]
    rows.sort(key=lambda row: len(row[0]))
    total, count = 0.0, 0
    for start in range(0, len(rows), 16):
        part = rows[start : start + 16]
        length = max(len(ids) for ids, _ in part)
        tokens = torch.tensor([ids + [encoder.pad] * (length - len(ids)) for ids, _ in part], device=device)
        weights = torch.tensor([w + [0] * (length - len(w)) for _, w in part], device=device)
        n = int(weights[:, 1:].sum())
        total += float(model.loss(tokens, weights)) * n
        count += n
    return total / max(count, 1), count


def open_tokenizer(work: Path, pairs: list[Pair], vocab: int) -> ChatEncoder:
    """The run's tokenizer: trained once, from the training pairs, and kept beside the checkpoint."""
    path = work / TOKENIZER
    if not path.is_file():
        texts = [t for p in pairs for t in [ask(p, None), p.answer] * max(1, round(p.weight))]
        save_tokenizer(train_tokenizer(texts, vocab), path)
    return ChatEncoder(load_tokenizer(path))


class Trainer:
    """A run: the network, its optimizers, the data and the position in it."""

    def __init__(self, args: argparse.Namespace, console: Console) -> None:
        self.args = args
        self.console = console
        self.work: Path = args.work
        self.work.mkdir(parents=True, exist_ok=True)
        self.cfg = Config()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.train_pairs, self.held_out = build_pairs(read_corpus(corpus_path()), args.seed)
        console.print(f"{len(self.train_pairs)} training pairs, {len(self.held_out)} held out")
        self.encoder = open_tokenizer(self.work, self.train_pairs, self.cfg.vocab)
        torch.manual_seed(args.seed)
        self.model = Llama(self.cfg).to(self.device)
        self.optimizers = make_optimizers(self.model, args.lr, args.embed_lr)
        self.at = Position()
        self.smooth = 0.0
        self.history: list[dict[str, float]] = []
        self._resume()
        # Shares the weights; evaluation stays uncompiled because its rows vary in length.
        self.eager = Llama(self.cfg).to(self.device)
        for name, parameter in self.eager.named_parameters():
            parameter.data = self.model.get_parameter(name).data
        if args.compile:
            self.model.hidden = torch.compile(self.model.hidden, dynamic=False)  # type: ignore[method-assign]
        self.rows = self._deck_rows()
        size = f"{self.model.count() / 1e6:.2f} M parameters"
        console.print(f"{size}, {torch.get_num_threads()} threads, {self.device}")

    def _resume(self) -> None:
        if not (self.work / CHECKPOINT).is_file():
            return
        saved = load_checkpoint(self.work)
        self.model.load_state_dict(saved["model"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            peaks = [group["peak_lr"] for group in optimizer.param_groups]
            optimizer.load_state_dict(state)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["peak_lr"] = peak  # this run's arguments win over the saved ones
        self.at, self.history = Position(**saved["position"]), saved["history"]
        if "rng" in saved:
            torch.set_rng_state(saved["rng"])
        self.console.print(f"resuming at step {self.at.step}, {self.at.elapsed:.0f} s")

    def _deck_rows(self) -> list[Row]:
        """The rows of the current pass over the data: a function of the seed and the pass's number."""
        talks = conversations(self.train_pairs, self.args.seed, self.at.deck, self.at.focus)
        samples = [self.encoder.encode(turns, system) for turns, system in talks]
        return pack(samples, self.cfg.context + 1, self.encoder.pad)

    def checkpoint(self) -> None:
        args = self.args
        value = {
            "config": self.cfg.to_dict(),
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "position": vars(self.at).copy(),
            "history": self.history,
            "rng": torch.get_rng_state(),
            "settings": {
                "seed": args.seed,
                "batch": args.batch,
                "budget": args.budget,
                "device": str(self.device),
            },
        }
        save_atomically(value, self.work / CHECKPOINT)

    def measure(self) -> None:
        loss, count = evaluate(self.eager, self.held_out, self.encoder, self.device)
        at = self.at
        self.history.append(
            {"elapsed": at.elapsed, "tokens": at.tokens, "train": self.smooth, "held_out": loss}
        )
        now = time.strftime("%H:%M:%S")
        self.console.print(
            f"{now} step {at.step} tokens {at.tokens} held-out loss {loss:.4f} ({count} tokens)"
        )

    def step(self) -> tuple[float, int]:
        """One step of training; returns the learning rate's share of its peak and the tokens read."""
        at, args = self.at, self.args
        focus = at.elapsed >= args.focus_after * args.budget
        if at.row + args.batch > len(self.rows) or focus != at.focus:
            at.deck, at.row, at.focus = at.deck + 1, 0, focus
            self.rows = self._deck_rows()
        part = self.rows[at.row : at.row + args.batch]
        tokens = torch.tensor([ids for ids, _ in part], device=self.device)
        weights = torch.tensor([w for _, w in part], device=self.device)
        rate = set_progress(self.optimizers, at.elapsed / args.budget)
        loss = self.model.loss(tokens, weights)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.smooth = loss.item() if self.smooth == 0 else 0.97 * self.smooth + 0.03 * loss.item()
        at.row += args.batch
        at.step += 1
        at.tokens += tokens.numel()
        at.scored += int(weights.sum())
        return rate, tokens.numel()

    def train(self) -> None:
        at, args = self.at, self.args
        saved_at, measured_at = at.elapsed, at.elapsed
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console, disable=not self.console.is_terminal) as progress:
            bar = progress.add_task("training", total=args.budget, completed=int(at.elapsed))
            while at.elapsed < args.budget:
                started = time.monotonic()
                rate, read = self.step()
                spent = time.monotonic() - started
                at.elapsed += spent
                progress.update(
                    bar, completed=at.elapsed, description=f"step {at.step} loss {self.smooth:.3f}"
                )
                if at.step % 20 == 0 and not self.console.is_terminal:
                    self._log(rate, read / spent)
                if at.elapsed - measured_at >= args.evaluate_every:
                    measured_at = at.elapsed
                    self.measure()
                if at.elapsed - saved_at >= args.save_every:
                    saved_at = at.elapsed
                    self.checkpoint()
        self.measure()
        self.checkpoint()
        self.console.print(f"done: {at.step} steps, {at.tokens} tokens, {at.elapsed:.0f} s")

    def _log(self, rate: float, speed: float) -> None:
        at = self.at
        self.console.print(
            f"{time.strftime('%H:%M:%S')} step {at.step} {at.elapsed:.0f}s deck {at.deck} loss {self.smooth:.3f} "
            f"rate {rate:.3f} {speed:.0f} tokens/s",
            highlight=False,
        )


def run(args: argparse.Namespace) -> None:
    if args.threads:
        torch.set_num_threads(args.threads)
    Trainer(args, Console()).train()
