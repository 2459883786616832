"""``optimized.json``: which engine and settings were measured to be best for a model, and the figures behind it.

It lies beside the model's files and is sealed and measured with them (docs/spec/optimized-model.md). It says how to compute
and nothing else: it cannot name a server to ask, a file to open or a template to run. An engine that does not compute here
(``upstream``) is refused, and so is a choice that its own table does not show.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta

from cloister.encoding import Record, decode_json, encode_json
from cloister.errors import FormatError
from cloister.inference.engines import AUTO, KvCache, Precision

FORMAT: Final = "cloister/optimized-model/v1"
MAX_SIZE: Final = 256 << 10
_ELSEWHERE: Final = (AUTO, "upstream")

Goal = Literal["latency", "throughput", "memory"]
Name = Annotated[str, Meta(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]*$")]
Line = Annotated[str, Meta(max_length=400, pattern=r"^[^\x00-\x1f\x7f]*$")]
EngineName = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Meta(ge=0, le=2**53 - 1)]
Share = Annotated[int, Meta(ge=0, le=1_000_000)]


class ChosenSettings(Record, frozen=True, kw_only=True):
    """The fields of :class:`EngineSettings` that were tried."""

    precision: Precision | None = None
    kv_cache: KvCache = "f16"
    speculation: Literal["off", "ngram"] = "off"
    prefill_chunk: Annotated[int, Meta(ge=16, le=1 << 20)] | None = None
    """Tokens of a prompt that are read in one go; None for the engine's own."""
    threads: Annotated[int, Meta(ge=1, le=1024)] | None = None
    """Holds on the machine of the same fingerprint alone."""


class MeasuredQuality(Record, frozen=True, kw_only=True):
    """How well a text is predicted, against the least quantised candidate."""

    text_sha256: Digest
    tokens: Count
    """Tokens that were predicted."""
    reference: Name
    """The row that it is compared with."""
    perplexity_millionths: Count
    change_ppm: Annotated[int, Meta(ge=-1_000_000, le=2**53 - 1)]
    """Of the perplexity, in millionths of the reference's; more is worse."""
    change_error_ppm: Count
    """Standard error of ``change_ppm``."""
    agreement_ppm: Share
    """Of 1,000,000 places in the text, at how many the likeliest next token is the reference's."""


class MeasuredSpeed(Record, frozen=True, kw_only=True):
    """Medians of one candidate."""

    rounds: Count
    prompt_tokens: Count
    first_token_us: Count
    """From the request to its first token, of a prompt of ``prompt_tokens``."""
    prefill_per_1000_s: Count
    """Prompt tokens read in 1,000 seconds."""
    decode_per_1000_s: Count
    """Tokens made in 1,000 seconds for one stream alone."""
    streams: Count
    streams_per_1000_s: Count
    """Tokens made in 1,000 seconds for ``streams`` at once, together."""
    memory_bytes: Count
    """The most that the process ever held (resident), slots and all."""


class MeasuredRow(Record, frozen=True, kw_only=True):
    """One candidate of the table."""

    name: Name
    engine: EngineName
    state: Literal["measured", "failed", "left out"]
    reason: Line = ""
    """Why it failed, was left out, or was not chosen."""
    disk_bytes: Count = 0
    speed: MeasuredSpeed | None = None
    quality: MeasuredQuality | None = None
    chosen: bool = False


class MeasuredMachine(Record, frozen=True, kw_only=True):
    """Where it was measured."""

    fingerprint: Digest
    words: Line


class Choice(Record, frozen=True, kw_only=True):
    """What was chosen, and why."""

    format: Literal["cloister/optimized-model/v1"] = FORMAT
    engine: EngineName
    settings: ChosenSettings
    goal: Goal
    max_loss_ppm: Count
    """By how much the perplexity was allowed to rise."""
    machine: MeasuredMachine
    rows: Annotated[tuple[MeasuredRow, ...], Meta(min_length=1, max_length=64)]
    packages: Annotated[dict[Name, Name], Meta(max_length=64)]
    """Distribution → version, of what computed."""

    @property
    def chosen(self) -> MeasuredRow:
        return next(row for row in self.rows if row.chosen)


def read_choice(data: bytes) -> Choice:
    """Parse ``optimized.json``. Raises :class:`FormatError`."""
    choice = decode_json(data, Choice, what="optimized.json", limit=MAX_SIZE)
    if choice.engine in _ELSEWHERE:
        raise FormatError(f"optimized.json names {choice.engine}, which computes nothing here")
    names = {row.name for row in choice.rows}
    if len(names) != len(choice.rows):
        raise FormatError("optimized.json measures one candidate twice")
    chosen = [row for row in choice.rows if row.chosen]
    if len(chosen) != 1 or chosen[0].engine != choice.engine or chosen[0].speed is None:
        raise FormatError("optimized.json does not show in its table what it chose")
    for row in choice.rows:
        if (row.state == "measured") != (row.speed is not None):
            raise FormatError("optimized.json has a row without the figures that it says it has")
        if row.quality is not None and row.quality.reference not in names:
            raise FormatError("optimized.json compares with a candidate that it does not show")
    return choice


def write_choice(choice: Choice) -> bytes:
    """The bytes of ``optimized.json``: canonical JSON. Raises :class:`FormatError` where nobody could read it."""
    data = encode_json(choice)
    read_choice(data)
    return data
