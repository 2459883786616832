"""`cloister serve MODEL`: the OpenAI API behind the sealed channel, the model in memory only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli.serving import (
    CaFileOption,
    EndorsementsOption,
    GpusOption,
    NoEndorsementsOption,
    PccsOption,
    SimulatedOption,
    TeeOption,
)
from cloister.errors import UsageError

if TYPE_CHECKING:
    from cloister.appraisal.policy import Policy
    from cloister.inference.configuration import ServeConfiguration

ModelArgument = Annotated[
    Path, typer.Argument(help="A sealed directory (or, in the clear, a .gguf file).", metavar="MODEL")
]
NameOption = Annotated[
    str, typer.Option("--model-name", help="The name clients ask for; by default the file's or folder's.")
]
EngineOption = Annotated[str, typer.Option("--engine", help="Inference engine.")]
ContextOption = Annotated[
    int, typer.Option("--context", min=64, help="Tokens per request, prompt and answer.")
]
SlotsOption = Annotated[int, typer.Option("--slots", min=1, max=256, help="Requests answered at once.")]
SignersOption = Annotated[
    list[str] | None,
    typer.Option(
        "--index-signer", help="Ed25519 public key (hex) whose index signature to believe; repeatable."
    ),
]
BrokerPolicyOption = Annotated[
    Path | None, typer.Option("--broker-policy", help="Policy by which the key broker is appraised.")
]
ApiKeysOption = Annotated[
    Path | None, typer.Option("--api-keys", help="File with one API key per line (mode 0600).")
]
NoApiKeysOption = Annotated[bool, typer.Option("--no-api-keys", help="Answer anybody.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def command(
    model: ModelArgument,
    model_name: NameOption = "",
    engine: EngineOption = "llamacpp",
    context: ContextOption = 512,
    slots: SlotsOption = 8,
    index_signer: SignersOption = None,
    broker: Annotated[str | None, typer.Option("--broker", help="URL of the key broker.")] = None,
    broker_policy: BrokerPolicyOption = None,
    key_file: Annotated[
        Path | None, typer.Option("--key-file", help="An owner's key file, instead of a broker.")
    ] = None,
    api_keys: ApiKeysOption = None,
    no_api_keys: NoApiKeysOption = False,
    host: Annotated[str, typer.Option("--host")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535)] = 8000,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Engine threads; default: all cores.")
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(
            "--manifest",
            help="Show clients this signed manifest, which may be replaced while the workload serves.",
        ),
    ] = None,
    simulated_tee: SimulatedOption = None,
    tee: TeeOption = "auto",
    gpus: GpusOption = False,
    pccs: PccsOption = None,
    ca_file: CaFileOption = None,
    endorsements: EndorsementsOption = None,
    no_endorsements: NoEndorsementsOption = False,
    as_json: JsonOption = False,
) -> None:
    """Serve MODEL to attested, sealed requests only."""
    from cloister.appraisal.policy import read_policy
    from cloister.broker.client import BrokerKeys
    from cloister.cli.serving import open_tee, run_server, take_port
    from cloister.inference.api_keys import ApiKeys
    from cloister.inference.configuration import serving_events
    from cloister.inference.model import find_model
    from cloister.inference.workload import start
    from cloister.sealing import KeySource
    from cloister.sealing.key_file import KeyFile

    if broker and key_file:
        raise UsageError("--broker and --key-file exclude each other", todo="name one source of keys")
    if bool(broker) != bool(broker_policy):
        raise UsageError(
            "--broker and --broker-policy go together", todo="a broker is verified before it is asked"
        )
    machine = open_tee(
        simulated_tee,
        asked=tee,
        gpus=gpus,
        pccs=pccs,
        ca_file=ca_file,
        endorsements=endorsements,
        no_endorsements=no_endorsements,
    )
    signers = parse_signers(index_signer)
    policy = read_policy(broker_policy) if broker_policy else None
    configuration = configure(
        model, model_name, engine, context, slots, signers, policy, api_keys, no_api_keys
    )
    accepted = ApiKeys.read(api_keys) if api_keys else ApiKeys.nobody_asks()
    listener = take_port(host, port)
    source = find_model(model, signers=signers)
    attester = machine.launch(serving_events(configuration, source.digest))
    keys: KeySource | None = None
    if broker and policy:
        keys = BrokerKeys(broker, policy=policy, attester=attester, devices=machine.devices)
    elif key_file:
        keys = KeyFile.load(key_file)

    def progress(step: str, fact: str) -> None:
        typer.echo(f"{step}: {fact}", err=True)

    try:
        workload = start(
            configuration,
            model=source,
            attester=attester,
            devices=machine.devices,
            keys=keys,
            api_keys=accepted,
            threads=threads,
            replica="replica-0",
            progress=progress,
            manifest=None if manifest is None else shown_manifest(manifest),
        )
    finally:
        if isinstance(keys, BrokerKeys):
            keys.close()  # the model is open: nothing is asked of the broker any more
    try:
        run_server(workload.gateway, listener, name="inference", as_json=as_json)
    finally:
        workload.close()


def shown_manifest(path: Path) -> Callable[[], bytes | None]:
    """The newest content of a manifest's file, read again when it changed. Raises :class:`UsageError` if it is none now.

    A file that is missing or broken later on is left alone: the last good one is shown.
    """
    from cloister.errors import CloisterError
    from cloister.manifest.manifest import parse_manifest
    from cloister.manifest.signed import encode_signed
    from cloister.manifest.storage import read_signed

    def read() -> tuple[tuple[int, int], bytes]:
        stat = path.stat()
        signed = read_signed(path)
        parse_manifest(signed.document)
        return (stat.st_mtime_ns, stat.st_ino), encode_signed(signed)

    try:
        newest = read()
    except OSError as error:
        raise UsageError(f"cannot read {path} ({error.strerror})", todo="check --manifest") from None

    def show() -> bytes | None:
        nonlocal newest
        try:
            stat = path.stat()
            if (stat.st_mtime_ns, stat.st_ino) != newest[0]:
                newest = read()
        except (OSError, CloisterError):
            pass
        return newest[1]

    return show


def parse_signers(index_signer: list[str] | None) -> frozenset[bytes]:
    """Public keys from the command line. Raises :class:`UsageError`."""
    from cloister.encoding import from_hex
    from cloister.errors import FormatError

    try:
        return frozenset(from_hex(text, 32, what="--index-signer") for text in index_signer or ())
    except FormatError as error:
        raise UsageError(
            error.what, todo="`cloister keys show FILE` prints it, FILE being the owner's signing key"
        ) from None


def configure(
    model: Path,
    model_name: str,
    engine: str,
    context: int,
    slots: int,
    signers: frozenset[bytes],
    broker_policy: Policy | None,
    api_keys: Path | None,
    no_api_keys: bool,
) -> ServeConfiguration:
    """The measured configuration that these options mean; `serve` and `measure serve` share it."""
    from cloister.inference.configuration import ServeConfiguration

    if (api_keys is None) == (not no_api_keys):
        raise UsageError("say who may ask", todo="pass --api-keys FILE, or --no-api-keys to answer anybody")
    return ServeConfiguration(
        model_name=model_name or model.name.removesuffix(".gguf").removesuffix(".sealed"),
        engine=engine,
        context_length=context,
        slots=slots,
        index_signers=tuple(sorted(key.hex() for key in signers)),
        broker_policy=broker_policy.digest if broker_policy else None,
        api_keys_required=not no_api_keys,
    )
