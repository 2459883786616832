"""`cloister federation join | status | leave | verify-model`: what a party's people do while it runs, and afterwards."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cloister.cli.federation_serving import PreviousOption, agreed_files
from cloister.cli.result_line import say
from cloister.cli.signing_options import EsOption, KeyOption, SshOption, one_signer
from cloister.errors import ManifestError, UsageError

if TYPE_CHECKING:
    from cloister.channel.transport import SealedClient
    from cloister.federated.agreement import AgreedFederation
    from cloister.federated.progress import Fact
    from cloister.manifest.signers import Signer

DAY: Final = 86_400
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="The federation that every party signed.")]
PartyOption = Annotated[str, typer.Option("--as", metavar="PARTY", help="For which party.")]
AggregatorOption = Annotated[
    str, typer.Option("--aggregator", metavar="URL", help="Where the aggregator is; it is verified first.")
]
DigestOption = Annotated[
    str | None,
    typer.Option(
        "--digest", metavar="HEX", help="The digest of version 1 that you compared: another is refused."
    ),
]


def join(
    file: FileArgument,
    party: PartyOption,
    agent: Annotated[str, typer.Option("--agent", metavar="URL", help="Your agent; it is verified first.")],
    data_key: Annotated[
        list[str],
        typer.Option(
            "--data-key", metavar="URI=FILE", help="A key of your sealed data, or of the model; repeat."
        ),
    ],
    index_signer: Annotated[
        list[str],
        typer.Option("--index-signer", metavar="HEX", help="Whose signature on their indexes holds; repeat."),
    ],
    output_key: Annotated[
        str | None,
        typer.Option("--output-key", metavar="URI", help="To which of them the final model is sealed."),
    ] = None,
    days: Annotated[
        int, typer.Option("--days", min=1, max=365, help="How long the agent may act for you.")
    ] = 30,
    previous: PreviousOption = None,
    digest: DigestOption = None,
    key: KeyOption = None,
    es256: EsOption = None,
    ssh: SshOption = None,
    as_json: JsonOption = False,
) -> None:
    """Verify your agent, let it act for you, and hand it your keys. It gives them on only when all others are verified."""
    from cloister.channel.transport import connect
    from cloister.federated.delegation import delegate
    from cloister.federated.messages import JOIN, Done, JoinOrder
    from cloister.federated.sealed_call import call
    from cloister.manifest.signed import encode_signed
    from cloister.manifest.storage import read_signed

    signer = one_signer(key, es256, ssh)
    paths = [*(previous or []), file]
    agreed = agreed_files(paths, digest=digest)
    keys = _keys(data_key)
    output = output_key or next(iter(keys))
    if output not in keys:
        raise UsageError(f"--output-key {output} is none of the keys", todo="name one that --data-key gives")
    with connect(agent, policy=agreed.agent_policies(party)) as client:
        attested = client.attestation
        if attested is None or attested.keys.tls_spki_sha256 is None:
            raise ManifestError("the agent's evidence shows no key of its own")
        delegation = delegate(
            agreed, party=party, agent_key=attested.keys.tls_spki_sha256, not_after=int(time.time()) + days * DAY,
            signer=signer,
        )  # fmt: skip
        documents = tuple(encode_signed(read_signed(path)) for path in paths)
        order = JoinOrder(
            federation=documents, digest=read_signed(paths[0]).digest, party=party, delegation=encode_signed(delegation),
            keys=keys, signers=tuple(index_signer), output=output,
        )  # fmt: skip
        call(client, JOIN, order, Done)
    say(
        as_json,
        f"{party}: the agent at {agent} was verified, acts for you for {days} days, and has {len(keys)} keys. It gives them "
        "to your workload when the aggregator and the others are verified.",
        {"party": party, "agent": agent, "agent_key": attested.keys.tls_spki_sha256, "days": days},
    )


def status(
    file: FileArgument,
    aggregator: AggregatorOption,
    party: PartyOption,
    previous: PreviousOption = None,
    key: KeyOption = None,
    es256: EsOption = None,
    ssh: SshOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Stay, and show rounds as they come.")] = False,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="HTML", help="Write all of it as one page.")
    ] = None,
    page: Annotated[
        bool, typer.Option("--page", help="Show it as a page on this machine, which stays current.")
    ] = False,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Of the page.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Verify the aggregator and see the run: parties, rounds, scores, evidence, budget."""
    from rich.console import Console

    from cloister.cli.federation_live import fact_line, show_live
    from cloister.cli.federation_seen import coming, serve_page, write_report

    agreed = agreed_files([*(previous or []), file])
    with _aggregator(aggregator, agreed) as client:
        seen = Seen(client, agreed, party, one_signer(key, es256, ssh))
        if page:
            serve_page(seen.look, port=port, as_json=as_json)
        elif watch and not as_json:
            show_live(coming(seen.look), Console())
        facts = seen.look()
        if report is not None:
            write_report(report, facts)
    if as_json:
        import msgspec

        typer.echo(
            json.dumps({"states": seen.states, "facts": [msgspec.to_builtins(fact) for fact in facts]})
        )
    elif not watch and not page:
        for fact in facts:
            typer.echo(fact_line(fact))
        typer.echo(", ".join(f"{name}: {state}" for name, state in sorted(seen.states.items())))
    if report is not None and not as_json:
        typer.echo(f"{report}: the whole run, as one page")


def leave(
    file: FileArgument,
    aggregator: AggregatorOption,
    party: PartyOption,
    previous: PreviousOption = None,
    key: KeyOption = None,
    es256: EsOption = None,
    ssh: SshOption = None,
    as_json: JsonOption = False,
) -> None:
    """Leave at once and for good: the round goes on without your party, if enough are left."""
    from cloister.federated.messages import DEPARTURES, Departure, Done, SignedWord
    from cloister.federated.party_words import say as say_word
    from cloister.federated.sealed_call import call
    from cloister.manifest.signed import encode_signed

    agreed = agreed_files([*(previous or []), file])
    signer = one_signer(key, es256, ssh)
    word = say_word(Departure, agreed, party=party, signer=signer, now=int(time.time()))
    with _aggregator(aggregator, agreed) as client:
        call(client, DEPARTURES, SignedWord(signed=encode_signed(word)), Done)
    say(
        as_json,
        f"{party} has left {agreed.federation.name}. Stop its agent and workload; what it gave in earlier rounds stays in "
        "the model.",
        {"party": party, "left": True},
    )


def verify_model(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="What a receiver's workload wrote: its --out.")
    ],
    digest: Annotated[
        str,
        typer.Option(
            "--digest", metavar="HEX", help="The digest of version 1 of the federation that you pinned."
        ),
    ],
    key_file: Annotated[
        Path | None, typer.Option("--key-file", help="The key it is sealed to: then every byte is checked.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check of what run a model is: the federation, the aggregator's and the workload's evidence, the files."""
    from cloister.federated.provenance import SEALED, agreed_chain, read_provenance, verify_files, verify_run
    from cloister.sealing.check import check_files
    from cloister.sealing.index import open_index
    from cloister.sealing.key_file import KeyFile

    found = read_provenance(folder)
    agreed = agreed_chain((*found.previous, found.federation), digest=digest)
    run = verify_run(found.run, agreed)
    files = verify_files(found.files, run, agreed)
    index = open_index(folder / SEALED, signers=[bytes.fromhex(files.signer)])
    if index.digest.hex() != files.index:
        raise ManifestError(
            "the sealed directory is not the one that the workload wrote", todo="get it from the party again"
        )
    if key_file is not None:
        check_files(folder / SEALED, index.files, keys=KeyFile.load(key_file))
    parties = ", ".join(sorted(run.parties))
    read = "every byte was read" if key_file else "its bytes were not read: give --key-file"
    say(
        as_json,
        f"{folder}: the model of {len(run.rounds)} rounds of {agreed.federation.name} (version "
        f"{agreed.federation.version}, {agreed.digest[:16]}…) by {parties}; aggregator and workload of {files.party} "
        f"attest it; {read}. Its index is signed by {files.signer}",
        {
            "federation": agreed.digest, "run": run.run, "rounds": len(run.rounds), "model": run.model,
            "index": files.index, "index_signer": files.signer, "parties": sorted(run.parties),
            "checked": key_file is not None,
        },
    )  # fmt: skip


class Seen:
    """The run as the verified aggregator tells it to a party. Facts are asked for once each."""

    def __init__(self, client: SealedClient, agreed: AgreedFederation, party: str, signer: Signer) -> None:
        self._client = client
        self._agreed = agreed
        self._party = party
        self._signer = signer
        self._token = ""
        self._facts: list[Fact] = []
        self.states: dict[str, str] = {}

    def look(self) -> tuple[Fact, ...]:
        """All facts so far. Raises FederationError, NetworkError, and what the channel raises."""
        from cloister.federated.messages import FACTS, Facts, FactsFrom
        from cloister.federated.progress import decode_facts
        from cloister.federated.sealed_call import Refused, call

        for last in (False, True):
            if not self._token:
                self._token = self._ask()
            try:
                while True:
                    asked = FactsFrom(token=self._token, start=len(self._facts))
                    told = call(self._client, FACTS, asked, Facts)
                    self.states = told.states
                    new = decode_facts(told.lines, what="what the aggregator tells")
                    self._facts += new
                    if not new:
                        return tuple(self._facts)
            except Refused:
                if last:
                    raise
                self._token = (
                    ""  # an aggregator that was started again knows no token, and tells from the beginning
                )
                self._facts = []
        raise AssertionError("unreachable")

    def _ask(self) -> str:
        from cloister.federated.messages import INQUIRIES, Inquiry, SignedWord, Token
        from cloister.federated.party_words import say as say_word
        from cloister.federated.sealed_call import call
        from cloister.manifest.signed import encode_signed

        word = say_word(Inquiry, self._agreed, party=self._party, signer=self._signer, now=int(time.time()))
        return call(self._client, INQUIRIES, SignedWord(signed=encode_signed(word)), Token).token


def _aggregator(url: str, agreed: AgreedFederation) -> SealedClient:
    """Verified, and of this very federation."""
    from cloister.channel.transport import connect
    from cloister.federated.admission import check_aggregator

    client = connect(url, policy=agreed.aggregator_policies())
    try:
        result = client.attestation
        if result is None:
            raise ManifestError("the aggregator shows no evidence")
        check_aggregator(result.keys, agreed)
    except BaseException:
        client.close()
        raise
    return client


def _keys(written: list[str]) -> dict[str, bytes]:
    from cloister.sealing.key_file import read_key
    from cloister.sealing.uri import parse_key_uri

    found: dict[str, bytes] = {}
    for one in written:
        uri, given, path = one.partition("=")
        if not given:
            raise UsageError(f"--data-key {one[:80]} has no =", todo="write kbs:///repository/type/tag=FILE")
        found[str(parse_key_uri(uri))] = read_key(Path(path))
    return found
