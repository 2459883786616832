"""The task ``causal-lm-lora``: a language model learns from texts in small matrices beside its own (LoRA, Hu et al. 2021).

Only those travel, and the model itself stays as it is. Settings: ``train``, the JSONL file that is learned from ({"text":
...} a line), has to be there. ``test`` is the file that is scored on, if there is one; ``rank`` and ``alpha`` are of the
matrices, ``targets`` the linear layers that get them, by their last name. A text that is longer than ``length`` tokens is
read in parts. How it trains: settings.py.
"""

from __future__ import annotations

import functools
import json
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from cloister.errors import FormatError, UsageError
from cloister.federated.tasks import Opening, Scored, Settings, Step, Trained
from cloister.federated.training.learning import fit, products
from cloister.federated.training.settings import Plan, read_plan
from cloister.federated.training.tagger import filled
from cloister.federated.training.task_settings import SettingsReader
from cloister.federated.training.texts import read_texts
from cloister.federated.training.weights import arrays_of, put_arrays
from cloister.federated.updates import Arrays, encode_arrays
from cloister.inference.lora import CONFIG_NAME, MAX_RANK, WEIGHTS_NAME
from cloister.inference.pretrained import check_directory, check_length, open_decoder, open_tokenizer

NAME: Final = "causal-lm-lora"
_BATCH: Final = 8
"""Of scoring: the logits of every token are as many as there are words."""
_UNSAID: Final = -100
"""A target that counts for nothing."""


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """What the federation says, read."""

    train: str
    test: str
    """``""`` without."""
    rank: int
    alpha: int
    targets: tuple[str, ...]
    length: int
    plan: Plan


def read_settings(settings: Settings) -> LoraSettings:
    """Raises UsageError."""
    reader = SettingsReader(settings, task=NAME)
    rank = reader.number("rank", 8, low=1, high=MAX_RANK)
    found = LoraSettings(
        train=reader.text("train"),
        test=reader.text("test", ""),
        rank=rank,
        alpha=reader.number("alpha", 2 * rank, low=1, high=1_000_000),
        targets=reader.texts("targets", ("q_proj", "v_proj")),
        length=reader.number("length", 512, low=8, high=131_072),
        plan=read_plan(reader, rate=200, head_rate=None),
    )
    reader.end()
    return found


class LoraTraining:
    """An open task: :class:`~cloister.federated.tasks.Training`. Data are read when they are first learned from."""

    def __init__(self, opening: Opening) -> None:
        self._settings = read_settings(opening.settings)
        if opening.privacy is not None:
            raise UsageError(
                f"the task {NAME} does not hide single examples", todo="train without their privacy"
            )
        self._opening = opening
        check_directory(opening.model)
        with opening.model.folder() as folder:
            base = open_decoder(folder)
            self._tokenizer = open_tokenizer(folder)
        check_length(base, self._settings.length)
        self._model = _with_lora(base, self._settings, opening.seed)

    def arrays(self) -> dict[str, NDArray[Any]]:
        return arrays_of(self._adapter().items())

    def train(self, arrays: Arrays, *, number: int, seed: int, step: Step) -> Trained:
        began = time.monotonic()
        put_arrays(self._adapter(), arrays)
        plan = self._settings.plan
        loss = fit(
            self._model,
            self._learned,
            lambda rows: self._losses(rows).mean(),
            plan.learning,
            size=len,
            head=lambda name: False,
            seed=seed,
            course=plan.course(number),
            proximal=self._opening.proximal,
            bfloat16=plan.bfloat16,
            step=step,
        )
        count = len(self._learned)
        metrics = {"loss": loss, "examples": float(count), "seconds": time.monotonic() - began}
        return Trained(self.arrays(), count, metrics)

    def score(self, arrays: Arrays) -> Scored:
        if not self._settings.test:
            return Scored(0, {})
        put_arrays(self._adapter(), arrays)
        self._model.eval()
        rows = sorted(self._held_out, key=len)
        total, tokens = 0.0, 0
        with torch.inference_mode(), products(self._settings.plan.bfloat16):
            for start in range(0, len(rows), _BATCH):
                losses = self._losses(rows[start : start + _BATCH])
                total += float(losses.sum())
                tokens += len(losses)
        return Scored(len(rows), {"loss": total / tokens})

    def save(self, arrays: Arrays, folder: Path) -> None:
        put_arrays(self._adapter(), arrays)
        (folder / WEIGHTS_NAME).write_bytes(encode_arrays(self.arrays()))
        config = self._model.peft_config["default"].to_dict()
        # Sets have no order, and the model lay in a folder that is gone: the same adapter is the same bytes.
        config |= {"base_model_name_or_path": None, "inference_mode": True}
        config["target_modules"] = sorted(self._settings.targets)
        (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

    def _adapter(self) -> dict[str, Tensor]:
        """Its weights by the names that they have in a file, not copied."""
        from peft import get_peft_model_state_dict  # noqa: PLC0415 -- heavy

        found: dict[str, Tensor] = get_peft_model_state_dict(self._model, save_embedding_layers=False)
        return found

    def _losses(self, rows: Sequence[list[int]]) -> Tensor:
        """(tokens) of every token but the first of each row."""
        tokens = filled(rows)
        read = filled([[1] * len(row) for row in rows])
        logits = self._model(input_ids=tokens, attention_mask=read, use_cache=False).logits
        following = tokens[:, 1:].masked_fill(read[:, 1:] == 0, _UNSAID)
        losses = functional.cross_entropy(
            logits[:, :-1].float().flatten(0, 1), following.flatten(), ignore_index=_UNSAID, reduction="none"
        )
        return losses[following.flatten() != _UNSAID]

    @functools.cached_property
    def _learned(self) -> list[list[int]]:
        return self._read(self._settings.train)

    @functools.cached_property
    def _held_out(self) -> list[list[int]]:
        return self._read(self._settings.test)

    def _read(self, name: str) -> list[list[int]]:
        """Texts and their ends in parts, of which each says what follows something."""
        with self._opening.read(name) as file:
            texts = read_texts(file, what=name)
        length, end = self._settings.length, self._tokenizer.eos_token_id
        found = []
        for tokens in self._tokenizer([one.text for one in texts], verbose=False)["input_ids"]:
            whole = tokens if end is None or tokens[-1:] == [end] else [*tokens, end]
            found += [whole[start : start + length] for start in range(0, len(whole), length)]
        found = [part for part in found if len(part) > 1]
        if not found:
            raise FormatError(f"{name} has no text of two tokens")
        return found


def _with_lora(base: Any, settings: LoraSettings, seed: int) -> Any:
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415 -- heavy

    linear = {name.rpartition(".")[2] for name, one in base.named_modules() if isinstance(one, nn.Linear)}
    output = {
        name.rpartition(".")[2] for name, one in base.named_modules() if one is base.get_output_embeddings()
    }
    lacking = sorted(set(settings.targets) - (linear - output))
    if lacking:
        raise UsageError(
            f"the model has no linear layers called {lacking[0][:80]!r} inside",
            todo=f"choose targets from {', '.join(sorted(linear - output))}",
        )
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=list(settings.targets),
        lora_dropout=0.0,
        bias="none",
    )
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        # peft 0.21 asks transformers for what that calls by another name by now.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return get_peft_model(base, config)
