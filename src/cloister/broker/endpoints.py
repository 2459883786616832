"""The table of the broker's own endpoints beside KBS (docs/spec/broker-admin.md): the routes, and OpenAPI, are made
from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import parse_qsl

from cloister.broker.signed_request import EVERYBODY, Role
from cloister.broker.state_key import Share
from cloister.broker.wire import (
    MAX_ENTRIES,
    PREFIX,
    Bundle,
    CertificateAnswer,
    CertificateRequest,
    Done,
    Entries,
    EvidenceAnswer,
    HeadAnswer,
    KeyListing,
    Listing,
    Manifests,
    Next,
    Nonce,
    OrderRequest,
    Progress,
    Proof,
    Status,
    TreeAdvance,
    TreeAnswer,
    Unlock,
)
from cloister.encoding import Record
from cloister.errors import FormatError
from cloister.manifest.signed import Signed

MAX_BODY: Final = 1 << 21
_OWNERS: Final[frozenset[Role]] = frozenset(("owner",))

Access = Literal["public", "session"] | frozenset[Role]
"""Anybody; an attested session; or whoever signs with a key of one of these roles."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One operation. ``query`` names integer parameters and their defaults (None: must be there)."""

    name: str
    method: Literal["GET", "POST"]
    path: str
    access: Access
    summary: str
    answer: type[Record]
    body: type[Record] | None = None
    query: Mapping[str, int | None] = field(default_factory=dict)
    max_body: int = MAX_BODY

    def parse_query(self, text: str) -> Mapping[str, int]:
        """The parameters of a query string, strictly. Raises :class:`FormatError`."""
        given: dict[str, int] = {}
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=8) if text else []
        for name, value in pairs:
            if (
                name not in self.query
                or name in given
                or not (value.isascii() and value.isdigit())
                or len(value) > 12
            ):
                raise FormatError("the query is not what this endpoint reads")
            given[name] = int(value)
        for name, default in self.query.items():
            if name not in given:
                if default is None:
                    raise FormatError(f"the query lacks {name}")
                given[name] = default
        return given


_PATH = "{repository}/{type}/{tag}"
ENDPOINTS: Final[tuple[Endpoint, ...]] = (
    Endpoint("status", "GET", f"{PREFIX}/status", "public", "What this broker is", Status),
    Endpoint(
        "nonce", "POST", f"{PREFIX}/nonce", "public", "A nonce for one signed request", Nonce, max_body=0
    ),
    Endpoint(
        "manifests",
        "GET",
        f"{PREFIX}/manifests",
        "public",
        "Manifests from a version on",
        Manifests,
        query={"from": 1},
    ),
    Endpoint(
        "submit_manifest",
        "POST",
        f"{PREFIX}/manifests",
        "public",
        "Put the next manifest in force",
        Status,
        Signed,
    ),
    Endpoint("submit_rule", "POST", f"{PREFIX}/rules", "public", "Put a rule in force", Next, Signed),
    Endpoint("rule", "GET", f"{PREFIX}/rules/{_PATH}", EVERYBODY, "The rule in force", Signed),
    Endpoint("order", "POST", f"{PREFIX}/orders", "public", "Do what owners ordered", Done, OrderRequest),
    Endpoint(
        "next_order",
        "GET",
        f"{PREFIX}/next/{{action}}/{{rest:path}}",
        EVERYBODY,
        "What an order has to say",
        Next,
    ),
    Endpoint("resources", "GET", f"{PREFIX}/resources", EVERYBODY, "Resources and rules", Listing),
    Endpoint("keys", "GET", f"{PREFIX}/keys", EVERYBODY, "Key-encryption keys", KeyListing),
    Endpoint(
        "share", "POST", f"{PREFIX}/share", _OWNERS, "The owner's share of the state key", Share, max_body=0
    ),
    Endpoint("acknowledge", "POST", f"{PREFIX}/share/kept", _OWNERS, "The owner keeps it", Progress, Signed),
    Endpoint(
        "unlock", "POST", f"{PREFIX}/unlock", "public", "Offer a share to a locked broker", Progress, Unlock
    ),
    Endpoint("head", "GET", f"{PREFIX}/log/head", "public", "The newest tree heads", HeadAnswer),
    Endpoint(
        "entries",
        "GET",
        f"{PREFIX}/log/entries",
        EVERYBODY,
        "Audit entries",
        Entries,
        query={"from": 0, "count": MAX_ENTRIES},
    ),
    Endpoint(
        "inclusion",
        "GET",
        f"{PREFIX}/log/inclusion",
        EVERYBODY,
        "Proof that an entry is in a tree",
        Proof,
        query={"number": None, "size": None},
    ),
    Endpoint(
        "consistency",
        "GET",
        f"{PREFIX}/log/consistency",
        "public",
        "Proof that one tree extends another",
        Proof,
        query={"old": None, "new": None},
    ),
    Endpoint(
        "evidence", "GET", f"{PREFIX}/evidence/{{digest}}", EVERYBODY, "What was attested", EvidenceAnswer
    ),
    Endpoint(
        "certificate",
        "POST",
        f"{PREFIX}/mesh/certificate",
        "session",
        "A mesh certificate for an attested workload",
        CertificateAnswer,
        CertificateRequest,
        max_body=1 << 16,
    ),
    Endpoint("bundle", "GET", f"{PREFIX}/mesh/bundle", "public", "The mesh's trust bundle", Bundle),
    Endpoint(
        "tree", "GET", f"{PREFIX}/trees/{_PATH}", "session", "The newest index of a sealed tree", TreeAnswer
    ),
    Endpoint(
        "record_tree",
        "POST",
        f"{PREFIX}/trees/{_PATH}",
        "session",
        "Record a sealed tree's new index",
        TreeAnswer,
        TreeAdvance,
        max_body=4096,
    ),
)


def schema_types() -> list[Any]:
    """Every record that an endpoint reads or answers."""
    found: list[Any] = []
    for one in ENDPOINTS:
        found += [kind for kind in (one.body, one.answer) if kind is not None and kind not in found]
    return found
