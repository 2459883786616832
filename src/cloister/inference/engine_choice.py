"""Which engine computes a served model, and how: the measured configuration first, then what the model itself says.

What decides is measured all of it: the configuration, and ``optimized.json`` as one of the model's files. Only the number of
threads and the memory that is there come from the machine, and they change no answer.
"""

from __future__ import annotations

from cloister.inference.configuration import ServeConfiguration
from cloister.inference.engines import AUTO, EngineSettings, usual_engine
from cloister.inference.lora import LoraAdapter
from cloister.inference.model_files import CHOICE_NAME, ModelFiles
from cloister.inference.optimized import MAX_SIZE, Choice, ChosenSettings, read_choice


def engine_for(
    configuration: ServeConfiguration,
    files: ModelFiles | None,
    *,
    fingerprint: bytes,
    threads: int | None = None,
    adapter: LoraAdapter | None = None,
    draft: ModelFiles | None = None,
) -> tuple[str, EngineSettings]:
    """The engine's name and its settings. ``files`` are None where another server has the model.

    ``fingerprint`` is of this machine: the threads of a choice hold on the machine on which they were measured.
    Raises :class:`~cloister.errors.FormatError` where ``optimized.json`` is none.
    """
    choice = _choice(files)
    name = configuration.engine
    if name == AUTO:
        name = choice.engine if choice else usual_engine(files.kind) if files else "upstream"
    chosen = choice.settings if choice is not None and choice.engine == name else ChosenSettings()
    known = choice is not None and choice.machine.fingerprint == fingerprint.hex()
    return name, EngineSettings(
        context_length=configuration.context_length,
        slots=configuration.slots,
        threads=threads or (chosen.threads if known else None),
        adapter=adapter,
        precision=configuration.precision or chosen.precision,
        kv_cache=configuration.kv_cache or chosen.kv_cache,
        prefix_cache=configuration.prefix_cache,
        speculation=configuration.speculation or ("off" if adapter else chosen.speculation),
        prefill_chunk=chosen.prefill_chunk,
        draft=draft,
        upstream=configuration.upstream,
    )


def _choice(files: ModelFiles | None) -> Choice | None:
    if files is None or CHOICE_NAME not in files.descriptors:
        return None
    return read_choice(files.read(CHOICE_NAME, MAX_SIZE))
