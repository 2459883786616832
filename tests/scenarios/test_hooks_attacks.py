"""Programs without one line about cloister read and write sealed paths under the launcher's hooks; attacks on that."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.sealing.index import open_index
from hooked_programs import MAKE, WORKLOAD, Launched, launched, plain_environment, run, sealed_copy
from sealing_samples import OWNER, STRANGER, URI, Keys, alter

PROGRAM = """
import json, sys
import datasets, pandas, pyarrow.parquet, torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
datasets.disable_progress_bars()
model, data = sys.argv[1:]
said = {}
tokenizer = AutoTokenizer.from_pretrained(model)
network = AutoModelForCausalLM.from_pretrained(model)
inputs = tokenizer("a sealed model", return_tensors="pt")["input_ids"]
said["tokens"] = inputs.tolist()
with torch.no_grad():
    said["logits"] = network(inputs).logits.sum().item()
    said["again"] = LlamaForCausalLM.from_pretrained(model).lm_head.weight.sum().item()
said["config"] = AutoConfig.from_pretrained(pretrained_model_name_or_path=model).hidden_size
said["torch"] = torch.load(f"{data}/weights.pt", weights_only=True)["w"].tolist()
said["mapped"] = torch.load(f"{data}/weights.pt", weights_only=True, mmap=True)["w"].tolist()
said["safetensors"] = load_file(f"{data}/weights.safetensors")["w"].tolist()
with safe_open(f"{data}/weights.safetensors", framework="pt") as opened:
    said["keys"] = list(opened.keys())
said["csv"] = len(pandas.read_csv(f"{data}/rows.csv", usecols=["number"]))
said["parquet"] = int(pandas.read_parquet(f"{data}/rows.parquet").number.sum())
said["arrow"] = pyarrow.parquet.read_table(f"{data}/rows.parquet", columns=["text"]).num_rows
said["file"] = pyarrow.parquet.ParquetFile(f"{data}/rows.parquet").metadata.num_rows
said["lines"] = pandas.read_json(f"{data}/rows.jsonl", orient="records", lines=True).text.iloc[-1]
for kind, name in ("csv", "rows.csv"), ("parquet", "rows.parquet"), ("json", "rows.jsonl"):
    said[f"set-{kind}"] = datasets.load_dataset(kind, data_files=f"{data}/{name}", split="train")[7]
said["streamed"] = next(iter(datasets.load_dataset("parquet", data_files={"train": [f"{data}/rows.parquet"]},
                                                   split="train", streaming=True)))
said["saved"] = datasets.load_from_disk(f"{data}/saved")[499]
print(json.dumps(said))
"""

WRITES = """
import sys, datasets, pandas, torch
from safetensors.torch import save_file
out = sys.argv[1]
datasets.disable_progress_bars()
frame = pandas.DataFrame({"n": [1, 2, 3]})
frame.to_csv(f"{out}/frame.csv", index=False)
frame.to_parquet(f"{out}/frame.parquet")
frame.to_json(f"{out}/frame.json")
torch.save({"secret": torch.ones(3)}, f"{out}/weights.pt")
save_file({"secret": torch.ones(3)}, f"{out}/weights.safetensors", metadata={"format": "pt"})
datasets.Dataset.from_pandas(frame).save_to_disk(f"{out}/saved")
assert torch.load(f"{out}/weights.pt", weights_only=True)["secret"].sum() == 3
assert pandas.read_csv(f"{out}/frame.csv").n.sum() == 6
assert datasets.load_from_disk(f"{out}/saved").num_rows == 3
from transformers import LlamaConfig, LlamaForCausalLM
model = LlamaForCausalLM(LlamaConfig(vocab_size=16, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                                     num_attention_heads=2))
model.save_pretrained(f"{out}/model")
again = LlamaForCausalLM.from_pretrained(f"{out}/model")
assert torch.equal(again.lm_head.weight, model.lm_head.weight)
"""

LOADS = """
import json, sys
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM
said = {}
for path in sys.argv[1:]:
    for load in AutoModelForCausalLM, LlamaForCausalLM, AutoConfig:
        try:
            load.from_pretrained(path)
            said.setdefault(path, []).append("loaded")
        except Exception as error:
            said.setdefault(path, []).append(f"{type(error).__name__}: {error}")
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("plain")
    made = run(MAKE, place / "model", place / "data", environment=plain_environment(place), where=place)
    assert made.returncode == 0, made.stderr
    return place


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Launched]:
    with launched(tmp_path / "run") as given:
        yield given


def test_a_program_reads_sealed_paths_as_it_reads_plain_ones(
    plain: Path, program: Launched, tmp_path: Path
) -> None:
    expected = run(
        PROGRAM,
        plain / "model",
        plain / "data",
        environment=plain_environment(tmp_path / "a"),
        where=tmp_path,
    )
    assert expected.returncode == 0, expected.stderr
    sealed_copy(plain / "model", tmp_path / "model.sealed")
    sealed_copy(plain / "data", tmp_path / "data")
    (tmp_path / "work").mkdir()
    found = run(
        PROGRAM,
        f"sealed://{tmp_path}/model.sealed",
        "../data",
        environment=program.environment,
        where=tmp_path / "work",
    )
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout.splitlines()[-1]) == json.loads(expected.stdout.splitlines()[-1])
    assert not any((tmp_path / "work").iterdir()), "nothing in the clear lies where the program ran"
    assert all(path.stat().st_mode & 0o077 == 0 for path in program.private.iterdir())


def test_what_a_program_writes_to_a_sealed_path_is_sealed_and_signed(
    program: Launched, tmp_path: Path
) -> None:
    out = tmp_path / "out.sealed"
    done = run(WRITES, out, environment=program.environment, where=tmp_path)
    assert done.returncode == 0, done.stderr
    index = open_index(out, signers=[WORKLOAD.public_key])
    assert {"frame.csv", "frame.parquet", "frame.json", "weights.pt", "weights.safetensors"} < set(
        index.files
    )
    assert {"saved/state.json", "model/config.json", "model/model.safetensors"} < set(index.files)
    for path in out.iterdir():
        assert b"secret" not in path.read_bytes()


ATTACKS = {
    "a tampered segment": "does not authenticate",
    "a file cut short": "sealed bytes of",
    "two files exchanged": "sealed bytes",
    "an index that a stranger signed": "not one of the accepted signers",
    "an index edited": "does not verify",
    "a plain model in its place": "FileNotFoundError",
    "a plain model, and an index without a signature": "FileNotFoundError",
}


@pytest.fixture(scope="module")
def attacked(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What a program is told that loads each of these models, under hooks, in one process."""
    place = tmp_path_factory.mktemp("attacked")
    folders = {attack: place / f"{number}/model.sealed" for number, attack in enumerate(ATTACKS)}
    for attack, folder in folders.items():
        folder.parent.mkdir()
        if attack.startswith("a plain model"):
            shutil.copytree(plain / "model", folder)
            continue
        index = sealed_copy(plain / "model", folder, signing_key=STRANGER if "stranger" in attack else OWNER)
        body, other = (folder / index.files[name].file_name for name in ("model.safetensors", "config.json"))
        if attack == "a tampered segment":
            alter(body, 4096 + 500)
        elif attack == "a file cut short":
            os.truncate(body, body.stat().st_size - 1)
        elif attack == "two files exchanged":
            content = body.read_bytes()
            body.write_bytes(other.read_bytes())
            other.write_bytes(content)
        elif attack == "an index edited":
            document = (folder / "index.json").read_bytes()
            (folder / "index.json").write_bytes(document.replace(b'"version":1', b'"version":9'))
    shutil.copy(folders["an index edited"] / "index.json", folders[list(ATTACKS)[-1]])
    with launched(place / "run") as given:
        done = run(LOADS, *folders.values(), environment=given.environment, where=place)
        assert done.returncode == 0, done.stderr
        assert not [path for path in given.private.rglob("*") if path.is_dir()], "nothing was restored"
    said = json.loads(done.stdout.splitlines()[-1])
    return {attack: said[str(folder)] for attack, folder in folders.items()}


@pytest.mark.parametrize(("attack", "says"), [pytest.param(*row, id=row[0]) for row in ATTACKS.items()])
def test_an_attacked_model_is_not_loaded(attacked: dict[str, list[str]], attack: str, says: str) -> None:
    assert len(attacked[attack]) == 3
    for told in attacked[attack]:
        assert says in told


def test_a_plain_file_put_into_a_sealed_directory_is_not_read(
    plain: Path, program: Launched, tmp_path: Path
) -> None:
    sealed_copy(plain / "data", tmp_path / "data")
    (tmp_path / "data/rows.csv").write_text("number,text\n1,forged\n")
    script = "import sys, pandas; print(pandas.read_csv(sys.argv[1]).text.iloc[0])"
    done = run(script, tmp_path / "data/rows.csv", environment=program.environment, where=tmp_path)
    assert done.stdout.strip() == "row 0", done.stderr


def test_an_encrypted_parquet_file_and_a_folder_of_data_find_their_keys(
    program: Launched, tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from cloister.sealing.parquet import encryption_properties

    table = pa.table({"n": [1, 2, 3]})
    (tmp_path / "rows").mkdir()
    encrypted = encryption_properties(Keys(), footer_key=URI, schema=table.schema)
    pq.write_table(table, tmp_path / "rows/encrypted.parquet", encryption_properties=encrypted)
    sealed_copy(tmp_path / "rows", tmp_path / "rows.sealed")
    (tmp_path / "more").mkdir()
    pq.write_table(table, tmp_path / "more/train.parquet")
    sealed_copy(tmp_path / "more", tmp_path / "more.sealed")
    script = """
import datasets, numpy, pandas, pyarrow.parquet, safetensors.numpy
for path in "rows/encrypted.parquet", "rows.sealed/encrypted.parquet":
    assert pandas.read_parquet(path).n.sum() == 6
    assert pyarrow.parquet.read_table(path).num_rows == 3
    assert pyarrow.parquet.ParquetFile(path).read().num_rows == 3
assert datasets.load_dataset("more.sealed", split="train").num_rows == 3
safetensors.numpy.save_file(tensor_dict={"w": numpy.ones(3)}, filename="out.sealed/w.safetensors")
assert safetensors.numpy.load_file("out.sealed/w.safetensors")["w"].sum() == 3
"""
    done = run(script, environment=program.environment, where=tmp_path)
    assert done.returncode == 0, done.stderr


def test_hooks_do_not_fire_without_the_launcher(plain: Path, program: Launched, tmp_path: Path) -> None:
    sealed_copy(plain / "data", tmp_path / "data")
    environment = {name: value for name, value in program.environment.items() if name != "CLOISTER_RUN"}
    script = """
import sys, cloister.workload.hooks, torch
try:
    torch.load(sys.argv[1])
except FileNotFoundError:
    print("as ever", type(torch.load).__name__)
"""
    done = run(script, tmp_path / "data/weights.pt", environment=environment, where=tmp_path)
    assert done.stdout.strip() == "as ever function", done.stderr


def test_without_access_nothing_is_written_in_the_clear_instead(program: Launched, tmp_path: Path) -> None:
    Path(program.environment["CLOISTER_RUN"]).unlink()
    script = "import sys, pandas; pandas.DataFrame({'secret': [1]}).to_csv(sys.argv[1])"
    done = run(script, tmp_path / "out.sealed/x.csv", environment=program.environment, where=tmp_path)
    assert done.returncode != 0
    assert "does not name a file of `cloister run`" in done.stderr
    assert not (tmp_path / "out.sealed").exists()


def test_an_interpreter_without_the_hooks_does_not_go_on(program: Launched, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "wrapt.py").write_text("raise ImportError('no such library')\n")
    environment = program.environment | {"PYTHONPATH": f"{program.environment['PYTHONPATH']}:{broken}"}
    done = run("print('went on')", environment=environment, where=tmp_path)
    assert done.returncode == 70
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "cannot be installed" in done.stderr


def test_the_sitecustomize_behind_ours_is_run_too(program: Launched, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "sitecustomize.py").write_text("import sys; sys.was_here = True\n")
    environment = program.environment | {"PYTHONPATH": f"{program.environment['PYTHONPATH']}:{other}"}
    done = run(
        "import sys; print(sys.was_here, 'torch' in sys.modules)", environment=environment, where=tmp_path
    )
    assert done.stdout.strip() == "True False", done.stderr
