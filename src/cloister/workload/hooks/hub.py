"""Sealed paths for ``transformers``, ``peft`` and ``datasets``.

Models, tokenizers and saved data sets are folders of files that these libraries open and map themselves: they are
restored to private memory, whole and verified, and the real path is passed on. Data files are read through ``sealed://``;
what ``datasets`` makes of them lies in its cache, which under ``cloister run`` is in private memory too.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

from cloister.workload.hooks.paths import (
    as_file,
    as_name_or_file,
    as_url,
    gathered,
    is_sealed,
    located,
    sealed_url,
)
from cloister.workload.hooks.seams import Around, Seam, argument, replaced, translated

_NAME: Final = "pretrained_model_name_or_path"
_PRETRAINED: Final = (
    ("transformers.modeling_utils", "PreTrainedModel.from_pretrained", 0, _NAME),
    ("transformers.configuration_utils", "PreTrainedConfig.from_pretrained", 0, _NAME),
    ("transformers.configuration_utils", "PreTrainedConfig.get_config_dict", 0, _NAME),
    ("transformers.tokenization_utils_base", "PreTrainedTokenizerBase.from_pretrained", 0, _NAME),
    ("transformers.tokenization_mistral_common", "MistralCommonBackend.from_pretrained", 0, _NAME),
    ("transformers.feature_extraction_utils", "FeatureExtractionMixin.from_pretrained", 0, _NAME),
    ("transformers.image_processing_base", "ImageProcessingMixin.from_pretrained", 0, _NAME),
    ("transformers.processing_utils", "ProcessorMixin.from_pretrained", 0, _NAME),
    ("transformers.video_processing_utils", "BaseVideoProcessor.from_pretrained", 0, _NAME),
    (
        "transformers.generation.configuration_utils",
        "GenerationConfig.from_pretrained",
        0,
        "pretrained_model_name",
    ),
    ("transformers.models.auto.auto_factory", "_BaseAutoModelClass.from_pretrained", 0, _NAME),
    ("transformers.models.auto.auto_factory", "_BaseAutoBackboneClass.from_pretrained", 0, _NAME),
    ("transformers.models.auto.configuration_auto", "AutoConfig.from_pretrained", 0, _NAME),
    ("transformers.models.auto.feature_extraction_auto", "AutoFeatureExtractor.from_pretrained", 0, _NAME),
    ("transformers.models.auto.image_processing_auto", "AutoImageProcessor.from_pretrained", 0, _NAME),
    ("transformers.models.auto.processing_auto", "AutoProcessor.from_pretrained", 0, _NAME),
    ("transformers.models.auto.tokenization_auto", "AutoTokenizer.from_pretrained", 0, _NAME),
    ("transformers.models.auto.video_processing_auto", "AutoVideoProcessor.from_pretrained", 0, _NAME),
    ("transformers.utils.hub", "cached_files", 0, "path_or_repo_id"),
    ("transformers.integrations.peft", "PeftAdapterMixin.load_adapter", 0, "peft_model_id"),
    ("transformers.trainer", "Trainer.train", 0, "resume_from_checkpoint"),
    ("peft.config", "PeftConfigMixin.from_pretrained", 0, _NAME),
    ("peft.config", "PeftConfigMixin._get_peft_type", 0, "model_id"),
    ("peft.utils.save_and_load", "load_peft_weights", 0, "model_id"),
    ("peft.peft_model", "PeftModel.from_pretrained", 1, "model_id"),
    ("peft.peft_model", "PeftModel.load_adapter", 0, "model_id"),
    ("peft.mixed_model", "PeftMixedModel.from_pretrained", 1, "model_id"),
    ("peft.auto", "_BaseAutoPeftModel.from_pretrained", 0, _NAME),
)
"""Module, function, position and name of the model."""
_SAVERS: Final = (
    ("transformers.modeling_utils", "PreTrainedModel.save_pretrained"),
    ("transformers.configuration_utils", "PreTrainedConfig.save_pretrained"),
    ("transformers.tokenization_utils_base", "PreTrainedTokenizerBase.save_pretrained"),
    ("transformers.tokenization_mistral_common", "MistralCommonBackend.save_pretrained"),
    ("transformers.feature_extraction_utils", "FeatureExtractionMixin.save_pretrained"),
    ("transformers.image_processing_base", "ImageProcessingMixin.save_pretrained"),
    ("transformers.processing_utils", "ProcessorMixin.save_pretrained"),
    ("transformers.video_processing_utils", "BaseVideoProcessor.save_pretrained"),
    ("transformers.generation.configuration_utils", "GenerationConfig.save_pretrained"),
    ("peft.config", "PeftConfigMixin.save_pretrained"),
    ("peft.peft_model", "PeftModel.save_pretrained"),
)
"""All take ``save_directory`` first, and write many files."""


def _save(wrapped: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    value = argument(args, kwargs, 0, "save_directory")
    url = sealed_url(value)
    if url is None:
        return wrapped(*args, **kwargs)
    with gathered(url) as stage:
        args, kwargs = replaced(args, kwargs, 0, "save_directory", str(stage))
        result = wrapped(*args, **kwargs)
    return _renamed(result, str(stage), os.fspath(value))


def _renamed(result: Any, stage: str, asked: str) -> Any:
    """Tokenizers answer with the files they wrote."""
    if isinstance(result, tuple | list):
        return type(result)(_renamed(one, stage, asked) for one in result)
    return result.replace(stage, asked.rstrip("/"), 1) if isinstance(result, str) else result


def _data_files(value: Any) -> Any:
    """URLs in place of sealed paths, in every form that data files are given in."""
    if isinstance(value, dict):
        return {split: _data_files(files) for split, files in value.items()}
    if isinstance(value, list | tuple):
        return [_data_files(file) for file in value]
    return as_url(value)


def _files_then(inner: Around) -> Around:
    def around(wrapped: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return translated(_data_files, (3, "data_files"), then=inner)(wrapped, args, kwargs)

    return around


def _unless_offline(answer: Callable[[Any, str, tuple[Any, ...], dict[str, Any]], Any]) -> Around:
    """``datasets`` takes every URL for a network, and offline mode refuses it. A sealed file of this machine is none."""

    def around(wrapped: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        url = argument(args, kwargs, 0, "url")
        if not isinstance(url, str) or not is_sealed(url) or "://" in url.removeprefix("sealed://"):
            return wrapped(*args, **kwargs)
        if url.startswith("sealed::") or kwargs.get("storage_options"):
            return wrapped(*args, **kwargs)
        filesystem, path = located(url)
        return answer(filesystem, path, args, kwargs)

    return around


def _head(filesystem: Any, path: str, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> Any:
    return filesystem.info(path)


def _get(filesystem: Any, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    filesystem.get_file(path, argument(args, kwargs, 1, "temp_file").name)


SEAMS: Final = (
    *(
        Seam(module, name, translated(as_name_or_file, (position, argument_name)))
        for module, name, position, argument_name in _PRETRAINED
    ),
    *(Seam(module, name, _save, writes=True) for module, name in _SAVERS),
    Seam(
        "transformers.pipelines",
        "pipeline",
        translated(as_name_or_file, (1, "model"), (2, "config"), (3, "tokenizer")),
    ),
    Seam(
        "datasets.load",
        "load_dataset",
        _files_then(translated(as_name_or_file, (0, "path"), (2, "data_dir"))),
    ),
    Seam("datasets.load", "load_from_disk", translated(as_file, (0, "dataset_path"))),
    Seam("datasets.arrow_dataset", "Dataset.load_from_disk", translated(as_file, (0, "dataset_path"))),
    Seam(
        "datasets.dataset_dict", "DatasetDict.load_from_disk", translated(as_file, (0, "dataset_dict_path"))
    ),
    Seam(
        "datasets.arrow_dataset", "Dataset.save_to_disk", translated(as_url, (0, "dataset_path")), writes=True
    ),
    Seam(
        "datasets.dataset_dict",
        "DatasetDict.save_to_disk",
        translated(as_url, (0, "dataset_dict_path")),
        writes=True,
    ),
    Seam("datasets.utils.file_utils", "fsspec_head", _unless_offline(_head)),
    Seam("datasets.utils.file_utils", "fsspec_get", _unless_offline(_get)),
)
