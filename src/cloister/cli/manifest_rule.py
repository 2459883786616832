"""A rule out of the options of ``cloister manifest rule-new``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from cloister.errors import UsageError
from cloister.manifest.rule import Rule, Window, check_rule, parse_rule

if TYPE_CHECKING:
    from cloister.manifest.signed import Signed


def drafted_rule(
    resource: str,
    *,
    application: str,
    workloads: list[str],
    policies: list[str],
    purposes: list[str],
    window: tuple[str | None, str | None],
    releases: str,
    previous: Signed | None,
) -> Rule:
    """The rule, checked. Raises :class:`UsageError`, :class:`~cloister.errors.ManifestError`."""
    version, digest = 1, ""
    if previous is not None:
        before = parse_rule(previous.document)
        if (before.application, before.resource) != (application, resource):
            raise UsageError(
                f"the predecessor is the rule of {before.resource} in {before.application}",
                todo="name the signed rule of the same resource",
            )
        version, digest = before.version + 1, previous.digest
    rule = Rule(
        application=application,
        resource=resource,
        version=version,
        previous=digest,
        workloads=_workloads(workloads),
        policies=tuple(policies),
        purposes=tuple(purposes) or "any",
        window=_window(*window),
        releases=_releases(releases),
    )
    check_rule(rule)
    return rule


def _workloads(written: list[str]) -> dict[str, Literal["manifest"] | tuple[str, ...]]:
    found: dict[str, Literal["manifest"] | tuple[str, ...]] = {}
    for one in written:
        name, pinned, digest = one.partition("=")
        before = found.get(name)
        if not pinned and before is None:
            found[name] = "manifest"
        elif pinned and before != "manifest":
            found[name] = (*(before or ()), digest)
        else:
            raise UsageError(
                f"--workload {name} is given in two ways", todo="give a name once, or each time with =DIGEST"
            )
    return found


def _window(start: str | None, end: str | None) -> Literal["always"] | Window:
    if start is None and end is None:
        return "always"
    if start is None or end is None:
        raise UsageError("a window has a start and an end", todo="give --not-before and --not-after")
    return Window(not_before=_time(start, "--not-before"), not_after=_time(end, "--not-after"))


def _time(written: str, option: str) -> int:
    from cloister.cli.verify import parse_time

    try:
        return parse_time(written)
    except UsageError as error:
        raise UsageError(f"{option} is no time", todo=error.todo) from None


def _releases(written: str) -> Literal["unlimited"] | int:
    if written == "unlimited":
        return "unlimited"
    if not written.isascii() or not written.isdigit() or len(written) > 15:
        raise UsageError("--releases is not a number", todo="write a number, or unlimited")
    return int(written)
