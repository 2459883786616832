"""The command line: one thin file per command; a command imports its room only when it runs.

Exit codes: 0 done, 1 internal, 2 usage, 3 verification, 4 network, 5 policy (errors.py). An error is one line on
standard error; with ``--json`` anywhere on the line it is one JSON object instead.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Final

import click
import typer

from cloister.errors import EXIT_USAGE, CloisterError

EXIT_INTERRUPTED = 130
_EXTRAS = {
    "starlette": "inference",
    "uvicorn": "inference",
    "xllamacpp": "inference",
    "sqlalchemy": "broker",
    "alembic": "broker",
    "Crypto": "broker",
    "prometheus_client": "broker",
    "psycopg": "postgres",
    "pkcs11": "hsm",
    "kmip": "kmip",
    "fsspec": "run",
    "numpy": "optimize",
    "tokenizers": "optimize",
    "sqlcipher3": "knowledge",
    "sqlite_vec": "knowledge",
    "wrapt": "run",
}
"""Which extra brings a package that a plain installation lacks."""


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"cloister {version('cloister')}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Run LLM applications on machines you do not have to trust."""


_COMMANDS: Final = (
    "serve", "chat", "proxy", "knowledge", "run", "optimize", "seal", "unseal", "mount", "reseal", "ls", "cat", "verify",
    "inspect", "bench", "doctor", "keys", "broker", "manifest", "owner", "audit", "witness", "federation", "endorsements",
    "measure", "policy", "token", "receipt", "simulate",
)  # fmt: skip
_IN_ONE_FILE: Final = {"ls": ("sealed", "list_command"), "cat": ("sealed", "cat_command")}
_SETTINGS: Final = {
    # What follows the program's name is the program's, with or without `--`.
    "run": {"allow_interspersed_args": False},
}


def _command(name: str) -> Callable[..., object] | typer.Typer:
    """From its file, which is loaded now."""
    file, function = _IN_ONE_FILE.get(name, (name, "command"))
    module = importlib.import_module(f"cloister.cli.{file}")
    found: Callable[..., object] | typer.Typer = getattr(module, "app", None) or getattr(module, function)
    return found


def build(first: str = "") -> typer.Typer:
    """The command tree. Where ``first`` is a command, that one alone: all take longer to load than most take to run."""
    app = typer.Typer(
        name="cloister",
        help="Run LLM applications on machines you do not have to trust.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["--help", "-h"]},
    )
    app.callback()(_options)
    for name in [first] if first in _COMMANDS else _COMMANDS:
        command = _command(name)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name, context_settings=_SETTINGS.get(name))(command)
    return app


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with the exit code of what happened."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Behind `--` stands another program's command line.
    as_json = "--json" in arguments[: arguments.index("--")] if "--" in arguments else "--json" in arguments
    # Each command that uses the simulated TEE says so in one red line; the library's own warnings would say it thrice.
    logging.getLogger("cloister.attester").setLevel(logging.ERROR)
    try:
        code = build(*arguments[:1])(args=arguments, standalone_mode=False)
    except CloisterError as error:
        _say(str(error), error.exit_code, as_json, layer=error.layer)
    except click.exceptions.NoArgsIsHelpError as error:
        sys.stdout.write(error.ctx.get_help() + "\n")
        sys.exit(EXIT_USAGE)
    except click.ClickException as error:
        _say(f"usage: {_once(error.format_message())}", EXIT_USAGE, as_json, layer="usage")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRAS:
            raise
        _say(
            f"usage: this command needs {package}, which is not installed; pip install 'cloister[{_EXTRAS[package]}]'",
            EXIT_USAGE, as_json, layer="usage",
        )  # fmt: skip
    except (click.Abort, KeyboardInterrupt):
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader went away (`| head`): nothing is wrong. Keep the interpreter's last flush from complaining.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)


def _once(message: str) -> str:
    """Click and Typer each add the same suggestion to an unknown command."""
    head, mark, suggestion = message.partition(" Did you mean ")
    return head + mark + suggestion.split(mark)[0] if mark else message


def _say(line: str, code: int, as_json: bool, *, layer: str) -> None:
    text = json.dumps({"error": line, "layer": layer, "exit_code": code}) if as_json else line
    sys.stderr.write(text + "\n")
    sys.exit(code)
