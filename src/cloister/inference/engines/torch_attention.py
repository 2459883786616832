"""Attention over the rows of a batch, and the memory of keys and values behind it.

The tokens of a step lie packed one behind another, whatever row they belong to: a decoding row gives one, a row that
reads its prompt gives many. Linear layers see them as one sequence and read their weights once; here each row attends to
its own keys alone. No mask says which row is whose: a row cannot see another's keys because they are not among those that
it is given. Rows that decode side by side are given theirs in one piece, up to the longest row's end; what lies behind a
row's own has no weight, and was cleared before the row changed hands. Models of ``transformers`` reach this as an attention
implementation (``ALL_ATTENTION_FUNCTIONS``), so every architecture that takes one works; what this does not compute (soft
caps, sinks, position biases) is refused when it is asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, cast

import torch
from torch.nn.functional import scaled_dot_product_attention

from cloister.errors import InferenceError

NAME: Final = "cloister_rows"
"""Of this attention, among those of ``transformers``."""
_NOT_COMPUTED: Final = ("softcap", "s_aux", "position_bias", "head_mask", "output_attentions")
FREE: Final = 256
"""Keys of a row that are read in less time than a row alone takes to be begun."""
_CURRENT: Final = threading.local()


@dataclass(frozen=True, slots=True)
class Segment:
    """The tokens that one row gives to a step."""

    row: int
    past: int
    """Tokens of the row whose keys are in memory already."""
    count: int


@dataclass(slots=True)
class KvMemory:
    """Keys and values of ``rows`` rows of ``length`` tokens, allocated once, as each layer first shows its shape."""

    rows: int
    length: int
    _layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def write(self, layer: int, places: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Put ``key`` and ``value`` (heads, tokens, size) at ``places`` (tokens; row x length + position)."""
        if layer not in self._layers:
            self._layers[layer] = (self._allocate(key), self._allocate(value))
        keys, values = self._layers[layer]
        keys.index_copy_(0, places, key.transpose(0, 1))
        values.index_copy_(0, places, value.transpose(0, 1))

    def read(self, layer: int, row: int, start: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a row's tokens: views of (1, heads, end - start, size)."""
        keys, values = self._layers[layer]
        first = row * self.length
        return (
            keys[first + start : first + end].transpose(0, 1).unsqueeze(0),
            values[first + start : first + end].transpose(0, 1).unsqueeze(0),
        )

    def block(self, layer: int, first: int, rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values at the first ``length`` places of neighbouring rows: views of (rows, heads, length, size)."""
        keys, values = (
            one.view(self.rows, self.length, *one.shape[1:])[first : first + rows, :length].transpose(1, 2)
            for one in self._layers[layer]
        )
        return keys, values

    def clear(self, row: int, count: int) -> None:
        """Forget the first ``count`` tokens of a row."""
        for keys, values in self._layers.values():
            for memory in (keys, values):
                memory[row * self.length : row * self.length + count].zero_()

    def copy(self, source: int, target: int, count: int) -> None:
        """Give the row ``target`` the first ``count`` tokens of the row ``source``."""
        for keys, values in self._layers.values():
            for memory in (keys, values):
                begin, end = target * self.length, source * self.length
                memory[begin : begin + count] = memory[end : end + count]

    def _allocate(self, like: torch.Tensor) -> torch.Tensor:
        heads, _, size = like.shape
        # Zeros, and what `clear` leaves: numbers behind a row's end are multiplied by nothing, which takes numbers.
        return torch.zeros(self.rows * self.length, heads, size, dtype=like.dtype)


@dataclass(frozen=True, slots=True)
class _Neighbours:
    """Rows one behind another in memory that decode one token each, and so attend in one piece."""

    places: tuple[int, ...]
    """Of their tokens, in the step."""
    first: int
    ends: tuple[int, ...]
    """Tokens that each sees."""

    @property
    def length(self) -> int:
        return max(self.ends)

    def unseen(self, dtype: torch.dtype) -> torch.Tensor | None:
        """(rows, 1, 1, length) what is added to scores: minus infinity behind each row's end."""
        if min(self.ends) == self.length:
            return None
        behind = torch.arange(self.length) >= torch.tensor(self.ends)[:, None]
        return torch.zeros(behind.shape, dtype=dtype).masked_fill_(behind, -torch.inf)[:, None, None]


@dataclass(slots=True)
class _Pass:
    memory: KvMemory | None
    segments: Sequence[Segment]
    places: torch.Tensor
    masks: dict[tuple[int, int, int | None], torch.Tensor] = field(default_factory=dict)
    neighbours: Sequence[_Neighbours] = ()
    unseen: dict[tuple[int, torch.dtype], torch.Tensor | None] = field(default_factory=dict)


@contextmanager
def computing(memory: KvMemory | None, segments: Sequence[Segment]) -> Iterator[None]:
    """While this lasts the attention of this thread's model is that of ``segments``, packed in this order.

    Without a ``memory`` every segment is a whole row of its own, and nothing is kept.
    """
    places = (
        [
            segment.row * memory.length + position
            for segment in segments
            for position in range(segment.past, segment.past + segment.count)
        ]
        if memory is not None
        else []
    )
    neighbours = _neighbours(segments) if memory is not None else ()
    _CURRENT.step = _Pass(memory, segments, torch.tensor(places, dtype=torch.long), neighbours=neighbours)
    try:
        yield
    finally:
        _CURRENT.step = None


def register() -> None:
    """Make this attention known to ``transformers`` by its name."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS  # noqa: PLC0415 -- slow to import

    ALL_ATTENTION_FUNCTIONS.register(NAME, attend)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """As ``transformers`` calls it: ``query`` (1, heads, tokens, size), ``key`` and ``value`` of fewer heads perhaps.

    Returns (1, tokens, heads, size). Raises InferenceError for what it does not compute.
    """
    step: _Pass | None = getattr(_CURRENT, "step", None)
    asked = [name for name in _NOT_COMPUTED if others.get(name) not in (None, False)]
    if step is None or attention_mask is not None or others.get("is_causal") is False or asked:
        raise InferenceError(f"this attention does not compute {', '.join(asked) or 'this model'}")
    layer: int = module.layer_idx  # type: ignore[assignment]
    if step.memory is not None:
        step.memory.write(layer, step.places, key[0], value[0])
    # (heads, tokens, size) by segment, in the order of the step
    parts: list[torch.Tensor | None] = [None] * len(step.segments)
    for number, group in enumerate(step.neighbours):
        if sliding_window is None or group.length <= sliding_window:
            answers = _together(step, layer, number, query, scaling)
            if group.places == tuple(range(len(step.segments))):
                return answers.permute(2, 0, 1, 3), None
            for place, answer in zip(group.places, answers.unbind(0), strict=True):
                parts[place] = answer
    start = 0
    for index, segment in enumerate(step.segments):
        end = start + segment.count
        if parts[index] is None:
            asking = query[:, :, start:end]
            if segment.past == 0:
                own = (key[:, :, start:end], value[:, :, start:end])
                parts[index] = _first(step, asking, *own, scaling, sliding_window)[0]
            else:
                parts[index] = _later(step, layer, segment, asking, scaling, sliding_window)[0]
        start = end
    found = cast("list[torch.Tensor]", parts)
    whole = found[0] if len(found) == 1 else torch.cat(found, dim=1)
    return whole.transpose(0, 1).unsqueeze(0).contiguous(), None


def _neighbours(segments: Sequence[Segment]) -> list[_Neighbours]:
    """The decoding rows at the step's beginning, in groups that lie together and are about as long as each other."""
    decoding: list[tuple[int, int]] = []
    for segment in segments:
        if segment.count != 1 or segment.past == 0:
            break
        decoding.append((segment.row, len(decoding)))
    groups: list[list[tuple[int, int]]] = []
    for row, place in sorted(decoding):
        last = groups[-1] if groups else []
        if (
            last
            and row == last[-1][0] + 1
            and _even([segments[one].past for _, one in (*last, (row, place))])
        ):
            last.append((row, place))
        else:
            groups.append([(row, place)])
    return [
        _Neighbours(
            places=tuple(place for _, place in group),
            first=group[0][0],
            ends=tuple(segments[place].past + 1 for _, place in group),
        )
        for group in groups
        if len(group) > 1
    ]


def _even(lengths: Sequence[int]) -> bool:
    """Whether what is computed for nothing, behind the ends of the shorter rows, costs less than what it spares."""
    return max(lengths) * len(lengths) <= 2 * sum(lengths) + FREE * len(lengths)


def _together(
    step: _Pass, layer: int, number: int, query: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """(rows, heads, 1, size) the answers of a group. Each row has its own keys; what lies behind its end has no weight."""
    assert step.memory is not None  # noqa: S101 -- without one there are no groups
    group = step.neighbours[number]
    key, value = step.memory.block(layer, group.first, len(group.places), group.length)
    known = (number, query.dtype)
    if known not in step.unseen:
        step.unseen[known] = group.unseen(query.dtype)
    first, count = group.places[0], len(group.places)
    if group.places == tuple(range(first, first + count)):
        asking = query[0, :, first : first + count]
    else:
        asking = query[0].index_select(1, torch.tensor(group.places))
    heads, shared, size = query.shape[1], key.shape[1], query.shape[3]
    packed = asking.transpose(0, 1).reshape(count, shared, heads // shared, size)
    found = scaled_dot_product_attention(packed, key, value, attn_mask=step.unseen[known], scale=scaling)
    return found.reshape(count, heads, 1, value.shape[3])


def _first(
    step: _Pass,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """The beginning of a row: its keys are those of this step."""
    count = query.shape[2]
    if window is not None and count > window:
        mask = _mask(step, 0, count, window)
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True)
    return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)


def _later(
    step: _Pass, layer: int, segment: Segment, query: torch.Tensor, scaling: float | None, window: int | None
) -> torch.Tensor:
    assert step.memory is not None  # noqa: S101 -- without one every segment begins at 0
    end = segment.past + segment.count
    begin = 0 if window is None else max(0, segment.past + 1 - window)
    key, value = step.memory.read(layer, segment.row, begin, end)
    if segment.count > 1:
        mask = _mask(step, segment.past - begin, segment.count, window)
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True)
    # One token: the heads that share keys become the queries of one head, and the keys are read once.
    heads, shared, size = query.shape[1], key.shape[1], query.shape[3]
    packed = query.reshape(1, shared, heads // shared, size)
    found = scaled_dot_product_attention(packed, key, value, scale=scaling)
    return found.reshape(1, heads, 1, value.shape[3])


def _mask(step: _Pass, past: int, count: int, window: int | None) -> torch.Tensor:
    """(count, past + count): which keys each of ``count`` tokens sees. Layers of one kind share it."""
    known = step.masks.get((past, count, window))
    if known is None:
        known = torch.ones(count, past + count, dtype=torch.bool).tril_(past)
        if window is not None:
            known.triu_(past + 1 - window)
        step.masks[past, count, window] = known
    return known
