"""Mutual TLS inside the mesh: version 1.3, a certificate on both sides, and the intermediate in force as the only anchor.

``VERIFY_X509_PARTIAL_CHAIN`` lets OpenSSL stop at the intermediate, so the root, which a peer of another manifest could
lead to as well, is no anchor. A client names the workload it wants as the host (:func:`dns_name`); a server learns who
came with :func:`peer_of`. Keys are loaded through memory (channel/tls_context.py).
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence

from cryptography.hazmat.primitives.asymmetric import ec

from cloister.broker.mesh import TrustBundle
from cloister.broker.mesh_peer import MeshPeer, MeshRefused, verify_peer
from cloister.channel.tls_context import client_side, load_chain, server_side
from cloister.errors import BrokerError


def client_context(
    bundle: TrustBundle, chain: Sequence[bytes], key: ec.EllipticCurvePrivateKey
) -> ssl.SSLContext:
    """For a client with this certificate. Give ``dns_name(workload, application)`` as the server's host name."""
    return _loaded(client_side(), bundle, chain, key)


def server_context(
    bundle: TrustBundle, chain: Sequence[bytes], key: ec.EllipticCurvePrivateKey
) -> ssl.SSLContext:
    """For a server with this certificate; every workload of the application in force may connect."""
    return _loaded(server_side(), bundle, chain, key)


def demanding(context: ssl.SSLContext) -> ssl.SSLContext:
    """Let ``context`` ask for a certificate and end at an intermediate."""
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VERIFY_X509_STRICT
    return context


def peer_of(
    connection: ssl.SSLSocket | ssl.SSLObject, *, bundle: TrustBundle, now: int, workload: str | None = None
) -> MeshPeer:
    """Who is at the other end of a connection made with one of these contexts. Raises :class:`MeshRefused`."""
    try:
        der = connection.getpeercert(binary_form=True)
    except ValueError:  # no handshake was made
        der = None
    if der is None:
        raise MeshRefused("the peer showed no certificate")
    return verify_peer((der,), bundle=bundle, now=now, workload=workload)


def _loaded(
    context: ssl.SSLContext, bundle: TrustBundle, chain: Sequence[bytes], key: ec.EllipticCurvePrivateKey
) -> ssl.SSLContext:
    demanding(context)
    load_chain(context, chain, key)
    try:
        context.load_verify_locations(cadata=b"".join(bundle.intermediates))
    except (ssl.SSLError, ValueError):
        raise BrokerError("the mesh's bundle cannot be used for TLS", todo="get the newest one") from None
    return context
