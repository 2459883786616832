"""What the page of owners and auditors shows, as plain records: sentences made here, so that the page only lays out. Pure.

Warnings come first. Every text that is somebody else's passes through :func:`inert`; the page inserts all of it as
text. Times are Unix seconds beside their words, so that nobody has to guess a zone.
"""

from __future__ import annotations

from typing import Final

from cloister.broker.status_words import LAPTOP, UNWITNESSED
from cloister.client.owners_ledger import Ledger
from cloister.client.owners_parts import Card, Key, Person, Version, card, key, people, signer_names, version
from cloister.client.owners_seen import Seen
from cloister.client.owners_words import Fact, Notice, Tone, count, inert, problem_notice, tee_name
from cloister.encoding import Record
from cloister.manifest.words import moment

MAX_CARDS: Final = 500
"""Resources that are shown."""
MAX_VERSIONS: Final = 50
"""Manifests that are shown, the newest."""
SIMULATED: Final = "SIMULATED TEE: real quotes under a false root; nothing here is protected"


class Progress(Record, frozen=True, kw_only=True):
    """There is more to read; ask again."""

    what: str
    have: int
    want: int


class Overview(Record, frozen=True, kw_only=True):
    """The page but for its timeline."""

    title: str
    tone: Tone
    broker: str
    summary: tuple[str, ...]
    notices: tuple[Notice, ...]
    facts: tuple[Fact, ...]
    log: tuple[Fact, ...]
    people: tuple[Person, ...]
    manifests: tuple[Version, ...]
    cards: tuple[Card, ...]
    more_cards: int
    note: str
    """What stands where there are no resources."""
    keys: tuple[Key, ...]
    events: tuple[str, ...]
    workloads: tuple[str, ...]
    reading: Progress | None
    proven: int
    """Entries that the timeline can show."""
    signing: bool
    checked: str


def overview(seen: Seen, ledger: Ledger) -> Overview:
    """Everything that one look showed."""
    manifest = seen.manifest
    paths = ledger.paths() if seen.head is not None else []
    application = manifest.manifest.application if manifest else ""
    shown_cards = tuple(card(path, seen, ledger) for path in paths[:MAX_CARDS])
    return Overview(
        title=inert(application or "Key broker"),
        tone=_tone(seen),
        broker=inert(seen.address),
        summary=_summary(seen, ledger, len(paths)),
        notices=_notices(seen, ledger),
        facts=_facts(seen),
        log=_log(seen, ledger),
        people=people(manifest.manifest) if manifest else (),
        manifests=tuple(version(one) for one in reversed(seen.manifests[-MAX_VERSIONS:])),
        cards=shown_cards,
        more_cards=len(paths) - len(shown_cards),
        note=_note(seen),
        keys=tuple(key(one) for one in seen.keys),
        events=tuple(sorted({name.split(" ")[0] for name in ledger.events})),
        workloads=tuple(sorted({inert(one.workload) for one in ledger.receivers() if one.workload})),
        reading=_progress(seen),
        proven=ledger.size,
        signing=seen.signing,
        checked=moment(seen.now),
    )


def _tone(seen: Seen) -> Tone:
    if seen.alarms or seen.problem:
        return "bad"
    status = seen.status
    if status is None or status.laptop or seen.simulated or not status.open or seen.witnessed.problem:
        return "warn"
    return "good" if status.witnesses and seen.head is not None else "warn"


def _summary(seen: Seen, ledger: Ledger, resources: int) -> tuple[str, ...]:
    """The head of the page: what an auditor writes down first."""
    status = seen.status
    if status is None:
        return ("nothing of this broker was verified",)
    if not status.open:
        waiting = (
            "waits for its witnesses"
            if status.log_key
            else f"{status.have} of {status.need} shares are there"
        )
        return (f"locked: {waiting}",)
    found = ["open"]
    manifest = seen.manifest
    if manifest is not None:
        signers = ", ".join(signer_names(manifest)) or "nobody that it names"
        found.append(f"manifest version {manifest.manifest.version}, signed by {inert(signers)}")
    if seen.head is not None:
        proven = "entries verified" if seen.signing else "entries under a verified head"
        if seen.signing:
            found.insert(1, count(resources, "resource"))
        found.append(f"log: {seen.head.size} {proven}")
        found.append(_witnesses(seen))
    elif seen.problem is not None:
        found.append("log: NOT BELIEVED" if seen.alarms else "log: not verified")
    elif seen.reading is not None:
        found.append(f"log: reading, {seen.reading.have} of {seen.reading.want} entries")
    return tuple(found)


def _progress(seen: Seen) -> Progress | None:
    if seen.reading is None:
        return None
    return Progress(what=seen.reading.what, have=seen.reading.have, want=seen.reading.want)


def _note(seen: Seen) -> str:
    if seen.problem is not None or seen.status is None:
        return "Nothing of this was verified."
    if not seen.status.open:
        return "The broker is locked."
    if not seen.signing:
        return "Asking for them needs the key of an owner or auditor."
    return "There are none." if seen.reading is None else "The log is being read."


def _witnesses(seen: Seen) -> str:
    manifest = seen.manifest
    if manifest is None or manifest.manifest.witnesses == "none":
        return "witnessed by nobody"
    total = len(manifest.manifest.witnesses.keys)
    return f"witnessed by {len(seen.witnessed.names)} of {total}"


def _notices(seen: Seen, ledger: Ledger) -> tuple[Notice, ...]:
    """Warnings, the worst first."""
    found = [
        problem_notice(one.error, before=f"FOUND {moment(one.time)}, and not believed: ")
        for one in seen.alarms
    ]
    status = seen.status
    alarmed = {str(one.error) for one in seen.alarms}
    if seen.problem is not None and str(seen.problem) not in alarmed:
        found.append(problem_notice(seen.problem))
    if seen.simulated:
        found.append(
            Notice(tone="bad", text=f"{SIMULATED}. The broker itself runs in it", todo="never for real keys")
        )
    if status is not None and status.laptop:
        found.append(Notice(tone="bad", text=LAPTOP, todo="for others' keys: a manifest, and owners' shares"))
    if status is not None and status.open and status.witnesses == 0:
        found.append(Notice(tone="bad", text=UNWITNESSED, todo="name witnesses in the next manifest"))
    if seen.witnessed.problem:
        text = f"WITNESSES: {seen.witnessed.problem}"
        found.append(Notice(tone="bad", text=inert(text), todo="ask them what they have seen"))
    if ledger.simulated and seen.head is not None:
        entries = count(ledger.simulated, "entry of the log is", "entries of the log are")
        found.append(Notice(tone="bad", text=f"{entries} of a simulated TEE, which protects nothing"))
    if status is not None and status.open and not seen.pinned:
        text = "Nobody said whose broker this has to be: its owners are the ones that it names itself"
        found.append(Notice(tone="warn", text=text, todo="give --origin or --manifest"))
    if not seen.signing:
        text = "Without a key, the page shows what anybody may see: no resources, no releases"
        found.append(
            Notice(tone="warn", text=text, todo="give --key, --es256 or --ssh of an owner or auditor")
        )
    if seen.head is not None and seen.since is None:
        text = "This is the first visit: there is no older tree head that the log had to extend"
        found.append(Notice(tone="warn", text=text, todo="compare the log key below with one you were given"))
    return tuple(found)


def _facts(seen: Seen) -> tuple[Fact, ...]:
    status = seen.status
    if status is None:
        return ()
    tee = tee_name(seen.tee)
    found = [
        Fact(
            name="runs in",
            value=f"{tee}, simulated: no hardware protects it" if seen.simulated else tee,
            tone="bad" if seen.simulated else "good",
        ),
        Fact(name="accepted under policy", value=seen.policy, code=True),
        Fact(name="state", value=inert(status.state), code=True),
        Fact(
            name="state key",
            value="a passphrase of whoever runs it" if status.laptop else "shares of its owners",
            tone="bad" if status.laptop else "good",
        ),
    ]
    manifest = seen.manifest
    if manifest is not None:
        pinned = "pinned" if seen.pinned else "as the broker says, not pinned"
        found += [
            Fact(name="application", value=inert(manifest.manifest.application)),
            Fact(name=f"origin ({pinned})", value=inert(status.origin), code=True),
            Fact(name="manifest in force", value=manifest.digest, code=True),
        ]
    return tuple(found)


def _log(seen: Seen, ledger: Ledger) -> tuple[Fact, ...]:
    head = seen.head
    if head is None:
        if not ledger.size:
            return ()
        return (
            Fact(
                name="verified before", value=f"{ledger.size} entries; nothing newer is believed", tone="bad"
            ),
        )
    held = "" if len(ledger.held) == ledger.size else f"; the newest {len(ledger.held)} are shown"
    found = [
        Fact(name="size", value=count(head.size, "entry", "entries")),
        Fact(name="newest head", value=moment(head.time)),
        Fact(name="root", value=head.root, code=True),
        Fact(name="log key, whose signature holds", value=inert(seen.log_key), code=True),
    ]
    if seen.signing:
        found.append(Fact(name="verified here", value=f"every entry, from the first on{held}", tone="good"))
    if seen.since is not None:
        text = f"extends the {seen.since.head.size} entries seen on {moment(seen.since.seen)}"
        found.append(Fact(name="since the last visit", value=text, tone="good"))
    else:
        found.append(Fact(name="since the last visit", value="nothing was kept before", tone="warn"))
    names = ", ".join(seen.witnessed.names)
    if names:
        text = f"{names}: the first {seen.witnessed.size} of {head.size} entries"
        found.append(Fact(name="co-signed by", value=inert(text), tone="good"))
    elif seen.witnessed.problem:
        found.append(Fact(name="co-signed by", value=inert(seen.witnessed.problem), tone="bad"))
    else:
        found.append(Fact(name="co-signed by", value="nobody: the manifest names no witnesses", tone="bad"))
    return tuple(found)
