"""`cloister measure`: the policy that accepts exactly the workload you are about to launch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli.run import ConfigOption, OptimizeOption, ProgramArgument, configured
from cloister.cli.run import PrecisionOption as RunPrecisionOption
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
from cloister.cli.serving import SimulatedOption
from cloister.errors import UsageError

if TYPE_CHECKING:
    from cloister.evidence.eventlog import LaunchEvent

_TITLE = "Accepts exactly the workload that these options launch; printed by `cloister measure`."
_SCRIPTS = (".py", ".sh", ".pl", ".rb", ".js")
app = typer.Typer(
    no_args_is_help=True, help="Print the policy that accepts exactly what you are about to launch."
)

MinimumOption = Annotated[
    int | None,
    typer.Option(
        "--min-evaluation-number",
        min=1,
        help="On real hardware: the oldest tcbEvaluationDataNumber of Intel's that the policy accepts.",
    ),
]
OutOption = Annotated[Path | None, typer.Option("--out", help="Write there instead of standard output.")]


@app.command("serve")
def serve(
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
    broker_policy: BrokerPolicyOption = None,
    api_keys: ApiKeysOption = None,
    no_api_keys: NoApiKeysOption = False,
    knowledge: KnowledgeOption = None,
    encoder: EncoderOption = None,
    simulated_tee: SimulatedOption = None,
    min_evaluation_number: MinimumOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """The policy for `cloister serve` with the same options."""
    from cloister.inference.configuration import serving_events

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
    events = serving_events(asked.configuration, asked.model_index)
    _write(events, simulated_tee, min_evaluation_number, out, as_json)


@app.command("broker")
def broker(
    origin: Annotated[
        str | None,
        typer.Option(
            "--origin",
            metavar="HEX",
            help="Whose broker: `cloister manifest origin` of the first manifest. Without it, laptop mode.",
        ),
    ] = None,
    simulated_tee: SimulatedOption = None,
    min_evaluation_number: MinimumOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """The policy for `cloister broker serve`."""
    from cloister.broker.configuration import broker_events, owners_configuration

    configuration = None if origin is None else owners_configuration(origin)
    _write(broker_events(configuration), simulated_tee, min_evaluation_number, out, as_json)


@app.command("federation")
def federation(
    role: Annotated[str, typer.Argument(metavar="ROLE", help="aggregator, agent or workload.")],
    name: Annotated[str, typer.Option("--federation", metavar="NAME", help="In which federation.")],
    simulated_tee: SimulatedOption = None,
    min_evaluation_number: MinimumOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """The policy for `cloister federation aggregate`, `agent` or `work`."""
    from cloister.federated.configuration import ROLES, federated_events

    known = next((one for one in ROLES if one == role), None)
    if known is None:
        raise UsageError(f"there is no role {role[:40]!r} in a federation", todo=f"write {', '.join(ROLES)}")
    _write(federated_events(known, name), simulated_tee, min_evaluation_number, out, as_json)


@app.command("run", context_settings={"allow_interspersed_args": False})
def run(
    program: ProgramArgument = None,
    config: ConfigOption = Path("workload.toml"),
    optimize: OptimizeOption = False,
    precision: RunPrecisionOption = None,
    simulated_tee: SimulatedOption = None,
    min_evaluation_number: MinimumOption = None,
    host_data: Annotated[
        bool, typer.Option("--host-data", help="Print the HOST_DATA with which to start an SEV-SNP guest.")
    ] = False,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """The policy for `cloister run` with the same configuration and PROGRAM, in the same folder."""
    from cloister.attester import launch
    from cloister.workload.plan import make_plan

    plan = make_plan(configured(config, optimize, precision), program or (), directory=Path.cwd())
    for path in plan.program.files:
        typer.echo(f"measured: {path}", err=True)
    for word in plan.program.argv[1:]:
        if word.endswith(_SCRIPTS) and not Path(word).exists():
            typer.echo(f"note: {word} is no file here, so only its name is measured", err=True)
    if host_data:
        typer.echo(launch.host_data(plan.events).hex())
        return
    _write(plan.events, simulated_tee, min_evaluation_number, out, as_json)
    if out is not None and not as_json:
        typer.echo(
            f"next: `cloister broker policy URI --file {out}` for each of its keys; the rule before is replaced"
        )


def _write(
    events: Sequence[LaunchEvent],
    simulated_tee: Path | None,
    minimum: int | None,
    out: Path | None,
    as_json: bool,
) -> None:
    import json

    text = _draft_simulated(events, simulated_tee) if simulated_tee else _draft_machine(events, minimum)
    if out is not None:
        try:
            out.write_text(text)
        except OSError as error:
            raise UsageError(f"cannot write {out}: {error.strerror}", todo="check --out") from None
    if as_json:
        typer.echo(
            json.dumps({"policy": text, "events": {event.name: event.payload.hex() for event in events}})
        )
    elif out is None:
        typer.echo(text, nl=False)
    else:
        typer.echo(f"{out}: accepts exactly what these options launch; for clients and the broker")


def _draft_simulated(events: Sequence[LaunchEvent], directory: Path) -> str:
    from cloister.appraisal.draft import draft_policy
    from cloister.attester.simulation.collateral import EVALUATION_NUMBER
    from cloister.cli.serving import open_platform

    platform = open_platform(directory)
    return draft_policy(
        tee="tdx",
        measurements=platform.tee("tdx", launch=events).measurements,
        events=events,
        min_tcb_evaluation_number=EVALUATION_NUMBER,
        simulated_root=platform.root_sha256,
        title=_TITLE,
    )


def _draft_machine(events: Sequence[LaunchEvent], minimum: int | None) -> str:
    """What this machine's own TEE would show: believed, not verified, so compare it with what you built."""
    from cloister.appraisal.draft import draft_policy
    from cloister.cli.serving import open_machine

    machine = open_machine()
    if machine.tee not in ("tdx", "sgx"):
        raise UsageError(
            f"a policy for {machine.tee} cannot be drafted from the options of a launch: {machine.covered}",
            todo="serve, then draft from what the service shows: `cloister policy from-evidence`",
        )
    if minimum is None:
        raise UsageError(
            "say how old Intel's TCB information may be",
            todo="pass --min-evaluation-number N: the tcbEvaluationDataNumber that `cloister verify` shows today",
        )
    return draft_policy(
        tee=machine.tee,
        measurements=machine.reference_values(events),
        events=events,
        min_tcb_evaluation_number=minimum,
        title=f"{_TITLE}\nFirmware and image are those of the machine it was printed on: compare them with what you built.",
    )
