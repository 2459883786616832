"""Refusals in OpenAI's shape: ``{"error": {"message", "type", "param", "code"}}`` with the right status.

The SDKs choose their exception by status and read ``code``. The text may quote the request (it goes back to
whoever sent it, over the same channel) and is therefore never logged.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from cloister.errors import InferenceError

INVALID: Final = "invalid_request_error"
SERVER: Final = "server_error"

# Types of llama.cpp's server (tools/server/server-common.cpp, `format_error_response`) -> ours.
_ENGINE_TYPES: Final[Mapping[str, tuple[int, str, str | None]]] = {
    "exceed_context_size_error": (400, INVALID, "context_length_exceeded"),
    "invalid_request_error": (400, INVALID, None),
    "not_supported_error": (400, INVALID, "unsupported"),
    "not_found_error": (404, INVALID, None),
    "unavailable_error": (503, SERVER, "overloaded"),
}


class RequestRefused(InferenceError):
    """One request that is not answered; the service itself is well."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str | None = None,
        param: str | None = None,
        kind: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.kind = kind or (SERVER if status >= 500 else INVALID)
        self.retry_after = retry_after
        """Seconds after which to ask again."""

    def body(self) -> dict[str, Any]:
        """The JSON that OpenAI's clients expect."""
        return {
            "error": {"message": self.what, "type": self.kind, "param": self.param, "code": self.code},
        }


def engine_refusal(answer: Mapping[str, Any]) -> RequestRefused:
    """What the engine answered instead of a completion, as our refusal."""
    error = answer.get("error")
    detail: Mapping[str, Any] = error if isinstance(error, Mapping) else answer
    message = str(detail.get("message", "the engine gave no reason"))
    status, kind, code = _ENGINE_TYPES.get(str(detail.get("type")), (500, SERVER, None))
    if "too large to process" in message:
        # The one length error that llama.cpp reports as its own failure: an embedding input over its batch.
        status, kind, code = 400, INVALID, "context_length_exceeded"
        message = message.partition(". ")[0]
    if status == 500:
        message = "the engine failed on this request"
    return RequestRefused(message, status=status, code=code, kind=kind)


def unknown_model(name: str) -> RequestRefused:
    return RequestRefused(
        f"The model '{name}' does not exist here", status=404, code="model_not_found", param="model"
    )


def wrong_key(*, given: bool) -> RequestRefused:
    if given:
        return RequestRefused("Incorrect API key provided", status=401, code="invalid_api_key")
    return RequestRefused("You did not provide an API key (Authorization: Bearer …)", status=401)


def overloaded(retry_after: int) -> RequestRefused:
    return RequestRefused(
        f"All slots are busy and the queue is full; try again in {retry_after} s",
        status=503,
        code="overloaded",
        retry_after=retry_after,
    )


def shutting_down() -> RequestRefused:
    return RequestRefused("The engine is shutting down", status=503, code="overloaded")


def key_waits_too_much(retry_after: int) -> RequestRefused:
    return RequestRefused(
        f"Too many requests of this API key are waiting; try again in {retry_after} s",
        status=429,
        code="rate_limit_exceeded",
        kind="rate_limit_error",
        retry_after=retry_after,
    )


def plain_status(status: int) -> RequestRefused:
    """For what the router itself refuses: unknown paths, wrong methods."""
    code = {404: "not_found", 405: "method_not_allowed"}.get(status)
    return RequestRefused(HTTPStatus(status).phrase, status=status, code=code)
