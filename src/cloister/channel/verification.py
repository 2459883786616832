"""Verify, then talk: who the workload is, kept as long as it stands, and asked again when its keys are gone.

No I/O here: what has to be sent is yielded as a step and a driver performs it (transport.py), so that the blocking
and the asynchronous client are one piece of code. Nothing is sealed to a key that is not in an
:class:`~cloister.appraisal.result.AttestationResult` that still stands. Of a plaintext answer nothing is believed;
the claim that a key is gone leads to one new verification, and to one retry only if the attested key did change.

Who pins owners instead of a policy asks for the newest manifest first, each time, and then for evidence that meets one of
the policies which it has for the workload. Who was given several policies takes what meets one of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from cloister.appraisal.appraise import appraise
from cloister.appraisal.policy import Policy
from cloister.appraisal.result import AttestationResult
from cloister.channel import headers
from cloister.channel.exchange import AnswerReader, PlainRequest, SealedExchange
from cloister.channel.hpke import Kem
from cloister.channel.manifest_anchor import Anchored, AnchoredManifest, Seen
from cloister.channel.ohttp import CHUNKED_REQUEST_TYPE, CHUNKED_RESPONSE_TYPE, KeyConfig, parse_key_configs
from cloister.channel.problems import MAX_PROBLEM, says_key_may_be_gone
from cloister.channel.receipt_file import Promised, Shown
from cloister.encoding import b64url_encode, encode_json
from cloister.errors import (
    AppraisalRefused,
    ChannelError,
    CloisterError,
    EvidenceError,
    FormatError,
    ManifestError,
    PlaintextResponse,
    UnknownKey,
)
from cloister.evidence.bundle import MAX_BUNDLE, EvidenceBundle, parse_bundle
from cloister.evidence.key_material import KeyMaterial, parse_key_material
from cloister.manifest.signed import MAX_SIGNED

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Send:
    """Step: send ``content`` to ``path``; answered by a :class:`Head`. Closes what was open before."""

    path: str
    fields: headers.Fields
    content: bytes
    quick: bool = False
    """Bounded by the time of a verification instead of that of the caller's request."""
    method: str = "POST"


@dataclass(frozen=True, slots=True)
class Read:
    """Step: the next bytes of the answer; answered by ``bytes``, empty at its end."""


@dataclass(frozen=True, slots=True)
class Keep:
    """Step: remember which manifest was accepted; answered by nothing."""

    anchored: Anchored
    seen: Seen


@dataclass(frozen=True, slots=True)
class Close:
    """Step: done with the answer; answered by nothing."""


@dataclass(frozen=True, slots=True)
class Head:
    """Status and media type of an outer answer: unauthenticated."""

    status: int
    media_type: str


Steps = Generator[Send | Read | Keep | Close, Any, T]


class Verification:
    """The current result for one origin, and how to get another.

    ``accepts`` is a policy, policies of which one has to be met, or the anchor of a manifest. ``nonce`` draws 32
    fresh bytes; ``now`` is Unix seconds and never counts as earlier than the newest issue date of collateral that was
    verified here. Safe to share between threads: at worst two verify at once.
    """

    def __init__(
        self,
        *,
        accepts: Policy | Sequence[Policy] | Anchored,
        nonce: Callable[[], bytes],
        now: Callable[[], int],
        allow_classical_kem: bool = False,
    ) -> None:
        self.result: AttestationResult[KeyMaterial] | None = None
        self._shown: Shown | None = None
        self._accepts = accepts
        self._nonce = nonce
        self._now = now
        self._kems = (Kem.X_WING, Kem.X25519) if allow_classical_kem else (Kem.X_WING,)
        self._floor = 0
        self._lock = threading.Lock()

    def verify(self) -> Steps[AttestationResult[KeyMaterial]]:
        """Ask for evidence over a fresh nonce and appraise it. Raises what appraisal raises, or ManifestError."""
        accepted = self._accepts
        manifest: bytes | None = None
        if isinstance(accepted, Anchored):
            taken = yield from self._ask_manifest(accepted)
            policies: Sequence[Policy] = taken.policies
            manifest = taken.signed
        else:
            policies = (accepted,) if isinstance(accepted, Policy) else accepted
        nonce = self._nonce()
        question = encode_json({"nonce": b64url_encode(nonce)})
        fields = ((b"content-type", b"application/json"), (b"accept", b"application/json"))
        head = yield Send(path=headers.ATTESTATION_PATH, fields=fields, content=question, quick=True)
        body = yield from _read_all(MAX_BUNDLE)
        if head.status != 200:
            raise EvidenceError(
                f"no evidence was shown: the answer was status {head.status}",
                todo="check the address; is this a Cloister service?",
            )
        now = self.now()
        try:
            result = appraise_any(parse_bundle(body), policies, nonce=nonce, now=now)
        except CloisterError:
            # What stood before is not believed any more either: the next request verifies, or is not sent.
            with self._lock:
                self.result = self._shown = None
            raise
        with self._lock:
            self._floor = max(self._floor, result.claims.issued_at)
            self.result, self._shown = result, Shown(body, nonce, now, manifest)
        return result

    def _ask_manifest(self, anchored: Anchored) -> Steps[AnchoredManifest]:
        """The newest manifest, taken from an answer in the clear by its signatures alone."""
        fields = ((b"accept", b"application/json"),)
        head = yield Send(path=headers.MANIFEST_PATH, fields=fields, content=b"", quick=True, method="GET")
        body = yield from _read_all(MAX_SIGNED)
        if head.status != 200:
            raise ManifestError(
                f"no manifest was shown: the answer was status {head.status}",
                todo="give the workload its signed manifest, or connect with a policy",
            )
        manifest = anchored.take(body)
        yield Keep(anchored, manifest.seen)
        return manifest

    def now(self) -> int:
        """The time, never before what verified collateral proves."""
        return max(self._now(), self._floor)

    def standing(self) -> AttestationResult[KeyMaterial] | None:
        """The result, while it stands."""
        result = self.result
        return result if result is not None and self.now() < result.expires else None

    @property
    def shown(self) -> Shown | None:
        """The evidence that the newest result came of."""
        return self._shown

    def _newest(self) -> tuple[AttestationResult[KeyMaterial], Shown]:
        """A result and the evidence that it came of, which belong together."""
        with self._lock:
            if self.result is None or self._shown is None:
                raise ChannelError("nothing was verified yet")
            return self.result, self._shown

    def converse(self, request: PlainRequest, *, salt: bytes | None = None) -> Steps[AnswerReader]:
        """Seal ``request`` to the attested key, send it, and read the answer up to its head; ``salt`` asks for a receipt.

        Raises :class:`PlaintextResponse`, :class:`UnknownKey` (twice, or falsely claimed) and what opening raises.
        """
        if self.standing() is None:
            yield from self.verify()
        result, shown = self._newest()
        material = result.require_fresh(self.now())
        config = self._choose(material)
        for last in (False, True):
            exchange = SealedExchange(config, request, salt=salt)
            exchange.answer.promised = None if salt is None else Promised(salt, request, material, shown)
            head = yield Send(
                path=headers.GATEWAY_PATH, fields=_outer_fields(material), content=exchange.content
            )
            if head.status == 200 and head.media_type == CHUNKED_RESPONSE_TYPE:
                return (yield from _read_head(exchange.answer))
            claim = yield from _read_all(MAX_PROBLEM, cut=True)
            if not says_key_may_be_gone(head.media_type, claim):
                raise PlaintextResponse(
                    f"status {head.status} came back in the clear, from the gateway or anybody between; not read",
                    todo="try again; if it stays, look at what stands between",
                )
            if last:
                break
            yield from self.verify()
            result, shown = self._newest()
            material = result.require_fresh(self.now())
            renewed = self._choose(material)
            if renewed.public_key == config.public_key:
                raise UnknownKey(
                    "the answer says that the key is unknown, and fresh evidence still shows it",
                    todo="somebody between answers falsely, or several replicas need cloister-replica routing",
                )
            config = renewed
        raise UnknownKey("the key is unknown again after verifying anew", todo="try again in a moment")

    def _choose(self, material: KeyMaterial) -> KeyConfig:
        try:
            configs = parse_key_configs(material.ohttp_keys)
        except FormatError as error:
            raise ChannelError(f"the attested keys are malformed ({error.what})") from None
        for kem in self._kems:
            for config in configs:
                if config.kem is kem:
                    return config
        raise ChannelError(
            "the workload shows no post-quantum key (X-Wing)",
            todo="pass allow_classical_kem=True to use X25519",
        )


def appraise_any(
    bundle: EvidenceBundle, policies: Sequence[Policy], *, nonce: bytes, now: int
) -> AttestationResult[KeyMaterial]:
    """Appraise by whichever of ``policies`` the evidence meets. Raises what appraisal raises, also where there is none."""
    if not policies:
        raise AppraisalRefused("there is no policy that the evidence could meet", todo="give one at least")
    refusals: list[CloisterError] = []
    for policy in policies:
        try:
            return appraise(
                bundle,
                nonce=nonce,
                policy=policy,
                now=now,
                decode=parse_key_material,
                not_after=lambda material: material.not_after,
            )
        except CloisterError as error:
            if len(policies) == 1:
                raise
            refusals.append(error)
    reasons = "; ".join(
        f"{number}. {policy.digest[:16]}: {error.what}"
        for number, (policy, error) in enumerate(zip(policies, refusals, strict=True), 1)
    )
    raise AppraisalRefused(
        f"the evidence meets none of the {len(policies)} policies that there are for it: {reasons}",
        todo="if the workload changed, the owners sign a manifest with its new reference values",
    )


def _outer_fields(material: KeyMaterial) -> headers.Fields:
    fields = (
        (b"content-type", CHUNKED_REQUEST_TYPE.encode()),
        (b"accept", CHUNKED_RESPONSE_TYPE.encode()),
        (b"incremental", b"?1"),
    )
    replica = material.replica.encode("utf-8")
    return (*fields, (headers.REPLICA_HEADER, replica)) if headers.TOKEN.match(replica) else fields


def _read_all(limit: int, *, cut: bool = False) -> Steps[bytes]:
    """A whole outer body of at most ``limit`` bytes; ``cut`` forgets the rest instead of raising."""
    parts, length = [], 0
    while part := (yield Read()):
        parts.append(part)
        length += len(part)
        if length > limit:
            yield Close()
            if cut:
                break
            raise FormatError(f"the answer is over its bound of {limit} bytes")
    yield Close()
    return b"".join(parts)[:limit]


def _read_head(answer: AnswerReader) -> Steps[AnswerReader]:
    while answer.head is None:
        part = yield Read()
        answer.waiting += answer.feed(part) if part else answer.finish()
    return answer
