"""``cloister run -- PROGRAM``: an unmodified program, attested, its sealed files in the clear for it alone."""

from __future__ import annotations

import json
import sys
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

if TYPE_CHECKING:
    from cloister.workload.configuration import WorkloadConfiguration
    from cloister.workload.plan import Plan

ProgramArgument = Annotated[
    list[str] | None,
    typer.Argument(help="The program and its arguments, behind `--`.", metavar="PROGRAM ..."),
]
ConfigOption = Annotated[
    Path, typer.Option("--config", help="What the program gets; docs/spec/workload.md.", metavar="FILE")
]
OptimizeOption = Annotated[
    bool,
    typer.Option(
        "--optimize", help="Models that it loads with transformers and does not train compute in few bits."
    ),
]
PrecisionOption = Annotated[
    str | None,
    typer.Option("--precision", help="With --optimize: auto, int8, int4 or bf16.", metavar="PRECISION"),
]


def configured(config: Path, optimize: bool, precision: str | None) -> WorkloadConfiguration:
    """The configuration with what the options say. Raises UsageError."""
    from typing import get_args

    from cloister.errors import UsageError
    from cloister.workload.configuration import Optimisation, optimised, read_workload

    found = read_workload(config)
    if precision is not None and not optimize:
        raise UsageError("--precision says how to optimise", todo="add --optimize")
    if not optimize:
        return found
    known: list[Optimisation] = [one for one in get_args(Optimisation) if one != "off"]
    asked = precision or ("auto" if found.file.program.optimize == "off" else found.file.program.optimize)
    chosen = next((one for one in known if one == asked), None)
    if chosen is None:
        raise UsageError(f"there is no precision {asked[:32]!a}", todo=f"choose one of: {', '.join(known)}")
    return optimised(found, chosen)


def command(
    program: ProgramArgument = None,
    config: ConfigOption = Path("workload.toml"),
    optimize: OptimizeOption = False,
    precision: PrecisionOption = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say what would be done, and do nothing.")
    ] = False,
    gramine_manifest: Annotated[
        bool, typer.Option("--gramine-manifest", help="Print what a Gramine manifest for SGX must hold.")
    ] = False,
    simulated_tee: SimulatedOption = None,
    tee: TeeOption = "auto",
    gpus: GpusOption = False,
    pccs: PccsOption = None,
    ca_file: CaFileOption = None,
    endorsements: EndorsementsOption = None,
    no_endorsements: NoEndorsementsOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Do not say what is done.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Say it as JSON, one line for each step, on standard error.")
    ] = False,
) -> int:
    """Run PROGRAM with its keys, sealed files and mesh identity, isolated; its exit code is this command's."""
    from cloister.cli.serving import open_tee
    from cloister.workload.launcher import run, run_in_gramine
    from cloister.workload.plan import make_plan

    plan = make_plan(configured(config, optimize, precision), program or (), directory=Path.cwd())
    if gramine_manifest:
        from cloister.workload.gramine import manifest_fragment

        typer.echo(manifest_fragment(plan, config.resolve()), nl=False)
        return 0
    if explain:
        _explain(plan, as_json)
        return 0
    machine = open_tee(
        simulated_tee,
        asked=tee,
        gpus=gpus,
        pccs=pccs,
        ca_file=ca_file,
        endorsements=endorsements,
        no_endorsements=no_endorsements,
        stated=True,
    )

    def progress(step: str, fact: str) -> None:
        if as_json:
            typer.echo(json.dumps({"step": step, "fact": fact}), err=True)
        elif not quiet:
            typer.echo(f"{step}: {fact}", err=True)

    if machine.kind == "sgx":
        return run_in_gramine(plan, machine.launch, devices=machine.devices, progress=progress)
    return run(plan, machine.launch, tee=machine.kind, devices=machine.devices, progress=progress)


def _explain(plan: Plan, as_json: bool) -> None:
    from cloister.workload.explain import explained

    steps, findings = explained(plan)
    if as_json:
        found = [{"check": one.check, "state": one.state, "found": one.found} for one in findings]
        outcome = {"steps": [list(step) for step in steps], "isolation": found}
        typer.echo(json.dumps(outcome))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, pad_edge=False)
    for what, how in steps:
        table.add_row(Text(what, style="bold"), Text(how, overflow="fold"))
    styles = {"ok": "green", "weak": "yellow", "missing": "red"}
    for one in findings:
        table.add_row(
            Text(one.check, style="bold"), Text(f"{one.state}: {one.found}", style=styles[one.state])
        )
    Console(file=sys.stdout, soft_wrap=False).print(table)
