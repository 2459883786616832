"""An embedding model in a GGUF file: its vectors are those of the same weights in PyTorch, and so are its tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import gguf
import numpy as np
import pytest

from bert_gguf import FOLDER, write_minilm
from cloister.errors import UsageError
from cloister.inference.model import find_model
from cloister.inference.model_files import ModelFiles
from cloister.knowledge import Index, Library
from cloister.knowledge.embedding import Encoder
from cloister.knowledge.engine_embedding import BATCH, EngineEncoder
from cloister.knowledge.opening import open_room
from cloister.knowledge.reader import Read
from cloister.knowledge.reading.texts import read_markdown
from cloister.knowledge.rules import Rights, Rules
from cloister.sealing.key_file import KeyFile

TEXTS = [
    "Asthma makes breathing hard.",
    "Naïve Café-Zugzwang: 3.5 mg/l (of 糖尿病) — unaffable?",
    "The bank raised its rates. " * 20,
    "An inhaler",
]


def opened(path: Path) -> EngineEncoder:
    with ModelFiles.of_path(path) as files:
        return EngineEncoder.open(files, name="minilm", threads=1)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineEncoder]:
    found = opened(write_minilm(tmp_path_factory.mktemp("gguf") / "minilm.gguf"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def right() -> Encoder:
    return Encoder.open(FOLDER, name="minilm", length=512)


def test_its_vectors_are_those_of_the_same_weights_elsewhere(encoder: EngineEncoder, right: Encoder) -> None:
    found = encoder(TEXTS)
    assert found.shape == (4, 384)
    assert found.dtype == np.float32
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert (found * right(TEXTS)).sum(1).min() > 0.999


def test_its_tokens_are_counted_as_they_are_elsewhere(encoder: EngineEncoder, right: Encoder) -> None:
    assert [encoder.count(text) for text in TEXTS] == [right.count(text) for text in TEXTS]
    assert encoder.length == right.length == 510


def test_many_texts_long_ones_and_none_have_their_vectors(encoder: EngineEncoder) -> None:
    told: list[int] = []
    texts = [f"text number {number}" for number in range(BATCH + 3)]
    many = encoder(texts, told=told.append)
    assert sum(told) == BATCH + 3
    assert np.allclose(many[BATCH + 1], encoder(texts[BATCH + 1 : BATCH + 2])[0], atol=1e-3)
    long, cut, empty = encoder(["lung " * 4000, "lung " * 510, ""])
    assert long @ cut > 0.999
    assert np.isfinite(empty).all()
    assert encoder([]).shape == (0, 384)


def test_how_tokens_become_one_vector_is_what_the_model_says(tmp_path: Path, encoder: EngineEncoder) -> None:
    mean = encoder(TEXTS[:1])[0]
    for pooling in (gguf.PoolingType.CLS, gguf.PoolingType.LAST):
        other = opened(write_minilm(tmp_path / f"{pooling}.gguf", pooling=pooling))
        try:
            assert float(other(TEXTS[:1])[0] @ mean) < 0.99
        finally:
            other.close()


def test_documents_are_found_by_it(encoder: EngineEncoder, tmp_path: Path) -> None:
    index = Index.open(tmp_path / "index", bytes(32), model=encoder.name, dimensions=encoder.dimensions)
    library = Library(
        index, encoder, read=lambda name, content: Read(name, tuple(read_markdown(content))), now=lambda: 1
    )
    library.add("clinic", "lungs.md", b"# Lungs\n\nAn inhaler opens the airways.\n")
    library.add("clinic", "bank.md", b"# Bank\n\nRates were raised.\n")
    assert library.find("What helps somebody who cannot breathe?", ["clinic"])[0].document == "lungs.md"
    library.close()


def test_a_service_s_room_is_opened_with_it(tmp_path: Path) -> None:
    rules = Rules(users={"alice": "00" * 32}, collections={"clinic": Rights(writers=("alice",))})
    model = find_model(write_minilm(tmp_path / "minilm.gguf"), signers=frozenset())
    said: dict[str, str] = {}
    with ExitStack() as undo:
        room = open_room(
            rules, encoder=model, documents=tmp_path / "documents.tree", keys=KeyFile(bytes(32)), count=len, undo=undo,
            progress=said.__setitem__,
        )  # fmt: skip
        assert callable(room)
    assert said["encoder"].startswith("opened in memory")
    assert said["knowledge"] == "0 documents, 0 passages"


def test_what_is_no_model_of_a_known_kind_is_no_encoder(tmp_path: Path) -> None:
    folder = tmp_path / "openvino"
    folder.mkdir()
    (folder / "openvino_model.xml").write_text("<net/>")
    (folder / "openvino_model.bin").write_bytes(bytes(64))
    model = find_model(folder, signers=frozenset())
    rules = Rules(users={"alice": "00" * 32}, collections={})
    with ExitStack() as undo, pytest.raises(UsageError, match="no Hugging Face directory and no GGUF file"):
        open_room(
            rules, encoder=model, documents=tmp_path / "tree", keys=KeyFile(bytes(32)), count=len, undo=undo,
            progress=lambda _what, _how: None,
        )  # fmt: skip
