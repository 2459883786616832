"""The mesh's authority inside an opened state: its root and one intermediate for each manifest, sealed as records.

Certificates come from the intermediate of the manifest in force; peers believe that one alone, so a new manifest ends
what the one before it certified (mesh.py says how they are made and checked).
"""

from __future__ import annotations

import hashlib
import os
import threading
from typing import Final

from cloister.broker.audit import Fact
from cloister.broker.authority import Authority
from cloister.broker.clock import RisingClock
from cloister.broker.journal import Journal
from cloister.broker.mesh import MeshGeneration, MeshRoot, TrustBundle, encode_bundle, issue
from cloister.broker.state_key import StateKey, seal, unseal
from cloister.broker.transaction import Transaction
from cloister.encoding import labelled_hash
from cloister.errors import KeystoreError
from cloister.manifest.acceptance import AcceptedManifest

SEAL_LABEL: Final = "cloister/broker-mesh/v1"
ROOT: Final = "root"
LIFETIME: Final = 3600
"""Seconds that a workload's certificate lives."""


class MeshAuthority:
    """Issues for the manifest in force. Thread-safe."""

    def __init__(self, journal: Journal, authority: Authority, key: StateKey, *, clock: RisingClock) -> None:
        self._journal = journal
        self._authority = authority
        self._key = key
        self._clock = clock
        self._lock = threading.Lock()
        self._root: MeshRoot | None = None
        self._generation: tuple[int, MeshGeneration] | None = None

    @property
    def root_sha256(self) -> str:
        """SHA-256 of the root certificate (DER), hexadecimal: what the broker's evidence binds."""
        return hashlib.sha256(self._loaded_root().certificate).hexdigest()

    def renew(self) -> None:
        """See to it that the manifest in force has its intermediate."""
        self._generation_of(self._authority.manifest)

    def bundle(self) -> bytes:
        """What peers believe now (docs/spec/mesh.md)."""
        manifest = self._authority.manifest
        bundle = TrustBundle(
            application=manifest.manifest.application,
            manifest_version=manifest.manifest.version,
            root=self._loaded_root().certificate,
            intermediates=(self._generation_of(manifest).certificate,),
        )
        return encode_bundle(bundle)

    def issue(
        self, csr: bytes, *, manifest: AcceptedManifest, workload: str, evidence_sha256: bytes
    ) -> tuple[bytes, ...]:
        """The chain (DER), leaf first, for a request (PKCS #10, DER) of a workload that meets this very manifest."""
        generation = self._generation_of(manifest)
        leaf = issue(
            generation,
            csr,
            workload=workload,
            application=manifest.manifest.application,
            evidence_sha256=evidence_sha256,
            now=self._clock(),
            lifetime=LIFETIME,
        )
        return (leaf, generation.certificate)

    def _loaded_root(self) -> MeshRoot:
        with self._lock:
            if self._root is None:
                stored = self._journal.read("mesh", ROOT)
                if stored is None:
                    raise KeystoreError("this state has no mesh root", todo="restore a backup")
                self._root = MeshRoot.load(_unsealed(self._key, ROOT, stored.version, stored.body))
            return self._root

    def _generation_of(self, manifest: AcceptedManifest) -> MeshGeneration:
        version = manifest.manifest.version
        with self._lock:
            if self._generation is not None and self._generation[0] == version:
                return self._generation[1]
        root, name = self._loaded_root(), str(version)
        made = MeshGeneration.create(
            root, manifest_version=version, manifest_digest=manifest.digest, now=self._clock()
        )

        def work(transaction: Transaction) -> None:
            if not transaction.version("mesh", name):  # another replica may have been first
                _stage(
                    transaction,
                    self._key,
                    name,
                    made.dump(),
                    f"mesh generation of manifest version {version}",
                )

        if self._journal.held("mesh", name) is None:
            self._journal.transact(work)
        stored = self._journal.read("mesh", name)
        if stored is None:
            raise KeystoreError("the mesh's generation is not in the state")
        generation = MeshGeneration.load(_unsealed(self._key, name, stored.version, stored.body))
        with self._lock:
            self._generation = (version, generation)
        return generation


def stage_mesh(transaction: Transaction, key: StateKey, manifest: AcceptedManifest, *, now: int) -> None:
    """Stage the root of a new state's mesh."""
    root = MeshRoot.create(application=manifest.manifest.application, now=now)
    _stage(transaction, key, ROOT, root.dump(), "mesh root made")


def _stage(transaction: Transaction, key: StateKey, name: str, content: bytes, reason: str) -> None:
    version = transaction.version("mesh", name) + 1
    sealed = seal(key.cipher(SEAL_LABEL), content, _place(name, version), os.urandom)
    transaction.put("mesh", name, sealed)
    transaction.log(Fact("certificate", "done", reason=reason))


def _unsealed(key: StateKey, name: str, version: int, body: bytes) -> bytes:
    return unseal(key.cipher(SEAL_LABEL), body, _place(name, version))


def _place(name: str, version: int) -> bytes:
    return labelled_hash(SEAL_LABEL, name.encode(), version.to_bytes(8, "big"))
