"""`cloister proxy URL`: any program that speaks OpenAI's API reaches a verified workload by changing its base URL alone.

Exit codes: 0 stopped, 2 usage, 3 and 5 as `cloister verify`, 4 the service does not answer or the port is taken.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from cloister.errors import UsageError

if TYPE_CHECKING:
    import httpx2

    from cloister.channel.transport import AsyncSealedClient
    from cloister.channel.verification import Verification

LISTEN = "127.0.0.1:8788"


def command(
    url: Annotated[str, typer.Argument(metavar="URL", help="Address of the sealed service.")],
    policy: Annotated[
        Path | None,
        typer.Option("--policy", help="The appraisal policy (TOML) that the service has to meet."),
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option("--manifest", help="Instead: an anchor that pins owners and a workload.")
    ] = None,
    listen: Annotated[
        str,
        typer.Option(
            "--listen", metavar="HOST:PORT", help="On this machine itself; port 0 takes a free one."
        ),
    ] = LISTEN,
    unix: Annotated[
        Path | None,
        typer.Option("--unix", metavar="PATH", help="Instead: a Unix socket that only you may open; no key."),
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(
            "--key-file",
            help="The proxy's own API key; made where there is none. Default: ~/.config/cloister.",
        ),
    ] = None,
    service_key_file: Annotated[
        Path | None,
        typer.Option("--service-key-file", help="The API key that the service asks for (mode 0600)."),
    ] = None,
    allow_classical_kem: Annotated[
        bool,
        typer.Option(
            "--allow-classical-kem", help="Also seal to X25519, where there is no post-quantum key."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON objects.")] = False,
) -> None:
    """Seal what any OpenAI program sends, to a verified service: change its base URL, and nothing else."""
    from cloister.channel.transport import prepare
    from cloister.cli.api_key_file import own_key, own_key_path, read_api_key
    from cloister.cli.serving import address_of, run_server, take_port, take_socket
    from cloister.client.guard import require_loopback
    from cloister.client.proxy import Proxy
    from cloister.client.proxy_door import Door

    service_key = read_api_key(service_key_file) if service_key_file else None
    if unix is not None and (listen != LISTEN or key_file is not None):
        raise UsageError("--unix excludes --listen and --key-file", todo="the file's rights say who may ask")
    host, port = parse_listen(listen)
    address = require_loopback(host)
    origin, verification = prepare(url, policy, manifest=manifest, allow_classical_kem=allow_classical_kem)
    own = None if unix else key_file or own_key_path(os.environ, Path.home())
    listener = take_port(address, port) if unix is None else take_socket(unix)
    try:
        with listener:
            door = Door.of_socket() if own is None else Door.of_port(listener.getsockname()[1], own_key(own))
            client = verified(origin, verification)
            _explain(address_of(listener), own, as_json=as_json)
            run_server(
                Proxy(client, door, service_key=service_key, told=_tell), listener, name="proxy", as_json=as_json,
                facts={} if own is None else {"key_file": str(own)},
            )  # fmt: skip
    finally:
        if unix is not None:
            unix.unlink(missing_ok=True)


def verified(origin: httpx2.URL, verification: Verification) -> AsyncSealedClient:
    """A client for a service that has just been verified, and is again when its result ends. Raises as `connect`."""
    from cloister.channel.transport import AsyncSealedClient, AsyncSealedTransport, SealedTransport
    from cloister.channel.wire import DEFAULT_TIMEOUT
    from cloister.client.proxy import in_words

    first = SealedTransport(origin, verification)
    try:
        result = first.verify()
    finally:
        first.close()
    loud = "bold white on red" if result.claims.simulated else "bold"
    Console(stderr=True).print(
        in_words(result.claims, result.expires), style=loud, soft_wrap=True, markup=False
    )
    return AsyncSealedClient(
        AsyncSealedTransport(origin, verification), base_url=str(origin), timeout=DEFAULT_TIMEOUT
    )


def parse_listen(text: str) -> tuple[str, int]:
    """Host and port. Raises :class:`UsageError`."""
    host, _, number = text.rpartition(":")
    port = int(number) if number.isascii() and number.isdecimal() and len(number) < 6 else -1
    if not host or not 0 <= port <= 65535:
        raise UsageError(f"--listen {text[:64]!r} is no HOST:PORT", todo=f"for example {LISTEN}")
    return host.removeprefix("[").removesuffix("]"), port


def _explain(url: str, own: Path | None, *, as_json: bool) -> None:
    """How programs use it, once."""
    if as_json or own is None:
        return
    typer.echo(f"export OPENAI_BASE_URL={url}/v1 OPENAI_API_KEY=$(cat {shlex.quote(str(own))})", err=True)


def _tell(line: str) -> None:
    typer.echo(line, err=True)
