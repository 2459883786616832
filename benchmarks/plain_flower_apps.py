"""A federated tagger on Flower alone, as Flower's users write one: what Cloister's rounds are compared with.

Model and data lie in the clear on each party's disk. Flower starts a process for each message, so the ClientApp loads torch,
model and data every time; weights travel as Flower's own arrays. :data:`thin_client` and :data:`quick_server` take out what
Cloister does without, too: model and data stay loaded in a process beside each node, which the messages are handed to, and
replies are looked for as often. Training is `cloister.federated.training.learning` in all of them, with the same settings.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

if TYPE_CHECKING:
    from cloister.federated.exchange import Request
    from cloister.federated.flower.workshop import Answer
    from cloister.federated.training.corpus import Sentence

server = ServerApp()
quick_server = ServerApp()
client = ClientApp()
thin_client = ClientApp()


@dataclass(frozen=True)
class Learner:
    """One party's model and data. Data are read when they are needed first."""

    config: dict[str, Any]
    """The run's: ``model``, ``kinds``, ``epochs``, ``batch``, ``rate``, ``head-rate``, ``length``, ``rounds``."""
    train: str
    test: str

    @functools.cached_property
    def opened(self) -> tuple[Any, Any]:
        import torch  # noqa: PLC0415 -- as heavy as it is for every user of Flower

        from cloister.federated.training.corpus import TagSet  # noqa: PLC0415
        from cloister.federated.training.learning import Reading  # noqa: PLC0415
        from cloister.federated.training.pieces import encoder_of  # noqa: PLC0415
        from cloister.federated.training.tagger import Tagger  # noqa: PLC0415
        from cloister.inference.pretrained import open_encoder, open_tokenizer  # noqa: PLC0415

        folder, tags = Path(self.config["model"]), TagSet(tuple(self.config["kinds"].split()))
        torch.manual_seed(0)
        model = Tagger(open_encoder(folder), tags, crf=True)
        length = self.config["length"]
        reading = Reading(*encoder_of(open_tokenizer(folder)), tags, length=length, stride=length // 2)
        return model, reading

    def learn(self, number: int) -> tuple[int, float, float]:
        """A round from the model's weights on: examples, loss and seconds."""
        from cloister.federated.training.learning import Course, Learning, learn_parts  # noqa: PLC0415
        from cloister.inference.lowbit.training import has_bfloat16  # noqa: PLC0415

        config, (model, _) = self.config, self.opened
        began = time.monotonic()
        learning = Learning(
            epochs=config["epochs"], batch=config["batch"], rate=config["rate"], head_rate=config["head-rate"]
        )  # fmt: skip
        loss = learn_parts(
            model, self.parts, learning, seed=number, course=Course(number, config["rounds"]), bfloat16=has_bfloat16()
        )  # fmt: skip
        return len(self.learned), loss, time.monotonic() - began

    def score(self) -> tuple[int, float, float]:
        """Examples, F1 and loss of the model's weights."""
        from cloister.federated.training.learning import predict  # noqa: PLC0415
        from cloister.inference.lowbit.training import has_bfloat16  # noqa: PLC0415

        model, reading = self.opened
        outcome = predict(model, self.held_out, reading, bfloat16=has_bfloat16())
        return len(self.held_out), outcome.scores.f1, outcome.loss

    @functools.cached_property
    def learned(self) -> tuple[Sentence, ...]:
        return self._read(self.train)

    @functools.cached_property
    def parts(self) -> list[Any]:
        return [part for sentence in self.learned for part in self.opened[1].of(sentence)]

    @functools.cached_property
    def held_out(self) -> tuple[Sentence, ...]:
        return self._read(self.test)

    def _read(self, path: str) -> tuple[Sentence, ...]:
        from cloister.federated.training.corpus import Columns, TagSet, read_corpus  # noqa: PLC0415

        with Path(path).open("rb") as file:
            return read_corpus(
                file, "conll", TagSet(tuple(self.config["kinds"].split())), what=path, columns=Columns(0, 1)
            )


def own(context: Context) -> Learner:
    """Of this node."""
    return Learner(
        dict(context.run_config), str(context.node_config["train"]), str(context.node_config["test"])
    )


@client.train()  # type: ignore[untyped-decorator, unused-ignore]
def train(message: Message, context: Context) -> Message:
    learner = own(context)
    model, _ = learner.opened
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    examples, loss, seconds = learner.learn(message.content["config"]["server-round"])
    metrics = MetricRecord({"loss": loss, "seconds": seconds, "num-examples": examples})
    return Message(
        RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message
    )


@client.evaluate()  # type: ignore[untyped-decorator, unused-ignore]
def evaluate(message: Message, context: Context) -> Message:
    learner = own(context)
    learner.opened[0].load_state_dict(message.content["arrays"].to_torch_state_dict())
    examples, f1, loss = learner.score()
    metrics = MetricRecord({"f1": f1, "loss": loss, "num-examples": examples})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


@thin_client.train()  # type: ignore[untyped-decorator, unused-ignore]
def thin_train(message: Message, context: Context) -> Message:
    answer = _asked("train", message, context)
    from cloister.federated.updates import decode_arrays  # noqa: PLC0415

    arrays = decode_arrays(answer.content, what="what was learned", limit=1 << 40)
    record = ArrayRecord({name: Array(one) for name, one in arrays.items()})
    metrics = MetricRecord({**answer.metrics, "num-examples": answer.examples})
    return Message(RecordDict({"arrays": record, "metrics": metrics}), reply_to=message)


@thin_client.evaluate()  # type: ignore[untyped-decorator, unused-ignore]
def thin_evaluate(message: Message, context: Context) -> Message:
    answer = _asked("score", message, context)
    metrics = MetricRecord({**answer.metrics, "num-examples": answer.examples})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def _asked(kind: str, message: Message, context: Context) -> Answer:
    """By the process that stays."""
    from cloister.federated.exchange import Request  # noqa: PLC0415
    from cloister.federated.flower.workshop import ask_workshop  # noqa: PLC0415
    from cloister.federated.updates import encode_arrays  # noqa: PLC0415

    content = encode_arrays({name: one.numpy() for name, one in message.content["arrays"].items()})
    number = message.content["config"]["server-round"]
    answer = ask_workshop(str(context.node_config["socket"]), Request(kind, "", number, "", content))
    if answer.error:
        raise RuntimeError(answer.error)
    return answer


class Told(FedAvg):
    """FedAvg that says when a round is over, and that does not go on without a party."""

    def __init__(self, marks: Path, parties: int) -> None:
        super().__init__(min_train_nodes=parties, min_evaluate_nodes=parties, min_available_nodes=parties)
        self._marks = marks
        self._seconds = 0.0

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        found, metrics = super().aggregate_train(server_round, _whole(replies))
        self._seconds = float(str(dict(metrics or {})["seconds"]))
        return found, metrics

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        found = super().aggregate_evaluate(server_round, _whole(replies))
        self.mark(round=server_round, seconds=self._seconds, **dict(found or {}))
        return found

    def mark(self, **said: Any) -> None:
        with self._marks.open("a") as file:
            file.write(json.dumps(said) + "\n")


def _whole(replies: Iterable[Message]) -> list[Message]:
    found = list(replies)
    for one in found:
        if one.has_error():
            raise RuntimeError(f"a party failed: {one.error.reason}")
    return found


class QuickGrid:
    """Flower's grid, with Cloister's pause between two looks for replies in place of Flower's 3 s."""

    def __init__(self, grid: Grid) -> None:
        from cloister.federated.flower.server import PAUSE  # noqa: PLC0415

        self._grid = grid
        self._pause = PAUSE

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        waiting = set(self._grid.push_messages(messages))
        until, found = time.monotonic() + (timeout or 3600.0), []
        while waiting and time.monotonic() < until:
            came = list(self._grid.pull_messages(waiting))
            found += came
            waiting -= {one.metadata.reply_to_message_id for one in came}
            if waiting:
                time.sleep(self._pause)
        return found


@server.main()  # type: ignore[untyped-decorator, unused-ignore]
def main(grid: Grid, context: Context) -> None:
    _go_through(grid, context)


@quick_server.main()  # type: ignore[untyped-decorator, unused-ignore]
def quick_main(grid: Grid, context: Context) -> None:
    _go_through(QuickGrid(grid), context)


def _go_through(grid: Any, context: Context) -> None:
    config = dict(context.run_config)
    strategy = Told(Path(str(config["marks"])), int(str(config["parties"])))
    try:
        model, _ = Learner(config, "", "").opened
        strategy.start(
            grid=grid, initial_arrays=ArrayRecord(model.state_dict()), num_rounds=int(str(config["rounds"])),
            train_config=ConfigRecord(),
        )  # fmt: skip
        strategy.mark(over=True)
    except Exception as error:
        strategy.mark(failed=f"{type(error).__name__}: {error}")
        raise


def stay() -> None:
    """The process that stays: opens model and data once, then answers at its socket until its input ends."""
    from cloister.federated.flower.workshop import Answer, Workshop  # noqa: PLC0415
    from cloister.federated.training.weights import put_weights, weights_of  # noqa: PLC0415
    from cloister.federated.updates import decode_arrays, encode_arrays  # noqa: PLC0415

    given = json.loads(sys.argv[1])
    learner = Learner(given["config"], given["train"], given["test"])
    model, _ = learner.opened

    def work(request: Request) -> Answer:
        put_weights(model, decode_arrays(request.content, what="the model", limit=1 << 40))
        if request.kind == "train":
            examples, loss, seconds = learner.learn(request.number)
            return Answer(encode_arrays(weights_of(model)), examples, {"loss": loss, "seconds": seconds})
        examples, f1, loss = learner.score()
        return Answer(b"", examples, {"f1": f1, "loss": loss})

    workshop = Workshop(Path(given["socket"]), work)
    print("ready", flush=True)
    sys.stdin.read()
    workshop.close()


if __name__ == "__main__":
    stay()
