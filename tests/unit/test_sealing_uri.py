"""Key URIs: one spelling, nothing repaired."""

from __future__ import annotations

import pytest

from cloister.errors import FormatError
from cloister.sealing.uri import KeyUri, parse_key_uri


@pytest.mark.parametrize("text", ["kbs:///default/key/medquad", "kbs:///a/b/c", "kbs:///A-1/k_2/v1.2.3"])
def test_a_key_uri_comes_back_as_it_was(text: str) -> None:
    assert str(parse_key_uri(text)) == text


def test_the_parts_of_a_key_uri() -> None:
    assert parse_key_uri("kbs:///default/key/medquad") == KeyUri("default", "key", "medquad")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "kbs:///",
        "kbs:///default/key",
        "kbs:///default/key/",
        "kbs:///default/key/a/b",
        "kbs://host/default/key/a",
        "kbs://default/key/a",
        "KBS:///default/key/a",
        "https:///default/key/a",
        " kbs:///default/key/a",
        "kbs:///default/key/a\n",
        "kbs:///default/key/a?x=1",
        "kbs:///default/key/a#x",
        "kbs:///default/key/%61",
        "kbs:///default/../a",
        "kbs:///default/./a",
        "kbs:///default/key/.a",
        "kbs:///default/key/ä",
        "kbs:///default/key/a\0",
        "kbs:///default/key/" + "a" * 65,
        "kbs:///" + "a" * 100_000,
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(FormatError) as refused:
        parse_key_uri(text)
    assert len(str(refused.value)) < 1000
