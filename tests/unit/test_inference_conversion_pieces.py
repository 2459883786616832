"""SentencePiece's own file, as ChatGLM and older LLaMA models have it: read into llama.cpp's words."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import gguf
import pytest

from cloister.errors import FormatError, InferenceError
from cloister.inference.conversion.gguf import convert
from cloister.inference.model_files import ModelFiles
from cloister.inference.next_tokens import LlamaCppNext
from conversion_models import write_chatglm, write_model
from shared_data import data


def _field(number: int, payload: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out) + bytes([value])


def piece_model(*, kind: int = 2, leave_out: int = 0) -> bytes:
    """The TinyLlamas vocabulary of 512 pieces as SentencePiece writes it."""
    lines = data("tinyllamas/tok512.vocab").read_text(encoding="utf-8").split("\n")[leave_out:512]
    out = b""
    for number, line in enumerate(lines, leave_out):
        text, score = line.rsplit("\t", 1)
        type_ = 2 if number == 0 else 3 if number < 3 else 6 if number < 259 else 1
        piece = _field(1, text.encode()) + b"\x15" + struct.pack("<f", float(score)) + bytes([3 << 3, type_])
        out += _field(1, piece)
    return out + _field(2, bytes([3 << 3, kind])) + _field(3, bytes([3 << 3, 1]))


@pytest.fixture
def chatglm(tmp_path: Path) -> Path:
    folder = write_chatglm(tmp_path / "chatglm", write_model(tmp_path / "glm", "glm"))
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(piece_model())
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


def test_a_chatglm_with_its_own_tokenizer_file_has_its_special_tokens_and_template(
    chatglm: Path, tmp_path: Path
) -> None:
    with ModelFiles.of_path(chatglm) as model:
        convert(model, tmp_path / "a.gguf", quantisation="f16")
    fields = {key: field.contents() for key, field in gguf.GGUFReader(tmp_path / "a.gguf").fields.items()}
    tokens = fields["tokenizer.ggml.tokens"]
    assert fields["tokenizer.ggml.model"] == "llama"
    assert tokens[512:522] == [
        "[MASK]", "[gMASK]", "[sMASK]", "sop", "eop", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>",
        "[PAD521]",
    ]  # fmt: skip
    assert fields["tokenizer.ggml.token_type"][512:522] == [3] * 9 + [5]
    assert fields["tokenizer.ggml.eot_token_id"] == 518
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert fields["tokenizer.chat_template"].startswith("[gMASK]sop")


def test_llama_cpp_begins_a_chat_with_chatglms_own_tokens(chatglm: Path, tmp_path: Path) -> None:
    with ModelFiles.of_path(chatglm) as model:
        convert(model, tmp_path / "a.gguf", quantisation="f16")
    with ModelFiles.of_path(tmp_path / "a.gguf") as model, LlamaCppNext.open(model, vocabulary=600) as found:
        expected = found.asked("[gMASK]sop<|user|>\n hello<|assistant|>")
        assert expected != found.asked("hello")
        # sop and the roles are one token each: 513, 515, 518, 519.
        assert found.asked([513, 515]) == found.asked("[gMASK]sop")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(b"", "no pieces", id="nothing"),
        pytest.param(piece_model()[:4000], "ends too early|to fall back", id="cut short"),
        pytest.param(piece_model(kind=1), "not BPE", id="unigram"),
        pytest.param(piece_model(leave_out=5), "256 bytes", id="without some bytes"),
        pytest.param(
            b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "too long", id="a length without end"
        ),
        pytest.param(b"\x0b", "unknown kind", id="a group"),
        pytest.param(_field(1, _field(1, b"\xff\xfe")), "not UTF-8", id="a piece that is no text"),
        pytest.param(
            _field(1, _field(1, b"a") + bytes([3 << 3, 9])), "cannot be", id="a piece of an unknown type"
        ),
    ],
)
def test_a_file_that_is_no_sentencepiece_model_is_refused(chatglm: Path, content: bytes, words: str) -> None:
    (chatglm / "tokenizer.model").write_bytes(content)
    with ModelFiles.of_path(chatglm) as model, pytest.raises((FormatError, InferenceError), match=words):
        convert(model, chatglm.parent / "a.gguf", quantisation="f16")


def test_more_pieces_than_embeddings_are_refused(chatglm: Path) -> None:
    (chatglm / "tokenizer_config.json").write_text(
        json.dumps({"added_tokens_decoder": {"600": {"content": "one too many", "special": True}}})
    )
    with ModelFiles.of_path(chatglm) as model, pytest.raises(InferenceError, match="embeddings for 600 only"):
        convert(model, chatglm.parent / "a.gguf", quantisation="f16")
