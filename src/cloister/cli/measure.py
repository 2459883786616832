"""`cloister measure`: the policy that accepts exactly the workload you are about to launch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli.serve import (
    ApiKeysOption,
    BrokerPolicyOption,
    ContextOption,
    EngineOption,
    JsonOption,
    ModelArgument,
    NameOption,
    NoApiKeysOption,
    SignersOption,
    SlotsOption,
    configure,
    parse_signers,
)
from cloister.cli.serving import SimulatedOption
from cloister.errors import UsageError

if TYPE_CHECKING:
    from cloister.evidence.eventlog import LaunchEvent

_TITLE = "Accepts exactly the workload that these options launch; printed by `cloister measure`."
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
    model: ModelArgument,
    model_name: NameOption = "",
    engine: EngineOption = "llamacpp",
    context: ContextOption = 512,
    slots: SlotsOption = 8,
    index_signer: SignersOption = None,
    broker_policy: BrokerPolicyOption = None,
    api_keys: ApiKeysOption = None,
    no_api_keys: NoApiKeysOption = False,
    simulated_tee: SimulatedOption = None,
    min_evaluation_number: MinimumOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """The policy for `cloister serve` with the same options."""
    from cloister.appraisal.policy import read_policy
    from cloister.inference.configuration import serving_events
    from cloister.inference.model import find_model

    signers = parse_signers(index_signer)
    policy = read_policy(broker_policy) if broker_policy else None
    configuration = configure(
        model, model_name, engine, context, slots, signers, policy, api_keys, no_api_keys
    )
    source = find_model(model, signers=signers)
    events = serving_events(configuration, source.digest)
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
