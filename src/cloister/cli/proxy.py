"""`cloister proxy URL`: any program that speaks OpenAI's API reaches a verified workload by changing its base URL alone.

Exit codes: 0 stopped (Ctrl-C, SIGTERM), 2 usage, 3 and 5 as `cloister verify`, 4 the service does not answer, or the port is
taken.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from cloister.cli.address import host_and_port
from cloister.cli.service_options import ManifestOption, PolicyOption, ServiceKeyOption, UrlArgument
from cloister.errors import UsageError

if TYPE_CHECKING:
    import httpx2

    from cloister.channel.transport import AsyncSealedTransport, TakeReceipt
    from cloister.channel.verification import Verification

LISTEN = "127.0.0.1:8788"


def command(
    url: UrlArgument,
    policy: PolicyOption = None,
    manifest: ManifestOption = None,
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
    service_key_file: ServiceKeyOption = None,
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
    from cloister.cli.interruption import ended_like_ctrl_c
    from cloister.cli.serving import address_of, run_server, take_port
    from cloister.cli.unix_socket import identity_of, remove_socket, take_socket
    from cloister.client.guard import require_loopback
    from cloister.client.proxy import Proxy
    from cloister.client.proxy_door import Door

    service_key = read_api_key(service_key_file) if service_key_file else None
    if unix is not None and (listen != LISTEN or key_file is not None):
        raise UsageError("--unix excludes --listen and --key-file", todo="the file's rights say who may ask")
    host, port = host_and_port(listen, option="--listen", example=LISTEN)
    address = require_loopback(host)
    origin, verification = prepare(url, policy, manifest=manifest, allow_classical_kem=allow_classical_kem)
    own = None if unix else key_file or own_key_path(os.environ, Path.home())
    listener = take_port(address, port) if unix is None else take_socket(unix)
    mine = identity_of(unix)
    try:
        with listener, ended_like_ctrl_c():
            listener.listen()  # it is ours from now on; whoever asks waits for the verification
            key = None if own is None else own_key(own)
            bound = listener.getsockname()
            door = Door.of_socket() if key is None else Door.of_port(bound[1], key, address=bound[0])
            sealed = verified(origin, verification)
            _explain(address_of(listener), own, as_json=as_json)
            run_server(
                Proxy(origin, sealed, door, service_key=service_key, told=_tell), listener, name="proxy", as_json=as_json,
                facts={} if own is None else {"key_file": str(own)},
            )  # fmt: skip
    except KeyboardInterrupt:
        raise typer.Exit from None  # Ctrl-C and SIGTERM are how it ends
    finally:
        if unix is not None:
            remove_socket(unix, mine)


def verified(
    origin: httpx2.URL, verification: Verification, *, receipts: TakeReceipt | None = None
) -> AsyncSealedTransport:
    """To a service that has just been verified, and is again when its result ends. Raises as `connect`."""
    import httpx2

    from cloister.channel.transport import AsyncSealedTransport, SealedTransport
    from cloister.client.proxy import MAX_REQUESTS, in_words

    first = SealedTransport(origin, verification)
    try:
        result = first.verify()
    finally:
        first.close()
    loud = "bold white on red" if result.claims.simulated else "bold"
    Console(stderr=True).print(
        in_words(result.claims, result.expires), style=loud, soft_wrap=True, markup=False
    )
    # Verifications come beside requests, and must not wait for them.
    limits = httpx2.Limits(max_connections=2 * MAX_REQUESTS, max_keepalive_connections=MAX_REQUESTS)
    outer = httpx2.AsyncHTTPTransport(verify=origin.scheme == "https", limits=limits)
    return AsyncSealedTransport(origin, verification, outer, receipts=receipts)


def _explain(url: str, own: Path | None, *, as_json: bool) -> None:
    """How programs use it, once."""
    if as_json or own is None:
        return
    typer.echo(
        f"export OPENAI_BASE_URL={url}/v1 OPENAI_API_KEY=$(cat {shlex.quote(str(own.absolute()))})", err=True
    )


def _tell(line: str) -> None:
    typer.echo(line, err=True)
