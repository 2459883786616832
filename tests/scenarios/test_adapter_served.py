"""A LoRA adapter is served on its base model and says what peft says; another one than the measured one is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import cloister as package
from cloister.errors import AppraisalRefused
from deployment import CommandFailedError, cloister, start_service
from llama_models import write_llama
from tinyllamas_gguf import write_gguf

PROMPTS = ("Once upon a time", "Lily and Tom went to the park.", "The dog")
TOKENS = 40
URI = "kbs:///default/key/story"

_PEFT = """
import json, sys
from pathlib import Path
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
import llama_models

base, adapter, count, *prompts = sys.argv[1:]
base = Path(base)
llama_models.strong_adapter(base, Path(adapter), use_rslora="stabilised" in adapter)
tokenizer = AutoTokenizer.from_pretrained(base)
plain = AutoModelForCausalLM.from_pretrained(base)

def continued(model, prompt):
    tokens = tokenizer(prompt)["input_ids"]
    whole = tokens + llama_models.greedy(model, tokens, int(count))
    return tokenizer.decode(whole, skip_special_tokens=True).removeprefix(prompt)

texts = {"base": [continued(plain, prompt) for prompt in prompts]}
adapted = PeftModel.from_pretrained(plain, adapter)
texts["adapted"] = [continued(adapted, prompt) for prompt in prompts]
print(json.dumps(texts))
"""


def peft(base: Path, adapter: Path) -> dict[str, list[str]]:
    """Make an adapter at ``adapter`` and say what transformers and peft answer, greedily, without and with it."""
    tests = str(Path(__file__).resolve().parents[1])
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {tests!r})\n{_PEFT}", base, adapter, str(TOKENS), *PROMPTS],
        capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return answers


class Site:
    """A sealed base model and sealed adapters, all under one owner's key."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.base = write_llama(root / "base")
        (root / "story").mkdir()
        write_gguf(root / "story" / "story.gguf")
        cloister("simulate", "init", root / "tee")
        cloister("keys", "new", root / "story.key")
        cloister("keys", "new", "--signing", root / "owner.key")
        self.signer = cloister("keys", "show", root / "owner.key").strip()
        self.model = self.seal(root / "story")
        self.texts = peft(self.base, root / "adapter")
        self.adapter = self.seal(root / "adapter")

    def seal(self, folder: Path) -> Path:
        out = folder.with_suffix(".sealed")
        cloister(
            "seal", folder, "--key", URI, "--key-file", self.root / "story.key", "--sign-key", self.root / "owner.key",
            "--out", out,
        )  # fmt: skip
        return out

    def options(self, *more: str | Path) -> list[str | Path]:
        return [
            self.model, "--index-signer", self.signer, "--no-api-keys", "--context", "256", "--slots", "1",
            "--simulated-tee", self.root / "tee", *more,
        ]  # fmt: skip

    def policy(self, *more: str | Path) -> Path:
        cloister("measure", "serve", *self.options(*more), "--out", self.root / "policy.toml")
        return self.root / "policy.toml"

    @contextmanager
    def serving(self, *more: str | Path) -> Iterator[str]:
        """The URL of `cloister serve` with these options."""
        service = start_service(
            [
                "serve",
                *self.options(*more),
                "--key-file",
                self.root / "story.key",
                "--port",
                "0",
                "--threads",
                "1",
            ],
            self.root / "serve.log",
        )
        try:
            yield service.url
        finally:
            service.stop()


def ask(url: str, policy: Path) -> list[str]:
    with package.connect(url, policy=policy) as client:
        answers = []
        for prompt in PROMPTS:
            body = {"model": "story", "prompt": prompt, "max_tokens": TOKENS, "temperature": 0}
            answer = client.post(f"{url}/v1/completions", json=body)
            assert answer.status_code == 200, answer.text
            answers.append(answer.json()["choices"][0]["text"])
    return answers


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


def test_a_sealed_adapter_answers_word_for_word_what_peft_answers_and_not_what_the_base_model_does(
    site: Site,
) -> None:
    with site.serving("--adapter", site.adapter) as url:
        adapted = ask(url, site.policy("--adapter", site.adapter))
    with site.serving() as url:
        base = ask(url, site.policy())
    assert adapted == site.texts["adapted"]
    assert base == site.texts["base"]
    assert all(one != other for one, other in zip(adapted, base, strict=True))


def test_a_rank_stabilised_adapter_in_the_clear_in_a_folder_of_a_directory_answers_the_same(
    site: Site,
) -> None:
    texts = peft(site.base, site.root / "many" / "stabilised")
    more = ("--adapter", site.root / "many", "--adapter-folder", "stabilised")
    with site.serving(*more) as url:
        assert ask(url, site.policy(*more)) == texts["adapted"]


def test_clients_refuse_a_service_with_another_adapter_than_the_measured_one_or_with_none(site: Site) -> None:
    policy = site.policy("--adapter", site.adapter)
    other = site.root / "another"
    peft(site.base, other)
    settings = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**settings, "lora_alpha": 9}))
    for more in (("--adapter", other), ()):
        with site.serving(*more) as url, pytest.raises(AppraisalRefused, match=r"config|rtmr3"):
            ask(url, policy)


def test_an_adapter_whose_sealed_file_was_exchanged_is_not_served(site: Site, tmp_path: Path) -> None:
    changed = tmp_path / "changed.sealed"
    changed.mkdir()
    for file in site.adapter.iterdir():
        data = bytearray(file.read_bytes())
        if file.suffix == ".sealed" and len(data) > 50_000:
            data[20_000] ^= 1
        (changed / file.name).write_bytes(data)
    with pytest.raises(CommandFailedError, match="segment"), site.serving("--adapter", changed):
        pass


def test_a_request_cannot_take_the_adapter_away(site: Site) -> None:
    more = ("--adapter", site.adapter)
    with site.serving(*more) as url, package.connect(url, policy=site.policy(*more)) as client:
        for weakened in ({"lora": [{"id": 0, "scale": 0}]}, {"lora": []}):
            body = {
                "model": "story",
                "prompt": PROMPTS[0],
                "max_tokens": TOKENS,
                "temperature": 0,
                **weakened,
            }
            answer = client.post(f"{url}/v1/completions", json=body)
            assert (
                answer.status_code == 400 or answer.json()["choices"][0]["text"] == site.texts["adapted"][0]
            )
        assert client.post(f"{url}/lora-adapters", json=[{"id": 0, "scale": 0}]).status_code == 404
