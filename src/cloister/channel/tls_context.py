"""TLS contexts of our own making: version 1.3 alone, no resumption, keys that never touch a disk.

Python's ``ssl`` takes certificate and key from files only. Here the file is anonymous memory of this process (a memfd,
closed to everybody but its owner, named ``/proc/self/fd/N`` for the moment of loading), and it is gone when
:func:`load_chain` returns.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Sequence
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from cloister.errors import ChannelError

Current = Callable[[], ssl.SSLContext]
"""The context that counts now. Raises :class:`~cloister.errors.CloisterError` where there is none."""

_REFUSE: Final = ssl.AlertDescription.ALERT_DESCRIPTION_INTERNAL_ERROR


def server_side() -> ssl.SSLContext:
    """A server's, without certificate. No tickets: whoever connects again sees the certificate again."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    return context


def client_side() -> ssl.SSLContext:
    """A client's, without anchors: verifies nothing until the caller says what. It names no host and resumes nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def load_chain(context: ssl.SSLContext, chain: Sequence[bytes], key: ec.EllipticCurvePrivateKey) -> None:
    """Let ``context`` show ``chain`` (DER, leaf first) with its private ``key``. Raises :class:`ChannelError`."""
    try:
        certificates = [x509.load_der_x509_certificate(one).public_bytes(Encoding.PEM) for one in chain]
    except ValueError:
        raise ChannelError("a certificate for TLS is malformed") from None
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        descriptor = os.memfd_create("cloister-tls", os.MFD_CLOEXEC)
        try:
            os.fchmod(descriptor, 0o600)
            with open(descriptor, "wb", closefd=False) as file:
                file.write(b"".join((*certificates, private)))
            context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)
    except OSError as error:  # also ssl.SSLError
        reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror
        raise ChannelError(f"certificate and key cannot be used for TLS ({reason})") from None


def swapping(base: ssl.SSLContext, current: Current) -> ssl.SSLContext:
    """Let every handshake of ``base`` go on with the context of that moment: certificates change while a server runs.

    Verify mode and flags stay those of ``base``: OpenSSL copies them before the choice. A handshake ends with an alert where
    ``current`` raises.
    """

    def choose(
        connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _base: ssl.SSLContext
    ) -> int | None:
        try:
            connection.context = current()
        except (
            Exception
        ):  # whatever it is: an exception in this callback would be printed, and is OpenSSL's to answer
            return _REFUSE
        return None

    base.sni_callback = choose
    return base
