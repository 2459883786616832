"""Requests and replies as Flower's messages: one array of bytes (safetensors) and a few plain values. Pure.

Flower moves the bytes in pieces and does not look at them; NumPy's own format, which Flower's arrays have otherwise, is
never read here.
"""

from __future__ import annotations

from typing import Final

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from cloister.errors import FormatError
from cloister.federated.exchange import Reply, Request

KIND: Final = "safetensors"
CONTENT, CONFIG, METRICS = "content", "config", "metrics"
MAX_METRICS: Final = 16


def request_content(request: Request) -> RecordDict:
    """As it travels."""
    config = ConfigRecord(
        {"kind": request.kind, "run": request.run, "round": request.number, "model": request.model}
    )
    return RecordDict({CONTENT: _packed(request.content), CONFIG: config})


def read_request(content: RecordDict) -> Request:
    """Raises FormatError for what no request is."""
    config = _config(content)
    kind, run, number, model = (config.get(name) for name in ("kind", "run", "round", "model"))
    if not isinstance(kind, str) or not isinstance(run, str) or not isinstance(model, str):
        raise FormatError("a request does not say what it asks")
    if not isinstance(number, int) or isinstance(number, bool):
        raise FormatError("a request does not say of which round it is")
    return Request(kind, run, number, model, _unpacked(content))


def reply_content(
    request: Request, content: bytes, examples: int, metrics: dict[str, float], error: str = ""
) -> RecordDict:
    """As it travels back."""
    config = ConfigRecord({"run": request.run, "round": request.number, "error": error[:300]})
    numbers: dict[str, int | float | list[int] | list[float]] = {
        f"metric:{name}": float(value) for name, value in metrics.items()
    }
    numbers["examples"] = examples
    return RecordDict({CONTENT: _packed(content), CONFIG: config, METRICS: MetricRecord(numbers)})


def read_reply(message: Message, party: str) -> Reply:
    """What ``party`` answered. Raises FormatError for what no reply is."""
    if message.has_error():
        reason = str(message.error.reason)[:300]
        return Reply(party, "", 0, b"", 0, {}, error=f"its workload failed: {_plain(reason)}")
    config = _config(message.content)
    numbers = message.content.metric_records.get(METRICS, MetricRecord())
    run, number, error = config.get("run"), config.get("round"), config.get("error")
    examples = numbers.get("examples")
    if not isinstance(run, str) or not isinstance(error, str):
        raise FormatError(f"the reply of {party} does not say of what it is")
    if not isinstance(number, int) or isinstance(number, bool):
        raise FormatError(f"the reply of {party} does not say of which round it is")
    if not isinstance(examples, int) or len(numbers) > MAX_METRICS:
        raise FormatError(f"the reply of {party} does not count its examples")
    metrics = {
        name.removeprefix("metric:"): float(value)
        for name, value in numbers.items()
        if name.startswith("metric:") and isinstance(value, int | float)
    }
    return Reply(party, run, number, _unpacked(message.content), examples, metrics, _plain(error))


def _packed(content: bytes) -> ArrayRecord:
    return ArrayRecord({"bytes": Array(dtype="uint8", shape=(len(content),), stype=KIND, data=content)})


def _unpacked(content: RecordDict) -> bytes:
    record = content.array_records.get(CONTENT)
    if record is None or set(record) != {"bytes"} or record["bytes"].stype != KIND:
        raise FormatError("a message does not have the one array that it should")
    data: bytes = record["bytes"].data
    return data


def _config(content: RecordDict) -> ConfigRecord:
    record = content.config_records.get(CONFIG)
    if record is None:
        raise FormatError("a message does not say what it is")
    return record


def _plain(text: str) -> str:
    """One bounded line that steers no terminal."""
    return "".join(char if char.isprintable() else " " for char in text)[:300]
