"""The broker's OpenAPI 3.1 description, made from the tables that its routes are made from."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, Final

import msgspec

from cloister.broker import protocol
from cloister.broker.endpoints import ENDPOINTS, Endpoint, schema_types
from cloister.broker.protocol import AuthRequest, Challenge, Jwe, Problem, TokenAnswer
from cloister.encoding import Record

_REF: Final = "#/components/schemas/{name}"
_NAME: Final = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$"
_ERRORS: Final = ("400", "401", "403", "404", "405", "409", "413", "422", "503")


def openapi() -> dict[str, Any]:
    """The document, as plain JSON values."""
    kinds = [AuthRequest, Challenge, TokenAnswer, Jwe, Problem, *schema_types()]
    _, components = msgspec.json.schema_components(kinds, ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {
        protocol.AUTH_PATH: {
            "post": _operation("auth", "Ask for a challenge", AuthRequest, Challenge, secured=[]),
        },
        protocol.ATTEST_PATH: {
            "post": {
                **_operation(
                    "attest", "Answer it with evidence", None, TokenAnswer, secured=[{"session": []}]
                ),
                "requestBody": _json({"type": "object"}, required=True),
            },
        },
        protocol.RESOURCE_PATH + "{repository}/{type}/{tag}": {
            "get": {
                **_operation(
                    "resource",
                    "A resource, to the session's key",
                    None,
                    Jwe,
                    secured=[{"session": []}, {"token": []}],
                ),
                "parameters": _parameters("{repository}/{type}/{tag}"),
            },
        },
    }
    for one in ENDPOINTS:
        path = one.path.replace(":path", "")
        paths.setdefault(path, {})[one.method.lower()] = _of(one)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Cloister key broker",
            "version": version("cloister"),
            "description": "Served inside the sealed channel or attested TLS, never in the clear.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "session": {"type": "apiKey", "in": "cookie", "name": protocol.COOKIE},
                "token": {"type": "http", "scheme": "bearer"},
                "signed": {"type": "apiKey", "in": "header", "name": "Authorization"},
            },
        },
    }


def _of(endpoint: Endpoint) -> dict[str, Any]:
    secured: list[dict[str, list[str]]] = []
    if endpoint.access == "session":
        secured = [{"session": []}, {"token": []}]
    elif endpoint.access != "public":
        secured = [{"signed": []}]
    operation = _operation(endpoint.name, endpoint.summary, endpoint.body, endpoint.answer, secured=secured)
    parameters = _parameters(endpoint.path) + [
        {
            "name": name,
            "in": "query",
            "required": default is None,
            "schema": {"type": "integer", "minimum": 0, "maximum": 999_999_999_999},
        }
        for name, default in endpoint.query.items()
    ]
    return {**operation, "parameters": parameters} if parameters else operation


def _operation(
    name: str,
    summary: str,
    body: type[Record] | None,
    answer: type[Record],
    *,
    secured: list[dict[str, list[str]]],
) -> dict[str, Any]:
    problem = {"content": {"application/problem+json": {"schema": _ref(Problem)}}}
    operation: dict[str, Any] = {
        "operationId": name,
        "summary": summary,
        "responses": {
            "200": {"description": "Done", **_json(_ref(answer))},
            **{status: {"description": "Refused (RFC 9457)", **problem} for status in _ERRORS},
        },
        "security": secured,
    }
    if body is not None:
        operation["requestBody"] = _json(_ref(body), required=True)
    return operation


def _parameters(path: str) -> list[dict[str, Any]]:
    names = [part.strip("{}").partition(":")[0] for part in path.split("/") if part.startswith("{")]
    return [{"name": name, "in": "path", "required": True, "schema": _schema_of(name)} for name in names]


def _schema_of(name: str) -> dict[str, Any]:
    if name == "digest":
        return {"type": "string", "pattern": "^[0-9a-f]{64}$"}
    return {"type": "string", "minLength": 1} if name == "rest" else {"type": "string", "pattern": _NAME}


def _ref(kind: type[Record]) -> dict[str, str]:
    return {"$ref": _REF.replace("{name}", kind.__name__)}


def _json(schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**more, "content": {"application/json": {"schema": schema}}}
