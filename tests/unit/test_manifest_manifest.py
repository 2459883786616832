"""One manifest by itself: what it must not say, who decides about a path, and what its origin is."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec import structs

import manifest_parts as parts
from cloister.encoding import encode_json
from cloister.errors import ManifestError
from cloister.manifest.manifest import Workload, governing, origin, origin_for, parse_manifest
from cloister.manifest.owner_key import ssh_key_text
from cloister.manifest.ssh import ssh_string
from cloister.manifest.words import manifest_in_words
from manifest_parts import keys, manifest, policy_text, quorum, two_witnesses
from spec_vectors import spec_vectors


def test_a_manifest_reads_as_it_was_written() -> None:
    several = [{}, {"witnesses": two_witnesses()}, {"broker": (policy_text("22"),)}, {"workloads": {}}]
    for one in (manifest(**changes) for changes in several):
        assert parse_manifest(encode_json(one)) == one


def alice_by_ssh() -> str:
    point = bytes.fromhex(parts.owner("alice").key.removeprefix("ed25519:"))
    return ssh_key_text(ssh_string(b"ssh-ed25519") + ssh_string(point))


MANY = {f"owner{number}": f"ed25519:{number:064x}" for number in range(65)}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no application": ({"application": ""}, "not a name"),
    "an application with a dot in front": ({"application": ".hidden"}, "not a name"),
    "an application with a slash": ({"application": "a/b"}, "not a name"),
    "a name of 65 characters": ({"application": "a" * 65}, "not a name"),
    "a name of another script": ({"application": "klinikа"}, "not a name"),
    "version 0": ({"version": 0}, "version"),
    "version 1 with a predecessor": ({"previous": "aa" * 32}, "no predecessor"),
    "version 2 without one": ({"version": 2}, "predecessor"),
    "a predecessor in capitals": ({"version": 2, "previous": "AA" * 32}, "predecessor"),
    "issued before time began": ({"issued": -1}, "time of issue"),
    "no owner": ({"owners": {}, "update": quorum("alice"), "resources": {}}, "at least one owner"),
    "too many owners": ({"owners": MANY}, "more than 64"),
    "an owner with a name that is none": ({"owners": {**keys("alice", "bob", "carol"), "d d": ""}}, "not a name"),
    "an owner's key that is none": ({"owners": {**keys("alice", "bob"), "carol": "ed25519:00"}}, "key"),
    "one key under two names": (
        {"owners": {**keys("alice", "bob"), "carol": parts.owner("alice").key}},
        "alice and carol are one key",
    ),
    "one key under two names in two forms": (
        {"owners": {**keys("alice", "bob"), "carol": alice_by_ssh()}},
        "alice and carol are one key",
    ),
    "an update by somebody unknown": ({"update": quorum("alice", "mallory")}, "not one of the owners"),
    "an update by nobody": ({"update": quorum()}, "threshold"),
    "an update by none of them": ({"update": quorum("alice", threshold=0)}, "threshold"),
    "an update that nobody reaches": ({"update": quorum("alice", "bob", threshold=3)}, "threshold"),
    "an update by one owner twice": ({"update": quorum("alice", "alice")}, "twice"),
    "a resource of somebody unknown": ({"resources": {"default": quorum("mallory")}}, "not one of the owners"),
    "a resource that nobody reaches": ({"resources": {"default": quorum("bob", threshold=2)}}, "threshold"),
    "a prefix with four parts": ({"resources": {"a/b/c/d": quorum("bob")}}, "prefix"),
    "an empty prefix": ({"resources": {"": quorum("bob")}}, "prefix"),
    "a prefix with a slash behind": ({"resources": {"default/": quorum("bob")}}, "prefix"),
    "a prefix that climbs": ({"resources": {"default/..": quorum("bob")}}, "prefix"),
    "a prefix that is escaped": ({"resources": {"default%2Fkey": quorum("bob")}}, "prefix"),
    "too many resources": ({"resources": {f"r{number}": quorum("bob") for number in range(1025)}}, "at most 1024"),
    "too many workloads": (
        {"workloads": {f"w{number}": Workload(policies=(policy_text(),)) for number in range(65)}},
        "workloads",
    ),
    "a workload without a policy": ({"workloads": {"inference": Workload(policies=())}}, "no policy"),
    "a policy that is none": ({"workloads": {"inference": Workload(policies=("x = 1",))}}, "policy 1 of workload"),
    "a policy that is not decided": (
        {"broker": (policy_text().replace('rtmr0 = "any"', 'rtmr0 = "DECIDE: which?"'),)},
        "the broker",
    ),
    "one policy twice": (
        {"workloads": {"inference": Workload(policies=(policy_text(), policy_text() + "# again\n"))}},
        "one policy twice",
    ),
    "half of the witnesses": ({"witnesses": two_witnesses(threshold=1)}, "more than half"),
    "more witnesses than there are": ({"witnesses": two_witnesses(threshold=3)}, "more than half"),
    "one witness under two names": (
        {"witnesses": structs.replace(two_witnesses(), keys={**keys("wanda"), "willy": parts.owner("wanda").key})},
        "one key",
    ),
    "one operator under two names": ({"operators": {"a": parts.owner("x").key, "b": parts.owner("x").key}}, "one key"),
    "an auditor without a key": ({"auditors": {"audrey": ""}}, "key"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "why"), REFUSED.values(), ids=REFUSED.keys())
def test_a_manifest_that_contradicts_itself_is_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ManifestError, match=why):
        parse_manifest(encode_json(manifest(**changes)))


def test_more_than_64_different_policies_are_refused_and_one_text_counts_once() -> None:
    texts = [policy_text(f"{number:02x}") for number in range(65)]
    several = {f"w{number}": Workload(policies=(text,)) for number, text in enumerate(texts[:64])}
    parse_manifest(encode_json(manifest(workloads=several, broker=(texts[0],))))
    with pytest.raises(ManifestError, match="at most 64 policies"):
        parse_manifest(encode_json(manifest(workloads=several, broker=(texts[64],))))


def test_a_manifest_over_one_mebibyte_is_refused() -> None:
    padded = policy_text() + "#" * 200_000 + "\n"
    large = {f"w{number}": Workload(policies=(padded + f"# {number}\n",)) for number in range(6)}
    with pytest.raises(ManifestError, match="over its bound"):
        parse_manifest(encode_json(manifest(workloads=large)))


@pytest.mark.parametrize(
    "change", ["white space", "order", "unknown", "missing", "twice", "a float", "another format"]
)
def test_a_manifest_has_one_spelling(change: str) -> None:
    data = encode_json(manifest())
    plain = msgspec.json.decode(data)
    spelt = {
        "white space": data + b" ",
        "order": msgspec.json.encode(dict(reversed(plain.items()))),
        "unknown": encode_json({**plain, "note": ""}),
        "missing": encode_json({name: value for name, value in plain.items() if name != "witnesses"}),
        "twice": data[:-1] + b',"version":1}',
        "a float": data.replace(b'"version":1', b'"version":1.0'),
        "another format": data.replace(b"manifest/v1", b"manifest/v2"),
    }[change]
    with pytest.raises(ManifestError):
        parse_manifest(spelt)


RESOURCES = {
    "default": quorum("alice"),
    "default/key": quorum("bob"),
    "default/key/demo": quorum("carol"),
    "other/key/x": quorum("carol"),
}


class TestGoverning:
    @pytest.mark.parametrize(
        ("path", "prefix"),
        [
            ("default/key/demo", "default/key/demo"),
            ("default/key/demo2", "default/key"),
            ("default/key/dem", "default/key"),
            ("default/keys/demo", "default"),
            ("default/key", "default/key"),
            ("default", "default"),
            ("defaul/key/demo", None),
            ("other/key/y", None),
            ("other", None),
            ("", None),
        ],
    )
    def test_the_longest_prefix_of_whole_names_decides(self, path: str, prefix: str | None) -> None:
        found = governing(manifest(resources=RESOURCES), path)
        assert found == (None if prefix is None else (prefix, RESOURCES[prefix]))


class TestOrigin:
    def test_the_page_and_the_code_agree(self) -> None:
        vector = spec_vectors("manifest.md")
        assert origin_for(vector["application"], vector["threshold"], vector["keys"]) == vector["origin"]

    def test_it_depends_on_who_signs_and_on_nothing_else(self) -> None:
        plain = origin(manifest())
        assert plain == origin(manifest(issued=5, resources={}, operators={}, witnesses=two_witnesses()))
        assert plain == origin(manifest(update=quorum("carol", "alice", "bob", threshold=2)))
        others = [
            manifest(application="other"),
            manifest(update=quorum("alice", "bob", "carol", threshold=3)),
            manifest(update=quorum("alice", "bob", threshold=2)),
            manifest(owners={**keys("alice", "bob"), "carol": parts.owner("mallory").key}),
        ]
        assert len({plain, *map(origin, others)}) == 5


class TestWords:
    def test_everything_that_is_named_is_said(self) -> None:
        one = manifest(witnesses=two_witnesses(), auditors=keys("audrey"), broker=(policy_text("22"),))
        text = "\n".join(manifest_in_words(one))
        for name in ("clinic", "alice", "carol", "inference", "default/key/", "wanda", "oscar", "audrey"):
            assert name in text
        for key in [*one.owners.values(), *one.operators.values()]:
            assert key in text
        assert "2 of alice, bob, carol" in text
        assert "SIMULATED" in text

    def test_what_is_left_open_is_said(self) -> None:
        text = "\n".join(manifest_in_words(manifest(workloads={})))
        assert "No workload is named" in text
        assert "NO WITNESSES" in text
        assert "Nothing is said of the key broker itself" in text
