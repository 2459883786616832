"""`cloister simulate`: make and look at a simulated TEE platform, a real attester under a false root.

It announces in red that nothing is protected. There is no other way to get such a platform than to name its
directory, and no policy accepts one that does not name its root.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cloister.attester.simulated import SimulatedPlatform

app = typer.Typer(
    no_args_is_help=True,
    help="Make a simulated TEE for tests and demonstrations: same formats and checks, nothing protected.",
)

DirectoryArgument = Annotated[Path, typer.Argument(metavar="DIR", help="Where the platform lives.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command("init")
def init(directory: DirectoryArgument, as_json: JsonOption = False) -> None:
    """Make a platform with a root of its own in DIR, which must be new."""
    from cloister.attester.simulated import SimulatedPlatform

    _show(SimulatedPlatform.create(directory, now=int(time.time())), directory, as_json=as_json)


@app.command("show")
def show(directory: DirectoryArgument, as_json: JsonOption = False) -> None:
    """Print the root digest and the measurements of the platform in DIR."""
    from cloister.attester.simulated import SimulatedPlatform

    _show(SimulatedPlatform.load(directory), directory, as_json=as_json)


def _show(platform: SimulatedPlatform, directory: Path, *, as_json: bool) -> None:
    from rich.console import Console

    firmware = {name: value.hex() for name, value in platform.firmware.items()}
    if as_json:
        document = {"simulated": True, "root_sha256": platform.root_sha256, "measurements": firmware}
        typer.echo(json.dumps(document, indent=2))
        return
    console = Console(highlight=False)
    console.print("SIMULATED TEE: nothing it runs is protected.", style="bold red")
    console.print("Its formats, signatures and checks are real; its keys lie in this directory.", style="red")
    rows = {
        "platform": str(directory),
        "root": platform.root_sha256,
        **firmware,
        "rtmr3": "the launch events: configuration, program, model index",
        "mrenclave": "the same events, for an SGX enclave",
    }
    for name, value in rows.items():  # never wrapped: digests are there to be copied
        console.print(f"{name:<10} {value}", soft_wrap=True, markup=False)
    console.print("A policy accepts it only with:")
    console.print(f'[roots]\nsimulated = "{platform.root_sha256}"', soft_wrap=True, markup=False)
