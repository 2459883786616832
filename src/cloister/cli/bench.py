"""`cloister bench URL`: load on one's own endpoint, verified and sealed or plain, and what it took.

What is asked is made up. Exit codes: 0 measured (errors of single requests are in the table), 2 a wrong question or API key,
3 and 5 as `cloister verify`, 4 the service does not answer, or answers that it has no room.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloister.cli.service_options import ManifestOption, PolicyOption, UrlArgument, key_headers
from cloister.errors import UsageError

if TYPE_CHECKING:
    from cloister.client.bench.asking import Outcome
    from cloister.client.bench.measurement import Load
    from cloister.client.bench.report import Report

MAX_STREAMS = 1024

PlainOption = Annotated[
    bool, typer.Option("--plain", help="An ordinary OpenAI server: nothing is verified or sealed.")
]
KeyFileOption = Annotated[
    Path | None, typer.Option("--api-key-file", help="File whose first line is the API key (mode 0600).")
]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="Also write a report: .html, .svg, .md or .json.")
]


def command(
    url: UrlArgument,
    policy: PolicyOption = None,
    manifest: ManifestOption = None,
    plain: PlainOption = False,
    api_key_file: KeyFileOption = None,
    model: Annotated[str, typer.Option("--model", help="By default the first that the service names.")] = "",
    streams: Annotated[
        str, typer.Option("--streams", help="Requests at once, one round for each.")
    ] = "1,8,32",
    prompt_tokens: Annotated[
        int, typer.Option("--prompt-tokens", min=1, max=1 << 20, help="Of each prompt, about.")
    ] = 512,
    tokens: Annotated[
        int, typer.Option("--tokens", min=1, max=1 << 20, help="Of each answer, at most.")
    ] = 64,
    duration: Annotated[str, typer.Option("--duration", help="Of each round: 30s, 5m.")] = "30s",
    seed: Annotated[int, typer.Option("--seed", help="Of the made-up prompts.")] = 1,
    out: OutOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure an endpoint: first token, time between tokens, tokens per second, errors; prompts are made up."""
    from cloister.client.bench import report as forms
    from cloister.client.bench.measurement import Load

    if plain == bool(policy or manifest):
        raise UsageError(
            "say whom to measure", todo="pass --policy or --manifest for a sealed service, or --plain"
        )
    writers = {".html": forms.html, ".svg": forms.svg, ".md": forms.markdown, ".json": _json_text}
    if out is not None and out.suffix not in writers:
        raise UsageError(f"no report is written as {out.name!r}", todo="name it .html, .svg, .md or .json")
    counts = parse_streams(streams)
    seconds = parse_duration(duration)
    headers = key_headers(api_key_file)
    load = Load(tuple(counts), seconds, prompt_tokens=prompt_tokens, tokens=tokens, seed=seed)
    progress = _Progress(len(counts), seconds)
    try:
        report = asyncio.run(_measure(url, policy, manifest, headers, model, load, progress))
    except ExceptionGroup as group:
        raise _first_of(group) from None
    if out is not None:
        try:
            out.write_text(writers[out.suffix](report), "utf-8")
        except OSError as error:
            raise UsageError(f"cannot write {out}: {error.strerror}", todo="check --out") from None
    if as_json:
        typer.echo(json.dumps(report.json()))
    else:
        show(report)


async def _measure(
    url: str,
    policy: Path | None,
    manifest: Path | None,
    headers: dict[str, str],
    model: str,
    load: Load,
    progress: _Progress,
) -> Report:
    import httpx2

    from cloister.channel.transport import connect_async
    from cloister.client.bench.load import Target
    from cloister.client.bench.measurement import measure

    most = max(load.streams)
    limits = httpx2.Limits(max_connections=2 * most, max_keepalive_connections=most)
    timeout = httpx2.Timeout(600.0, connect=10.0)
    client: httpx2.AsyncClient
    sealed = bool(policy or manifest)
    if sealed:
        outer = httpx2.AsyncHTTPTransport(limits=limits, verify=url.startswith("https"), trust_env=False)
        client = connect_async(url, policy=policy, manifest=manifest, transport=outer, timeout=timeout)
    else:
        client = httpx2.AsyncClient(
            limits=limits, timeout=timeout, trust_env=False, verify=url.startswith("https")
        )
    base = url.rstrip("/").removesuffix("/v1") + "/"
    async with client:
        with progress:
            return await measure(
                Target(client, base, headers),
                load,
                model=model,
                way="sealed" if sealed else "plain",
                begun=progress.begin,
                told=progress.told,
            )


def _first_of(group: ExceptionGroup[Exception]) -> Exception:
    first = group.exceptions[0]
    return _first_of(first) if isinstance(first, ExceptionGroup) else first


class _Progress:
    """A bar on standard error: rounds, requests, errors."""

    def __init__(self, rounds: int, seconds: float) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=rounds * seconds)
        self._before = 0.0
        self._seconds = seconds
        self._rounds = 0
        self._done = self._errors = 0
        self._streams = 0

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, streams: int) -> None:
        self._streams = streams
        self._before = asyncio.get_running_loop().time()
        self._rounds += 1

    def told(self, outcome: Outcome) -> None:
        self._done += 1
        self._errors += outcome.failure is not None
        here = min(self._seconds, asyncio.get_running_loop().time() - self._before)
        self._bar.update(
            self._task,
            completed=(self._rounds - 1) * self._seconds + here,
            description=f"{self._streams} streams, {self._done} answers, {self._errors} errors",
        )


def show(report: Report) -> None:
    """The table, and a histogram of first tokens for each round."""
    from rich.console import Console
    from rich.table import Table

    from cloister.client.bench.figures import histogram
    from cloister.client.bench.report import COLUMNS, cells, duration, errors_of

    console = Console(highlight=False)
    table = Table(box=None, title=f"{report.model}, {report.way}, answers of up to {report.tokens} tokens")
    for name in (*COLUMNS[:4], "first token p50 / p95 / p99", "between tokens p50 / p95 / p99"):
        table.add_column(name, justify="right")
    for row in report.rows:
        few = cells(row)
        table.add_row(*few[:4], " / ".join(few[4:7]), " / ".join(few[7:]))
    console.print(table)
    for name, count in errors_of(report.rows).items():
        console.print(f"error: {count} × {name}", markup=False)
    for streams, firsts in report.firsts:
        console.print(f"\nfirst token, {streams} streams")
        bins = histogram(firsts)
        most = max((one.count for one in bins), default=1)
        for one in bins:
            bar = "█" * round(40 * one.count / most)
            console.print(f"{duration(one.low):>9} – {duration(one.high):>9} {bar} {one.count}", markup=False)


def parse_streams(text: str) -> list[int]:
    """Counts separated by commas. Raises :class:`UsageError`."""
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or not all(1 <= count <= MAX_STREAMS for count in counts):
        raise UsageError(
            f"--streams {text[:64]!r} are no counts of 1 to {MAX_STREAMS}", todo="give --streams 1,8,32"
        )
    return counts


def parse_duration(text: str) -> float:
    """Seconds of `30s`, `5m` or a number. Raises :class:`UsageError`."""
    unit = {"s": 1.0, "m": 60.0}.get(text[-1:])
    number = text[:-1] if unit else text
    if not number.replace(".", "", 1).isdecimal() or not 0 < float(number) * (unit or 1.0) <= 3600:
        raise UsageError(f"--duration {text[:32]!r} is no time up to an hour", todo="give --duration 30s")
    return float(number) * (unit or 1.0)


def _json_text(report: Any) -> str:
    return json.dumps(report.json(), indent=2) + "\n"
