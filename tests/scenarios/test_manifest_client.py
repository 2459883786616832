"""A client that pins who signs instead of what runs: model updates break nobody, and nothing old or foreign gets in.

Real sockets, the simulated TEE, the product's own gateway; the manifest travels in the clear, as anybody can send it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from msgspec import structs

import cloister
from cloister.appraisal.draft import draft_policy
from cloister.attester.simulated import SimulatedTee
from cloister.channel import httpx_adapter
from cloister.channel.keyring import KeyRing
from cloister.channel.manifest_anchor import Anchored, ManifestAnchor
from cloister.channel.receipt_file import ReceiptFile, parse_file
from cloister.encoding import encode_json
from cloister.errors import (
    AppraisalRefused,
    ChannelError,
    CloisterError,
    FormatError,
    ManifestError,
    QuorumMissing,
    SignatureRefused,
    Superseded,
    UsageError,
)
from cloister.manifest.acceptance import AcceptedManifest
from cloister.manifest.manifest import Manifest, Workload, origin
from cloister.manifest.signed import Signed, encode_signed, sign
from cloister.manifest.storage import write_signed
from federation_site import invoked
from manifest_parts import accepted, keys, manifest, owner, quorum, signed, succeed
from proxy import Meddler, Proxy
from sealed_service import Service, launched, platform, running

OLD, NEW, OTHER = (bytes([number]) * 32 for number in (1, 2, 3))
MANIFEST = "/.well-known/cloister-manifest"


def policy_of(program: bytes) -> str:
    """Exactly this program on the test platform."""
    tee = launched(program)
    return draft_policy(
        tee="tdx",
        measurements=tee.measurements,
        events=tee.launch,
        min_tcb_evaluation_number=1,
        simulated_root=platform().root_sha256,
    )


def runs(*programs: bytes) -> dict[str, Workload]:
    return {"inference": Workload(policies=tuple(map(policy_of, programs)))}


@pytest.fixture(scope="module")
def first() -> AcceptedManifest:
    return accepted(manifest(workloads=runs(OLD)))


@pytest.fixture(scope="module")
def second(first: AcceptedManifest) -> AcceptedManifest:
    """The model was updated: other measurements."""
    return succeed(first, ["alice", "carol"], workloads=runs(NEW))


def anchor(**changes: Any) -> ManifestAnchor:
    plain: dict[str, Any] = {
        "origin": origin(manifest()),
        "owners": list(keys("alice", "bob", "carol").values()),
        "threshold": 2,
        "workload": "inference",
    }
    return ManifestAnchor(**{**plain, **changes})


class Shelf:
    """What a workload shows as its manifest; it can be exchanged while it runs."""

    def __init__(self, signed: Signed | bytes | None) -> None:
        self.signed = signed

    def __call__(self) -> bytes | None:
        return encode_signed(self.signed) if isinstance(self.signed, Signed) else self.signed


def serving(tee: SimulatedTee, shown: Any) -> Any:
    return running(tee=tee, manifest=shown if callable(shown) else Shelf(shown))


def talk(url: str, **who: Any) -> None:
    with cloister.connect(url, **who) as client:
        assert client.post("/echo", content=b"hello").content == b"hello"


class TestModelUpdate:
    def test_new_measurements_under_version_2_are_accepted_and_version_1_never_again(
        self, first: AcceptedManifest, second: AcceptedManifest, tmp_path: Path
    ) -> None:
        mine = anchor(floor_file=tmp_path / "floor.json")
        with serving(launched(OLD), first.signed) as service:
            talk(service.url, manifest=mine)
        with serving(launched(NEW), second.signed) as service:
            talk(service.url, manifest=mine)  # nothing changed on the client's side
        with (
            serving(launched(OLD), first.signed) as service,
            pytest.raises(Superseded, match="version 1 of the manifest was shown, and 2"),
        ):
            talk(service.url, manifest=mine)

    def test_both_run_while_an_update_is_rolled_out(self, first: AcceptedManifest) -> None:
        both = succeed(first, ["alice", "carol"], workloads=runs(OLD, NEW))
        for program in (OLD, NEW):
            with serving(launched(program), both.signed) as service:
                talk(service.url, manifest=anchor())

    def test_a_living_client_takes_the_new_version_when_keys_rotate(self, first: AcceptedManifest) -> None:
        shelf = Shelf(first.signed)
        third = succeed(
            succeed(first, ["alice", "carol"], workloads=runs(OLD, NEW)),
            ["bob", "carol"],
            workloads=runs(OTHER),
        )
        with (
            serving(launched(OLD), shelf) as service,
            cloister.connect(service.url, manifest=anchor()) as client,
        ):
            assert client.post("/echo", content=b"one").content == b"one"
            shelf.signed = succeed(first, ["alice", "carol"], workloads=runs(OLD, NEW)).signed
            service.keyring.rotate(revoke=True)
            assert client.post("/echo", content=b"two").content == b"two"
            shelf.signed = first.signed
            service.keyring.rotate(revoke=True)
            with pytest.raises(Superseded):
                client.post("/echo", content=b"secret")
            shelf.signed = third.signed  # the owners withdrew this program
            with pytest.raises(AppraisalRefused):
                client.post("/echo", content=b"secret")
        assert [asked.body for asked in service.asked] == [b"one", b"two"]

    def test_the_asynchronous_and_the_older_client_do_the_same(
        self, first: AcceptedManifest, second: AcceptedManifest, tmp_path: Path
    ) -> None:
        mine = anchor(floor_file=tmp_path / "floor.json")

        async def ask(url: str) -> bytes:
            async with cloister.connect_async(url, manifest=mine) as client:
                return (await client.post("/echo", content=b"hello")).content

        with serving(launched(NEW), second.signed) as service:
            assert asyncio.run(ask(service.url)) == b"hello"
            with httpx_adapter.connect(service.url, manifest=mine) as client:
                assert client.post("/echo", content=b"hello").content == b"hello"
        with serving(launched(OLD), first.signed) as service:
            with pytest.raises(Superseded):
                asyncio.run(ask(service.url))
            with pytest.raises(Superseded):
                httpx_adapter.connect(service.url, manifest=mine)


def foreign() -> Signed:
    """Mallory's own application of the same name, with the program that really runs."""
    fake = manifest(owners=keys("mallory"), update=quorum("mallory"), resources={}, workloads=runs(OLD))
    return signed(fake, "mallory")


def mixed(first: AcceptedManifest) -> Signed:
    """Mallory adds herself to what two owners signed."""
    genuine = signed(first.manifest, "alice", "carol")
    return sign("manifest", genuine.document, [owner("mallory")], existing=genuine.signatures)


def forged(first: AcceptedManifest) -> Signed:
    """The owners' signatures, under a document that allows another program."""
    other = structs.replace(first.manifest, workloads=runs(OLD, OTHER))
    return Signed(document=encode_json(other), signatures=first.signed.signatures)


def twice(first: AcceptedManifest) -> Signed:
    one = signed(first.manifest, "alice")
    return structs.replace(one, signatures=one.signatures * 2)


def renamed(first: AcceptedManifest) -> Signed:
    other: Manifest = structs.replace(first.manifest, workloads={"training": runs(OLD)["inference"]})
    return signed(other, "alice", "bob")


ATTACKS: dict[str, tuple[Callable[[AcceptedManifest], Signed | bytes | None], type[CloisterError], str]] = {
    "signed by too few": (lambda it: signed(it.manifest, "alice"), QuorumMissing, "1 of the pinned owners"),
    "signed by nobody": (lambda it: signed(it.manifest), QuorumMissing, "0 of the pinned owners"),
    "signed by the operator": (lambda it: signed(it.manifest, "alice", "oscar"), QuorumMissing, "signed by 1"),
    "one owner twice": (twice, SignatureRefused, "twice"),
    "signatures of another document": (forged, SignatureRefused, "does not verify"),
    "another application of a stranger": (lambda _: foreign(), ManifestError, "signed by 0"),
    "another application of the same owners": (
        lambda it: signed(structs.replace(it.manifest, application="other"), "alice", "bob"),
        ManifestError,
        "not of the origin",
    ),
    "signed as a rule": (
        lambda it: sign("rule", it.signed.document, [owner("alice"), owner("bob")]),
        SignatureRefused,
        "does not verify",
    ),
    "without the workload": (renamed, ManifestError, "no workload inference"),
    "no manifest": (lambda _: None, ManifestError, "status 404"),
    "no document": (lambda _: b"{}", ManifestError, "signed document"),
    "endless": (lambda _: bytes(2_000_000), FormatError, "over its bound"),
}  # fmt: skip


class TestAttacks:
    @pytest.mark.parametrize(("attack", "error", "why"), ATTACKS.values(), ids=ATTACKS.keys())
    def test_a_manifest_that_the_pinned_owners_did_not_sign_is_refused(
        self,
        first: AcceptedManifest,
        attack: Callable[[AcceptedManifest], Signed | bytes | None],
        error: type[CloisterError],
        why: str,
    ) -> None:
        with serving(launched(OLD), attack(first)) as service:
            with pytest.raises(error, match=why):
                talk(service.url, manifest=anchor())
            assert service.asked == []

    def test_a_stranger_who_signs_too_counts_for_nothing_and_breaks_nothing(
        self, first: AcceptedManifest
    ) -> None:
        with serving(launched(OLD), mixed(first)) as service:
            talk(service.url, manifest=anchor())
            three = origin(manifest(update=quorum("alice", "bob", "carol")))
            with pytest.raises(QuorumMissing, match="signed by 2"):
                talk(service.url, manifest=anchor(threshold=3, origin=three))

    def test_a_program_that_the_manifest_does_not_have_is_refused_with_each_reason(
        self, first: AcceptedManifest
    ) -> None:
        both = succeed(first, ["alice", "carol"], workloads=runs(OLD, NEW))
        with (
            serving(launched(OTHER), both.signed) as service,
            pytest.raises(AppraisalRefused, match=r"none of the 2 policies.*1\. .*2\. "),
        ):
            talk(service.url, manifest=anchor())

    def test_a_manifest_below_the_floor_is_refused_on_first_sight(
        self, first: AcceptedManifest, second: AcceptedManifest
    ) -> None:
        with serving(launched(OLD), first.signed) as service, pytest.raises(Superseded):
            talk(service.url, manifest=anchor(floor=2))
        with serving(launched(NEW), second.signed) as service:
            talk(service.url, manifest=anchor(floor=2))

    def test_two_manifests_of_one_version_are_a_fork(self, first: AcceptedManifest, tmp_path: Path) -> None:
        mine = anchor(floor_file=tmp_path / "floor.json")
        with serving(launched(OLD), first.signed) as service:
            talk(service.url, manifest=mine)
        fork = signed(structs.replace(first.manifest, workloads=runs(OLD, OTHER)), "alice", "bob")
        with (
            serving(launched(OTHER), fork) as service,
            pytest.raises(Superseded, match="two different manifests"),
        ):
            talk(service.url, manifest=mine)

    def test_a_damaged_floor_is_not_begun_anew(self, first: AcceptedManifest, tmp_path: Path) -> None:
        file = tmp_path / "floor.json"
        with serving(launched(OLD), first.signed) as service:
            talk(service.url, manifest=anchor(floor_file=file))
            file.write_bytes(file.read_bytes()[:-5])
            with pytest.raises(UsageError, match="damaged"):
                talk(service.url, manifest=anchor(floor_file=file))

    def test_the_floor_of_another_application_is_not_taken(
        self, first: AcceptedManifest, tmp_path: Path
    ) -> None:
        file = tmp_path / "floor.json"
        with serving(launched(OLD), first.signed) as service:
            talk(service.url, manifest=anchor(floor_file=file))
            other = origin(manifest(application="other"))
            with pytest.raises(UsageError, match="another origin"):
                talk(service.url, manifest=anchor(floor_file=file, origin=other))

    def test_what_another_process_saw_meanwhile_counts(
        self, first: AcceptedManifest, second: AcceptedManifest, tmp_path: Path
    ) -> None:
        mine = anchor(floor_file=tmp_path / "floor.json")
        with (
            serving(launched(OLD), first.signed) as old,
            serving(launched(NEW), second.signed) as new,
            cloister.connect(old.url, manifest=mine) as client,
        ):
            talk(new.url, manifest=mine)
            old.keyring.rotate(revoke=True)
            with pytest.raises(Superseded):
                client.post("/echo", content=b"secret")
            assert old.asked == []


@pytest.fixture
def service(first: AcceptedManifest) -> Iterator[Service]:
    with serving(launched(OLD), first.signed) as it:
        yield it


class TestEndpoint:
    def test_the_manifest_is_shown_as_it_was_given(self, service: Service, first: AcceptedManifest) -> None:
        answer = httpx2.get(service.url + MANIFEST)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
        assert answer.content == encode_signed(first.signed)

    def test_nothing_else_can_be_done_there(self, service: Service) -> None:
        for method in ("POST", "PUT", "DELETE"):
            assert httpx2.request(method, service.url + MANIFEST).status_code == 405
        assert httpx2.get(service.url + MANIFEST + "/x").status_code == 403

    def test_a_workload_without_a_manifest_says_so(self) -> None:
        with running() as service:
            answer = httpx2.get(service.url + MANIFEST)
            assert answer.status_code == 404
            assert answer.json()["type"] == "urn:cloister:problem:no-manifest"

    def test_the_manifest_is_asked_for_before_the_evidence(self, service: Service) -> None:
        proxy = Proxy(("127.0.0.1", service.port), meddler=Meddler())
        with proxy.running():
            talk(proxy.url, manifest=anchor())
        paths = [request.path for request, _ in proxy.messages]
        assert paths == [MANIFEST, "/.well-known/attestation", "/.well-known/ohttp-gateway"]


class TestAnchor:
    def test_an_anchor_is_read_from_a_file_and_keeps_its_floor_beside_it(
        self, service: Service, tmp_path: Path
    ) -> None:
        file = tmp_path / "clinic.toml"
        owners = ", ".join(f'"{key}"' for key in keys("alice", "bob", "carol").values())
        file.write_text(
            f'origin = "{origin(manifest())}"\nowners = [{owners}]\nthreshold = 2\n'
            'workload = "inference"\nfloor_file = "clinic.floor"\n'
        )
        talk(service.url, manifest=file)
        assert b'"version":1' in (tmp_path / "clinic.floor").read_bytes()

    @pytest.mark.parametrize(
        "changes",
        [
            {"origin": "00"},
            {"owners": []},
            {"owners": ["nobody"]},
            {"owners": [owner("alice").key, owner("alice").key]},
            {"threshold": 0},
            {"threshold": 4},
            {"workload": ""},
            {"floor": 0},
        ],
        ids=str,
    )
    def test_an_anchor_that_pins_nothing_is_refused(self, changes: dict[str, Any]) -> None:
        with pytest.raises(UsageError):
            anchor(**changes)

    @pytest.mark.parametrize("text", ["", "origin = 1", 'surplus = "x"', "not toml", "\xff"])
    def test_a_file_that_is_no_anchor_is_refused(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "anchor.toml").write_text(text, encoding="latin-1")
        with pytest.raises(UsageError):
            cloister.connect("http://127.0.0.1:9", manifest=tmp_path / "anchor.toml")

    def test_exactly_one_of_policy_and_manifest_says_who_is_accepted(self, service: Service) -> None:
        for who in ({}, {"policy": service.policy, "manifest": anchor()}):
            with pytest.raises(UsageError, match="exactly one"):
                cloister.connect(service.url, **who)
            with pytest.raises(UsageError, match="exactly one"):
                cloister.connect_async(service.url, **who)


def test_a_signed_file_is_served_byte_for_byte(first: AcceptedManifest, tmp_path: Path) -> None:
    file = tmp_path / "v1.json"
    write_signed(file, first.signed, replace=False)
    with serving(launched(OLD), file.read_bytes) as service:
        talk(service.url, manifest=anchor())


class TestReceipts:
    """An auditor who pins the owners checks the receipt of an answer, with nothing but its file."""

    @pytest.fixture
    def receipt(self, first: AcceptedManifest, tmp_path: Path) -> Path:
        found: list[ReceiptFile] = []
        ring = KeyRing(replica="r", receipts=True)
        with running(tee=launched(OLD), keyring=ring, manifest=Shelf(first.signed)) as service:
            talk(service.url, manifest=anchor(), receipts=found.append)
        (file,) = found
        path = tmp_path / "one.receipt"
        path.write_bytes(file.encode())
        return path

    @staticmethod
    def pinned(folder: Path, **changes: Any) -> Path:
        mine = anchor(**changes)
        owners = ", ".join(f'"{one}"' for one in mine.owners)
        floor = folder / "anchor.toml"
        floor.write_text(
            f'origin = "{mine.origin}"\nowners = [{owners}]\nthreshold = {mine.threshold}\n'
            f'workload = "{mine.workload}"\nfloor = {mine.floor}\nfloor_file = "floor.json"\n'
        )
        return floor

    def test_it_holds_against_the_anchor_and_says_the_manifest_s_version(
        self, receipt: Path, tmp_path: Path, second: AcceptedManifest
    ) -> None:
        told = invoked("receipt", "verify", receipt, "--manifest", self.pinned(tmp_path), "--json")
        assert told.exit_code == 0
        said = json.loads(told.stdout)
        assert said["manifest_version"] == 1
        # A version that was seen since takes nothing from what was answered then.
        seen = Anchored(anchor(floor_file=tmp_path / "floor.json"))
        seen.keep(seen.take(encode_signed(second.signed)).seen)
        again = invoked("receipt", "verify", receipt, "--manifest", tmp_path / "anchor.toml", "--json")
        assert json.loads(again.stdout) == said
        assert (tmp_path / "floor.json").exists()

    @pytest.mark.parametrize(
        ("changes", "error"),
        [
            ({"floor": 2}, Superseded),
            ({"workload": "training"}, ManifestError),
            ({"owners": list(keys("dora", "erin", "fred").values())}, ManifestError),
        ],
        ids=["an anchor with a later floor", "another workload", "other owners"],
    )
    def test_another_anchor_refuses_it(
        self, receipt: Path, tmp_path: Path, changes: dict[str, Any], error: type[CloisterError]
    ) -> None:
        told = invoked("receipt", "verify", receipt, "--manifest", self.pinned(tmp_path, **changes))
        assert isinstance(told.exception, error)

    @pytest.mark.parametrize("manifest_of", ["nobody", "another program", "too few"])
    def test_another_manifest_in_its_file_is_refused(
        self,
        receipt: Path,
        tmp_path: Path,
        first: AcceptedManifest,
        second: AcceptedManifest,
        manifest_of: str,
    ) -> None:
        few = Signed(document=first.signed.document, signatures=first.signed.signatures[:1])
        other = {
            "nobody": None,
            "another program": encode_signed(second.signed),
            "too few": encode_signed(few),
        }[manifest_of]
        file = structs.replace(parse_file(receipt.read_bytes()), manifest=other)
        receipt.write_bytes(file.encode())
        told = invoked("receipt", "verify", receipt, "--manifest", self.pinned(tmp_path))
        assert isinstance(told.exception, ChannelError | AppraisalRefused | QuorumMissing)

    def test_a_policy_or_an_anchor_has_to_be_named(self, receipt: Path, tmp_path: Path) -> None:
        neither = invoked("receipt", "verify", receipt)
        assert isinstance(neither.exception, UsageError)
        policy = tmp_path / "policy.toml"
        policy.write_text(policy_of(OLD))
        both = invoked("receipt", "verify", receipt, "--policy", policy, "--manifest", self.pinned(tmp_path))
        assert isinstance(both.exception, UsageError)
        assert invoked("receipt", "verify", receipt, "--policy", policy).exit_code == 0
