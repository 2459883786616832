"""A broker's status in words for people: what it is worth comes first."""

from __future__ import annotations

from cloister.broker.wire import Status

LAPTOP = (
    "LAPTOP MODE: whoever runs this broker knows its passphrase, can read every key and change every rule"
)
UNWITNESSED = "WITNESSES: NONE. A restored copy of its state, or a second broker on a copy, is not found"


def status_words(status: Status) -> list[str]:
    """Lines, warnings first."""
    lines = []
    if status.laptop:
        lines.append(LAPTOP)
    if not status.open:
        if status.log_key:
            lines.append(
                f"waiting for its witnesses: each runs `cloister witness serve --log {status.log_key}`"
            )
        else:
            lines.append(f"locked: {status.have} of {status.need} shares are there")
        return lines
    if status.witnesses == 0:
        lines.append(UNWITNESSED)
    else:
        lines.append(f"witnesses: {status.witnesses} must agree to each start and each counted release")
    lines.append(
        f"application {status.application}, manifest version {status.manifest_version} ({status.manifest})"
    )
    lines.append(f"origin {status.origin}")
    lines.append(f"state {status.state}, log {status.log}, {status.size} entries")
    return lines
