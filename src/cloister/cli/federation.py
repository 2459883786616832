"""`cloister federation`: write, pass on, sign and read what organisations train together (docs/how-to/federation.md).

Nothing is signed that was not shown in words first. A file under collection is replaced whole or stays as it was.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli import federation_parties, federation_serving
from cloister.cli.manifest import read_text
from cloister.cli.result_line import say
from cloister.cli.serve_options import SignersOption
from cloister.cli.signing_options import EsOption, KeyOption, SshOption, one_signer
from cloister.errors import ManifestError, UsageError

if TYPE_CHECKING:
    from cloister.federated.federation import Federation
    from cloister.manifest.signed import Signed
    from cloister.manifest.signers import Signer

app = typer.Typer(
    no_args_is_help=True, help="Write, sign and read what organisations train together, and take part in it."
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
OutOption = Annotated[Path, typer.Option("--out", metavar="FILE", help="Write there, where nothing is yet.")]
FileArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="A federation, with its signatures so far.")
]
PreviousOption = Annotated[
    list[Path] | None,
    typer.Option("--previous", metavar="FILE", help="The versions before, from 1 on; repeat, in any order."),
]
for _name, _command in (
    ("aggregate", federation_serving.aggregate), ("agent", federation_serving.agent), ("work", federation_serving.work),
    ("join", federation_parties.join), ("status", federation_parties.status), ("leave", federation_parties.leave),
    ("verify-model", federation_parties.verify_model),
):  # fmt: skip
    app.command(_name)(_command)
_OPTIONS = {"ed25519": "--key YOUR.key", "es256": "--es256 YOUR.pem", "ssh": "--ssh YOUR_SSH_KEY"}
"""By which option the holder of such a key signs."""


@app.command("create")
def create(
    file: Annotated[
        Path,
        typer.Argument(metavar="TOML", help="Parties, machines, task and protection, as you wrote them."),
    ],
    out: OutOption,
    previous: Annotated[
        Path | None,
        typer.Option("--previous", metavar="FILE", help="The signed federation that this one follows."),
    ] = None,
    index_signer: SignersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a federation that its parties can sign; policies and the model's digest are taken from the files it names."""
    from cloister.appraisal.policy import read_policy_text
    from cloister.attester.launch import this_program
    from cloister.cli.federation_shown import look, show_federation
    from cloister.cli.serve_options import parse_signers
    from cloister.encoding import encode_json
    from cloister.federated.draft import draft_federation
    from cloister.federated.federation import read_federation
    from cloister.inference.model import find_model
    from cloister.manifest.signed import Signed
    from cloister.manifest.storage import read_signed, write_signed

    signers = parse_signers(index_signer)
    before = None if previous is None else read_signed(previous)
    federation = draft_federation(
        read_text(file),
        name=str(file),
        read_policy=lambda name: read_policy_text(file.parent / name),
        this_code=lambda: this_program().hex(),
        model_digest=lambda path: find_model(file.parent / path, signers=signers).digest.hex(),
        issued=int(time.time()),
        previous=before,
    )
    signed = Signed(document=encode_json(federation), signatures=())
    write_signed(out, signed, replace=False)
    shown = look(signed, ())
    if before is not None:
        shown = replace(shown, before=read_federation(before.document)[0])
    show_federation(out, shown, as_json=as_json)


@app.command("invite")
def invite(
    file: FileArgument,
    party: Annotated[
        str, typer.Option("--party", metavar="NAME", help="Whom to invite, as FILE names them.")
    ],
    out: OutOption,
    as_json: JsonOption = False,
) -> None:
    """Make the copy that one party is sent, and say how they look at it and sign it."""
    from cloister.manifest.storage import read_signed, write_signed

    signed = read_signed(file)
    federation = _checked(signed, file)
    if party not in federation.parties:
        raise UsageError(
            f"version {federation.version} of {federation.name} has no party {party[:80]!r}",
            todo=f"it has {', '.join(sorted(federation.parties))}",
        )
    write_signed(out, signed, replace=False)
    option = _OPTIONS[federation.parties[party].key.partition(":")[0]]
    name = shlex.quote(out.name)
    show = f"cloister federation show {name}"
    approve = f"cloister federation approve {name} {option} --digest {signed.digest}"
    lines = [
        f"{out}: version {federation.version} of {federation.name} for {party}, digest {signed.digest}",
        "send them that file; there they read it with",
        f"  {show}",
        "and sign it with",
        f"  {approve}",
        "before that, COMPARE THE DIGEST BY PHONE: who can change the file on its way can change this message too",
    ]
    say(
        as_json,
        "\n".join(lines),
        {"file": str(out), "party": party, "digest": signed.digest, "show": show, "approve": approve},
    )


@app.command("approve")
def approve(
    file: FileArgument,
    key: KeyOption = None,
    es256: EsOption = None,
    ssh: SshOption = None,
    digest: Annotated[
        str | None,
        typer.Option("--digest", metavar="HEX", help="Sign this document only: as you were told by phone."),
    ] = None,
    add: Annotated[
        list[Path] | None,
        typer.Option("--add", metavar="FILE", help="Take the signatures of another copy over; repeatable."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="Write there, where nothing is yet, and leave FILE as it is."
        ),
    ] = None,
    previous: PreviousOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show in words what a federation says, and add your signature to it, or those that others sent back."""
    from cloister.cli.federation_shown import look, say_standing, say_words, show_federation
    from cloister.manifest.signed import sign
    from cloister.manifest.storage import read_signed, write_signed

    named = [key, es256, ssh].count(None) != 3
    if not named and not add:
        raise UsageError(
            "nothing to add", todo="name your key with --key, --es256 or --ssh, or copies with --add"
        )
    signed = read_signed(file)
    if digest is not None and signed.digest != digest:
        raise ManifestError(
            f"{file} is the document {signed.digest}, and not the one that you named",
            todo="sign nothing; ask who invited you for theirs",
        )
    federation = _checked(signed, file)
    signer = _party_signer(one_signer(key, es256, ssh), federation) if named else None
    signed = _merged(signed, [(path, read_signed(path)) for path in add or []])
    before = look(signed, [read_signed(path) for path in previous or []])
    if signer is not None:
        if not as_json:
            typer.echo(f"This is what you sign, the federation {signed.digest}:")
            say_words(before)
        signed = sign("federation", signed.document, [signer], existing=signed.signatures)
    write_signed(out or file, signed, replace=out is None)
    shown = look(signed, [read_signed(path) for path in previous or []])
    if as_json:
        show_federation(out or file, shown, as_json=True)
    else:
        say_standing(shown)


@app.command("show")
def show(file: FileArgument, previous: PreviousOption = None, as_json: JsonOption = False) -> None:
    """Say in words what a federation says, who signed it, who is missing, and whether it is in force."""
    from cloister.cli.federation_shown import look, show_federation
    from cloister.manifest.storage import read_signed

    shown = look(read_signed(file), [read_signed(path) for path in previous or []])
    show_federation(file, shown, as_json=as_json)


def _checked(signed: Signed, file: Path) -> Federation:
    """The federation, where every signature that it carries is a party's and holds: else it could never be in force."""
    from cloister.errors import SignatureRefused
    from cloister.federated.federation import party_keys, read_federation
    from cloister.manifest.signed import verified_signers

    federation, _ = read_federation(signed.document)
    try:
        verified_signers("federation", signed, party_keys(federation))
    except SignatureRefused as error:
        raise SignatureRefused(f"{file}: {error.what}", todo="go on with a copy without it") from None
    return federation


def _merged(signed: Signed, others: Sequence[tuple[Path, Signed]]) -> Signed:
    """With the signatures of other copies of the same document; of one key the first stays."""
    from cloister.manifest.signed import Signed as Carrier

    found = {one.key: one for one in signed.signatures}
    for path, other in others:
        if other.document != signed.document:
            raise ManifestError(
                f"{path} is another document, {other.digest}, and its signatures are not for this one",
                todo="add copies of one document only",
            )
        _checked(other, path)
        found = {one.key: one for one in other.signatures} | found
    return Carrier(document=signed.document, signatures=tuple(found[key] for key in sorted(found)))


def _party_signer(signer: Signer, federation: Federation) -> Signer:
    from cloister.federated.federation import party_keys
    from cloister.manifest.owner_key import parse_public_key

    identity = parse_public_key(signer.key).identity
    for name, key in party_keys(federation).items():
        if key.text == signer.key:
            return signer
        if key.identity == identity:
            raise UsageError(
                f"{name} has this key in another form: {key.text.partition(':')[0]}",
                todo=f"sign with {_OPTIONS[key.text.partition(':')[0]].split()[0]}",
            )
    raise UsageError(
        f"this key is no party's of version {federation.version} of {federation.name}: nothing was signed",
        todo="name the key that the federation has for you: `cloister federation show`",
    )
