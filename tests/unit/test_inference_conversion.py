"""What a Hugging Face model's folder becomes: keys, names, types; and how little memory it takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from cloister.errors import UsageError
from cloister.inference.conversion.configuration import read_shape
from cloister.inference.conversion.gguf import convert, convert_into
from cloister.inference.conversion.quantisation import QUANTISATIONS
from cloister.inference.conversion.weights import Weights
from cloister.inference.gguf_header import read_gguf_header
from cloister.inference.model_files import ModelFiles
from llama_models import write_llama


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("llama") / "stories260K")


def value(reader: gguf.GGUFReader, key: str) -> object:
    return reader.fields[key].contents()


def test_the_keys_say_what_the_configuration_says(llama: Path, tmp_path: Path) -> None:
    with ModelFiles.of_path(llama) as model:
        found = convert(model, tmp_path / "stories.gguf", quantisation="f16")
    config = json.loads((llama / "config.json").read_text())
    reader = gguf.GGUFReader(found.path)
    assert value(reader, "general.architecture") == "llama" == found.architecture
    for key, name in (
        ("llama.embedding_length", "hidden_size"),
        ("llama.block_count", "num_hidden_layers"),
        ("llama.feed_forward_length", "intermediate_size"),
        ("llama.attention.head_count", "num_attention_heads"),
        ("llama.attention.head_count_kv", "num_key_value_heads"),
        ("llama.context_length", "max_position_embeddings"),
        ("tokenizer.ggml.bos_token_id", "bos_token_id"),
        ("tokenizer.ggml.eos_token_id", "eos_token_id"),
    ):
        assert value(reader, key) == config[name], key
    assert value(reader, "tokenizer.ggml.add_bos_token") is True
    assert value(reader, "tokenizer.ggml.add_space_prefix") is True
    assert found.parameters == 260032
    assert found.size == (tmp_path / "stories.gguf").stat().st_size


def test_every_tensor_stands_under_its_name_with_its_numbers(llama: Path, tmp_path: Path) -> None:
    with ModelFiles.of_path(llama) as model:
        found = convert(model, tmp_path / "stories.gguf", quantisation="f16")
        weights = Weights.of(model)
        reader = gguf.GGUFReader(found.path)
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        down = weights.rows("model.layers.2.mlp.down_proj.weight", 0, 64)
        assert np.allclose(tensors["blk.2.ffn_down.weight"].data.reshape(-1), down, atol=1e-3)
        # Halves of each of the 8 heads of 8 numbers have become pairs.
        query = (
            weights.rows("model.layers.1.self_attn.q_proj.weight", 0, 64).reshape(8, 2, 4, 64).swapaxes(1, 2)
        )
        assert np.allclose(tensors["blk.1.attn_q.weight"].data.reshape(-1), query.reshape(-1), atol=1e-3)
    assert "output.weight" not in tensors  # tied


@pytest.mark.parametrize("quantisation", QUANTISATIONS)
def test_every_quantisation_gives_a_file_that_its_own_header_agrees_with(
    llama: Path, tmp_path: Path, quantisation: str
) -> None:
    with ModelFiles.of_path(llama) as model:
        found = convert(model, tmp_path / "a.gguf", quantisation=quantisation)
    with ModelFiles.of_path(tmp_path / "a.gguf") as made:
        header = read_gguf_header(made.main, what="a.gguf")
    assert header.architecture == "llama"
    assert sum(found.types.values()) == len(header.shapes)
    assert len(gguf.GGUFReader(found.path).tensors) == len(header.shapes)


def test_rows_that_no_block_divides_stay_16_bit_floats(llama: Path, tmp_path: Path) -> None:
    with ModelFiles.of_path(llama) as model:
        found = convert(model, tmp_path / "a.gguf", quantisation="q4_0")
    # The down projections have rows of 172; the embeddings, which are the output too, rows of 64.
    assert found.types == {"Q4_0": 30, "F16": 5, "Q8_0": 1, "F32": 11}


def test_the_number_of_threads_does_not_change_a_byte(llama: Path, tmp_path: Path) -> None:
    with ModelFiles.of_path(llama) as model:
        for threads in (1, 3):
            convert(model, tmp_path / f"{threads}.gguf", quantisation="q4_0", threads=threads, name="same")
    assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "3.gguf").read_bytes()


def test_a_file_can_be_made_in_memory_alone(llama: Path, tmp_path: Path) -> None:
    descriptor = os.memfd_create("converted")
    try:
        with ModelFiles.of_path(llama) as model:
            found = convert_into(model, descriptor, quantisation="q8_0", name="a")
            convert(model, tmp_path / "a.gguf", quantisation="q8_0")
        assert os.pread(descriptor, found.size, 0) == (tmp_path / "a.gguf").read_bytes()
    finally:
        os.close(descriptor)


def test_progress_ends_at_the_size_of_the_file(llama: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    with ModelFiles.of_path(llama) as model:
        convert(
            model,
            tmp_path / "a.gguf",
            quantisation="f16",
            progress=lambda done, total: seen.append((done, total)),
        )
    assert seen == sorted(seen)
    done, total = seen[-1]
    assert done <= total == (tmp_path / "a.gguf").stat().st_size
    assert total - done < 32 * 64  # what fills up to the alignment


def test_a_conversion_that_is_broken_off_leaves_nothing(llama: Path, tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Enough

    with ModelFiles.of_path(llama) as model, pytest.raises(Enough):
        convert(model, tmp_path / "a.gguf", quantisation="f16", progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_readable_by_its_owner_alone(llama: Path, tmp_path: Path) -> None:
    with ModelFiles.of_path(llama) as model:
        convert(model, tmp_path / "a.gguf", quantisation="f16")
    assert (tmp_path / "a.gguf").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("target", "changes", "words"),
    [
        pytest.param("a.bin", {}, "no name of a GGUF file", id="a name that says something else"),
        pytest.param("nowhere/a.gguf", {}, "cannot create", id="a folder that is not there"),
        pytest.param("a.gguf", {"quantisation": "q2_k"}, "no quantisation", id="an unknown quantisation"),
        pytest.param("a.gguf", {"threads": 0}, "0 threads", id="no threads"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    llama: Path, tmp_path: Path, target: str, changes: dict[str, object], words: str
) -> None:
    asked = {"quantisation": "f16", **changes}
    with ModelFiles.of_path(llama) as model, pytest.raises(UsageError, match=words):
        convert(model, tmp_path / target, **asked)
    assert list(tmp_path.iterdir()) == []


def test_memory_holds_a_few_pieces_however_large_the_model_is(tmp_path: Path) -> None:
    """130 MB of weights, most of them in two tensors; the process is measured by the kernel."""
    folder = tmp_path / "large"
    _write_large(folder)
    program = (
        "import sys, resource\n"
        "from pathlib import Path\n"
        "from cloister.inference.conversion import gguf\n"
        "from cloister.inference.model_files import ModelFiles\n"
        "gguf.PIECE = 1 << 18\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "with ModelFiles.of_path(Path(sys.argv[1])) as model:\n"
        "    gguf.convert(model, Path(sys.argv[2]), quantisation='q8_0', threads=2)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, folder, tmp_path / "a.gguf"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 48 << 10  # KiB


def _write_large(folder: Path) -> None:
    from conversion_models import byte_level_tokenizer, write_tokenizer

    folder.mkdir()
    width, inner, rows = 512, 1024, 60000
    config = {
        "model_type": "llama", "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": 1,
        "num_attention_heads": 8, "vocab_size": rows, "max_position_embeddings": 64,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder, byte_level_tokenizer())
    shapes = {
        "model.embed_tokens.weight": (rows, width), "lm_head.weight": (rows, width), "model.norm.weight": (width,),
    }  # fmt: skip
    layer = "model.layers.0"
    for name in "qkvo":
        shapes[f"{layer}.self_attn.{name}_proj.weight"] = (width, width)
    shapes |= {
        f"{layer}.mlp.gate_proj.weight": (inner, width), f"{layer}.mlp.up_proj.weight": (inner, width),
        f"{layer}.mlp.down_proj.weight": (width, inner), f"{layer}.input_layernorm.weight": (width,),
        f"{layer}.post_attention_layernorm.weight": (width,),
    }  # fmt: skip
    table, end = {}, 0
    for name, sides in shapes.items():
        size = 2 * int(np.prod(sides))
        table[name] = {"dtype": "BF16", "shape": sides, "data_offsets": [end, end + size]}
        end += size
    head = json.dumps(table).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        file.truncate(8 + len(head) + end)  # zeros, and on most disks no room


def test_a_context_beyond_a_sliding_window_is_cut_to_it_and_said() -> None:
    config = {
        "model_type": "mistral", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "vocab_size": 10, "max_position_embeddings": 32768, "sliding_window": 4096,
    }  # fmt: skip
    shape = read_shape(json.dumps(config).encode())
    assert (shape.context, shape.window) == (4096, 4096)
    assert "sliding window of 4096" in shape.notes[0]
