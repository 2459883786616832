"""``cloister manifest``: write, sign, read and verify what owners decide (docs/how-to/manifest.md).

Nothing is signed that was not shown in words first. A file under collection is replaced whole or stays as it was.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli.manifest_shown import show_document
from cloister.cli.signing_options import EsOption, KeyOption, SshOption, one_signer
from cloister.errors import UsageError

if TYPE_CHECKING:
    from cloister.manifest.acceptance import AcceptedManifest
    from cloister.manifest.manifest import Manifest
    from cloister.manifest.signed import Signed

app = typer.Typer(no_args_is_help=True, help="Write, sign, read and verify what owners decide.")

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
OutOption = Annotated[Path, typer.Option("--out", metavar="FILE", help="Write there, where nothing is yet.")]
FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A signed manifest, rule or order.")]


@app.command("new")
def new(
    file: Annotated[
        Path, typer.Argument(metavar="TOML", help="Owners, workloads and resources, as you wrote them.")
    ],
    out: OutOption,
    previous: Annotated[
        Path | None,
        typer.Option("--previous", metavar="FILE", help="The signed manifest that this one follows."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a manifest that its owners can sign; policies are taken from the files that it names."""
    from cloister.appraisal.policy import read_policy_text
    from cloister.encoding import encode_json
    from cloister.manifest.draft import draft_manifest
    from cloister.manifest.signed import Signed
    from cloister.manifest.storage import read_signed, write_signed

    text = read_text(file)
    before = None if previous is None else read_signed(previous)
    manifest = draft_manifest(
        text,
        name=str(file),
        read_policy=lambda name: read_policy_text(file.parent / name),
        issued=int(time.time()),
        previous=before,
    )
    signed = Signed(document=encode_json(manifest), signatures=())
    write_signed(out, signed, replace=False)
    show_document(out, signed, None if before is None else _manifest_of(before), as_json=as_json)


@app.command("rule-new")
def rule_new(
    resource: Annotated[str, typer.Argument(metavar="RESOURCE", help="repository/type/tag")],
    application: Annotated[
        str, typer.Option("--application", metavar="NAME", help="As the manifest names it.")
    ],
    out: OutOption,
    workload: Annotated[
        list[str] | None,
        typer.Option(
            "--workload",
            metavar="NAME[=DIGEST]",
            help="Who may read: with the manifest's reference values, or only under the policy with this digest.",
        ),
    ] = None,
    policy: Annotated[
        list[Path] | None,
        typer.Option("--policy", metavar="FILE", help="Who may read: whatever meets this policy."),
    ] = None,
    purpose: Annotated[
        list[str] | None, typer.Option("--purpose", metavar="NAME", help="Only for this; without it for any.")
    ] = None,
    not_before: Annotated[
        str | None, typer.Option("--not-before", metavar="TIME", help="Not earlier.")
    ] = None,
    not_after: Annotated[
        str | None, typer.Option("--not-after", metavar="TIME", help="Not from then on.")
    ] = None,
    releases: Annotated[
        str, typer.Option("--releases", metavar="N", help="How often in all: a number, or unlimited.")
    ] = "unlimited",
    previous: Annotated[
        Path | None, typer.Option("--previous", metavar="FILE", help="The signed rule that this one follows.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a rule that the resource's owners can sign: who may read it."""
    from cloister.appraisal.policy import read_policy_text
    from cloister.cli.manifest_rule import drafted_rule
    from cloister.encoding import encode_json
    from cloister.manifest.signed import Signed
    from cloister.manifest.storage import read_signed, write_signed

    rule = drafted_rule(
        resource,
        application=application,
        workloads=workload or [],
        policies=[read_policy_text(path) for path in policy or []],
        purposes=purpose or [],
        window=(not_before, not_after),
        releases=releases,
        previous=None if previous is None else read_signed(previous),
    )
    signed = Signed(document=encode_json(rule), signatures=())
    write_signed(out, signed, replace=False)
    show_document(out, signed, None, as_json=as_json)


@app.command("sign")
def sign(
    file: FileArgument,
    key: KeyOption = None,
    es256: EsOption = None,
    ssh: SshOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show in words what a manifest, rule or order says, and add your signature to it."""
    from cloister.manifest.manifest import Manifest
    from cloister.manifest.signatures import in_words, read_document
    from cloister.manifest.signed import sign as add_signatures
    from cloister.manifest.storage import read_signed, write_signed

    signer = one_signer(key, es256, ssh)
    signed = read_signed(file)
    kind, document = read_document(signed)
    if not as_json:
        typer.echo(f"This is what you sign, the {kind} {signed.digest}:")
        for line in in_words(document):
            typer.echo(f"  {line}")
        if isinstance(document, Manifest) and signer.key not in document.owners.values():
            typer.echo("This key is no owner's in it: it counts only if it is one of the predecessor's.")
    signed = add_signatures(kind, signed.document, [signer], existing=signed.signatures)
    write_signed(file, signed, replace=True)
    if as_json:
        show_document(file, signed, None, as_json=True)
    else:
        typer.echo(f"Signed by {signer.key}; {file} carries {len(signed.signatures)} signatures.")


@app.command("show")
def show(
    file: FileArgument,
    manifest: Annotated[
        Path | None,
        typer.Option(
            "--manifest",
            metavar="FILE",
            help="The manifest in force: names who signed, and tells who still has to.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say in words what a document says, who signed it, and who is missing."""
    from cloister.manifest.storage import read_signed

    show_document(
        file,
        read_signed(file),
        None if manifest is None else _manifest_of(read_signed(manifest)),
        as_json=as_json,
    )


@app.command("verify")
def verify(
    file: FileArgument,
    origin: Annotated[str, typer.Option("--origin", metavar="HEX", help="The origin that you pinned.")],
    previous: Annotated[
        list[Path] | None,
        typer.Option("--previous", metavar="FILE", help="Manifests from version 1 on; repeat, in any order."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check that a manifest follows from the first one under its origin, or that a rule may be in force under it."""
    from cloister.manifest.rule import Rule, accept_rule
    from cloister.manifest.signatures import read_document
    from cloister.manifest.storage import read_signed

    signed = read_signed(file)
    _, document = read_document(signed)
    chain = [read_signed(path) for path in previous or []]
    if isinstance(document, Rule):
        if document.version > 1:
            raise UsageError(
                "a later rule is verified where its predecessor is in force", todo="submit it to the broker"
            )
        manifest = _accept(chain, origin)
        accept_rule(signed, manifest=manifest, predecessor=None)
        outcome = (
            f"{file}: the rule of {document.resource} is signed as version {manifest.manifest.version} asks"
        )
        facts: dict[str, object] = {"kind": "rule", "resource": document.resource}
    else:
        accepted = _accept([*chain, signed], origin)
        if accepted.signed != signed:
            raise UsageError(
                "a later version than FILE was given as its predecessor", todo="name only earlier ones"
            )
        outcome = f"{file}: version {accepted.manifest.version} of {accepted.manifest.application} is signed as it must be"
        facts = {"kind": "manifest", "version": accepted.manifest.version, "origin": origin}
    if as_json:
        typer.echo(json.dumps({"file": str(file), "accepted": True, "digest": signed.digest, **facts}))
    else:
        typer.echo(f"{outcome}; digest {signed.digest}")


@app.command("origin")
def origin_command(file: FileArgument, as_json: JsonOption = False) -> None:
    """Print the origin of a manifest: of version 1 it is what brokers, owners and clients pin.

    Also of the TOML that a first manifest will be made of: `cloister measure broker --origin` needs it before that.
    """
    from cloister.manifest.draft import drafted_origin
    from cloister.manifest.manifest import origin
    from cloister.manifest.storage import read_signed

    if file.suffix == ".toml":
        version, value = 1, drafted_origin(read_text(file), name=str(file))
    else:
        manifest = _manifest_of(read_signed(file))
        version, value = manifest.version, origin(manifest)
    # Alone on its line, so that `--origin $(cloister manifest origin v1.json)` can be typed.
    typer.echo(json.dumps({"file": str(file), "version": version, "origin": value}) if as_json else value)


@app.command("key")
def key_command(
    key: KeyOption = None, es256: EsOption = None, ssh: SshOption = None, as_json: JsonOption = False
) -> None:
    """Print the public key as manifests name it."""
    text = one_signer(key, es256, ssh).key
    typer.echo(json.dumps({"key": text}) if as_json else text)


def read_text(file: Path) -> str:
    """What a person wrote. Raises :class:`~cloister.errors.UsageError`."""
    from cloister.manifest.signed import MAX_DOCUMENT
    from cloister.manifest.storage import read_bounded

    try:
        return read_bounded(file, limit=MAX_DOCUMENT, what="the file").decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{file} is not UTF-8 text", todo="save it as UTF-8") from None


def _manifest_of(signed: Signed) -> Manifest:
    from cloister.manifest.manifest import parse_manifest

    return parse_manifest(signed.document)


def _accept(chain: list[Signed], origin: str) -> AcceptedManifest:
    from cloister.manifest.acceptance import accept_genesis, accept_successor

    chain = sorted(chain, key=lambda signed: _manifest_of(signed).version)
    if not chain:
        raise UsageError("no manifest was given", todo="name the manifests from version 1 on with --previous")
    accepted = accept_genesis(chain[0], origin=origin)
    for signed in chain[1:]:
        accepted = accept_successor(signed, predecessor=accepted)
    return accepted
