"""Drafts: the TOML text of a policy that is pinned to given values.

For `cloister measure` and for tests; draft_observed.py drafts from evidence. A draft is text for a person to read and
keep: it goes through :func:`~cloister.appraisal.policy.load_policy` before it is returned, so that what is written can
be read. Nothing is left out silently: a measurement that is not given has to be given as ``"any"``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from cloister.appraisal.policy import FORMAT, load_policy
from cloister.appraisal.reference_intel import TDX_MEASUREMENTS, Platform
from cloister.errors import PolicyError
from cloister.evidence.bundle import TeeKind
from cloister.evidence.eventlog import LaunchEvent

DEFAULT_MAX_AGE = 3600

Reference = bytes | Sequence[bytes] | Literal["any"]


def draft_policy(
    *,
    tee: TeeKind,
    measurements: Mapping[str, Reference],
    events: Iterable[LaunchEvent] = (),
    min_tcb_evaluation_number: int,
    accepted_statuses: Sequence[str] = ("UpToDate",),
    simulated_root: str | None = None,
    out_of_date_grace_seconds: int | None = None,
    platform: Platform | None = None,
    max_age_seconds: int = DEFAULT_MAX_AGE,
    title: str = "",
) -> str:
    """A policy for one kind of TEE that accepts exactly these values.

    ``measurements`` are raw digests by name: ``mrtd`` and ``rtmr0`` … ``rtmr3`` for TDX, ``mrenclave`` for SGX
    (others are left out there). The same event name may be given several times, once for each accepted payload.
    ``simulated_root`` is the digest of a simulated platform's root, hexadecimal.
    Raises :class:`~cloister.errors.PolicyError`.
    """
    lines = [f"# {_printable(line)}".rstrip() for line in title.splitlines()]
    if simulated_root is not None:
        lines.append("# SIMULATED TEE: no hardware protects what this policy accepts.")
    lines += [
        f"format = {_text(FORMAT)}",
        f"max_age_seconds = {max_age_seconds}",
        "",
        "[tcb]",
        f"min_evaluation_number = {min_tcb_evaluation_number}",
        f"accepted_statuses = [{', '.join(_text(status) for status in accepted_statuses)}]",
    ]
    if out_of_date_grace_seconds is not None:
        lines.append(f"out_of_date_grace_seconds = {out_of_date_grace_seconds}")
    if platform is not None and platform != Platform():
        lines += ["", "[platform]"]
        for field in ("allow_dynamic_platform", "allow_cached_keys", "allow_smt"):
            lines.append(f"{field} = {'true' if getattr(platform, field) else 'false'}")
    if simulated_root is not None:
        lines += ["", "[roots]", f"simulated = {_text(simulated_root)}"]
    lines += ["", f"[{tee}]"]
    names = TDX_MEASUREMENTS if tee == "tdx" else ("mrenclave",)
    for name in names:
        if name not in measurements:
            raise PolicyError(f"a draft for {tee} needs {name}", todo='give its digest, or "any"')
        lines.append(f"{name} = {_reference(measurements[name])}")
    lines += _events(tee, events)
    text = "\n".join(lines) + "\n"
    load_policy(text, name="draft policy")
    return text


def render_policy(document: Mapping[str, object], *, title: str = "") -> str:
    """The TOML text of ``document``: scalars and lists of texts first, then its tables, each under its header."""
    lines = [f"# {_printable(line)}".rstrip() for line in title.splitlines()]
    lines += _table(document, ())
    return "\n".join(lines) + "\n"


def _table(table: Mapping[str, object], path: tuple[str, ...]) -> list[str]:
    own = [
        f"{_key(name)} = {_value(value)}" for name, value in table.items() if not isinstance(value, Mapping)
    ]
    lines = [*(["", f"[{'.'.join(_key(part) for part in path)}]"] if path and own else []), *own]
    for name, value in table.items():
        if isinstance(value, Mapping):
            lines += _table(value, (*path, name))
    return lines


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _text(name)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return f"[{', '.join(_text(item) for item in value)}]"
    raise PolicyError(f"a draft cannot say a {type(value).__name__}")


def _events(tee: TeeKind, events: Iterable[LaunchEvent]) -> list[str]:
    payloads: dict[str, list[str]] = {}
    for event in events:
        payloads.setdefault(event.name, []).append(event.payload.hex())
    # An enclave's launch is inside MRENCLAVE: it has no register that events could replay to.
    if not payloads or tee == "sgx":
        return []
    lines = ["", f"[{tee}.events]"]
    for name, values in payloads.items():
        lines.append(f"{_text(name)} = [{', '.join(_text(value) for value in dict.fromkeys(values))}]")
    return lines


def _reference(value: Reference) -> str:
    if isinstance(value, str):
        return _text(value)
    values = [value] if isinstance(value, bytes) else value
    return f"[{', '.join(_text(item.hex()) for item in values)}]"


def _text(value: str) -> str:
    """A TOML basic string: JSON's escapes of control characters are a subset of TOML's, once DEL is escaped too."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _printable(line: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in line)
