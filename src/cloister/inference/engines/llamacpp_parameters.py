"""The settings of llama.cpp's server: how a model, its slots and its threads are laid out.

Nothing here starts anything or computes. Refused: sizes out of bounds, and what this engine has not got.
"""

from __future__ import annotations

import os
from typing import Any, Final

from cloister.errors import UsageError
from cloister.inference.engines import EngineSettings, KvCache, Speculation, check_bounds, refuse

MAX_BATCH: Final = 2048
"""Tokens computed in one go. An embedding's input has to fit, so it follows the context up to here."""
MIN_BATCH: Final = 512
SPINS: Final = 500
"""Turns that a thread waits awake for the others before it sleeps: about 10 µs. More of them are no faster where the
processors are free, and where another process takes one they burn the time that it leaves; see docs/benchmarks.md."""
GUESSED: Final = 24
"""Tokens that are checked in one go when a text repeats itself."""
MATCHED: Final = 8
"""Tokens that have to be the same for the text to count as repeating itself."""
DRAFTED: Final = 4
"""Tokens that a draft model guesses ahead."""
_SILENT: Final = -1


def default_threads() -> int:
    """As many as this process may use processors: none of them spins for long, so others get their share."""
    return max(1, len(os.sched_getaffinity(0)))


def check_settings(settings: EngineSettings) -> None:
    """Raise :class:`UsageError` for sizes that are not served, and settings that contradict each other."""
    check_bounds(settings)
    if settings.prefill_chunk is not None and not 1 <= settings.prefill_chunk <= MAX_BATCH:
        raise UsageError(
            f"pieces of {settings.prefill_chunk} tokens: a prompt is read in between 1 and {MAX_BATCH}"
        )
    if (settings.draft is not None) != (settings.speculation == "draft"):
        raise UsageError(
            'a draft model and the speculation "draft" go together', todo="give both, or neither"
        )
    refuse(
        "llamacpp",
        {
            "choice of a precision (it computes as the file is quantised)": settings.precision is not None,
            "server behind it": settings.upstream is not None,
        },
    )


def server_parameters(
    path: str,
    *,
    context_length: int,
    slots: int,
    threads: int,
    embedding: bool,
    pooling: int | None = None,
    kv_cache: KvCache = "f16",
) -> Any:
    """The settings of llama.cpp's server (``xllamacpp.CommonParams``), all but where it listens.

    ``pooling`` is what the model says of its embeddings; these are the mean of the last states where it says nothing.

    Public so that a benchmark can run the same server on a port of its own and compare.
    """
    # Read once by the OpenMP runtime when it is loaded. Threads that spin at barriers starve the event loop and every
    # other process on a machine with few processors; threads that sleep at once lose a third of their speed.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
    import xllamacpp  # noqa: PLC0415 -- 100 MB of native code: only for who opens this engine

    params = xllamacpp.CommonParams()
    params.verbosity = _SILENT
    params.model.path = path
    params.model_alias = {"model"}
    params.n_ctx = context_length * slots
    params.n_parallel = slots
    # A slot's memory is its own: no request makes room for itself by dropping what others left.
    params.kv_unified = False
    params.fit_params = False
    batch = min(max(context_length, MIN_BATCH), MAX_BATCH) if embedding else MIN_BATCH
    # With embeddings llama.cpp ends the process where a batch cannot be shared out evenly among the slots.
    batch = -(-batch // slots) * slots
    params.n_batch = params.n_ubatch = batch
    params.embedding = embedding
    if embedding:
        kinds = xllamacpp.llama_pooling_type
        own = {2: kinds.LLAMA_POOLING_TYPE_CLS, 3: kinds.LLAMA_POOLING_TYPE_LAST}
        params.pooling_type = own.get(pooling or 0, kinds.LLAMA_POOLING_TYPE_MEAN)
    if kv_cache != "f16":
        params.cache_type_k = params.cache_type_v = getattr(
            xllamacpp.ggml_type, f"GGML_TYPE_{kv_cache.upper()}"
        )
        # Without it llama.cpp keeps values as 16-bit floats, or refuses.
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
    for cpu in (params.cpuparams, params.cpuparams_batch):
        cpu.n_threads = threads
        cpu.poll = 0
    params.use_jinja = True
    # Only llamacpp_slots says what is reused, request by request. Everything by which llama.cpp would choose a slot
    # by what lies in it, or keep prompts beside the slots, is off.
    params.cache_prompt = False
    params.slot_prompt_similarity = 0.0
    params.n_cache_reuse = 0
    params.ctx_shift = False
    params.cache_ram_mib = 0
    params.cache_idle_slots = False
    params.n_ctx_checkpoints = 0
    params.offline = True
    params.ui = False
    # What start() computes once is as much, and later, when less is left to do for who confirms the model meanwhile.
    params.warmup = False
    params.endpoint_slots = False
    params.n_threads_http = 1
    return params


def quicken(params: Any, speculation: Speculation, draft: str | None) -> None:
    """Let ``params`` guess several tokens and check them in one go; greedy answers stay what they are.

    "ngram" looks for the last tokens in the request's own text alone. llama.cpp has kinds that remember more; their
    tables are shared by all slots, or outlive a request, and how often they guess right would tell what others asked.
    """
    import xllamacpp  # noqa: PLC0415 -- as above

    kinds, guess = xllamacpp.common_speculative_type, params.speculative
    if speculation == "ngram":
        guess.types = [kinds.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]
        guess.ngram_simple.size_n, guess.ngram_simple.size_m = MATCHED, GUESSED
    elif draft is not None:
        guess.types = [kinds.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
        guess.draft.mparams.path = draft
        guess.draft.n_max = DRAFTED
        for cpu, own in (
            (guess.draft.cpuparams, params.cpuparams),
            (guess.draft.cpuparams_batch, params.cpuparams),
        ):
            cpu.n_threads, cpu.poll = own.n_threads, own.poll
