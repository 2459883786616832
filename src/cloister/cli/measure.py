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
    SimulatedOption,
    SlotsOption,
    configure,
    parse_signers,
)
from cloister.errors import UsageError

if TYPE_CHECKING:
    from cloister.evidence.eventlog import LaunchEvent

app = typer.Typer(
    no_args_is_help=True, help="Print the policy that accepts exactly what you are about to launch."
)

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
    _write(serving_events(configuration, source.digest), simulated_tee, out, as_json)


@app.command("broker")
def broker(simulated_tee: SimulatedOption = None, out: OutOption = None, as_json: JsonOption = False) -> None:
    """The policy for `cloister broker serve`."""
    from cloister.broker.configuration import broker_events

    _write(broker_events(), simulated_tee, out, as_json)


def _write(
    events: Sequence[LaunchEvent], simulated_tee: Path | None, out: Path | None, as_json: bool
) -> None:
    import json

    from cloister.appraisal.draft import draft_policy
    from cloister.attester.simulation.collateral import EVALUATION_NUMBER
    from cloister.cli.serving import open_platform

    platform = open_platform(simulated_tee)
    text = draft_policy(
        tee="tdx",
        measurements=platform.tee("tdx", launch=events).measurements,
        events=events,
        min_tcb_evaluation_number=EVALUATION_NUMBER,
        simulated_root=platform.root_sha256,
        title="Accepts exactly the workload that these options launch; printed by `cloister measure`.",
    )
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
