"""Real libraries on ``sealed://``: pandas, pyarrow, datasets, safetensors, torch; on a disk, in memory, over HTTP."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import cloister.sealing
from cloister.errors import CloisterError, IndexMismatch, NetworkError
from cloister.sealing import access as registry
from cloister.sealing.access import Access
from cloister.sealing.filesystem import SealedFileSystem
from cloister.sealing.index import open_index
from hooked_programs import plain_environment, run
from range_server import Served, served
from sealing_samples import KEK, OWNER, STRANGER, URI, Keys, alter, patterned, sealed_folder

FRAME = pd.DataFrame({"number": range(5000), "text": [f"row {n}" for n in range(5000)]})


@pytest.fixture
def access() -> Iterator[Access]:
    fsspec.register_implementation("sealed", SealedFileSystem, clobber=True)
    yield Access(keys=Keys(), signers=frozenset([OWNER.public_key]), signing_key=STRANGER, output_key=URI)
    registry.forget()
    MemoryFileSystem.store.clear()


@pytest.fixture(params=["sealed://{place}", "sealed://memory:/{place}", "sealed::memory:/{place}"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a sealed directory that is not there yet."""
    return str(request.param.format(place=tmp_path / "set.sealed"))


def opened(access: Access, **options: Any) -> Any:
    make: Any = SealedFileSystem
    return make(access=access, **options)


def test_pandas_writes_and_reads(access: Access, base: str) -> None:
    options = {"access": access}
    FRAME.to_csv(f"{base}/rows.csv", index=False, storage_options=options)
    FRAME.to_parquet(f"{base}/rows.parquet", storage_options=options)
    FRAME.to_json(f"{base}/rows.jsonl", orient="records", lines=True, storage_options=options)
    assert pd.read_csv(f"{base}/rows.csv", storage_options=options).equals(FRAME)
    assert pd.read_parquet(f"{base}/rows.parquet", storage_options=options).equals(FRAME)
    assert pd.read_json(f"{base}/rows.jsonl", lines=True, storage_options=options).equals(FRAME)
    chunks = pd.read_csv(f"{base}/rows.csv", storage_options=options, chunksize=999)
    assert sum(len(chunk) for chunk in chunks) == len(FRAME)


def test_pandas_uses_what_the_process_registered(access: Access, tmp_path: Path) -> None:
    registry.register(access)
    FRAME.to_csv(f"sealed://{tmp_path}/set.sealed/rows.csv", index=False)
    assert pd.read_csv(f"sealed://{tmp_path}/set.sealed/rows.csv").equals(FRAME)
    assert b"row 17" not in b"".join(path.read_bytes() for path in (tmp_path / "set.sealed").iterdir())


def test_pyarrow_reads_a_data_set_of_several_files_column_by_column(access: Access, tmp_path: Path) -> None:
    files = opened(access)
    table = pa.Table.from_pandas(FRAME)
    for year in (2025, 2026):
        pq.write_table(
            table,
            f"{tmp_path}/set.sealed/rows/year={year}/part-0.parquet",
            filesystem=files,
            row_group_size=1000,
        )
    found = pq.read_table(f"{tmp_path}/set.sealed/rows", filesystem=files, columns=["number", "year"])
    assert found.column_names == ["number", "year"]
    assert found.num_rows == 2 * len(FRAME)
    data = ds.dataset(f"{tmp_path}/set.sealed/rows", filesystem=files, partitioning="hive")
    few = data.to_table(filter=(ds.field("year") == 2026) & (ds.field("number") < 7), columns=["text"])
    assert few.num_rows == 7
    pq.write_to_dataset(found, f"{tmp_path}/set.sealed/again", filesystem=files, partition_cols=["year"])
    assert pq.read_table(f"{tmp_path}/set.sealed/again", filesystem=files).num_rows == found.num_rows


def test_torch_and_safetensors_read_and_write_file_objects(access: Access, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load, save

    tensors = {"w": torch.arange(300_000.0), "b": torch.ones(3, dtype=torch.int64)}
    with cloister.sealing.open(tmp_path / "t.sealed/w.pt", "wb", access=access) as file:
        torch.save(tensors, file)
    with cloister.sealing.open(tmp_path / "t.sealed/w.safetensors", "wb", access=access) as file:
        file.write(save(tensors))
    with cloister.sealing.open(tmp_path / "t.sealed/w.pt", access=access) as file:
        first = torch.load(file, weights_only=True)
    with cloister.sealing.open(tmp_path / "t.sealed/w.safetensors", access=access) as file:
        second = load(file.read())
    assert all(torch.equal(first[name], tensors[name]) for name in tensors)
    assert all(torch.equal(second[name], tensors[name]) for name in tensors)


DATASETS = """
import sys
sys.path.insert(0, sys.argv[2])
import datasets, fsspec
from cloister.sealing import access as registry
from cloister.sealing.filesystem import SealedFileSystem
from sealing_samples import OWNER, STRANGER, URI, Keys
datasets.disable_progress_bars()
fsspec.register_implementation("sealed", SealedFileSystem, clobber=True)
access = registry.Access(Keys(), frozenset([OWNER.public_key]), STRANGER, URI)
base, options = f"sealed://{sys.argv[1]}", {"access": access}

if __name__ == "__main__":
    made = datasets.Dataset.from_dict({"number": list(range(100)), "text": [str(n) for n in range(100)]})
    made.to_parquet(f"{base}/rows/0.parquet", storage_options=options)
    made.to_parquet(f"{base}/rows/1.parquet", storage_options=options)
    made.to_csv(f"{base}/rows.csv", storage_options=options, index=False)
    made.to_json(f"{base}/rows.jsonl", storage_options=options)
    made.save_to_disk(f"{base}/saved", storage_options=options)
    datasets.DatasetDict({"train": made, "test": made}).save_to_disk(f"{base}/both", storage_options=options)
    load = datasets.load_dataset
    files = {"train": f"{base}/rows/*.parquet"}
    assert load("parquet", data_files=files, storage_options=options)["train"].num_rows == 200
    assert load("csv", data_files=f"{base}/rows.csv", storage_options=options, split="train")[42]["number"] == 42
    assert load("json", data_files=f"{base}/rows.jsonl", storage_options=options, split="train").num_rows == 100
    streamed = load("parquet", data_files=files, storage_options=options, split="train", streaming=True)
    assert sum(row["number"] for row in streamed) == 2 * sum(range(100))
    assert datasets.load_from_disk(f"{base}/saved", storage_options=options)[7]["text"] == "7"
    assert datasets.load_from_disk(f"{base}/both", storage_options=options)["test"].num_rows == 100
    # Workers of another process take what their own process registered.
    registry.register(access)
    several = load("parquet", data_files=files, split="train", num_proc=2, cache_dir=sys.argv[3])
    assert several.num_rows == 200
    print("all well")
"""


def test_datasets_loads_streams_saves_and_shares_work_with_processes(tmp_path: Path) -> None:
    environment = plain_environment(tmp_path) | {"HF_HUB_OFFLINE": "0", "HF_UPDATE_DOWNLOAD_COUNTS": "0"}
    done = run(
        DATASETS,
        tmp_path / "set.sealed",
        Path(__file__).parents[1],
        tmp_path / "other",
        environment=environment,
        where=tmp_path,
    )
    assert "all well" in done.stdout, done.stderr
    index = open_index(tmp_path / "set.sealed", signers=[STRANGER.public_key])
    assert {"rows.csv", "saved/state.json", "both/dataset_dict.json"} < set(index.files)


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[tuple[Path, Served]]:
    """A sealed directory of one large file and a Parquet file, and the server over it."""
    pq.write_table(
        pa.table({f"c{n}": pa.array(range(n, n + 200_000)) for n in range(16)}),
        tmp_path / "rows.parquet",
        use_dictionary=False,
        compression="none",
    )
    files = {"big.bin": patterned(12_000_000), "rows.parquet": (tmp_path / "rows.parquet").read_bytes()}
    folder, _ = sealed_folder(tmp_path, files)
    folder.rename(tmp_path / "set.sealed")
    with served(tmp_path) as server:
        yield tmp_path / "set.sealed", server


def test_over_http_only_the_segments_that_are_read_are_fetched(
    access: Access, remote: tuple[Path, Served]
) -> None:
    folder, server = remote
    files = opened(access, verify="segments")
    url = f"{server.url}/set.sealed"
    assert files.ls(f"sealed://{url}", detail=False) == [f"{url}/big.bin", f"{url}/rows.parquet"]
    server.forget()
    with files.open(f"{url}/big.bin") as file:
        file.seek(5_000_000)
        assert file.read(1000) == patterned(12_000_000)[5_000_000:5_001_000]
        assert server.given < 3 << 20, server.asked
        assert len(server.asked) == 2, "the header, and one range"
    server.forget()
    found = pq.read_table(f"{url}/rows.parquet", filesystem=files, columns=["c3"])
    assert found["c3"].to_pylist()[:3] == [3, 4, 5]
    assert server.given < (folder.parent / "rows.parquet").stat().st_size / 2, server.asked


def test_over_http_a_file_is_compared_with_its_signed_digest_before_anything_is_read(
    access: Access, remote: tuple[Path, Served]
) -> None:
    folder, server = remote
    index = open_index(folder, signers=[OWNER.public_key])
    files = opened(access)
    url = f"{server.url}/set.sealed"
    assert files.cat(f"{url}/big.bin") == patterned(12_000_000)
    large = [
        asked
        for asked in server.asked
        if int(asked.split("-")[-1]) - int(asked.split()[1].split("-")[0]) > 4136
    ]
    assert len(large) <= 3, "ranges of several segments at once"
    alter(folder / index.files["rows.parquet"].file_name, 4096 + (8 << 20))
    with pytest.raises(CloisterError):
        pq.read_table(f"{url}/rows.parquet", filesystem=files, columns=["c0"])


def test_over_http_the_chained_form_and_pandas_work_too(access: Access, remote: tuple[Path, Served]) -> None:
    _, server = remote
    for url in (f"sealed://{server.url}", f"sealed::{server.url}"):
        frame = pd.read_parquet(
            f"{url}/set.sealed/rows.parquet", columns=["c1", "c2"], storage_options={"access": access}
        )
        assert frame.c2.iloc[-1] == 200_001


def test_a_server_without_ranges_is_told_from_a_damaged_file(
    access: Access, remote: tuple[Path, Served]
) -> None:
    folder, _ = remote
    with served(folder.parent, ranges=False) as server:
        files = opened(access)
        with pytest.raises(NetworkError, match="answered with more"):
            files.cat(f"{server.url}/set.sealed/big.bin")


def test_a_server_that_exchanges_files_or_the_index_is_refused(
    access: Access, remote: tuple[Path, Served]
) -> None:
    folder, server = remote
    index = open_index(folder, signers=[OWNER.public_key])
    bodies = [folder / entry.file_name for entry in index.files.values()]
    bodies[0].write_bytes(bodies[1].read_bytes())
    with pytest.raises(CloisterError):
        opened(access).cat(f"{server.url}/set.sealed/big.bin")
    document = json.loads((folder / "index.json").read_text())
    document["version"] = 7
    (folder / "index.json").write_text(json.dumps(document))
    fresh = Access(keys=Keys({URI: KEK}), signers=frozenset([OWNER.public_key]))
    with pytest.raises(IndexMismatch, match="does not verify"):
        opened(fresh).ls(f"{server.url}/set.sealed")


def test_a_server_that_is_not_there_is_no_absent_file(access: Access, tmp_path: Path) -> None:
    with served(tmp_path) as server:
        pass
    files = opened(access)
    for look in (files.exists, files.ls, files.cat):
        with pytest.raises(OSError, match="Cannot connect"):
            look(f"{server.url}/set.sealed/big.bin")


PAGE = (Path(__file__).parents[2] / "docs/how-to/sealed-files-in-python.md").read_text()


def test_the_how_to_works_as_it_stands(tmp_path: Path) -> None:
    blocks = re.findall(r"```(console|python)\n(.*?)```", PAGE, re.DOTALL)
    script = ["set -euo pipefail", *(text for language, text in blocks if language == "console")]
    program = "".join(text for language, text in blocks if language == "python")
    (tmp_path / "program.py").write_text(program)
    environment = plain_environment(tmp_path / "home") | {
        "HF_HUB_OFFLINE": "0",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    }
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-c", "\n".join([*script, "python program.py"])],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "no key at kbs:///staff/key/salaries" in done.stdout
