"""``AutoModelForCausalLM`` and its kin of ``transformers``, loading in few bits: ``from_pretrained(path,
load_in_low_bit="int4")``.

What comes back is the model of ``transformers``, with its own ``generate``. Refused: anything but a folder on this
machine (a name of the hub would be whatever the hub says it is), code beside a model, pickled weights, devices other
than the CPU.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

from cloister.errors import UsageError
from cloister.inference.lowbit.builder import Memory
from cloister.inference.lowbit.optimisation import PRECISIONS, Asked, optimise_model


class _LowBitAuto:
    _name: ClassVar[str]

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *inputs: Any,
        load_in_low_bit: Asked = "auto",
        memory: Memory = "auto",
        **settings: Any,
    ) -> Any:
        """The model in the folder ``path``, optimised; ``settings`` are those of ``transformers``.

        A folder that :func:`~cloister.inference.lowbit.storage.save_low_bit` wrote is loaded as it was saved. Raises
        :class:`~cloister.errors.UsageError` for what is refused, and what ``transformers`` raises.
        """
        import transformers  # noqa: PLC0415 -- heavy

        from cloister.inference.lowbit.storage import is_low_bit, load_low_bit  # noqa: PLC0415
        from cloister.inference.lowbit.streaming import LowBitConfig, register  # noqa: PLC0415

        folder = Path(path)
        _check(folder, load_in_low_bit, settings)
        auto = getattr(transformers, cls._name)
        register()
        if is_low_bit(folder):
            return load_low_bit(auto, folder, memory=memory, **settings)
        settings = {**settings, "use_safetensors": True}
        if load_in_low_bit in ("bf16", "fp32"):
            model = auto.from_pretrained(folder, *inputs, **settings)
            return optimise_model(model, precision=load_in_low_bit)
        config = LowBitConfig(load_in_low_bit, memory)
        return auto.from_pretrained(folder, *inputs, quantization_config=config, **settings)


def _check(folder: Path, precision: str, settings: dict[str, Any]) -> None:
    if precision not in PRECISIONS:
        raise UsageError(
            f"there is no precision {precision!r}", todo=f"choose one of: {', '.join(PRECISIONS)}"
        )
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder", todo="download the model first, and name its folder")
    if settings.get("trust_remote_code"):
        raise UsageError("code that lies beside a model is not run", todo="leave trust_remote_code out")
    if settings.get("quantization_config") is not None or settings.get("gguf_file") is not None:
        raise UsageError("the model is quantised here, from full precision", todo="name just one way")
    if settings.get("device_map") not in (None, "cpu", "auto", {"": "cpu"}):
        raise UsageError("low-bit layers compute on the CPU", todo="leave device_map out")


class AutoModel(_LowBitAuto):
    """As ``transformers.AutoModel``."""

    _name = "AutoModel"


class AutoModelForCausalLM(_LowBitAuto):
    """As ``transformers.AutoModelForCausalLM``."""

    _name = "AutoModelForCausalLM"


class AutoModelForSeq2SeqLM(_LowBitAuto):
    """As ``transformers.AutoModelForSeq2SeqLM``."""

    _name = "AutoModelForSeq2SeqLM"


class AutoModelForSequenceClassification(_LowBitAuto):
    """As ``transformers.AutoModelForSequenceClassification``."""

    _name = "AutoModelForSequenceClassification"


class AutoModelForTokenClassification(_LowBitAuto):
    """As ``transformers.AutoModelForTokenClassification``."""

    _name = "AutoModelForTokenClassification"


class AutoModelForMaskedLM(_LowBitAuto):
    """As ``transformers.AutoModelForMaskedLM``."""

    _name = "AutoModelForMaskedLM"
