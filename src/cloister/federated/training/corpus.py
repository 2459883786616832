"""Sentences with a tag for each word, in IOB2: read from CoNLL files, JSONL and Parquet, checked, never repaired.

Everything is read from a file that is open, so that sealed files come through ``cloister.sealing.open``. Refused, with the
line: tags that do not follow one another (an ``I-`` that continues nothing), tags of kinds that the task does not have,
lines of another shape than the first, sizes without bound.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Final, Literal

from cloister.encoding import Record, decode_json
from cloister.errors import FormatError, UsageError

Format = Literal["conll", "jsonl", "parquet"]
FORMATS: Final[tuple[Format, ...]] = ("conll", "jsonl", "parquet")
MAX_WORDS: Final = 4096
MAX_SENTENCES: Final = 2_000_000
MAX_LINE: Final = 1 << 20
"""Bytes of one line, and characters of one word."""
OUTSIDE: Final = "O"
_DOCSTART: Final = "-DOCSTART-"
_NEW_DOCUMENT: Final = "# newdoc"


@dataclass(frozen=True, slots=True)
class Sentence:
    """Words and their tags, as many of each and at least one."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    document: str = ""
    """What it is part of; sentences of one document lie side by side."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Where a CoNLL file has words and tags, counted from 0; -1 is the last column."""

    word: int = 0
    tag: int = -1

    def fit(self, width: int) -> bool:
        """Whether lines of ``width`` columns have both, and apart."""
        return 0 <= self.word < width and -width <= self.tag < width and self.tag % width != self.word


@dataclass(frozen=True, slots=True)
class TagSet:
    """The tags of a task: ``O``, then ``B-`` and ``I-`` of each kind of entity. The same for every party."""

    kinds: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.kinds or len(set(self.kinds)) != len(self.kinds) or not all(map(_is_kind, self.kinds)):
            raise UsageError(
                "the kinds of entities are different words of letters, digits, - and _",
                todo='name them as in ["PER", "LOC"]',
            )

    @property
    def tags(self) -> tuple[str, ...]:
        pairs = itertools.chain.from_iterable((f"B-{kind}", f"I-{kind}") for kind in self.kinds)
        return (OUTSIDE, *pairs)

    def numbers(self, tags: Sequence[str]) -> list[int]:
        """Each tag's place in :attr:`tags`."""
        known = {tag: number for number, tag in enumerate(self.tags)}
        return [known[tag] for tag in tags]

    def follows(self, before: int | None, after: int) -> bool:
        """Whether the tag ``after`` may stand behind ``before``, or at the beginning where that is None (IOB2)."""
        if after == 0 or after % 2 == 1:
            return True
        return before is not None and before in (after, after - 1)


def balanced(sentences: Collection[Sentence]) -> int:
    """The geometric mean of their number and of how many name something; 1 at least."""
    naming = sum(any(tag != OUTSIDE for tag in one.tags) for one in sentences)
    return max(1, math.isqrt(len(sentences) * naming))


def read_corpus(
    file: BinaryIO, kind: Format, tags: TagSet, *, what: str, columns: Columns | None = None
) -> tuple[Sentence, ...]:
    """The sentences of ``file``; ``what`` names it in errors. Raises FormatError."""
    if kind == "conll":
        found: Iterator[Sentence] = _conll(file, columns or Columns(), what)
    else:
        found = _jsonl(file, what) if kind == "jsonl" else _parquet(file, what)
    known = frozenset(tags.tags)
    sentences = []
    for number, sentence in enumerate(found, 1):
        if number > MAX_SENTENCES:
            raise FormatError(f"{what} has more than {MAX_SENTENCES} sentences")
        _check(sentence, known, f"{what}, sentence {number}")
        sentences.append(sentence)
    if not sentences:
        raise FormatError(f"{what} has no sentences")
    return tuple(sentences)


def _check(sentence: Sentence, known: frozenset[str], what: str) -> None:
    words, tags = sentence.words, sentence.tags
    if not 1 <= len(words) <= MAX_WORDS or len(words) != len(tags):
        raise FormatError(f"{what}: {len(words)} words and {len(tags)} tags; as many, and 1 to {MAX_WORDS}")
    before = OUTSIDE
    for place, (word, tag) in enumerate(zip(words, tags, strict=True), 1):
        if not word or len(word) > MAX_LINE:
            raise FormatError(f"{what}: word {place} is empty, or too long")
        if tag not in known:
            raise FormatError(
                f"{what}: the tag of word {place} is none of the task's", todo="see its kinds of entities"
            )
        if tag.startswith("I-") and before[1:] != tag[1:]:
            raise FormatError(
                f"{what}: {tag} at word {place} continues nothing",
                todo="tags are IOB2: entities begin with B-",
            )
        before = tag


def _lines(file: BinaryIO, what: str) -> Iterator[tuple[int, str]]:
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise FormatError(f"{what}: line {number} is longer than {MAX_LINE} bytes")
        try:
            yield number, line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise FormatError(f"{what}: line {number} is not UTF-8") from None


def _conll(file: BinaryIO, columns: Columns, what: str) -> Iterator[Sentence]:
    words: list[str] = []
    tags: list[str] = []
    document, documents, width = "", 0, None
    for number, line in _lines(file, what):
        if not line.strip():
            if words:
                yield Sentence(tuple(words), tuple(tags), document)
            words, tags = [], []
            continue
        # A comment has no columns: "#" alone can be a word.
        if not words and line.startswith("# ") and "\t" not in line:
            if line.startswith(_NEW_DOCUMENT):
                documents += 1
                document = line.partition("=")[2].strip() or f"document {documents}"
            continue
        fields = line.split("\t") if "\t" in line else line.split(" ")
        if fields[0] == _DOCSTART:
            documents += 1
            document = f"document {documents}"
            continue
        width = width or len(fields)
        if len(fields) != width or not columns.fit(width):
            raise FormatError(
                f"{what}: line {number} has {len(fields)} columns, and not {width}, or not those of word and tag",
                todo="name the columns of words and tags",
            )
        words.append(fields[columns.word])
        tags.append(fields[columns.tag])
        if len(words) > MAX_WORDS:
            raise FormatError(f"{what}: the sentence at line {number} has more than {MAX_WORDS} words")
    if words:
        yield Sentence(tuple(words), tuple(tags), document)


class _Line(Record, frozen=True):
    tokens: list[str]
    tags: list[str]
    document: str = ""


def _jsonl(file: BinaryIO, what: str) -> Iterator[Sentence]:
    for number, line in _lines(file, what):
        if line.strip():
            found = decode_json(line, _Line, what=f"{what}, line {number}", limit=MAX_LINE)
            yield Sentence(tuple(found.tokens), tuple(found.tags), found.document)


def _parquet(file: BinaryIO, what: str) -> Iterator[Sentence]:
    import pyarrow as pa  # noqa: PLC0415 -- for this format alone
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        table = pq.ParquetFile(file)
        names = table.schema_arrow.names
        if not {"tokens", "tags"} <= set(names):
            raise FormatError(f"{what} has no columns tokens and tags, of lists of texts")
        wanted = [name for name in ("tokens", "tags", "document") if name in names]
        for batch in table.iter_batches(batch_size=1024, columns=wanted):
            for row in batch.to_pylist():
                words, tags, document = row["tokens"], row["tags"], row.get("document") or ""
                if not _texts(words) or not _texts(tags) or not isinstance(document, str):
                    raise FormatError(f"{what}: tokens and tags are lists of texts, document is a text")
                yield Sentence(tuple(words), tuple(tags), document)
    except (pa.ArrowException, OSError, io.UnsupportedOperation) as error:
        raise FormatError(f"{what} is not a Parquet file that can be read ({type(error).__name__})") from None


def _texts(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _is_kind(text: str) -> bool:
    return text.isascii() and text.replace("-", "").replace("_", "").isalnum() and len(text) <= 64


def documents(sentences: Iterable[Sentence]) -> list[list[Sentence]]:
    """Sentences by document, in their order; where none is named each sentence is a document of its own."""
    found: list[list[Sentence]] = []
    for sentence in sentences:
        if found and sentence.document and found[-1][0].document == sentence.document:
            found[-1].append(sentence)
        else:
            found.append([sentence])
    return found
