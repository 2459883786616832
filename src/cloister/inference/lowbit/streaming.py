"""Loads a model of ``transformers`` tensor by tensor, each quantised at once: the memory needed is the low-bit size
and one tensor.

It hangs on the place that ``transformers`` has for quantisation, so that names, tied weights and buffers are its own
affair. Only safetensors are read, and no code that lies beside a model is run.
"""

from __future__ import annotations

import time
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from cloister.inference.lowbit.builder import Builder, Memory, Quantised
from cloister.inference.lowbit.layer import LowBitLinear
from cloister.inference.lowbit.optimisation import Asked, finish, resolve, room, settle
from cloister.inference.lowbit.report import Precision
from cloister.inference.lowbit.structure import Linear, linears, siblings

METHOD: Final = "cloister_low_bit"


class LowBitConfig(QuantizationConfigMixin):
    """What ``from_pretrained`` is given as ``quantization_config``."""

    def __init__(
        self, precision: Asked = "auto", memory: Memory = "auto", stored: Stored | None = None
    ) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]
        self.precision = precision
        self.memory = memory
        self.stored = stored


class Stored:
    """Weights that are quantised already: by the name of their layer."""

    def __init__(self, precision: Precision, weights: dict[str, Quantised]) -> None:
        self.precision = precision
        self.weights = weights


class LowBitQuantizer(HfQuantizer):
    """Collects the weights of layers as they come; when the last of those that share an input is there, they are packed."""

    quantization_config: LowBitConfig

    def __init__(self, quantization_config: LowBitConfig, **settings: Any) -> None:
        super().__init__(quantization_config, **settings)
        self.pre_quantized = False
        self._begun = time.perf_counter()
        self._groups: dict[str, list[Linear]] = {}
        """By the name of each member."""
        self._pending: dict[str, Quantised] = {}
        self._made: list[tuple[list[Linear], LowBitLinear]] = []
        self._kept: dict[str, str] = {}
        self._before = 0

    def update_device_map(self, _device_map: Any) -> Any:
        """On the CPU, whatever was asked for: ``optimize`` says so of other devices."""
        return {"": "cpu"}

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        name, dot, kind = param_name.rpartition(".")
        return bool(dot) and kind == "weight" and name in self._groups

    def get_quantize_ops(self) -> ConversionOps:
        return _Quantise(self)

    def is_serializable(self) -> bool:
        """Not by ``save_pretrained``."""
        return False

    @property
    def is_trainable(self) -> bool:
        return False

    def take(self, name: str, weight: Tensor) -> None:
        """The weight of the layer ``name``, as it was stored; it is not kept."""
        layer = next(one for one in self._groups[name] if one.name == name)
        stored = self.quantization_config.stored
        if stored is not None and name in stored.weights:
            self._add(layer, stored.weights.pop(name))
            return
        self._before += weight.numel() * weight.element_size()
        self._add(layer, self._builder.quantise(self._groups[name], weight.t() if layer.turned else weight))

    def _add(self, layer: Linear, quantised: Quantised) -> None:
        group = self._groups[layer.name]
        self._pending[layer.name] = quantised
        if all(one.name in self._pending for one in group):
            self._made.append(
                (group, self._builder.build(group, [self._pending.pop(one.name) for one in group]))
            )

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> Any:
        layers, self._kept = linears(model)
        config = self.quantization_config
        precision = resolve(config.precision, layers)
        self._builder = Builder(precision, config.memory, room=room(config.memory))
        crossing = bool(getattr(model.config, "is_encoder_decoder", False))
        for group in siblings(layers, crossing=crossing):
            self._groups |= {one.name: group for one in group}
        return model

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        done = {one.name for group, _ in self._made for one in group} | set(self._pending)
        for layer in {one.name: one for group in self._groups.values() for one in group}.values():
            if layer.name not in done:  # tied to another weight, so that it never came by itself
                self._add(layer, self._builder.quantise(self._groups[layer.name], layer.weight))
        for group, made in self._made:
            self._builder.replace(model, group, made)
        self._made, self._groups = [], {}
        before = self._before + sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
        norms = settle(model, torch.float32)
        self.remove_quantization_config(model)  # type: ignore[no-untyped-call]
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        model.eval()
        finish(model, self._builder, kept=self._kept, norms=norms, before=before, begun=self._begun)
        return model


class _Quantise(ConversionOps):
    def __init__(self, quantizer: LowBitQuantizer) -> None:
        self.quantizer = quantizer

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **kwargs: Any,
    ) -> dict[str, list[Tensor]]:
        for name, value in input_dict.items():
            weight = value[0] if isinstance(value, list) else value
            layer = name.rpartition(".")[0]
            self.quantizer.take(layer, weight)
            _forget(kwargs["model"].get_submodule(layer))
            if kwargs.get("missing_keys") is not None:
                kwargs["missing_keys"].discard(name)
        return {}


def _forget(module: nn.Module) -> None:
    """The module is replaced in the end; until then something without a size stands for its weight."""
    module.weight = nn.Parameter(torch.empty(0), requires_grad=False)


def register() -> None:
    """Let ``from_pretrained`` know the method. Twice is once."""
    from transformers.quantizers.auto import (  # noqa: PLC0415 -- beside its use
        AUTO_QUANTIZATION_CONFIG_MAPPING,
        AUTO_QUANTIZER_MAPPING,
    )

    AUTO_QUANTIZATION_CONFIG_MAPPING.setdefault(METHOD, LowBitConfig)
    AUTO_QUANTIZER_MAPPING.setdefault(METHOD, LowBitQuantizer)
