"""An OpenVINO model in the clear, made of a GGUF file: what ``cloister optimize`` writes and ``cloister seal`` takes."""

from __future__ import annotations

from pathlib import Path

import msgspec

from cloister.errors import UsageError
from cloister.inference.engines.openvino_gguf import GgufModel
from cloister.inference.engines.openvino_language import language_of_keys
from cloister.inference.engines.openvino_model import write_graph
from cloister.inference.model_files import ModelFiles


def save_ir(model: ModelFiles, folder: Path) -> None:
    """Write the GGUF file ``model`` into the new folder ``folder`` as OpenVINO has models, in the clear, to be sealed.

    Beside the graph and its weights stand ``tokenizer.json``, ``tokenizer_config.json`` with the chat template, and
    ``config.json``. Raises InferenceError (the model) and UsageError (the folder).
    """
    if model.kind != "gguf":
        raise UsageError("an IR is made of a GGUF file", todo="convert the model to GGUF first")
    found = GgufModel(model.main, what=model.main_name)
    language = language_of_keys(found)
    first = language.first
    if first:
        from tokenizers.processors import TemplateProcessing  # noqa: PLC0415 -- native code: only for who opens this engine

        name = language.backend.id_to_token(first[0])
        language.backend.post_processor = TemplateProcessing(
            single=f"{name} $A", special_tokens=[(name, first[0])]
        )
    try:
        folder.mkdir(mode=0o700)
        write_graph(found, folder)
        language.backend.save(str(folder / "tokenizer.json"))
        settings = dict(language.prompts.special)
        if found.header.chat_template:
            settings["chat_template"] = found.header.chat_template
        config = {
            "model_type": found.header.architecture,
            "eos_token_id": sorted(language.ends),
            "max_position_embeddings": language.trained_context,
        }
        for file, told in (("tokenizer_config.json", settings), ("config.json", config)):
            (folder / file).write_bytes(msgspec.json.encode(told))
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error.strerror}", todo="name a new folder") from None
