"""Where things stand in a TOML text: held against tomllib and against texts whose lines are known as they are built."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.appraisal.positions import MAX_DEPTH, Path, find_positions, line_of
from cloister.errors import FormatError

EXAMPLE = '''\
title = "a # no comment" # a comment
"quoted.key" = 1
'literal\\key' = 2
"esc\\u0041ped" = 3
a.b . "c.d" = [ 1,
  2, # [ ] { }
  """three
""", [
    "nested",
  ],
]
inline = { x = 1, y = { z = [ "]", '}' ] } }

[table]
key = 1979-05-27 07:32:00
[table.sub."with.dots"]
text = \'\'\'
[not.a.header]
key = "not a key" \'\'\'\'\'
[[list]]
first = true
[list.inner]
deep = 1
[[list]]
second = """""two quotes"""
'''

LINES: dict[Path, int] = {
    (): 1,
    ("title",): 1,
    ("quoted.key",): 2,
    ("literal\\key",): 3,
    ("escAped",): 4,
    ("a",): 5,
    ("a", "b"): 5,
    ("a", "b", "c.d"): 5,
    ("a", "b", "c.d", 0): 5,
    ("a", "b", "c.d", 1): 6,
    ("a", "b", "c.d", 2): 7,
    ("a", "b", "c.d", 3): 8,
    ("a", "b", "c.d", 3, 0): 9,
    ("inline",): 12,
    ("inline", "x"): 12,
    ("inline", "y"): 12,
    ("inline", "y", "z"): 12,
    ("inline", "y", "z", 0): 12,
    ("inline", "y", "z", 1): 12,
    ("table",): 14,
    ("table", "key"): 15,
    ("table", "sub"): 16,
    ("table", "sub", "with.dots"): 16,
    ("table", "sub", "with.dots", "text"): 17,
    ("list",): 20,
    ("list", 0): 20,
    ("list", 0, "first"): 21,
    ("list", 0, "inner"): 22,
    ("list", 0, "inner", "deep"): 23,
    ("list", 1): 24,
    ("list", 1, "second"): 25,
}


def test_every_construct_of_toml_has_its_line() -> None:
    assert paths(tomllib.loads(EXAMPLE)) == set(LINES)
    assert find_positions(EXAMPLE) == LINES


def test_a_table_stands_where_its_own_header_does() -> None:
    text = "[a.b]\nx = 1\n[a]\ny = 2\n"
    assert find_positions(text)["a",] == 3
    assert find_positions(text)["a", "b"] == 1


def test_what_has_no_line_stands_with_what_holds_it() -> None:
    found = find_positions("[tdx]\nmrtd = []\n")
    assert line_of(found, ("tdx", "mrtd", 5)) == 2
    assert line_of(found, ("tdx", "rtmr0")) == 1
    assert line_of(found, ("sgx",)) == 1
    assert line_of({}, ("sgx",)) == 1


def test_windows_line_ends_count_once() -> None:
    assert find_positions("a = 1\r\n\r\nb = [\r\n1]\r\n") == {(): 1, ("a",): 1, ("b",): 3, ("b", 0): 4}


def paths(value: Any, base: Path = ()) -> set[Path]:
    """Every path that tomllib yields."""
    found = {base}
    items: Any = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, item in items:
        found |= paths(item, (*base, key))
    return found


@dataclass
class Text:
    """A piece of TOML under construction, and the line offset of everything in it."""

    text: str = ""
    lines: dict[Path, int] = field(default_factory=dict)

    def add(self, text: str) -> None:
        self.text += text

    def put(self, path: Path, piece: Text) -> None:
        """``piece`` at ``path``, starting here."""
        here = self.text.count("\n")
        self.lines[path] = here
        self.lines |= {(*path, *rest): here + offset for rest, offset in piece.lines.items()}
        self.text += piece.text


SCALARS = st.sampled_from(
    [
        *("1", "-1.5e3", "true", "inf", "0x1f", "1979-05-27T07:32:00Z", "1979-05-27 07:32:00", "07:32:00"),
        *('""', "''", '"#"', '"]}"', "'[{,'", r'"\"\\"', r"'\'"),
    ]
)
MULTILINE = st.sampled_from(
    ['"""\na\n"""', "'''\n\"\"\"\n#]\n'''", '"""\\\n  a"""', '"""a""""', "''''''", '""""""']
)
KEYS = st.sampled_from(["a", "b-c", "1", '"d.e"', '"f g"', "'h#'", '"[i]"', '"\\u006a"', '""'])
NOISE = st.sampled_from(["", " ", "\n", " # ]}\n", "\n\n\t"])
SPACE = st.sampled_from(["", " ", "\t "])


def key_of(raw: str) -> str:
    return next(iter(tomllib.loads(f"{raw} = 1")))


@st.composite
def values(draw: st.DrawFn, depth: int = 3, multiline: bool = True) -> Text:
    kinds = ["scalar", "text"] if depth == 0 else ["scalar", "text", "array", "table"]
    kind = draw(st.sampled_from(kinds))
    if kind == "array":
        return draw(arrays(depth - 1, multiline))
    if kind == "table":
        return draw(tables(depth - 1))
    return Text(draw(MULTILINE if kind == "text" and multiline else SCALARS))


@st.composite
def arrays(draw: st.DrawFn, depth: int, multiline: bool) -> Text:
    piece = Text("[")
    count = draw(st.integers(0, 3))
    for index in range(count):
        piece.add(draw(NOISE) if multiline else draw(SPACE))
        piece.put((index,), draw(values(depth, multiline)))
        piece.add(
            (draw(NOISE) if multiline else " ") + ("," if index < count - 1 or draw(st.booleans()) else "")
        )
    piece.add(draw(NOISE) if multiline else "")
    piece.add("]")
    return piece


@st.composite
def tables(draw: st.DrawFn, depth: int) -> Text:
    """An inline table: on one line, but for arrays and texts within it."""
    piece = Text("{")
    keys = draw(st.lists(KEYS, max_size=3, unique_by=key_of))
    for number, key in enumerate(keys):
        piece.add(draw(SPACE) + key + draw(SPACE) + "=" + draw(SPACE))
        piece.put((key_of(key),), draw(values(depth)))
        piece.add(draw(SPACE) + ("," if number < len(keys) - 1 else ""))
    piece.add(draw(SPACE) + "}")
    return piece


@st.composite
def documents(draw: st.DrawFn) -> Text:
    document = Text()

    def pairs(base: Path) -> None:
        for key in draw(st.lists(KEYS, max_size=3, unique_by=key_of)):
            document.add(draw(NOISE) + "\n" + draw(SPACE) + key + draw(SPACE) + "=" + draw(SPACE))
            document.put((*base, key_of(key)), draw(values()))
            document.add(draw(st.sampled_from(["", " ", " # x"])))
        document.add("\n")

    pairs(())
    counts: dict[str, int] = {}
    for name in draw(st.lists(st.sampled_from(["t", '"u v"', "w.x"]), unique=True)):
        document.add(draw(NOISE) + "\n")
        path: Path = tuple(key_of(part) for part in ([name] if name.startswith('"') else name.split(".")))
        for end in range(1, len(path) + 1):
            document.lines[path[:end]] = document.text.count("\n")
        document.add(f"[ {name} ]")
        pairs(path)
    for _ in range(draw(st.integers(0, 3))):
        document.add("\n")
        here = document.text.count("\n")
        number = counts["list"] = counts.get("list", -1) + 1
        document.lines.setdefault(("list",), here)
        document.lines["list", number] = here
        document.add("[[list]]")
        pairs(("list", number))
    return document


@given(documents())
def test_lines_are_those_where_things_were_written(document: Text) -> None:
    table = tomllib.loads(document.text)
    found = find_positions(document.text)
    assert found == {(): 1, **{path: offset + 1 for path, offset in document.lines.items()}}
    assert set(found) == paths(table)


@given(st.text(alphabet=st.sampled_from("ab.=[]{}\"'#\\,\n 1"), max_size=60) | st.text(max_size=60))
def test_any_text_has_positions_and_toml_has_all_of_them(text: str) -> None:
    found = find_positions(text)
    try:
        table = tomllib.loads(text)
    except ValueError:
        return
    assert paths(table) == set(found)


DEEP = {
    "arrays": "a = " + "[" * 40 + "]" * 40,
    "inline tables": "a = " + "{a = " * 40 + "1" + "}" * 40,
    "dots": "a" + ".a" * 40 + " = 1",
    "header": "[a" + ".a" * 40 + "]",
    "open arrays": "a = " + "[" * 200_000,
    "many dots": "a.b" + ".a" * 120_000,
    "below a header": "[" + "a." * 20 + "a]\n" + "b." * 20 + "b = 1",
}


@pytest.mark.parametrize("case", DEEP)
def test_what_is_nested_too_deep_is_refused_at_its_line(case: str) -> None:
    with pytest.raises(FormatError, match=rf"^encoding: line \d: nested deeper than {MAX_DEPTH}$"):
        find_positions(DEEP[case])


@pytest.mark.parametrize(
    "text",
    [
        "#" * 250_000,
        '"' * 250_000,
        "'" * 250_000,
        'a = "' + '\\"' * 120_000,
        "[[a]]\n" * 40_000,
        "a = [" + "1," * 120_000,
    ],
    ids=["comment", "quotes", "apostrophes", "escapes", "tables", "array"],
)
def test_large_texts_are_walked_once(text: str) -> None:
    assert find_positions(text)[()] == 1  # whatever is quadratic here takes minutes
