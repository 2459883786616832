"""`cloister serve MODEL`: the OpenAI API behind the sealed channel, the model in memory only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from cloister.cli.serve_knowledge import (
    KnowledgeIndexOption,
    KnowledgeServerOption,
    check_knowledge,
    room,
    server_address,
    sources,
)
from cloister.cli.serve_options import (
    AdapterFolderOption,
    AdapterOption,
    ApiKeysOption,
    BrokerPolicyOption,
    ContextOption,
    DraftOption,
    EncoderOption,
    EngineOption,
    JsonOption,
    KnowledgeOption,
    KvCacheOption,
    ModelArgument,
    NameOption,
    NoApiKeysOption,
    PrecisionOption,
    PrefixCacheOption,
    ServeOptions,
    SignersOption,
    SlotsOption,
    SpeculationOption,
    UpstreamOption,
    understood,
)
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


def command(
    model: ModelArgument = None,
    model_name: NameOption = "",
    engine: EngineOption = "auto",
    context: ContextOption = 512,
    slots: SlotsOption = 8,
    adapter: AdapterOption = None,
    adapter_folder: AdapterFolderOption = "",
    precision: PrecisionOption = None,
    kv_cache: KvCacheOption = None,
    prefix_cache: PrefixCacheOption = False,
    speculation: SpeculationOption = None,
    draft: DraftOption = None,
    upstream: UpstreamOption = None,
    index_signer: SignersOption = None,
    broker: Annotated[str | None, typer.Option("--broker", help="URL of the key broker.")] = None,
    broker_policy: BrokerPolicyOption = None,
    key_file: Annotated[
        Path | None, typer.Option("--key-file", help="An owner's key file, instead of a broker.")
    ] = None,
    api_keys: ApiKeysOption = None,
    no_api_keys: NoApiKeysOption = False,
    knowledge: KnowledgeOption = None,
    knowledge_index: KnowledgeIndexOption = None,
    knowledge_server: KnowledgeServerOption = None,
    encoder: EncoderOption = None,
    host: Annotated[str, typer.Option("--host")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535)] = 8000,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Engine threads; default: what suits this machine.")
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
    from cloister.broker.client import BrokerKeys
    from cloister.cli.serving import open_tee, run_server, take_port
    from cloister.inference.api_keys import ApiKeys
    from cloister.inference.configuration import serving_events
    from cloister.inference.workload import start

    if broker and key_file:
        raise UsageError("--broker and --key-file exclude each other", todo="name one source of keys")
    if bool(broker) != bool(broker_policy):
        raise UsageError(
            "--broker and --broker-policy go together", todo="a broker is verified before it is asked"
        )
    check_knowledge(knowledge, knowledge_index, knowledge_server)
    machine = open_tee(
        simulated_tee,
        asked=tee,
        gpus=gpus,
        pccs=pccs,
        ca_file=ca_file,
        endorsements=endorsements,
        no_endorsements=no_endorsements,
    )
    if upstream is not None:
        from cloister.inference.engines.upstream_address import check_upstream

        check_upstream(upstream, machine.kind)
    asked = understood(
        ServeOptions(
            model=model,
            model_name=model_name,
            engine=engine,
            context=context,
            slots=slots,
            adapter=adapter,
            adapter_folder=adapter_folder,
            precision=precision,
            kv_cache=kv_cache,
            prefix_cache=prefix_cache,
            speculation=speculation,
            draft=draft,
            upstream=upstream,
            index_signer=index_signer,
            broker_policy=broker_policy,
            api_keys=api_keys,
            no_api_keys=no_api_keys,
            knowledge=knowledge,
            encoder=encoder,
        )
    )
    address = server_address(asked.knowledge, knowledge_server, broker)
    accepted = ApiKeys.read(api_keys) if api_keys else None
    if asked.knowledge is not None:
        users = [bytes.fromhex(digest) for digest in asked.knowledge.rules.users.values()]
        accepted = ApiKeys.of_digests(users) if accepted is None else accepted.with_digests(users)
    listener = take_port(host, port)
    attester = machine.launch(serving_events(asked.configuration, asked.model_index))
    keys, documents = sources(
        asked.knowledge,
        machine,
        attester,
        broker=broker,
        broker_policy=broker_policy,
        key_file=key_file,
        index=knowledge_index,
        address=address,
    )

    def progress(step: str, fact: str) -> None:
        typer.echo(f"{step}: {fact}", err=True)

    try:
        workload = start(
            asked.configuration,
            model=asked.model,
            draft=asked.draft,
            attester=attester,
            devices=machine.devices,
            adapter=asked.adapter,
            keys=keys,
            api_keys=accepted or ApiKeys.nobody_asks(),
            threads=threads,
            replica="replica-0",
            progress=progress,
            manifest=None if manifest is None else shown_manifest(manifest),
            room=None
            if asked.knowledge is None or documents is None
            else room(asked.knowledge, documents, keys, progress),
        )
    except BaseException:
        if isinstance(keys, BrokerKeys):
            keys.close()
        raise
    if isinstance(keys, BrokerKeys) and asked.knowledge is None:
        keys.close()  # the model is open: nothing is asked of the broker any more
    try:
        run_server(workload.gateway, listener, name="inference", as_json=as_json)
    finally:
        workload.close()
        if isinstance(keys, BrokerKeys):
            keys.close()  # with documents, each version of their index was recorded there


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
