"""The ServerApp: the rounds of a run over Flower's grid, in the process that Flower's SuperLink starts for it.

The aggregator leaves what the run needs in a private folder in memory (run_folder.py) and says there, all the time, which
parties are ready and by which node each is reached; nobody else is asked anything. Whose reply it is, Flower's own
authentication of the node says, not the reply.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from typing import Final

from flwr.app import Context, Message, MessageType
from flwr.serverapp import Grid, ServerApp

from cloister.errors import CloisterError, FormatError
from cloister.federated.exchange import Reply, Request
from cloister.federated.flower.run_folder import FOLDER, RunFolder, go_through
from cloister.federated.flower.wire import read_reply, request_content

PAUSE: Final = 0.3
"""Seconds between two looks at who has answered,"""
AT_ONCE: Final = 8
"""and longer where more parties are asked."""
app = ServerApp()


@app.main()  # type: ignore[untyped-decorator, unused-ignore]
def main(grid: Grid, context: Context) -> None:
    folder = RunFolder.open(os.environ[FOLDER])
    try:
        go_through(folder, GridExchange(grid, folder))
    except CloisterError as error:
        folder.fail(str(error))
        raise
    except Exception as error:
        folder.fail(
            f"the run failed with {type(error).__name__}; Flower's log in the aggregator's memory says where"
        )
        raise


class GridExchange:
    """Parties by their nodes."""

    def __init__(self, grid: Grid, folder: RunFolder) -> None:
        self._grid = grid
        self._folder = folder

    def ready(self) -> frozenset[str]:
        return frozenset(self._folder.nodes())

    def ask(self, requests: Mapping[str, Request], *, seconds: float) -> Iterator[Reply]:
        nodes = self._folder.nodes()
        until = time.monotonic() + seconds
        waiting: dict[str, str] = {}
        for party, request in requests.items():
            if party in nodes:
                message = Message(
                    content=request_content(request),
                    message_type=MessageType.TRAIN,
                    dst_node_id=nodes[party],
                    group_id=str(request.number),
                    ttl=seconds + 60,
                )
                waiting |= dict.fromkeys(self._grid.push_messages([message]), party)
        waiting.pop("", None)
        parties = {nodes[party]: party for party in requests if party in nodes}
        while waiting and time.monotonic() < until:
            for name, party in list(waiting.items()):
                try:
                    # One at a time: what a party sends may be of any form, and Flower raises whatever comes of that.
                    pulled = list(self._grid.pull_messages([name]))
                except Exception as error:
                    del waiting[name]
                    why = f"its answer cannot be read ({type(error).__name__})"
                    yield Reply(party, "", 0, b"", 0, {}, error=why)
                    continue
                for message in pulled:
                    if (
                        waiting.pop(name, None) is None
                        or parties.get(message.metadata.src_node_id, party) != party
                    ):
                        continue
                    try:
                        yield read_reply(message, party)
                    except FormatError as error:
                        yield Reply(party, "", 0, b"", 0, {}, error=error.what)
            # Who is excluded meanwhile is not waited for.
            present = self._folder.nodes()
            waiting = {name: party for name, party in waiting.items() if party in present}
            if waiting:
                time.sleep(PAUSE * max(1.0, len(waiting) / AT_ONCE))
