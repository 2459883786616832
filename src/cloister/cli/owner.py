"""`cloister owner`: what owners do with a broker, after verifying it: shares, keys, rules, manifests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloister.cli import owner_page
from cloister.cli.owner_options import (
    BrokerOption,
    Es256Option,
    JsonOption,
    KeyOption,
    ManifestOption,
    OriginOption,
    PolicyOption,
    SshOption,
)
from cloister.cli.owner_session import Verified, require_owned, verified
from cloister.cli.result_line import say
from cloister.errors import UsageError

if TYPE_CHECKING:
    from cloister.broker.wire import Done
    from cloister.manifest.order import Action

app = typer.Typer(no_args_is_help=True, help="An owner's way to a broker: verified first, then told.")
app.command("page")(owner_page.command)

UriArgument = Annotated[str, typer.Argument(help="kbs:///repository/type/tag", metavar="KBS_URI")]
FileArgument = Annotated[Path, typer.Argument(help="A signed document.", metavar="FILE")]
OrderOption = Annotated[
    Path | None,
    typer.Option(
        "--order", help="Only write the signed order here, for further owners to sign with `manifest sign`."
    ),
]


@app.command()
def status(
    broker: BrokerOption,
    policy: PolicyOption = None,
    manifest: ManifestOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a verified broker is: open or locked, whose, under which manifest, with how many witnesses."""
    from cloister.broker.status_words import status_words
    from cloister.cli.owner_options import open_owner

    client, _ = open_owner(broker, policy=policy, manifest=manifest, signer=None)
    with client:
        found = client.status()
    if as_json:
        import msgspec

        typer.echo(json.dumps(msgspec.to_builtins(found)))
        return
    for line in status_words(found):
        typer.echo(line)


@app.command()
def share(
    broker: BrokerOption,
    out: Annotated[Path, typer.Option("--out", help="The file to make, readable by you alone.")],
    policy: PolicyOption = None,
    manifest: ManifestOption = None,
    origin: OriginOption = None,
    key: KeyOption = None,
    es256: Es256Option = None,
    ssh: SshOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch and keep your share of a new broker's state key. Once enough owners did, keys can be put."""
    from cloister.cli.owner_files import write_share

    with verified(broker, policy, manifest, origin, key, es256, ssh) as (client, _):
        mine = client.share()
        write_share(out, mine)
        progress = client.keep_share(mine)
    facts = {"owner": mine.owner, "kept": progress.have, "needed": progress.need, "file": str(out)}
    say(as_json, f"{out}: the share of {mine.owner}; {progress.have} kept, {progress.need} needed", facts)


@app.command()
def unlock(
    broker: BrokerOption,
    share_file: Annotated[Path, typer.Option("--share", help="The file that `cloister owner share` made.")],
    policy: PolicyOption = None,
    manifest: ManifestOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a broker that was started again your share, after verifying it. With enough of them it opens."""
    from cloister.cli.owner_files import read_share
    from cloister.cli.owner_options import open_owner, read_manifest_file

    mine = read_share(share_file)
    client, _ = open_owner(broker, policy=policy, manifest=manifest, signer=None)
    with client:
        found = client.status()
        if found.laptop or found.state != mine.state:
            raise UsageError(
                "this broker runs another state than your share is of", todo="check --broker and --share"
            )
        known = 1 if manifest is None else read_manifest_file(manifest).version
        progress = client.unlock(mine, manifest_version=known)
    line = "the broker is open" if progress.open else f"{progress.have} of {progress.need} shares are there"
    say(as_json, line, {"open": progress.open, "have": progress.have, "need": progress.need})


@app.command("put-key")
def put_key(
    uri: UriArgument,
    broker: BrokerOption,
    file: Annotated[
        Path, typer.Option("--file", help="A key file of `cloister keys new`, or with --raw any.")
    ],
    raw: Annotated[bool, typer.Option("--raw", help="Take the file's bytes as they are.")] = False,
    order: OrderOption = None,
    policy: PolicyOption = None,
    manifest: ManifestOption = None,
    origin: OriginOption = None,
    key: KeyOption = None,
    es256: Es256Option = None,
    ssh: SshOption = None,
    as_json: JsonOption = False,
) -> None:
    """Verify the broker, then give it a key or another secret. Refuses any broker that is not yours."""
    from cloister.cli.owner_files import parse_path, read_raw
    from cloister.sealing.key_file import read_key

    path = parse_path(uri)
    content = read_raw(file) if raw else read_key(file)
    opened = verified(broker, policy, manifest, origin, key, es256, ssh)
    done = _order(opened, order, as_json, "put", path, content)
    if done is not None:
        say(as_json, f"{uri}: version {done.version} stored", {"uri": uri, "version": done.version})


@app.command()
def destroy(
    uri: UriArgument,
    broker: BrokerOption,
    order: OrderOption = None,
    policy: PolicyOption = None,
    manifest: ManifestOption = None,
    origin: OriginOption = None,
    key: KeyOption = None,
    es256: Es256Option = None,
    ssh: SshOption = None,
    as_json: JsonOption = False,
) -> None:
    """Shred a resource: its data key is gone, and the log says so."""
    from cloister.cli.owner_files import parse_path

    path = parse_path(uri)
    opened = verified(broker, policy, manifest, origin, key, es256, ssh)
    done = _order(opened, order, as_json, "destroy", path)
    if done is not None:
        say(as_json, f"{uri}: destroyed", {"uri": uri, "version": done.version})


@app.command("rotate-key")
def rotate_key(
    repository: Annotated[str, typer.Argument(metavar="REPOSITORY")],
    broker: BrokerOption,
    order: OrderOption = None,
    policy: PolicyOption = None,
    manifest: ManifestOption = None,
    origin: OriginOption = None,
    key: KeyOption = None,
    es256: Es256Option = None,
    ssh: SshOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a repository a new key-encryption key; its data keys are wrapped anew, no data is touched."""
    opened = verified(broker, policy, manifest, origin, key, es256, ssh)
    done = _order(opened, order, as_json, "rotate-key", repository)
    if done is not None:
        facts = {"repository": repository, "version": done.version, "rewrapped": done.rewrapped}
        say(
            as_json,
            f"{repository}: key version {done.version}, {done.rewrapped} data keys wrapped anew",
            facts,
        )


@app.command("destroy-key")
def destroy_key(
    repository: Annotated[str, typer.Argument(metavar="REPOSITORY")],
    broker: BrokerOption,
    version: Annotated[int, typer.Option("--version", min=1, help="Which version of the key to shred.")],
    order: OrderOption = None,
    policy: PolicyOption = None,
    manifest: ManifestOption = None,
    origin: OriginOption = None,
    key: KeyOption = None,
    es256: Es256Option = None,
    ssh: SshOption = None,
    as_json: JsonOption = False,
) -> None:
    """Shred one version of a repository's key-encryption key: what it alone wrapped is lost for good."""
    opened = verified(broker, policy, manifest, origin, key, es256, ssh)
    done = _order(opened, order, as_json, "destroy-key", repository, version=version)
    if done is not None:
        facts = {"repository": repository, "version": version}
        say(as_json, f"{repository}: key version {done.version} destroyed", facts)


@app.command()
def submit(
    file: FileArgument,
    broker: BrokerOption,
    content: Annotated[
        Path | None,
        typer.Option("--content", help="What an order to put is about: a key file, or with --raw any."),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Take the file's bytes as they are.")] = False,
    policy: PolicyOption = None,
    manifest: ManifestOption = None,
    origin: OriginOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give the broker a signed manifest, rule or order. Its signatures decide, not who sends it."""
    from cloister.cli.owner_files import kind_of, read_raw
    from cloister.manifest.storage import read_signed
    from cloister.sealing.key_file import read_key

    signed = read_signed(file)
    kind = kind_of(signed)
    with verified(broker, policy, manifest, origin, None, None, None) as (client, _):
        if kind == "manifest":
            found = client.submit_manifest(signed)
            line = f"manifest version {found.manifest_version} is in force"
            facts: dict[str, Any] = {"manifest": found.manifest, "version": found.manifest_version}
        elif kind == "rule":
            following = client.submit_rule(signed)
            line, facts = (
                f"rule version {following.version - 1} is in force",
                {"version": following.version - 1},
            )
        else:
            secret = b"" if content is None else read_raw(content) if raw else read_key(content)
            done = client.submit_order(signed, secret)
            line, facts = f"{done.action} {done.subject}: version {done.version}", {"version": done.version}
    say(as_json, line, facts)


@app.command("list")
def list_resources(
    broker: BrokerOption,
    policy: PolicyOption = None,
    manifest: ManifestOption = None,
    origin: OriginOption = None,
    key: KeyOption = None,
    es256: Es256Option = None,
    ssh: SshOption = None,
    as_json: JsonOption = False,
) -> None:
    """Resources, their owners and rules, and every key-encryption key; no contents."""
    with verified(broker, policy, manifest, origin, key, es256, ssh) as (client, _):
        resources, keys = client.resources().resources, client.keys().keys
    if as_json:
        import msgspec

        typer.echo(
            json.dumps({"resources": msgspec.to_builtins(resources), "keys": msgspec.to_builtins(keys)})
        )
        return
    for one in resources:
        what = (
            "destroyed" if one.destroyed else f"version {one.resource}" if one.resource else "nothing stored"
        )
        rule = f"rule version {one.rule}" if one.rule else "no rule: nobody may read it"
        counted = f", released {one.released} times" if one.released else ""
        typer.echo(f"{one.uri}: {what}, {rule}{counted}; owners: {one.owners}")
    for held in keys:
        typer.echo(f"key {held.store}/{held.id} version {held.version}: {held.state}, {held.algorithm}")
    if not resources:
        typer.echo("nothing is stored")


def _order(
    opened: Verified,
    order: Path | None,
    as_json: bool,
    action: Action,
    subject: str,
    content: bytes = b"",
    *,
    version: int = 0,
) -> Done | None:
    """Have it done; or, where that was asked for, write the signed order instead."""
    with opened as (client, newest):
        if action == "put":
            require_owned(newest, subject, client.key)
        signed = client.order(action, subject, content, version=version)
        if order is None:
            return client.submit_order(signed, content)
    from cloister.manifest.storage import write_signed

    write_signed(order, signed, replace=False)
    line = f"{order}: signed once; `cloister manifest sign` it, then `cloister owner submit` it"
    say(as_json, line, {"order": str(order)})
    return None
