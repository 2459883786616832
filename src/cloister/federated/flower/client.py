"""The ClientApp: hands each message to the party's workload over its socket, and its answer back. It computes nothing.

Flower starts a process of it for each message, in the workload's TEE. Model and data stay in the workload.
"""

from __future__ import annotations

import os

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from cloister.federated.flower.wire import read_request, reply_content
from cloister.federated.flower.workshop import SOCKET, ask_workshop

app = ClientApp()


@app.train()  # type: ignore[untyped-decorator, unused-ignore]
def train(message: Message, context: Context) -> Message:
    request = read_request(message.content)
    answer = ask_workshop(os.environ[SOCKET], request)
    content = reply_content(request, answer.content, answer.examples, answer.metrics, answer.error)
    return Message(content=content, reply_to=message)
