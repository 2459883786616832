"""The parts of the owners' page: people, manifests, resources with their rules in words, keys. Pure."""

from __future__ import annotations

from typing import Final

from cloister.broker.wire import ListedKey
from cloister.client.owners_ledger import NOTHING, Ledger, Received
from cloister.client.owners_seen import InForce, Seen
from cloister.client.owners_words import Tone, inert, tee_name
from cloister.encoding import Record
from cloister.manifest.acceptance import AcceptedManifest
from cloister.manifest.manifest import Manifest, governing
from cloister.manifest.signed import shown
from cloister.manifest.words import manifest_in_words, moment, rule_in_words

MAX_RECEIVERS: Final = 50
"""Workloads that are shown for each resource."""


class Person(Record, frozen=True, kw_only=True):
    """Who is named by the manifest in force, and as what."""

    name: str
    roles: tuple[str, ...]
    key: str


class Version(Record, frozen=True, kw_only=True):
    """One version of the manifest."""

    version: int
    digest: str
    issued: str
    signers: tuple[str, ...]
    words: tuple[str, ...]


class Receiver(Record, frozen=True, kw_only=True):
    """A workload that received a resource; ``number`` is the newest such entry, whose evidence may be shown."""

    workload: str
    purpose: str
    times: int
    last: str
    number: int
    tee: str
    simulated: bool


class Card(Record, frozen=True, kw_only=True):
    """One resource: what is stored, who decides, the rule in words, who received it."""

    uri: str
    stored: str
    tone: Tone
    owners: str
    rule: str
    rule_words: tuple[str, ...]
    rule_digest: str
    released: str
    refused: int
    receivers: tuple[Receiver, ...]
    commands: tuple[str, ...]


class Key(Record, frozen=True, kw_only=True):
    """One version of a key-encryption key, as the broker lists it."""

    name: str
    version: int
    algorithm: str
    state: str
    owner: str
    created: str


def people(manifest: Manifest) -> tuple[Person, ...]:
    """Everybody whom it names; one key is one person."""
    roles: dict[str, list[str]] = {}
    names: dict[str, str] = {}
    witnesses = {} if manifest.witnesses == "none" else manifest.witnesses.keys
    tables = {
        "owner": manifest.owners,
        "auditor": manifest.auditors,
        "operator": manifest.operators,
        "witness": witnesses,
    }
    for role, people in tables.items():
        for name, key in sorted(people.items()):
            names.setdefault(key, name)
            roles.setdefault(key, []).append(role)
    for key, found in roles.items():
        if names[key] in manifest.update.owners and manifest.owners.get(names[key]) == key:
            found.append("decides about the next manifest")
    return tuple(
        Person(name=inert(names[key]), roles=tuple(found), key=shown(key)) for key, found in roles.items()
    )


def version(accepted: AcceptedManifest) -> Version:
    """One link of the verified chain."""
    return Version(
        version=accepted.manifest.version,
        digest=accepted.digest,
        issued=moment(accepted.manifest.issued),
        signers=tuple(inert(name) for name in signer_names(accepted)),
        words=tuple(inert(line) for line in manifest_in_words(accepted.manifest)),
    )


def signer_names(accepted: AcceptedManifest) -> list[str]:
    """Who signed it, by the names that it has for them."""
    names = {key: name for name, key in accepted.manifest.owners.items()}
    return sorted(names.get(one.key, "a former owner") for one in accepted.signed.signatures)


def card(path: str, seen: Seen, ledger: Ledger) -> Card:
    """A resource, out of the proven log and its verified rule."""
    resource = ledger.changes.get(("resource", path))
    rule = seen.rules.get(path)
    ruled = ("rule", path) in ledger.changes
    owner = governing(seen.manifests[-1].manifest, path)
    stored = "nothing is stored"
    if resource is not None:
        destroyed = resource.digest == NOTHING
        stored = (
            f"destroyed (version {resource.version})"
            if destroyed
            else f"version {resource.version} is stored"
        )
    uri = f"kbs:///{path}"
    return Card(
        uri=inert(uri),
        stored=stored,
        tone="warn" if rule is None else "",
        owners=inert(str(owner[1])) if owner else "nobody: the manifest names no owners for it",
        rule=_rule_line(rule, ruled=ruled),
        rule_words=tuple(inert(line) for line in rule_in_words(rule.rule)[1:]) if rule else (),
        rule_digest=rule.signed_digest if rule else "",
        released=_released(rule, ledger),
        refused=ledger.refused[uri],
        receivers=tuple(_receiver(one) for one in ledger.received(path)[:MAX_RECEIVERS]),
        commands=(
            f"cloister manifest rule-new {path} --application {seen.manifests[-1].manifest.application} …",
            f"cloister owner destroy {uri} --broker {inert(seen.address)} …",
        ),
    )


def _rule_line(rule: InForce | None, *, ruled: bool) -> str:
    if rule is None:
        return "there is a rule, which is not verified (yet)" if ruled else "no rule: nobody may read it"
    return (
        f"rule version {rule.rule.version}, signed by {inert(', '.join(rule.signers))} "
        f"under manifest version {rule.manifest_version}"
    )


def _released(rule: InForce | None, ledger: Ledger) -> str:
    if rule is None:
        return ""
    count = ledger.counted[rule.signed_digest]
    of = "" if rule.rule.releases == "unlimited" else f" of {rule.rule.releases}"
    return f"{count}{of} under this rule"


def _receiver(received: Received) -> Receiver:
    entry = received.last
    return Receiver(
        workload=inert(received.workload) or "a policy of the rule itself",
        purpose=inert(entry.purpose),
        times=received.times,
        last=moment(entry.time),
        number=entry.number,
        tee=tee_name(entry.tee),
        simulated=entry.simulated,
    )


def key(one: ListedKey) -> Key:
    """What the verified broker says of a key."""
    return Key(
        name=inert(f"{one.store}/{one.id}"),
        version=one.version,
        algorithm=inert(one.algorithm),
        state=inert(one.state),
        owner=inert(one.owner),
        created=moment(one.created),
    )
