"""The broker's own endpoints: what each answers to whom, over HTTP."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec import structs

import manifest_parts
from broker_parts import (
    PATH,
    SECRET,
    Attempt,
    Bench,
    OwnersBench,
    Reply,
    attested,
    call,
    policy_for,
    workload,
)
from cloister import merkle
from cloister.broker.app import create_broker
from cloister.broker.audit import parse_entry
from cloister.broker.state_key import Share
from cloister.broker.tree_head import SignedHead, parse_head, verify_head
from cloister.broker.wire import Unlock
from cloister.encoding import decode_json, encode_json
from cloister.evidence.key_material import BrokerIdentity
from cloister.manifest.manifest import Workload
from cloister.manifest.signed import encode_signed

V1 = "/cloister/v1"


@pytest.fixture
def bench(tmp_path: Path) -> OwnersBench:
    bench = OwnersBench(tmp_path / "state")
    bench.share_out()
    bench.have_done("put", PATH, SECRET)
    bench.allow()
    return bench


def ask(bench: OwnersBench, method: str, path: str, body: Any = None, **headers: str) -> Reply:
    """In the clear, as anybody."""
    data = b"" if body is None else body if isinstance(body, bytes) else encode_json(body)
    return call(bench.app, method, f"{V1}{path}".encode(), data, headers)


def answer(reply: Reply) -> Any:
    assert reply.status == 200, reply.body
    assert reply.headers["cache-control"] == "no-store"
    return json.loads(reply.body)


# -- status ------------------------------------------------------------------------------------------------------------


def test_anybody_may_know_what_this_broker_is(bench: OwnersBench) -> None:
    found = answer(ask(bench, "GET", "/status"))
    manifest = bench.state.authority.manifest
    assert (found["open"], found["laptop"], found["witnesses"]) == (True, False, 0)
    assert (found["manifest"], found["manifest_version"], found["origin"]) == (
        manifest.digest,
        1,
        bench.state.authority.origin,
    )
    assert found["size"] == bench.state.journal.size
    assert SECRET.hex() not in json.dumps(found)


def test_a_locked_broker_shows_how_many_shares_it_has_and_serves_nothing_else(bench: OwnersBench) -> None:
    desk = bench.desk_over(bench.again())
    app = create_broker(desk)
    found = answer(call(app, "GET", f"{V1}/status".encode()))
    assert (found["open"], found["have"], found["need"], found["size"]) == (False, 0, 2, 0)
    assert desk.shown() == BrokerIdentity()
    assert desk.newest_manifest() is None
    refused = [
        ("GET", "/manifests"),
        ("GET", "/log/head"),
        ("GET", "/mesh/bundle"),
        ("GET", "/resources"),
        ("GET", f"/next/put/{PATH}"),
        ("POST", "/share"),
    ]
    for method, path in refused:
        reply = call(app, method, f"{V1}{path}".encode(), headers={"authorization": "Cloister e30"})
        assert (reply.status, reply.problem) == (503, "locked"), path
    for path in (f"/kbs/v0/resource/{PATH}", f"{V1}/trees/{PATH}"):
        assert call(app, "GET", path.encode()).problem == "locked"


def test_laptop_mode_says_so(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "state")
    assert answer(call(create_broker(bench.desk), "GET", f"{V1}/status".encode()))["laptop"] is True


def test_shares_open_it_over_http_and_a_forged_one_does_not(tmp_path: Path) -> None:
    fresh = OwnersBench(tmp_path / "fresh")
    shares = fresh.share_out()
    app = create_broker(fresh.desk_over(fresh.again()))

    def unlock(share: Share) -> Reply:
        body = encode_json(Unlock(share=share, manifest_version=1))
        return call(app, "POST", f"{V1}/unlock".encode(), body)

    forged = unlock(structs.replace(shares["alice"], owner="bob"))
    assert (forged.status, forged.problem) == (403, "share-refused")
    assert answer(unlock(shares["alice"]))["have"] == 1
    assert answer(unlock(shares["bob"]))["open"] is True


# -- manifests, rules, orders --------------------------------------------------------------------------------------------


def test_the_chain_of_manifests_is_for_everybody_and_in_pages(bench: OwnersBench) -> None:
    for number in range(20):
        auditors = manifest_parts.keys(f"a{number}")
        bench.state.authority.submit_manifest(bench.succeed("alice", "bob", auditors=auditors))
    first = answer(ask(bench, "GET", "/manifests"))["manifests"]
    second = answer(ask(bench, "GET", "/manifests?from=17"))["manifests"]
    assert (len(first), len(second)) == (16, 5)
    assert answer(ask(bench, "GET", "/manifests?from=22"))["manifests"] == []
    assert answer(ask(bench, "GET", "/manifests?from=0"))["manifests"] == first


def test_a_manifest_that_is_submitted_is_in_force_and_shown_under_new_keys(bench: OwnersBench) -> None:
    changes = []
    bench.desk.refresh()
    bench.desk.changed = lambda: changes.append(bench.desk.shown())
    signed = bench.succeed("alice", "bob", auditors={})
    found = answer(ask(bench, "POST", "/manifests", encode_signed(signed)))
    assert found["manifest_version"] == 2
    assert [one.manifest_sha256 for one in changes] == [signed.digest]
    assert bench.desk.newest_manifest() == encode_signed(signed)


TOLD: list[tuple[str, str, int, str]] = [
    ("/manifests", "alice", 403, "quorum-missing"),
    ("/rules", "alice", 403, "quorum-missing"),
    ("/orders", "alice", 403, "quorum-missing"),
    ("/manifests", "mallory", 422, "refused-document"),
    ("/rules", "mallory", 422, "refused-document"),
    ("/orders", "mallory", 422, "refused-document"),
]


@pytest.mark.parametrize(("path", "by", "status", "name"), TOLD, ids=lambda value: str(value).strip("/"))
def test_who_sends_a_document_is_told_what_is_wrong_with_it(
    bench: OwnersBench, path: str, by: str, status: int, name: str
) -> None:
    size = bench.state.journal.size
    if path == "/manifests":
        body: Any = encode_signed(bench.succeed(by))
    elif path == "/rules":
        body = encode_signed(manifest_parts.signed(manifest_parts.rule(resource="models/key/new"), by))
    else:
        body = encode_json({"order": bench.order("destroy", PATH, by=(by,)), "content": b""})
    reply = ask(bench, "POST", path, body)
    assert (reply.status, reply.problem) == (status, name)
    assert bench.state.journal.size == size


def test_an_order_is_done_over_http_once(bench: OwnersBench) -> None:
    following = answer(bench.ask("alice", "GET", f"{V1}/next/put/{PATH}"))
    assert (following["version"], following["broker"]) == (2, bench.state.id)
    body = encode_json({"order": bench.order("put", PATH, b"second"), "content": b"second"})
    assert answer(ask(bench, "POST", "/orders", body))["version"] == 2
    reply = ask(bench, "POST", "/orders", body)
    assert (reply.status, reply.problem) == (409, "superseded")
    assert bench.state.resources.read(PATH) == (2, b"second")


@pytest.mark.parametrize(
    ("path", "status", "name"),
    [
        ("/next/rotate-key/none", 404, "unknown-resource"),
        ("/next/destroy-key/none", 404, "unknown-resource"),
        ("/next/steal/models", 400, "malformed"),
        ("/manifests?from=x", 400, "malformed"),
        ("/manifests?from=1&from=2", 400, "malformed"),
        ("/manifests?to=1", 400, "malformed"),
        ("/manifests?from=-1", 400, "malformed"),
        ("/manifests?from=9999999999999", 400, "malformed"),
        ("/log/consistency", 400, "malformed"),
        ("/log/consistency?old=3&new=2", 400, "malformed"),
        ("/log/consistency?old=0&new=999999", 400, "malformed"),
    ],
)
def test_a_question_that_makes_no_sense_gets_its_own_problem(
    bench: OwnersBench, path: str, status: int, name: str
) -> None:
    reply = bench.ask("alice", "GET", V1 + path)
    assert (reply.status, reply.problem) == (status, name)


@pytest.mark.parametrize("path", ["/manifests", "/rules", "/orders", "/unlock"])
@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b"\xff", b"[" * 5000], ids=["none", "{}", "[]", "no text", "deep"]
)
def test_a_malformed_document_is_refused(bench: OwnersBench, path: str, body: bytes) -> None:
    assert ask(bench, "POST", path, body).status in (400, 422)


def test_a_body_over_its_bound_is_refused(bench: OwnersBench) -> None:
    for path, size in (("/orders", (1 << 21) + 1), ("/nonce", 1), ("/share", 1), (f"/trees/{PATH}", 4097)):
        reply = ask(bench, "POST", path, b"x" * size)
        assert (reply.status, reply.problem) == (413, "too-large"), path


def test_the_rule_in_force_is_shown_to_whoever_signs(bench: OwnersBench) -> None:
    found = answer(bench.ask("audrey", "GET", f"{V1}/rules/{PATH}"))
    rule = bench.state.authority.rule(PATH)
    assert rule is not None
    assert base64.b64decode(found["document"]) == rule.rule.signed.document
    assert bench.ask("audrey", "GET", f"{V1}/rules/models/key/none").problem == "unknown-resource"
    assert answer(bench.ask("alice", "GET", f"{V1}/next/rule/{PATH}"))["previous"] == rule.rule.digest
    assert answer(bench.ask("alice", "GET", f"{V1}/next/rule/models/key/none"))["version"] == 1


# -- the log -----------------------------------------------------------------------------------------------------------


def test_the_log_is_proven_to_whoever_may_read_it(bench: OwnersBench) -> None:
    attested(bench, workload()).get()
    found = answer(ask(bench, "GET", "/log/head"))
    signed = decode_json(json.dumps(found["signed"]).encode(), SignedHead, what="head")
    head = verify_head(signed, log_key=bytes.fromhex(found["log_key"]))
    bodies = [
        base64.b64decode(body) for body in answer(bench.ask("audrey", "GET", f"{V1}/log/entries"))["entries"]
    ]
    assert len(bodies) == head.size
    assert [parse_entry(body, number).number for number, body in enumerate(bodies)] == list(range(head.size))
    for number in (0, head.size - 1):
        path = answer(bench.ask("audrey", "GET", f"{V1}/log/inclusion?number={number}&size={head.size}"))[
            "path"
        ]
        proof = [base64.b64decode(one) for one in path]
        merkle.verify_inclusion(bodies[number], number, head.size, proof, bytes.fromhex(head.root))
    path = answer(ask(bench, "GET", f"/log/consistency?old=3&new={head.size}"))["path"]
    old = merkle.root(bodies[:3])
    merkle.verify_consistency(
        3, head.size, old, bytes.fromhex(head.root), [base64.b64decode(one) for one in path]
    )
    assert parse_head(signed.head) == head


def test_entries_come_in_pages_and_never_beyond_the_end(bench: OwnersBench) -> None:
    size = bench.state.journal.size
    for query, expected in (
        (f"from={size}", 0),
        (f"from={size - 1}&count=50", 1),
        ("from=999999999", 0),
        ("count=2", 2),
        ("count=0", 0),
    ):
        assert len(answer(bench.ask("alice", "GET", f"{V1}/log/entries?{query}"))["entries"]) == expected


def test_what_was_attested_is_shown_as_long_as_it_is_kept(bench: OwnersBench) -> None:
    attested(bench, workload())
    digest = bench.told("attestation")[0].evidence
    found = answer(bench.ask("audrey", "GET", f"{V1}/evidence/{digest}"))
    assert hashlib.sha256(base64.b64decode(found["evidence"])).hexdigest() == digest
    assert bench.ask("audrey", "GET", f"{V1}/evidence/{'00' * 32}").problem == "unknown-resource"
    assert bench.ask("audrey", "GET", f"{V1}/evidence/zz").problem == "malformed"


# -- for workloads -----------------------------------------------------------------------------------------------------


def in_session(bench: OwnersBench, attempt: Attempt, method: str, path: str, body: Any = None) -> Reply:
    return ask(bench, method, path, body, authorization=f"Bearer {attempt.token}")


def csr() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, SHA256())
    return request.public_bytes(Encoding.DER)


def test_an_attested_workload_gets_a_certificate_in_its_own_name_only(bench: OwnersBench) -> None:
    other = {**bench.genesis.workloads, "training": Workload(policies=(policy_for(workload(b"training")),))}
    bench.state.authority.submit_manifest(bench.succeed("alice", "bob", workloads=other))
    attempt = attested(bench, workload())
    found = answer(
        in_session(bench, attempt, "POST", "/mesh/certificate", {"workload": "inference", "csr": csr()})
    )
    assert len(found["chain"]) == 2
    assert found["bundle"] == answer(ask(bench, "GET", "/mesh/bundle"))["bundle"]
    assert (bench.entries()[-1].workload, bench.entries()[-1].outcome) == ("inference", "done")
    for name in ("training", "broker", "", "nobody"):
        reply = in_session(bench, attempt, "POST", "/mesh/certificate", {"workload": name, "csr": csr()})
        assert (reply.status, reply.problem) == (403, "release-refused"), name
        assert (bench.entries()[-1].event, bench.entries()[-1].outcome) == ("certificate", "refused")
    reply = in_session(bench, attempt, "POST", "/mesh/certificate", {"workload": "inference", "csr": b"none"})
    assert 400 <= reply.status < 500


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("credential", [None, "Bearer x", "Bearer a.b.c", "Cloister e30"])
def test_without_a_session_there_is_no_tree_and_no_certificate(
    bench: OwnersBench, method: str, credential: str | None
) -> None:
    headers = {} if credential is None else {"authorization": credential}
    body = b"{}" if method == "POST" else b""
    for path in (f"/trees/{PATH}", *(["/mesh/certificate"] if method == "POST" else [])):
        reply = call(bench.app, method, f"{V1}{path}".encode(), body, headers)
        assert (reply.status, reply.problem) == (401, "session-refused")


def version(number: int, mark: str = "b", tree: str = "a") -> dict[str, Any]:
    return {"tree": tree * 64, "version": number, "digest": mark * 64}


def moved(newest: dict[str, Any], after: dict[str, Any] | None) -> dict[str, Any]:
    return {"newest": newest, "after": after}


def test_a_tree_moves_forward_only_and_for_whoever_the_rule_lets_read(bench: OwnersBench) -> None:
    attempt = attested(bench, workload())
    path = f"/trees/{PATH}"
    assert answer(in_session(bench, attempt, "GET", path))["newest"] is None
    after = None
    for said in (version(1), version(2), version(2), version(30)):
        assert answer(in_session(bench, attempt, "POST", path, moved(said, after)))["newest"] == said
        after = said
    for said, name in (
        (version(2), "superseded"),
        (version(30, "c"), "superseded"),
        (version((1 << 32) + 31), "superseded"),
        (version(31, tree="c"), "refused-document"),
    ):
        assert in_session(bench, attempt, "POST", path, moved(said, after)).problem == name
    assert in_session(bench, attempt, "POST", path, moved(version(31), version(2))).problem == "superseded"
    assert answer(in_session(bench, attempt, "GET", path))["newest"] == version(30)
    assert [entry.outcome for entry in bench.told("tree")] == ["done"] * 3 + ["refused"] * 5
    assert in_session(bench, attempt, "GET", "/trees/models/key/bobs").problem == "no-rule"
    bench.allow(workloads={}, policies=(policy_for(workload(b"another")),))
    assert in_session(bench, attempt, "GET", path).problem == "release-refused"
    assert in_session(bench, attempt, "POST", path, moved(version(39), after)).problem == "release-refused"


def test_a_tree_that_is_set_back_on_disk_is_found(bench: OwnersBench) -> None:
    attempt = attested(bench, workload())
    answer(in_session(bench, attempt, "POST", f"/trees/{PATH}", moved(version(1), None)))
    bench.execute("CREATE TABLE old AS SELECT * FROM records WHERE kind = 'tree'")
    answer(in_session(bench, attempt, "POST", f"/trees/{PATH}", moved(version(2), version(1))))
    bench.execute("DELETE FROM records WHERE kind = 'tree'; INSERT INTO records SELECT * FROM old")
    assert in_session(bench, attempt, "GET", f"/trees/{PATH}").problem == "state-damaged"


# -- metrics -----------------------------------------------------------------------------------------------------------


def test_metrics_count_and_name_nothing_of_the_state(bench: OwnersBench) -> None:
    attempt = attested(bench, workload())
    attempt.get()
    text = bench.desk.gather().decode()
    assert 'cloister_broker_attestations_total{outcome="accepted"} 1.0' in text
    assert 'cloister_broker_releases_total{outcome="accepted"} 1.0' in text
    assert f"cloister_broker_log_entries {bench.state.journal.size}.0" in text
    assert "cloister_broker_locked 0.0" in text
    for name in ("models", "demo", "alice", "inference", "clinic", str(attempt.session)):
        assert name not in text
    assert "cloister_broker_locked 1.0" in bench.desk_over(bench.again()).gather().decode()


# -- several replicas --------------------------------------------------------------------------------------------------


def test_a_replica_takes_what_owners_signed_at_another_before_it_lets_anybody_ask(bench: OwnersBench) -> None:
    """Audrey is dropped at one broker: the other, which was told nothing, does not show her the log either."""
    custody = bench.again()
    custody.open_from_peer(bench.state.key_for_peer())
    replica = copy.copy(bench)
    replica.custody, replica.desk = custody, bench.desk_over(custody)
    replica.app = create_broker(replica.desk)
    assert replica.ask("audrey", "GET", f"{V1}/log/entries").status == 200
    answer(ask(bench, "POST", "/manifests", encode_signed(bench.succeed("alice", "bob", auditors={}))))
    assert replica.ask("audrey", "GET", f"{V1}/log/entries").problem == "not-allowed"
    assert answer(ask(replica, "GET", "/manifests?from=2"))["manifests"] != []
    body = encode_json({"order": bench.order("put", PATH, b"second"), "content": b"second"})
    answer(ask(bench, "POST", "/orders", body))
    assert answer(replica.ask("alice", "GET", f"{V1}/next/put/{PATH}"))["version"] == 3
    body = encode_json({"order": bench.order("put", PATH, b"third"), "content": b"third"})
    assert answer(ask(replica, "POST", "/orders", body))["version"] == 3
