"""An owner's session with a broker: nothing is told to one that was not verified, or that is not this owner's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cloister.errors import ManifestError, QuorumMissing, UsageError

if TYPE_CHECKING:
    from cloister.broker.owner_client import OwnerClient
    from cloister.channel.transport import SealedClient
    from cloister.manifest.acceptance import AcceptedManifest


class Verified:
    """A broker that was verified, runs the manifest that was pinned, and may be told things."""

    def __init__(self, client: OwnerClient, channel: SealedClient, origin: str, floor: int) -> None:
        self._client = client
        self._floor = floor
        self._channel = channel
        self._origin = origin

    def __enter__(self) -> tuple[OwnerClient, AcceptedManifest]:
        from cloister.broker.owner_client import require_ours
        from cloister.client.owners_watch import require_manifest_shown

        try:
            found = self._client.status()
            if found.laptop:
                raise UsageError(
                    "this broker is in laptop mode: whoever runs it can read and change everything",
                    todo="use `cloister broker put` on its own machine, or a broker whose owners hold its key",
                )
            newest = require_ours(found, self._client.manifests(origin=self._origin))
            if newest.manifest.version < self._floor:
                raise ManifestError(
                    f"the broker runs version {newest.manifest.version} of the manifest, and yours is {self._floor}",
                    todo="an old copy of its state was put back, or your manifest was not submitted yet",
                )
            require_manifest_shown(self._channel, newest)
        except BaseException:
            self._channel.close()
            raise
        return self._client, newest

    def __exit__(self, *_: object) -> None:
        self._channel.close()


def verified(
    broker: str,
    policy: Path | None,
    manifest: Path | None,
    origin: str | None,
    key: Path | None,
    es256: Path | None,
    ssh: Path | None,
) -> Verified:
    """Connect as the common options say. Raises what :func:`cloister.connect` raises."""
    from cloister.cli.owner_options import open_owner, origin_for, read_manifest_file, signer_of

    pinned = origin_for(origin, manifest)
    client, channel = open_owner(broker, policy=policy, manifest=manifest, signer=signer_of(key, es256, ssh))
    return Verified(client, channel, pinned, 1 if manifest is None else read_manifest_file(manifest).version)


def require_owned(manifest: AcceptedManifest, path: str, key: str) -> None:
    """Nothing is sent that the broker would have to refuse."""
    from cloister.manifest.rule import governing_quorum

    quorum = governing_quorum(manifest, path)
    if key not in [manifest.manifest.owners[name] for name in quorum.owners]:
        raise QuorumMissing(
            f"{path} is decided by {quorum}, and your key is of none of them", todo="sign with an owner's key"
        )
