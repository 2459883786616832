"""An optimised model on a disk: ``save_low_bit(model, folder)``, and loading it again (docs/spec/low-bit-model.md).

A folder of ``config.json``, ``low_bit.json`` (strict), ``low_bit.safetensors`` with the integers and scales, and
``full_precision.safetensors`` with the rest. What is packed for a processor is not stored: the machine that loads
packs for its own. No pickle. Refused: unknown fields, tensors that are missing, too many or of another shape,
integers out of range.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from cloister.encoding import Record, decode_json, encode_json
from cloister.errors import FormatError, UsageError
from cloister.inference.lowbit.builder import Memory, Quantised
from cloister.inference.lowbit.layer import LowBitLinear, Merged, Part, StoredEmbedding
from cloister.inference.lowbit.quantisation import Int4Weights, Int8Weights
from cloister.inference.lowbit.report import OptimisationReport

FORMAT: Final = "cloister/low-bit/v1"
NAME: Final = "low_bit.json"
WEIGHTS: Final = "low_bit.safetensors"
REST: Final = "full_precision.safetensors"
MAX_LAYERS: Final = 1 << 16
MAX_NAME: Final = 256
_MAX_JSON: Final = 16 << 20


class StoredLayer(Record, frozen=True, kw_only=True):
    """One linear layer."""

    name: str
    outputs: int
    inputs: int
    group: int
    """Inputs that share a scale in int4; 0 where there is no int4."""
    int8: bool
    """Whether there are int8 weights: instead of int4, or beside it for many rows."""
    bias: bool


class LowBitFile(Record, frozen=True, kw_only=True):
    """``low_bit.json``."""

    format: Literal["cloister/low-bit/v1"] = FORMAT
    precision: Literal["int8", "int4"]
    layers: tuple[StoredLayer, ...]


def is_low_bit(folder: Path) -> bool:
    """Whether :func:`save_low_bit` wrote this folder."""
    return (folder / NAME).is_file()


def save_low_bit(model: nn.Module, folder: Path | str) -> Path:
    """Write the new folder. Raises :class:`~cloister.errors.UsageError` for a model that has no low-bit layers."""
    from safetensors.torch import save_file  # noqa: PLC0415 -- optional

    folder = Path(folder)
    report = getattr(model, "cloister_report", None)
    if not isinstance(report, OptimisationReport) or report.precision not in ("int8", "int4"):
        raise UsageError("the model was not optimised to int8 or int4", todo="cloister.optimize(model) first")
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise UsageError(f"{folder} is there already", todo="name a new folder") from None
    layers: list[StoredLayer] = []
    tensors: dict[str, Tensor] = {}
    for name, quantised, bias in _layers(model):
        form = quantised.int8 or quantised.int4
        assert form is not None  # noqa: S101 -- a layer has a kernel
        outputs, inputs = (int(side) for side in form.values.shape)
        if quantised.int8 is not None:
            tensors[f"{name}.int8.values"] = quantised.int8.values.contiguous()
            tensors[f"{name}.int8.scales"] = quantised.int8.scales.contiguous()
        if quantised.int4 is not None:
            values = quantised.int4.values
            tensors[f"{name}.int4.values"] = (values[:, 0::2] | values[:, 1::2] << 4).contiguous()
            tensors[f"{name}.int4.scales"] = quantised.int4.scales.contiguous()
            tensors[f"{name}.int4.offsets"] = quantised.int4.offsets.contiguous()
        if bias is not None:
            tensors[f"{name}.bias"] = bias.contiguous()
        layers.append(
            StoredLayer(
                name=name,
                outputs=outputs,
                inputs=inputs,
                group=0 if quantised.int4 is None else quantised.int4.group,
                int8=quantised.int8 is not None,
                bias=bias is not None,
            )
        )
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    save_file(_rest(model), folder / REST, metadata={"format": "pt"})
    config: Any = model.config
    config.save_pretrained(folder)
    generation: Any = getattr(model, "generation_config", None)
    if generation is not None:
        generation.save_pretrained(folder)
    (folder / NAME).write_bytes(encode_json(LowBitFile(precision=report.precision, layers=tuple(layers))))
    return folder


def load_low_bit(auto: Any, folder: Path, *, memory: Memory = "auto", **settings: Any) -> Any:
    """The model in ``folder``, by this auto class of ``transformers``. Raises FormatError, and what transformers raises."""
    from safetensors.torch import load_file  # noqa: PLC0415 -- optional
    from transformers import AutoConfig, GenerationConfig  # noqa: PLC0415 -- heavy

    from cloister.inference.lowbit.streaming import LowBitConfig, Stored  # noqa: PLC0415

    file = read_low_bit((folder / NAME).read_bytes())
    config = AutoConfig.from_pretrained(folder)
    if not getattr(config, "is_encoder_decoder", False) and hasattr(config, "tie_word_embeddings"):
        config.tie_word_embeddings = False  # the logits' layer is stored by itself
    tensors = load_file(folder / WEIGHTS)
    rest = load_file(folder / REST)
    weights: dict[str, Quantised] = {}
    for layer in file.layers:
        weights[layer.name] = _taken(tensors, layer)
        # Names the layer to transformers, which hands it to the quantiser; that takes what is stored instead.
        rest[f"{layer.name}.weight"] = torch.zeros(1).expand(layer.outputs, layer.inputs)
        if layer.bias:
            rest[f"{layer.name}.bias"] = _take(tensors, f"{layer.name}.bias", torch.float32, (layer.outputs,))
    if tensors:
        raise FormatError(f"{WEIGHTS} holds {len(tensors)} tensors that {NAME} does not name")
    kinds = auto._model_mapping
    if type(config) not in kinds:
        raise UsageError(f"{folder} holds a {config.model_type}, which is no {auto.__name__}")
    kind = kinds[type(config)]
    kind = kind[0] if isinstance(kind, list | tuple) else kind
    names = set(weights)
    stored = Stored(file.precision, weights)
    model = kind.from_pretrained(
        None,
        config=config,
        state_dict=rest,
        quantization_config=LowBitConfig(file.precision, memory, stored),
        **{**settings, "dtype": "auto"},
    )
    if stored.weights:
        raise FormatError(f"{NAME} names {len(names)} layers, of which the model lacks {len(stored.weights)}")
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def read_low_bit(data: bytes) -> LowBitFile:
    """Strictly. Raises :class:`~cloister.errors.FormatError`."""
    file = decode_json(data, LowBitFile, what=NAME, limit=_MAX_JSON)
    names = [layer.name for layer in file.layers]
    if not names or len(names) > MAX_LAYERS or len(set(names)) != len(names):
        raise FormatError(f"{NAME} names no layers, too many, or one twice")
    for layer in file.layers:
        sides = (layer.outputs, layer.inputs)
        if len(layer.name) > MAX_NAME or not all(0 < side < 1 << 24 for side in sides):
            raise FormatError(f"{NAME} describes a layer that cannot be")
        if layer.group and (layer.group not in (32, 64, 128) or layer.inputs % layer.group):
            raise FormatError(f"{NAME} names groups of {layer.group}")
        if not layer.group and not layer.int8:
            raise FormatError(f"{NAME} names a layer without weights")
    return file


def _taken(tensors: dict[str, Tensor], layer: StoredLayer) -> Quantised:
    """The weights of one layer, out of ``tensors``."""
    outputs, inputs = layer.outputs, layer.inputs
    int8, int4 = None, None
    if layer.int8:
        values = _take(tensors, f"{layer.name}.int8.values", torch.int8, (outputs, inputs))
        if bool((values == -128).any()):
            raise FormatError(f"{WEIGHTS}: an integer of {layer.name} is out of range")
        int8 = Int8Weights(values, _take(tensors, f"{layer.name}.int8.scales", torch.float32, (outputs,)))
    if layer.group:
        lines = (outputs, inputs // layer.group)
        pairs = _take(tensors, f"{layer.name}.int4.values", torch.uint8, (outputs, inputs // 2))
        values = torch.stack([pairs & 15, pairs >> 4], 2).view(outputs, inputs)
        scales = _take(tensors, f"{layer.name}.int4.scales", torch.bfloat16, lines)
        int4 = Int4Weights(
            values, scales, _take(tensors, f"{layer.name}.int4.offsets", torch.bfloat16, lines)
        )
    return Quantised(int8=int8, int4=int4)


def _take(tensors: dict[str, Tensor], name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    tensor = tensors.pop(name, None)
    if tensor is None or tensor.dtype != dtype or tuple(tensor.shape) != shape:
        raise FormatError(f"{WEIGHTS} has no {name} of {dtype} and shape {shape}")
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise FormatError(f"{WEIGHTS}: {name} holds what is not a finite number")
    return tensor


def _layers(model: nn.Module) -> list[tuple[str, Quantised, Tensor | None]]:
    """Every low-bit layer by the name of the layer that it stands for, merged ones in parts."""
    found: list[tuple[str, Quantised, Tensor | None]] = []
    wholes: dict[int, tuple[Quantised, ...]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Part):
            merged = module.merged
            if id(merged) not in wholes:
                wholes[id(merged)] = _parts(merged)
            found.append((name, wholes[id(merged)][module.index], module.bias))
        elif isinstance(module, LowBitLinear) and not name.endswith(".merged.whole"):
            found.append((name, _weights(module), module.bias))
    return found


def _weights(layer: LowBitLinear) -> Quantised:
    int8, int4 = None, None
    for kernel in layer.kernels.values():
        weights = None if (int8 is not None and int4 is not None) else kernel.weights()
        if isinstance(weights, Int8Weights):
            int8 = weights
        elif isinstance(weights, Int4Weights):
            int4 = weights
    return Quantised(int8=int8, int4=int4)


def _parts(merged: Merged) -> tuple[Quantised, ...]:
    whole, sizes = _weights(merged.whole), merged.sizes
    int8: list[Int8Weights | None] = [None] * len(sizes)
    int4: list[Int4Weights | None] = [None] * len(sizes)
    if whole.int8 is not None:
        rows = zip(torch.split(whole.int8.values, sizes), torch.split(whole.int8.scales, sizes), strict=True)
        int8 = [Int8Weights(*one) for one in rows]
    if whole.int4 is not None:
        short = whole.int4
        lines = zip(
            torch.split(short.values, sizes),
            torch.split(short.scales, sizes),
            torch.split(short.offsets, sizes),
            strict=True,
        )
        int4 = [Int4Weights(*one) for one in lines]
    return tuple(Quantised(int8=one, int4=other) for one, other in zip(int8, int4, strict=True))


def _rest(model: nn.Module) -> dict[str, Tensor]:
    """Everything that is no low-bit layer, each tensor once."""
    found = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    for name, module in model.named_modules():
        if isinstance(module, StoredEmbedding):
            found[f"{name}.weight"] = module.weight  # type: ignore[assignment]
    seen: set[int] = set()
    unique: dict[str, Tensor] = {}
    for name, tensor in found.items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            unique[name] = tensor.detach().contiguous()
    return unique
