"""A model's files, open: each by its name in the model's folder and a descriptor, wherever its bytes lie.

For a served model they lie in private memory, for experiments of one's own on a disk; an engine cannot tell. A library
that wants paths gets a folder of links to the descriptors. Refused by name: whatever is code or could be (pickles, Python
files), and files that no engine reads.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, Literal, Self

from cloister.errors import FormatError, UsageError
from cloister.sealing.descriptors import read_into

ModelKind = Literal["gguf", "huggingface", "openvino"]

CHOICE_NAME: Final = "optimized.json"
"""What `cloister optimize` chose; beside the files of any kind."""
MAX_FILES: Final = 1024
MAX_SMALL: Final = 64 << 20
"""Bytes of a file that is read whole: a configuration, a tokenizer."""
_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 -- a tmpfs: no disk keeps or changes the links
TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
"""Of Hugging Face's."""
_OF_HUGGING_FACE: Final = (
    "config.json",
    "generation_config.json",
    *TOKENIZER_FILES,
    "chat_template.jinja",
    "model.safetensors.index.json",
    "low_bit.json",
)
_OF_OPENVINO: Final = (
    "openvino_model.xml",
    "openvino_model.bin",
    "openvino_tokenizer.xml",
    "openvino_tokenizer.bin",
    "openvino_detokenizer.xml",
    "openvino_detokenizer.bin",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Open files of one model. Descriptors are the holder's to close, by :meth:`close`."""

    kind: ModelKind
    descriptors: Mapping[str, int]

    @classmethod
    def of_path(cls, path: Path) -> Self:
        """The model at ``path`` on a disk, in the clear: a .gguf file or a folder. Raises :class:`UsageError`."""
        with contextlib.ExitStack() as undo:
            try:
                if path.is_dir():
                    kind, names = wanted(
                        sorted(file.name for file in path.iterdir() if file.is_file()), what=str(path)
                    )
                    places = {name: path / name for name in names}
                else:
                    kind, places = "gguf", {path.name: path}
                descriptors = {}
                for name, place in places.items():
                    descriptors[name] = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
                    undo.callback(os.close, descriptors[name])
            except OSError as error:
                raise UsageError(
                    f"{path} cannot be read ({error.strerror})", todo="name a .gguf file or a model's folder"
                ) from None
            undo.pop_all()
        return cls(kind, descriptors)

    @property
    def main(self) -> int:
        """The descriptor of the one .gguf file."""
        return self.descriptors[self.main_name]

    @property
    def main_name(self) -> str:
        return next(name for name in self.descriptors if name.endswith(".gguf"))

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(os.fstat(descriptor).st_size for descriptor in self.descriptors.values())

    def path(self, name: str) -> Path:
        """A path by which this process alone can open the file while its descriptor is open."""
        return Path(f"/proc/self/fd/{self.descriptors[name]}")

    def read(self, name: str, limit: int = MAX_SMALL) -> bytes:
        """A whole file of at most ``limit`` bytes. Raises :class:`FormatError`, and KeyError if there is none."""
        descriptor = self.descriptors[name]
        size = os.fstat(descriptor).st_size
        if size > limit:
            raise FormatError(f"{name} has {size} bytes, and at most {limit} are read")
        data = bytearray(size)
        with memoryview(data) as view:
            if read_into(descriptor, view, 0) != size:
                raise FormatError(f"{name} ends too early")
        return bytes(data)

    @contextlib.contextmanager
    def folder(self) -> Iterator[Path]:
        """A private folder in which every file stands under its name, as a link, for as long as this lasts.

        What is mapped or open by then stays readable. The links lie in memory where that can be had.
        """
        place = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else None
        folder = Path(tempfile.mkdtemp(prefix="cloister-", dir=place))
        try:
            for name in self.descriptors:
                (folder / name).symlink_to(self.path(name))
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        for descriptor in self.descriptors.values():
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def wanted(names: Iterable[str], *, what: str) -> tuple[ModelKind, tuple[str, ...]]:
    """The kind of the model that a folder with these files holds, and the files of it that engines read.

    ``what`` names the folder in errors. Raises :class:`UsageError` where it is no model, or more than one.
    """
    present = sorted({name for name in names if "/" not in name})
    choice = (CHOICE_NAME,) if CHOICE_NAME in present else ()
    models = [name for name in present if name.endswith(".gguf")]
    if len(models) > 1:
        raise UsageError(
            f"{what} holds {len(models)} .gguf files, and one is served", todo="seal each model on its own"
        )
    if models:
        return "gguf", (models[0], *choice)
    if "openvino_model.xml" in present:
        return "openvino", (*(name for name in present if name in _OF_OPENVINO), *choice)
    weights = [name for name in present if PurePosixPath(name).suffix == ".safetensors"]
    if "config.json" in present and weights:
        if len(weights) > MAX_FILES:
            raise UsageError(
                f"{what} holds {len(weights)} files of weights, and at most {MAX_FILES} are read"
            )
        return "huggingface", (*(name for name in present if name in _OF_HUGGING_FACE), *weights, *choice)
    raise UsageError(
        f"{what} holds no model",
        todo="a model is one .gguf file, config.json with .safetensors files, or openvino_model.xml with its .bin",
    )
