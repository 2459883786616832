"""With which key a person signs a document, on the command line: a key file, a P-256 key or an SSH key; exactly one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.errors import UsageError

if TYPE_CHECKING:
    from cloister.manifest.signers import Signer

KeyOption = Annotated[
    Path | None, typer.Option("--key", metavar="FILE", help="Your key, of `cloister keys new --signing`.")
]
EsOption = Annotated[
    Path | None, typer.Option("--es256", metavar="PEM", help="Your P-256 private key, readable by you alone.")
]
SshOption = Annotated[
    Path | None,
    typer.Option(
        "--ssh", metavar="FILE", help="Your SSH key, or its .pub file when an agent or a token has the key."
    ),
]


def one_signer(key: Path | None, es256: Path | None, ssh: Path | None) -> Signer:
    """Who signs. Raises :class:`~cloister.errors.UsageError` unless exactly one key was named."""
    from cloister.manifest.signers import Ed25519Signer, Es256Signer, SshSigner
    from cloister.sealing.descriptors import read_private
    from cloister.sealing.key_file import SIGNING_KIND, read_secret

    if [key, es256, ssh].count(None) != 2:
        raise UsageError("one key signs", todo="give one of --key, --es256 and --ssh")
    if key is not None:
        return Ed25519Signer(read_secret(key, SIGNING_KIND))
    if es256 is not None:
        return Es256Signer(read_private(es256, what="the private key", limit=16 * 1024))
    assert ssh is not None  # noqa: S101 -- one of three
    return SshSigner(ssh)
