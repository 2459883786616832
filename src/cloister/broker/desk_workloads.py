"""What attested workloads ask beside resources: mesh certificates, and the newest index of a writable sealed tree.

Each is decided as a release is: evidence appraised anew, under the manifest and rule of this moment, which must still
be those when the entry is written, and under a state that the witnesses have lately seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from cloister.broker.audit import Fact
from cloister.broker.counters import advance, parse_tree_advance, parse_tree_version
from cloister.broker.release import Reader
from cloister.broker.service import require_same_manifest
from cloister.broker.session import Attested
from cloister.broker.transaction import Transaction
from cloister.broker.wire import CertificateAnswer, CertificateRequest, TreeAnswer
from cloister.encoding import Record, decode_json, encode_json
from cloister.errors import ReleaseRefused

if TYPE_CHECKING:
    from cloister.broker.desk import Asked, Desk

MAX_REQUEST: Final = 1 << 16


def certificate(desk: Desk, asked: Asked, session: Attested) -> CertificateAnswer:
    """A certificate for the workload that this session is, by the manifest's own policies for it."""
    request = decode_json(asked.body, CertificateRequest, what="certificate request", limit=MAX_REQUEST)
    state = desk.custody.state
    manifest = state.authority.manifest
    if request.workload not in manifest.manifest.workloads:
        raise ReleaseRefused("the manifest has no such workload")
    readers = [Reader(request.workload, policy) for policy in manifest.policies(request.workload)]
    reader, result = desk.broker.appraise(session, readers)
    desk.broker.require_witnesses()
    chain = state.mesh.issue(
        request.csr,
        manifest=manifest,
        workload=reader.workload,
        evidence_sha256=bytes.fromhex(session.presented.evidence_sha256),
    )
    fact = Fact(
        "certificate",
        "done",
        workload=reader.workload,
        session=session.digest,
        evidence=session.presented.evidence_sha256,
        policy=result.policy_digest,
        manifest=manifest.digest,
        tee=result.claims.tee,
        simulated=result.claims.simulated,
        reason=f"certificate {hashlib.sha256(chain[0]).hexdigest()}",
    )

    def work(transaction: Transaction) -> None:
        require_same_manifest(transaction, manifest)
        transaction.log(fact)

    state.journal.transact(work)
    return CertificateAnswer(chain=chain, bundle=state.mesh.bundle())


def tree(desk: Desk, asked: Asked, session: Attested) -> TreeAnswer:
    """The newest index that was recorded."""
    path = asked.resource
    desk.broker.admit(session, path)
    desk.broker.require_witnesses()
    stored = desk.custody.state.journal.read("tree", path)
    return TreeAnswer(newest=None if stored is None or not stored.body else parse_tree_version(stored.body))


def record_tree(desk: Desk, asked: Asked, session: Attested) -> TreeAnswer:
    """Record the index that this workload has just written, and have the witnesses see it."""
    path, said = asked.resource, parse_tree_advance(asked.body)
    newest = said.newest
    admitted = desk.broker.admit(session, path)
    desk.broker.require_witnesses()

    def work(transaction: Transaction) -> None:
        admitted.require_unchanged(transaction)
        stored = transaction.get("tree", path)
        before = None if stored is None or not stored.body else parse_tree_version(stored.body)
        advance(before, said)
        if newest == before:
            return
        transaction.put("tree", path, encode_json(newest))
        transaction.log(
            Fact(
                "tree",
                "done",
                resource=f"kbs:///{path}",
                workload=admitted.reader.workload,
                session=session.digest,
                rule=admitted.rule.rule.digest,
                manifest=admitted.manifest.digest,
                reason=f"index version {newest.version}, digest {newest.digest}",
            )
        )

    desk.custody.state.journal.transact(work)
    desk.confirm()
    return TreeAnswer(newest=newest)


SERVED: Final[dict[str, Callable[[Desk, Asked, Attested], Record]]] = {
    "certificate": certificate,
    "tree": tree,
    "record_tree": record_tree,
}
