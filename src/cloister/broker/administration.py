"""What an operator does to a state directory: put a resource, set a rule, list. Each change writes its audit line first."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cloister.appraisal.policy import Policy, load_policy
from cloister.broker.audit import AuditLog, Fact
from cloister.broker.protocol import resource_path
from cloister.broker.store import MAX_POLICIES, MAX_RESOURCE, MAX_RULE, Store
from cloister.errors import FormatError, PolicyError, UsageError
from cloister.sealing.uri import parse_key_uri


@dataclass(frozen=True, slots=True)
class Listed:
    """One resource name: the versions of what is stored and of its rule, 0 where there is none."""

    uri: str
    resource: int
    rule: int


def _wall_clock() -> int:
    return int(time.time())


def parse_path(uri: str) -> str:
    """``repository/type/tag`` of a URI from the command line. Raises :class:`UsageError`."""
    try:
        return resource_path(parse_key_uri(uri))
    except FormatError as error:
        raise UsageError(error.what, todo=error.todo) from None


def read_raw(file: Path) -> bytes:
    """A file's bytes, at most 64 KiB. Raises :class:`UsageError`."""
    return _read(file, MAX_RESOURCE)


def read_rule(file: Path) -> tuple[bytes, Policy]:
    """A policy file and what it says. Raises :class:`UsageError` or :class:`PolicyError`."""
    text = _read(file, MAX_RULE)
    try:
        return text, load_policy(text.decode("utf-8"), name=str(file))
    except UnicodeDecodeError:
        raise PolicyError(f"{file} is not UTF-8 text") from None


def put_resource(
    store: Store, directory: Path, path: str, content: bytes, *, now: Callable[[], int] = _wall_clock
) -> int:
    """Store the next version of a resource; its number."""
    time_ = now()

    def record(version: int) -> None:
        fact = Fact("put", "done", resource=f"kbs:///{path}", reason=f"version {version}")
        AuditLog(directory).append(fact, time_)

    return store.put("resource", path, content, now=time_, before_commit=record)


def put_rule(
    store: Store,
    directory: Path,
    path: str,
    text: bytes,
    policy: Policy,
    *,
    now: Callable[[], int] = _wall_clock,
) -> int:
    """Set the rule of a resource; its version. ``text`` is what ``policy`` was read from."""
    if store.different_rules(path, text) > MAX_POLICIES:
        raise UsageError(
            f"a broker holds at most {MAX_POLICIES} different policies",
            todo="give the same file to resources that share their workloads",
        )
    time_ = now()

    def record(version: int) -> None:
        fact = Fact(
            "policy", "done", resource=f"kbs:///{path}", policy=policy.digest, reason=f"version {version}"
        )
        AuditLog(directory).append(fact, time_)

    return store.put("rule", path, text, now=time_, before_commit=record)


def listing(store: Store) -> list[Listed]:
    """Every name that has a resource or a rule, by name."""
    versions: dict[str, dict[str, int]] = {}
    for entry in store.entries():
        versions.setdefault(entry.path, {})[entry.kind] = entry.version
    return [
        Listed(f"kbs:///{path}", found.get("resource", 0), found.get("rule", 0))
        for path, found in sorted(versions.items())
    ]


def _read(file: Path, limit: int) -> bytes:
    try:
        with file.open("rb") as source:
            content = source.read(limit + 1)
    except OSError as error:
        raise UsageError(f"cannot read {file} ({error.strerror})") from None
    if not 1 <= len(content) <= limit:
        raise UsageError(f"{file} must be 1 to {limit} bytes long")
    return content
