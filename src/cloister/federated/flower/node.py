"""A party's end of Flower: its SuperNode, the relay that leads out of the TEE, and the workshop that answers messages.

The node believes the relay's certificate alone; the relay reaches the aggregator through the tunnel, with a certificate that
came out of attestation, and takes from there nothing but this node's own messages and the bundle that both sides know.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import urllib3

from cloister.channel.tls_context import server_side
from cloister.federated.exchange import Request
from cloister.federated.flower.app import app_digest
from cloister.federated.flower.processes import HOST, Loopback, SuperNode
from cloister.federated.flower.programs import Programs
from cloister.federated.flower.workshop import SOCKET, Answer, Workshop
from cloister.federated.identity import Identity
from cloister.federated.mesh import party_context
from cloister.federated.messages import Renewal, TaskOrder
from cloister.federated.relay import Relay, own_bundle, own_node
from cloister.federated.serving import ThreadedServer, listen
from cloister.federated.upstream import connections


class PartyNode:
    """Runs from its making until :meth:`close`. ``memory`` is a private folder in memory; ``work`` answers requests."""

    def __init__(
        self,
        identity: Identity,
        memory: Path,
        programs: Programs,
        work: Callable[[Request], Answer],
        order: TaskOrder,
        *,
        digest: str,
        now: Callable[[], int],
    ) -> None:
        """``digest`` is the federation's."""
        self._programs = programs
        self._identity = identity
        self._digest = digest
        self._now = now
        self._root = order.root
        self._node: SuperNode | None = None
        with ExitStack() as undo:
            self._place = Path(tempfile.mkdtemp(prefix="flower-", dir=memory))
            self._socket = self._place / "workshop"
            undo.callback(Workshop(self._socket, work).close)
            spki = identity.spki
            self._relay = Relay(
                self._tunnel(order), check=lambda scope: own_node(scope, spki), check_answer=own_bundle(app_digest())
            )  # fmt: skip
            self._loopback = Loopback.make(self._place)
            context = server_side()
            context.load_cert_chain(self._loopback.certificate, self._loopback.key)
            self._server = ThreadedServer(self._relay, listen(HOST, 0), context, name="federation-relay")
            undo.callback(self._server.close)
            undo.callback(self._end)
            self._start()
            self._undo = undo.pop_all()

    @property
    def running(self) -> bool:
        return self._node is not None and self._node.running

    def renew(self, renewal: Renewal) -> None:
        """The next certificate. The node is started anew where the aggregator is another, or the node has ended."""
        self._relay.use(self._tunnel(renewal))
        if renewal.root != self._root or not self.running:
            # Another aggregator does not know this node's number, and Flower's node ends when it hears that.
            self._root = renewal.root
            self._start()

    def close(self) -> None:
        self._undo.close()

    def _start(self) -> None:
        self._end()
        self._node = SuperNode(
            self._programs, Path(tempfile.mkdtemp(prefix="node-", dir=self._place)), forward=self._server.port,
            root=self._loopback.certificate, key=self._identity.openssh(), environment={SOCKET: str(self._socket)},
        )  # fmt: skip

    def _end(self) -> None:
        if self._node is not None:
            self._node.close()

    def _tunnel(self, given: TaskOrder | Renewal) -> urllib3.HTTPSConnectionPool:
        context, name = party_context(
            given.bundle,
            given.chain,
            self._identity.key,
            root=given.root,
            digest=self._digest,
            now=self._now(),
        )
        return connections(given.tunnel, context, name=name)
