"""The federation's mesh: whose certificate it is, and that a party knows the aggregator before it connects."""

from __future__ import annotations

import hashlib
import socket
import ssl
import time
from typing import Any

import pytest
from cryptography import x509

from cloister.broker.mesh import encode_bundle as encode_trust
from cloister.broker.mesh_peer import MeshRefused
from cloister.broker.mesh_request import CsrRefused, dns_name, make_request
from cloister.broker.mesh_tls import client_context, server_context
from cloister.encoding import encode_json
from cloister.errors import ChannelError, CloisterError, FormatError
from cloister.federated.mesh import LIFETIME, FederationMesh, encoded, party_context
from federation_parts import NAMES, agreed, federation, identity
from mesh_parts import answering, talk

NOW = int(time.time())
AGREED, LATER = agreed(federation()), agreed(federation(rounds=6))
MESH, STRANGE, NEXT = (
    FederationMesh(AGREED, now=NOW),
    FederationMesh(AGREED, now=NOW),
    FederationMesh(LATER, now=NOW),
)


def chain(
    party: str = "north", mesh: FederationMesh = MESH, *, key: str = "", now: int = NOW
) -> tuple[bytes, ...]:
    csr = make_request(identity(f"{key or party} workload").key, workload=party, application="hospitals")
    return mesh.issue(csr, name=party, evidence=b"the evidence of " + party.encode(), now=now)


def context(party: str = "north", mesh: FederationMesh = MESH, **changes: Any) -> tuple[ssl.SSLContext, str]:
    plain: dict[str, Any] = {
        "bundle": encoded(mesh), "chain": chain(party, mesh), "key": identity(f"{party} workload").key,
        "root": mesh.shown.mesh_root_sha256, "digest": AGREED.digest, "now": NOW,
    }  # fmt: skip
    return party_context(**(plain | changes))


def test_the_aggregator_shows_the_root_of_its_mesh_and_the_federation() -> None:
    assert MESH.shown.manifest_sha256 == AGREED.digest
    assert MESH.shown.mesh_root_sha256 == hashlib.sha256(MESH.bundle.root).hexdigest()
    assert MESH.shown != STRANGE.shown  # of the same federation: each aggregator has a root of its own


@pytest.mark.parametrize("party", NAMES)
def test_a_partys_certificate_is_that_of_its_workloads_key_for_an_hour(party: str) -> None:
    peer = MESH.peer(chain(party)[0], now=NOW)
    assert (peer.workload, peer.application) == (party, "hospitals")
    assert peer.public_key == identity(f"{party} workload").spki
    assert peer.evidence_sha256 == hashlib.sha256(b"the evidence of " + party.encode()).digest()
    assert peer.not_after == NOW + LIFETIME


def test_a_party_and_the_aggregator_talk_by_mutual_tls() -> None:
    client, name = context()
    assert name == dns_name("aggregator", "hospitals")
    with answering(MESH.server(now=NOW)) as (port, heard):
        assert talk(client, port, "aggregator", "hospitals") == b"welcome"
    assert heard == [b"the question"]


def outsider(kind: str) -> ssl.SSLContext:
    """Who knows the mesh's bundle, which is no secret."""
    if kind == "no certificate":
        found = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        found.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        found.load_verify_locations(cadata=b"".join(MESH.bundle.intermediates))
        return found
    mesh = {"another aggregator": STRANGE, "another version": NEXT}[kind]
    return client_context(MESH.bundle, chain("north", mesh), identity("north workload").key)


@pytest.mark.parametrize("kind", ["no certificate", "another aggregator", "another version"])
def test_an_outsider_does_not_reach_the_aggregator(kind: str) -> None:
    with answering(MESH.server(now=NOW)) as (port, heard):
        try:
            answer = talk(outsider(kind), port, "aggregator", "hospitals")
        except OSError:  # in TLS 1.3 who is refused may hear of it at the first read
            answer = b""
    assert answer == b""
    assert heard == []


def test_a_party_does_not_talk_to_another_aggregator() -> None:
    """One that runs the same federation, is no less genuine, and is not the one that was verified."""
    client, _ = context()
    with answering(STRANGE.server(now=NOW)) as (port, heard), pytest.raises(ssl.SSLError):
        talk(client, port, "aggregator", "hospitals")
    assert heard == []


def test_another_party_is_not_the_aggregator() -> None:
    """It has a certificate of the mesh, and not that name."""
    south = server_context(MESH.bundle, chain("south"), identity("south workload").key)
    client, name = context()
    with answering(south) as (port, heard), pytest.raises(ssl.SSLError, match="mismatch"):
        talk(client, port, "aggregator", "hospitals")
    assert name == "aggregator.hospitals.mesh.cloister"
    assert heard == []


def edited(**changes: Any) -> bytes:
    bundle = MESH.bundle
    plain = {name: getattr(bundle, name) for name in bundle.__struct_fields__}
    return encode_json(type(bundle)(**(plain | changes)))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        pytest.param({"bundle": encoded(STRANGE)}, MeshRefused, id="the bundle of an outsider"),
        pytest.param(
            {"bundle": encoded(STRANGE), "chain": chain("north", STRANGE)}, MeshRefused, id="bundle and certificate of one"
        ),
        pytest.param({"bundle": encode_trust(NEXT.bundle)}, MeshRefused, id="the bundle of another version"),
        pytest.param({"digest": LATER.digest}, MeshRefused, id="under another version than evidence binds"),
        pytest.param({"root": "00" * 32}, MeshRefused, id="under another root than evidence binds"),
        pytest.param(
            {"bundle": edited(intermediates=NEXT.bundle.intermediates)}, MeshRefused, id="an outsider's intermediate"
        ),
        pytest.param(
            {"bundle": edited(intermediates=(*MESH.bundle.intermediates, *STRANGE.bundle.intermediates))}, MeshRefused,
            id="an outsider's intermediate beside the right one",
        ),
        pytest.param({"bundle": edited(application="banks")}, MeshRefused, id="of another federation's name"),
        pytest.param({"bundle": edited(manifest_version=2)}, MeshRefused, id="of another version's name"),
        pytest.param({"bundle": b"{}"}, FormatError, id="none at all"),
        pytest.param({"bundle": encoded(MESH) + b" "}, FormatError, id="in another spelling"),
        pytest.param({"chain": chain(key="south")}, ChannelError, id="a certificate for another key"),
        pytest.param({"chain": (b"certificate",)}, ChannelError, id="no certificate"),
        pytest.param({"now": NOW + 20 * 365 * 86_400}, MeshRefused, id="after the root's end"),
    ],
)  # fmt: skip
def test_a_party_does_not_connect_with(changes: dict[str, Any], error: type[CloisterError]) -> None:
    with pytest.raises(error):
        context(**changes)


@pytest.mark.parametrize(
    ("certificate", "now"),
    [
        pytest.param(chain("north", STRANGE)[0], NOW, id="of another aggregator's mesh"),
        pytest.param(chain("north", NEXT)[0], NOW, id="of another version"),
        pytest.param(chain()[0], NOW + LIFETIME + 1, id="over"),
        pytest.param(chain()[1], NOW, id="the intermediate itself"),
        pytest.param(MESH.bundle.root, NOW, id="the root itself"),
        pytest.param(b"", NOW, id="none"),
    ],
)
def test_a_certificate_that_is_no_partys_is_refused(certificate: bytes, now: int) -> None:
    with pytest.raises(MeshRefused):
        MESH.peer(certificate, now=now)


@pytest.mark.parametrize(
    ("workload", "application"),
    [
        pytest.param("south", "hospitals", id="another party's name"),
        pytest.param("aggregator", "hospitals", id="the aggregator's name"),
        pytest.param("north", "banks", id="another federation's name"),
    ],
)
def test_no_certificate_is_issued_in(workload: str, application: str) -> None:
    csr = make_request(identity("north workload").key, workload=workload, application=application)
    with pytest.raises(CsrRefused):
        MESH.issue(csr, name="north", evidence=b"", now=NOW)


def test_the_aggregators_certificate_is_made_anew_with_another_key_each_time() -> None:
    assert dns_name("aggregator", "hospitals") not in {dns_name(name, "hospitals") for name in NAMES}
    keys = set()
    for _ in range(2):
        client, _ = context()
        with (
            answering(MESH.server(now=NOW)) as (port, _heard),
            socket.create_connection(("127.0.0.1", port), 5) as tcp,
            client.wrap_socket(tcp, server_hostname=dns_name("aggregator", "hospitals")) as secured,
        ):
            der = secured.getpeercert(binary_form=True)
            assert der is not None
            keys.add(x509.load_der_x509_certificate(der).public_key().public_numbers())  # type: ignore[union-attr]
    assert len(keys) == 2
