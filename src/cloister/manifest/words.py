"""A manifest and a rule in sentences, for owners and auditors before they sign. Pure; nothing here decides.

Every field is spoken of, also when it holds nobody back: what is left open is said first of all.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from cloister.appraisal.explain import summary
from cloister.appraisal.policy import load_policy
from cloister.manifest.manifest import Manifest
from cloister.manifest.order import Order
from cloister.manifest.rule import Rule, Window
from cloister.manifest.signed import shown

_ACTS = {
    "put": "stores a new content of",
    "destroy": "destroys, for ever,",
    "rotate-key": "renews the key-encryption key of",
    "destroy-key": "destroys, for ever, the key-encryption key of",
    "reset-tree": "forgets which index of the writable tree is the newest, under",
}


def manifest_in_words(manifest: Manifest) -> list[str]:
    """One sentence for each thing that a manifest decides."""
    lines = [
        f"Version {manifest.version} of the application {manifest.application}, issued {moment(manifest.issued)}, "
        + (f"follows the document {manifest.previous}." if manifest.previous else "is its first.")
    ]
    lines += [
        f"{name} is the owner with the key {shown(key)}." for name, key in sorted(manifest.owners.items())
    ]
    lines.append(f"The next version must be signed by {manifest.update}.")
    for name, workload in sorted(manifest.workloads.items()):
        lines += [f"A program is {name} if its evidence meets {_policy(text)}." for text in workload.policies]
    if not manifest.workloads:
        lines.append("No workload is named: only rules with policies of their own let a program read.")
    lines += [f"The key broker itself must meet {_policy(text)}." for text in manifest.broker]
    if not manifest.broker:
        lines.append("Nothing is said of the key broker itself: owners have to pin its policy elsewhere.")
    for prefix, quorum in sorted(manifest.resources.items()):
        lines.append(f"Who may read {_below(prefix)} is decided by {quorum}.")
    lines.append(
        "The longest of these decides; every other resource is decided by nobody, so nobody reads it."
    )
    if manifest.witnesses == "none":
        lines.append(
            "NO WITNESSES: who runs the broker's machine can bring back an old state of it, or run two, unnoticed."
        )
    else:
        lines.append(
            f"Tree heads of the broker count when {manifest.witnesses.threshold} of "
            f"{', '.join(sorted(manifest.witnesses.keys))} co-signed them."
        )
        lines += _keys("is a witness", manifest.witnesses.keys)
    lines += _keys("may operate the broker", manifest.operators) or [
        "Nobody but owners may operate the broker."
    ]
    lines += _keys("may read the audit log", manifest.auditors) or [
        "Nobody but owners may read the audit log."
    ]
    return lines


def rule_in_words(rule: Rule) -> list[str]:
    """One sentence for each thing that a rule decides."""
    lines = [
        f"Version {rule.version} of the rule of {rule.resource}, in {rule.application}, "
        + (f"follows the document {rule.previous}." if rule.previous else "is its first.")
    ]
    for name, pinned in sorted(rule.workloads.items()):
        if pinned == "manifest":
            lines.append(f"{name} may read it, with whatever reference values the manifest has for {name}.")
        else:
            lines.append(f"{name} may read it, but only under the policies {', '.join(pinned)}.")
    lines += [f"Any program may read it whose evidence meets {_policy(text)}." for text in rule.policies]
    lines.append(
        "It may be read for any purpose."
        if rule.purposes == "any"
        else f"It may be read for these purposes only: {', '.join(rule.purposes)}."
    )
    lines.append(
        f"It may be read from {moment(rule.window.not_before)} until {moment(rule.window.not_after)}."
        if isinstance(rule.window, Window)
        else "It may be read at any time."
    )
    lines.append(
        "It may be read any number of times."
        if rule.releases == "unlimited"
        else f"It may be read {rule.releases} {'time' if rule.releases == 1 else 'times'} in all."
    )
    return lines


def order_in_words(order: Order) -> list[str]:
    """What an order does."""
    content = f" The content has the SHA-256 {order.content_sha256}." if order.content_sha256 else ""
    return [
        f"An order of {order.application} to the broker {order.broker}: it {_ACTS[order.action]} {order.subject}, "
        f"which is then at version {order.version}.{content}"
    ]


def moment(seconds: int) -> str:
    """A UTC time for people."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):
        return f"{seconds} (Unix seconds)"


def _keys(what: str, keys: Mapping[str, str]) -> list[str]:
    return [f"{name} {what}, with the key {shown(key)}." for name, key in sorted(keys.items())]


def _below(prefix: str) -> str:
    return prefix if prefix.count("/") == 2 else f"what is below {prefix}/"


def _policy(text: str) -> str:
    policy = load_policy(text, name="a policy")
    return f"the policy {policy.digest}, which {summary(policy)}"
