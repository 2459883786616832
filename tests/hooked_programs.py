"""Programs that know nothing of cloister, and what the launcher would give them: hooks, access, a private folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cloister.workload
from cloister.sealing.directory import seal_directory
from cloister.sealing.index import Index
from cloister.sealing.signing import SigningKey
from cloister.workload.agent import AccessFile, KeyAgent, write_access_file
from sealing_samples import KEK, OWNER, URI, Keys

STARTUP = Path(cloister.workload.__file__).parent / "startup"
SIGNING_URI = "kbs:///default/signing/outputs"
SEED = bytes(range(32))
WORKLOAD = SigningKey(SEED)

MAKE = """
import sys, torch, pandas, datasets
from pathlib import Path
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
model, data = map(Path, sys.argv[1:])
torch.manual_seed(1)
LlamaForCausalLM(LlamaConfig(vocab_size=16, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
    num_attention_heads=2, max_position_embeddings=32, bos_token_id=1, eos_token_id=2)).save_pretrained(model)
words = "<unk> <s> </s> is a clear sealed model data and no one sees it".split()
words = {word: number for number, word in enumerate(words)}
tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>").save_pretrained(model)
frame = pandas.DataFrame({"number": range(500), "text": [f"row {n}" for n in range(500)]})
data.mkdir()
frame.to_csv(data / "rows.csv", index=False)
frame.to_parquet(data / "rows.parquet")
frame.to_json(data / "rows.jsonl", orient="records", lines=True)
torch.save({"w": torch.arange(8.0)}, data / "weights.pt")
save_file({"w": torch.arange(8.0)}, data / "weights.safetensors")
datasets.Dataset.from_pandas(frame).save_to_disk(data / "saved")
"""


def run(
    script: str, *arguments: object, environment: dict[str, str], where: Path
) -> subprocess.CompletedProcess[str]:
    """Run a script in an interpreter of its own; its output is text."""
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=where,
        timeout=280,
        check=False,
    )


def plain_environment(place: Path) -> dict[str, str]:
    """No hooks; caches below ``place``; no network."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
    return {
        **kept,
        "HOME": str(place),
        "HF_HOME": str(place / "hf"),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
    }


@dataclass(frozen=True)
class Launched:
    """What a launched program finds."""

    environment: dict[str, str]
    private: Path
    keys: Keys


@contextmanager
def launched(place: Path, *, signers: tuple[bytes, ...] = (OWNER.public_key,)) -> Iterator[Launched]:
    """A key agent and the environment of a program, as the launcher makes them."""
    place.mkdir(parents=True)
    private = Path(tempfile.mkdtemp(dir="/dev/shm"))  # a tmpfs, and of mode 0700
    keys = Keys({URI: KEK, SIGNING_URI: SEED})
    agent = KeyAgent(place / "s", keys, [URI, SIGNING_URI], user=os.getuid())
    try:
        found = AccessFile(
            socket=str(place / "s"),
            signers=tuple(key.hex() for key in signers),
            output_key=URI,
            signing_key=SIGNING_URI,
        )
        write_access_file(place / "access.json", found)
        environment = {
            **plain_environment(place),
            "PYTHONPATH": str(STARTUP),
            "CLOISTER_RUN": str(place / "access.json"),
            "CLOISTER_PRIVATE": str(private),
        }
        yield Launched(environment, private, keys)
    finally:
        agent.close()
        shutil.rmtree(private, ignore_errors=True)


def sealed_copy(plain: Path, out: Path, *, signing_key: SigningKey = OWNER) -> Index:
    """Seal a folder."""
    return seal_directory(plain, out, key_uri=URI, kek=KEK, signing_key=signing_key, workers=2)
