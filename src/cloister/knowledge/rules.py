"""Who may see which documents: the rules that are measured with a serving workload (docs/spec/knowledge-service.md). Pure.

A user is a name with the SHA-256 of an API key. Since the rules are part of what is attested, whoever runs the machine can
neither add a user nor open a collection without every client seeing another workload; so a key's digest is here, not in a
file of the operator's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Final, Literal

from msgspec import Meta, structs

from cloister.broker.mesh_request import dns_name
from cloister.encoding import Record, decode_json, encode_json, labelled_hash
from cloister.errors import FormatError, UsageError
from cloister.sealing.uri import parse_key_uri

FORMAT: Final = "cloister/knowledge-rules/v1"
LABEL: Final = "cloister/knowledge-rules/v1"
MAX_RULES: Final = 1 << 20
MAX_USERS: Final = 4096
MAX_COLLECTIONS: Final = 1024
USUAL_KEY: Final = "kbs:///default/knowledge/index"
USUAL_NEARNESS: Final = 30
"""Hundredths of a cosine, for all-MiniLM-L6-v2 and English; `make bench SECTION=knowledge_answers` tells how it divides."""
_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")

Users = Annotated[tuple[str, ...], Meta(max_length=MAX_USERS)]


class Rights(Record, frozen=True, kw_only=True):
    """Of one collection."""

    readers: Users = ()
    """Users whose questions it may answer."""
    writers: Users = ()
    """Users who may add and remove documents; they may ask as well."""


class Server(Record, frozen=True, kw_only=True):
    """Another workload of the mesh, which keeps the documents in place of the index in memory."""

    kind: str = "pgvector"
    """The plugin that speaks to it (:mod:`cloister.knowledge.stores`)."""
    application: str
    """As the owners' manifest names it."""
    workload: str
    """Who the server must be."""
    own: str
    """Who this service is in that manifest, and its user's name to the server."""
    database: str = "documents"

    @property
    def name(self) -> str:
        """What its certificate has to show. Raises CsrRefused."""
        return dns_name(self.workload, self.application)


class Rules(Record, frozen=True, kw_only=True):
    """What is measured."""

    format: Literal["cloister/knowledge-rules/v1"] = FORMAT
    index_key: str = USUAL_KEY
    """Where the broker has the key of the index."""
    least_nearness: Annotated[int, Meta(ge=0, le=100)] = USUAL_NEARNESS
    """Hundredths of a cosine: passages that are farther from a question do not answer it."""
    rerank: Annotated[int, Meta(ge=0, le=32)] = 0
    """Passages that the served model puts in order before the best answer; none, since it reads each of them for it."""
    server: Server | None = None
    """Who keeps the documents, if this service does not."""
    users: Annotated[dict[str, str], Meta(max_length=MAX_USERS)]
    """SHA-256 of each user's API key, 64 lower-case hexadecimal digits."""
    collections: Annotated[dict[str, Rights], Meta(max_length=MAX_COLLECTIONS)]

    @property
    def digest(self) -> bytes:
        """32 bytes: what is measured."""
        return labelled_hash(LABEL, encode_json(self))

    def user_of(self, identity: bytes | None) -> str | None:
        """The user whose API key has the digest ``identity``."""
        if identity is None:
            return None
        return next((name for name, digest in self.users.items() if digest == identity.hex()), None)

    def readable(self, user: str | None) -> frozenset[str]:
        """Collections that may answer this user."""
        return frozenset(
            name
            for name, rights in self.collections.items()
            if user is not None and user in (*rights.readers, *rights.writers)
        )

    def writable(self, user: str | None) -> frozenset[str]:
        return frozenset(
            name for name, rights in self.collections.items() if user is not None and user in rights.writers
        )


def parse_rules(data: bytes) -> Rules:
    """Strict, and nothing that could not be meant. Raises :class:`FormatError`, :class:`UsageError`."""
    rules = decode_json(data, Rules, what="the knowledge rules", limit=MAX_RULES)
    check_rules(rules)
    return rules


def check_rules(rules: Rules) -> None:
    """Raise :class:`UsageError` for rules that name what is not there, or one key twice."""
    parse_key_uri(rules.index_key)
    if rules.server is not None:
        check_server(rules.server)
    for what, names in (("user", rules.users), ("collection", rules.collections)):
        for name in names:
            check_name(name, what=what)
    digests = tuple(rules.users.values())
    for digest in digests:
        if not _DIGEST.fullmatch(digest):
            raise UsageError("the digest of an API key has 64 lower-case hexadecimal digits")
    if len(set(digests)) != len(digests):
        raise UsageError("two users have the same API key", todo="give each a key of their own")
    for name, rights in rules.collections.items():
        unknown = sorted({*rights.readers, *rights.writers} - set(rules.users))
        if unknown:
            raise UsageError(f"the collection {name} names {unknown[0]}, who is no user")
        for users in (rights.readers, rights.writers):
            if len(set(users)) != len(users):
                raise UsageError(f"the collection {name} names a user twice")


def check_server(server: Server) -> None:
    """Raise :class:`UsageError` for a server that cannot be in a mesh."""
    for what, name in (("kind of server", server.kind), ("database", server.database)):
        check_name(name, what=what)
    try:
        for workload in (server.workload, server.own):
            dns_name(workload, server.application)
    except FormatError as error:
        raise UsageError(error.what, todo=error.todo) from None


def check_name(name: str, *, what: str) -> None:
    """Raise :class:`UsageError` for what cannot name a user or a collection."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name[:64]!r} cannot name a {what}",
            todo="1 to 64 of a-z, 0-9, dot, dash and underscore, the first and last no mark",
        )


def with_user(
    rules: Rules, name: str, digest: bytes | None, *, reads: frozenset[str], writes: frozenset[str]
) -> Rules:
    """``rules`` in which ``name`` may read and write these collections too, which begin where they are not.

    ``digest`` is of a new user's API key, or of the next one of a user who is there. Raises :class:`UsageError`.
    """
    if digest is None and name not in rules.users:
        raise UsageError(f"{name} is no user yet", todo="name the file that the new API key goes into")
    users = dict(rules.users) | ({} if digest is None else {name: digest.hex()})
    collections = dict(rules.collections)
    for collection in sorted(reads | writes):
        rights = collections.get(collection, Rights())
        collections[collection] = Rights(
            readers=_with(rights.readers, name, collection in reads - writes),
            writers=_with(rights.writers, name, collection in writes),
        )
    return _checked(rules, users, collections)


def without_user(rules: Rules, name: str) -> Rules:
    """``rules`` that do not know ``name``. Raises :class:`UsageError`."""
    if name not in rules.users:
        raise UsageError(f"{name} is no user")
    users = {user: digest for user, digest in rules.users.items() if user != name}
    collections = {
        collection: Rights(
            readers=tuple(user for user in rights.readers if user != name),
            writers=tuple(user for user in rights.writers if user != name),
        )
        for collection, rights in rules.collections.items()
    }
    return _checked(rules, users, collections)


def _with(users: tuple[str, ...], name: str, wanted: bool) -> tuple[str, ...]:
    return tuple(sorted({*users, name})) if wanted else users


def _checked(rules: Rules, users: Mapping[str, str], collections: Mapping[str, Rights]) -> Rules:
    found = structs.replace(
        rules, users=dict(sorted(users.items())), collections=dict(sorted(collections.items()))
    )
    check_rules(found)
    return found


def read_rules(data: bytes, *, name: str) -> Rules:
    """As :func:`parse_rules`, for a file of the user's own. Raises :class:`UsageError`."""
    try:
        return parse_rules(data)
    except FormatError as error:
        raise UsageError(
            f"{name}: {error.what}", todo="`cloister knowledge grant` writes such files"
        ) from None
