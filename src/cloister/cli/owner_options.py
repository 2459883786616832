"""What the commands of owners and auditors share: which broker, what it must be, and with which key one signs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.errors import AppraisalRefused, UsageError

if TYPE_CHECKING:
    from cloister.appraisal.policy import Policy
    from cloister.broker.owner_client import OwnerClient
    from cloister.channel.transport import SealedClient
    from cloister.manifest.manifest import Manifest
    from cloister.manifest.signers import Signer

BrokerOption = Annotated[str, typer.Option("--broker", metavar="URL", help="The broker's address.")]
PolicyOption = Annotated[
    Path | None, typer.Option("--policy", help="What the broker must be (TOML), if --manifest does not say.")
]
ManifestOption = Annotated[
    Path | None,
    typer.Option("--manifest", help="Your own copy of the signed manifest: it says what the broker must be."),
]
OriginOption = Annotated[
    str | None,
    typer.Option(
        "--origin", metavar="HEX", help="Who signed the first manifest: `cloister manifest origin`."
    ),
]
KeyOption = Annotated[
    Path | None, typer.Option("--key", help="Sign with this key file of `cloister keys new --signing`.")
]
Es256Option = Annotated[Path | None, typer.Option("--es256", help="Sign with this P-256 private key (PEM).")]
SshOption = Annotated[
    Path | None,
    typer.Option("--ssh", help="Sign with this SSH key, or its public half for an agent or hardware token."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
MAX_PEM = 64 * 1024


def signer_of(key: Path | None, es256: Path | None, ssh: Path | None) -> Signer | None:
    """The one key that was named, or none. Raises :class:`UsageError`."""
    if sum(one is not None for one in (key, es256, ssh)) > 1:
        raise UsageError("name one key to sign with", todo="--key, --es256 or --ssh")
    if key is not None:
        from cloister.manifest.signers import Ed25519Signer
        from cloister.sealing.key_file import SIGNING_KIND, read_secret

        return Ed25519Signer(read_secret(key, SIGNING_KIND))
    if es256 is not None:
        from cloister.manifest.signers import Es256Signer
        from cloister.sealing.descriptors import read_private

        return Es256Signer(read_private(es256, what="the private key", limit=MAX_PEM))
    if ssh is not None:
        from cloister.manifest.signers import SshSigner

        return SshSigner(ssh)
    return None


def open_owner(
    url: str,
    *,
    policy: Path | None,
    manifest: Path | None,
    signer: Signer | None,
) -> tuple[OwnerClient, SealedClient]:
    """A verified channel to the broker. Raises what :func:`cloister.connect` raises."""
    from cloister.broker.owner_client import OwnerClient
    from cloister.channel.transport import connect

    refusal: AppraisalRefused | None = None
    for one in broker_policies(policy, manifest):
        try:
            client = connect(url, policy=one)
        except AppraisalRefused as error:
            refusal = error
        else:
            return OwnerClient(client, signer=signer), client
    assert refusal is not None  # noqa: S101 -- there is at least one policy
    raise refusal


def broker_policies(policy: Path | None, manifest: Path | None) -> tuple[Policy, ...]:
    """What the broker must be: the policy that was named, or one of the manifest's. Raises :class:`UsageError`."""
    from cloister.appraisal.policy import load_policy, read_policy

    if policy is not None:
        return (read_policy(policy),)
    if manifest is None:
        raise UsageError("say what the broker must be", todo="give --manifest FILE or --policy FILE")
    found = read_manifest_file(manifest).broker
    if not found:
        raise UsageError(f"{manifest} says nothing of the broker", todo="give --policy FILE")
    return tuple(load_policy(text, name=f"broker policy {number}") for number, text in enumerate(found, 1))


def read_manifest_file(path: Path) -> Manifest:
    """The manifest in a file of one's own: its form is checked, and it is believed because it is one's own."""
    from cloister.manifest.manifest import parse_manifest
    from cloister.manifest.storage import read_signed

    return parse_manifest(read_signed(path).document)


def origin_for(origin: str | None, manifest: Path | None) -> str:
    """The pinned origin: what was given, or that of one's own copy of version 1. Raises :class:`UsageError`."""
    from cloister.manifest.manifest import origin as origin_of_manifest

    if origin is not None:
        return origin
    if manifest is None:
        raise UsageError("say whose broker it is", todo="give --origin, or --manifest with version 1")
    found = read_manifest_file(manifest)
    if found.version != 1:
        raise UsageError(
            f"{manifest} is version {found.version}, and only version 1 says who began",
            todo="give --origin too: `cloister manifest origin` of the first version",
        )
    return origin_of_manifest(found)
