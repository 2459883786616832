"""The manifest: workloads, reference values, owners and resources of one application (docs/spec/manifest.md). Pure.

Reading checks everything that one document can show: every name exists, no owner is there twice, every threshold can be
reached, every policy loads. Who had to sign it, and whether it may follow its predecessor, is acceptance.py's matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, Literal

from cloister.appraisal.policy import Policy, load_policy
from cloister.encoding import Record, labelled_hash
from cloister.errors import ManifestError, PolicyError
from cloister.manifest.names import check_names, check_number, check_path, check_succession
from cloister.manifest.owner_key import PublicKey, parse_public_key
from cloister.manifest.quorum import Quorum
from cloister.manifest.signed import MAX_DOCUMENT, decode_canonical

MAX_KEYS: Final = 64
"""Owners; also witnesses, operators, auditors."""
MAX_WORKLOADS: Final = 64
MAX_POLICIES: Final = 64
"""Distinct policies of one document."""
MAX_RESOURCES: Final = 1024


class Workload(Record, frozen=True, kw_only=True):
    """A program of the application: evidence that meets one of the policies is this workload."""

    policies: tuple[str, ...]


class Witnesses(Record, frozen=True, kw_only=True):
    """Who co-signs the broker's tree heads, and how many of them must."""

    keys: dict[str, str]
    threshold: int


class Manifest(Record, frozen=True, kw_only=True):
    """A manifest that passed :func:`parse_manifest`: well formed, signed by nobody yet."""

    format: Literal["cloister/manifest/v1"] = "cloister/manifest/v1"
    application: str
    version: int
    previous: str
    """Digest of the predecessor's document; empty for version 1."""
    issued: int
    owners: dict[str, str]
    update: Quorum
    """Who decides about the next version."""
    broker: tuple[str, ...]
    """Policies of the broker itself; empty when owners pin them elsewhere."""
    workloads: dict[str, Workload]
    resources: dict[str, Quorum]
    """Who decides about the resources below a prefix."""
    witnesses: Literal["none"] | Witnesses
    operators: dict[str, str]
    auditors: dict[str, str]


Policies = Mapping[str, Policy]
"""By the text that they were loaded from."""


def parse_manifest(data: bytes) -> Manifest:
    """Read and check. Raises :class:`~cloister.errors.ManifestError`."""
    return read_manifest(data)[0]


def read_manifest(data: bytes) -> tuple[Manifest, Policies]:
    """As :func:`parse_manifest`, with the policies that were loaded on the way."""
    manifest = decode_canonical(data, Manifest, what="the manifest", limit=MAX_DOCUMENT)
    return manifest, check_manifest(manifest)


def check_manifest(manifest: Manifest) -> Policies:
    """Everything that a manifest alone can show. Raises :class:`~cloister.errors.ManifestError`."""
    check_names([manifest.application], "an application")
    check_succession(manifest.version, manifest.previous, what="a manifest")
    check_number(manifest.issued, what="the time of issue", low=0)
    people = {"an owner": manifest.owners, "an operator": manifest.operators, "an auditor": manifest.auditors}
    for what, keys in people.items():
        named_keys(keys, what)
    if not manifest.owners:
        raise ManifestError("a manifest has at least one owner")
    _check_quorum(manifest.update, manifest.owners, "the next version")
    if len(manifest.resources) > MAX_RESOURCES:
        raise ManifestError(f"a manifest has at most {MAX_RESOURCES} entries of resources")
    for prefix, quorum in manifest.resources.items():
        check_path(prefix, what="a prefix of resources", parts=range(1, 4))
        _check_quorum(quorum, manifest.owners, prefix)
    if isinstance(manifest.witnesses, Witnesses):
        _check_witnesses(manifest.witnesses)
    if len(manifest.workloads) > MAX_WORKLOADS:
        raise ManifestError(f"a manifest has at most {MAX_WORKLOADS} workloads")
    check_names(manifest.workloads, "a workload")
    texts = {f"workload {name}": one.policies for name, one in manifest.workloads.items()}
    for what, policies in texts.items():
        if not policies:
            raise ManifestError(f"{what} has no policy, so nothing could ever be it", todo="give it one")
    return load_policies({**texts, "the broker": manifest.broker})


def load_policies(texts: Mapping[str, Iterable[str]]) -> Policies:
    """Load each policy once. Raises :class:`~cloister.errors.ManifestError` on one that does not load."""
    loaded: dict[str, Policy] = {}
    for what, policies in texts.items():
        seen: set[str] = set()
        for number, text in enumerate(policies, start=1):
            if text not in loaded:
                # Before it is parsed: a bound on work, not only on the outcome.
                if len(loaded) == MAX_POLICIES:
                    raise ManifestError(f"a document has at most {MAX_POLICIES} policies")
                try:
                    loaded[text] = load_policy(text, name=f"policy {number} of {what}")
                except PolicyError as error:
                    raise ManifestError(error.what, todo=error.todo) from None
            if loaded[text].digest in seen:
                raise ManifestError(f"{what} names one policy twice", todo="keep one of them")
            seen.add(loaded[text].digest)
    return loaded


def named_keys(keys: Mapping[str, str], what: str) -> dict[str, PublicKey]:
    """The parsed keys by name. Raises :class:`~cloister.errors.ManifestError`, also if two of them are one key."""
    if len(keys) > MAX_KEYS:
        raise ManifestError(f"there are more than {MAX_KEYS} keys, each of {what}")
    check_names(keys, what)
    parsed = {name: parse_public_key(text) for name, text in keys.items()}
    first: dict[str, str] = {}
    for name, key in parsed.items():
        if key.identity in first:
            raise ManifestError(
                f"{first[key.identity]} and {name} are one key", todo="one key is one person: name it once"
            )
        first[key.identity] = name
    return parsed


def governing(manifest: Manifest, path: str) -> tuple[str, Quorum] | None:
    """The most specific entry over ``path`` (one to three names), and its prefix; None: nobody decides about it."""
    names = path.split("/")
    for count in range(len(names), 0, -1):
        prefix = "/".join(names[:count])
        if prefix in manifest.resources:
            return prefix, manifest.resources[prefix]
    return None


def origin(manifest: Manifest) -> str:
    """What stays the same over all versions of an application: its name and who signed its first one.

    Compute it of version 1, or of a later version whose owners somebody has decided to pin instead.
    """
    return origin_for(
        manifest.application,
        manifest.update.threshold,
        [manifest.owners[name] for name in manifest.update.owners],
    )


def origin_for(application: str, threshold: int, keys: Iterable[str]) -> str:
    """The origin that these key texts, of which ``threshold`` sign, are for ``application``."""
    parts = [application.encode("utf-8"), threshold.to_bytes(8, "big")]
    parts += [key.encode("ascii") for key in sorted(keys)]
    return labelled_hash("cloister/manifest-origin/v1", *parts).hex()


def _check_quorum(quorum: Quorum, owners: Mapping[str, str], what: str) -> None:
    if len(set(quorum.owners)) != len(quorum.owners):
        raise ManifestError(f"an owner is named twice for {what}")
    for name in quorum.owners:
        if name not in owners:
            raise ManifestError(f"{name[:80]!r}, named for {what}, is not one of the owners")
    if not 1 <= quorum.threshold <= len(quorum.owners):
        raise ManifestError(f"the threshold for {what} must be from 1 to the number of its owners")


def _check_witnesses(witnesses: Witnesses) -> None:
    named_keys(witnesses.keys, "a witness")
    count = len(witnesses.keys)
    if not count < 2 * witnesses.threshold <= 2 * count:
        raise ManifestError(
            "more than half of the witnesses must co-sign, and no more than there are",
            todo="otherwise two halves could vouch for two histories",
        )
