"""The OpenAPI description: valid, and exactly the routes that the broker has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from broker_parts import Bench, call
from cloister.broker.app import create_broker
from cloister.broker.openapi import openapi

DESCRIPTION = "/cloister/v1/openapi.json"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return create_broker(Bench(Path(tmp_path_factory.mktemp("broker")) / "state").desk)


def test_it_is_openapi_3_1() -> None:
    document = json.loads(json.dumps(openapi()))
    assert document["openapi"].startswith("3.1")
    assert [str(error) for error in OpenAPIV31SpecValidator(document).iter_errors()] == []


def test_it_is_served_as_it_is(app: Any) -> None:
    reply = call(app, "GET", DESCRIPTION.encode())
    assert reply.status == 200
    assert json.loads(reply.body) == json.loads(json.dumps(openapi()))


def test_every_route_is_described_and_every_description_has_its_route(app: Any) -> None:
    routes = {
        (method.lower(), route.path.replace(":path", ""))
        for route in app.routes
        for method in route.methods - {"HEAD"}
    }
    described = {
        (method, path.replace("{repository}/{type}/{tag}", "{rest}") if path.startswith("/kbs/") else path)
        for path, operations in openapi()["paths"].items()
        for method in operations
    }
    assert routes - described == {("get", DESCRIPTION)}
    assert described - routes == set()


def test_every_operation_has_its_own_name_and_every_path_parameter_is_described() -> None:
    names = []
    for path, operations in openapi()["paths"].items():
        for operation in operations.values():
            names.append(operation["operationId"])
            given = {one["name"] for one in operation.get("parameters", ()) if one["in"] == "path"}
            assert given == {part.strip("{}") for part in path.split("/") if part.startswith("{")}
    assert len(names) == len(set(names))


def test_what_needs_a_signature_or_a_session_says_so() -> None:
    paths = openapi()["paths"]
    assert paths["/cloister/v1/share"]["post"]["security"] == [{"signed": []}]
    assert paths["/cloister/v1/mesh/certificate"]["post"]["security"] == [{"session": []}, {"token": []}]
    assert paths["/cloister/v1/status"]["get"]["security"] == []
