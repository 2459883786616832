"""Keys from a broker: verify it, attest to it inside the sealed channel, decrypt what it releases.

The broker is verified by its own evidence before anything is sent. The workload's quote binds a fresh P-256 key
whose private half stays in this process; answers are encrypted to it. Refusals say their class and nothing more;
failures to connect are retried a bounded number of times, refusals never; an ended session is attested anew once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import httpx2

from cloister import merkle
from cloister.appraisal.policy import Policy
from cloister.attester import Attester, DeviceAttester, RawDeviceEvidence
from cloister.broker import protocol
from cloister.broker.jwe import TeeKeyPair
from cloister.broker.protocol import Attestation, Problem, RuntimeData, TeeEvidence, TokenAnswer
from cloister.broker.wire import (
    PREFIX,
    CertificateAnswer,
    CertificateRequest,
    TreeAdvance,
    TreeAnswer,
    TreeVersion,
)
from cloister.channel.transport import connect
from cloister.encoding import decode_json, encode_json
from cloister.errors import (
    BrokerError,
    CloisterError,
    FormatError,
    NetworkError,
    ReleaseRefused,
    SessionRefused,
    Superseded,
    UnknownResource,
)
from cloister.evidence.binding import device_nonce, report_data
from cloister.evidence.bundle import EvidenceBundle, NonceProof, TeeKind
from cloister.sealing.uri import parse_key_uri

KEY_SIZE: Final = 32
ATTEMPTS: Final = 4
BACKOFF: Final = 0.25
"""Seconds before the second attempt; doubled each time."""

TIMEOUT: Final = 30.0
"""Seconds for one request."""


class BrokerKeys:
    """A :class:`~cloister.sealing.KeySource`: one broker, one workload. Use it as a context manager, or close it.
    Threads may share it; they wait for each other.

    ``policy`` is what the *broker* must be. ``attester`` makes this workload's quotes; ``tee`` is its kind;
    ``purpose`` is what it says it wants resources for, which a rule may ask for.
    ``client`` may be given to share a channel that :func:`~cloister.channel.transport.connect` verified. ``timeout``
    is in seconds for one request, ``attempts`` bounds how often connecting is tried, ``now`` gives Unix seconds.
    """

    def __init__(
        self,
        url: str,
        *,
        policy: str | Path | Policy,
        attester: Attester,
        tee: TeeKind = "tdx",
        devices: DeviceAttester | None = None,
        purpose: str | None = None,
        attempts: int = ATTEMPTS,
        timeout: float = TIMEOUT,
        now: Callable[[], int] = lambda: int(time.time()),
        sleep: Callable[[float], None] = time.sleep,
        client: httpx2.Client | None = None,
    ) -> None:
        self._url = url.rstrip("/")
        self._policy = policy
        self._attester = attester
        self._tee = tee
        self._devices = devices
        self._purpose = purpose
        self._attempts = attempts
        self._timeout = timeout
        self._now = now
        self._sleep = sleep
        self._client = client
        self._lock = threading.Lock()
        self._session: tuple[TeeKeyPair, str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Forget the session and its key; close the channel."""
        self._session = None
        if self._client is not None:
            self._client.close()
            self._client = None

    def key(self, uri: str) -> bytes:
        """The 32-byte key at ``kbs:///repository/type/tag``.

        Raises :class:`NetworkError` (unreachable), :class:`ReleaseRefused` or :class:`UnknownResource`, and what
        verifying the broker raises.
        """
        content = self.resource(uri)
        if len(content) != KEY_SIZE:
            raise BrokerError(
                f"{uri} is {len(content)} bytes long, but a key is {KEY_SIZE}",
                todo="`cloister broker put` the owner's key file there",
            )
        return content

    def resource(self, uri: str) -> bytes:
        """Any resource's content, at most 64 KiB."""
        path = protocol.resource_path(parse_key_uri(uri))
        with self._lock:
            return self._ask(path, uri)

    def certificate(self, workload: str, csr: bytes) -> tuple[tuple[bytes, ...], bytes]:
        """A mesh certificate for ``csr`` (PKCS #10, DER) as ``workload`` of the manifest: the chain (DER, leaf first), and
        the mesh's trust bundle (mesh.py). Raises as :meth:`key`."""
        request = encode_json(CertificateRequest(workload=workload, csr=csr))
        with self._lock:
            body, _ = self._in_session("POST", f"{PREFIX}/mesh/certificate", request)
        answer = decode_json(
            body, CertificateAnswer, what="the broker's certificate", limit=protocol.MAX_ANSWER
        )
        return answer.chain, answer.bundle

    def tree(self, uri: str) -> TreeVersion | None:
        """The newest index that was recorded for the writable tree sealed under ``uri``: older ones are old copies."""
        path = protocol.resource_path(parse_key_uri(uri))
        with self._lock:
            body, _ = self._in_session("GET", f"{PREFIX}/trees/{path}")
        return decode_json(body, TreeAnswer, what="the broker's tree", limit=protocol.MAX_ANSWER).newest

    def record_tree(self, uri: str, newest: TreeVersion, *, after: TreeVersion | None) -> None:
        """Record the version that this workload has just written, ``after`` being the recorded one that it began from.

        Raises :class:`Superseded` if another was recorded meanwhile: somebody else writes a copy of this tree.
        """
        path = protocol.resource_path(parse_key_uri(uri))
        with self._lock:
            self._in_session(
                "POST", f"{PREFIX}/trees/{path}", encode_json(TreeAdvance(newest=newest, after=after))
            )

    def _ask(self, path: str, uri: str) -> bytes:
        body, pair = self._in_session("GET", protocol.RESOURCE_PATH + path)
        return pair.decrypt(body, uri)

    def _in_session(self, method: str, path: str, body: bytes | None = None) -> tuple[bytes, TeeKeyPair]:
        for last in (False, True):
            pair, token = self._attested()
            try:
                answer = self._call(method, path, body=body, headers={"authorization": f"Bearer {token}"})
            except SessionRefused:
                self._session = None
                if last:
                    raise
            else:
                return answer.content, pair
        raise BrokerError("a key takes one attestation and one more, no others")

    def _attested(self) -> tuple[TeeKeyPair, str]:
        if self._session is None:
            self._session = self._attest()
        return self._session

    def _attest(self) -> tuple[TeeKeyPair, str]:
        """auth → quote → attest: a session's key pair and token."""
        challenge = self._call("POST", protocol.AUTH_PATH, body=protocol.auth_request(self._tee))
        text, nonce = protocol.parse_challenge(challenge.content)
        pair = TeeKeyPair.generate()
        runtime = RuntimeData(nonce=text, tee_pubkey=pair.public, purpose=self._purpose)
        bundle = collect(self._attester, nonce, encode_json(runtime), devices=self._devices)
        body = encode_json(
            Attestation(runtime_data=runtime, tee_evidence=TeeEvidence(primary_evidence=bundle))
        )
        cookie = challenge.cookies.get(protocol.COOKIE)
        if cookie is None:
            raise BrokerError("the broker's challenge came without a session")
        answer = self._call("POST", protocol.ATTEST_PATH, body=body)
        token = decode_json(answer.content, TokenAnswer, what="attestation answer").token
        # The token alone names the session from here on.
        self._channel().cookies.clear()
        return pair, token

    def _call(
        self, method: str, path: str, *, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> httpx2.Response:
        """One request; connecting is retried. Raises :class:`NetworkError`, or by the problem's class."""
        headers = {**(headers or {}), **({"content-type": "application/json"} if body is not None else {})}
        response = self._retried(
            lambda: self._channel().request(method, self._url + path, content=body, headers=headers)
        )
        if response.status_code != 200:
            raise _refusal(response, path)
        if len(response.content) > protocol.MAX_ANSWER:
            raise BrokerError("the broker's answer is over its bound")
        return response

    def _retried(self, send: Callable[[], httpx2.Response]) -> httpx2.Response:
        for attempt in range(1, self._attempts + 1):
            try:
                return send()
            except (httpx2.TransportError, _Unconnected) as error:
                # Only what cannot have reached the broker is sent again: a challenge is spent by its first use.
                cause = error.__cause__ if isinstance(error, _Unconnected) else error
                if attempt == self._attempts or not isinstance(cause, _NOTHING_SENT):
                    raise NetworkError(
                        f"the broker at {self._url} cannot be reached ({type(cause).__name__})",
                        todo="check the address, and that `cloister broker serve` runs there",
                    ) from None
                self._sleep(BACKOFF * 2 ** (attempt - 1))
        raise BrokerError("a broker needs at least one attempt")

    def _channel(self) -> httpx2.Client:
        if self._client is None:
            try:
                self._client = connect(self._url, policy=self._policy, timeout=self._timeout, now=self._now)
            except NetworkError as error:
                raise _Unconnected from error.__cause__ or error
        return self._client


class _Unconnected(Exception):
    """The channel was not opened; its cause says why."""


_NOTHING_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout)


def collect(
    attester: Attester, nonce: bytes, key_material: bytes, *, devices: DeviceAttester | None = None
) -> EvidenceBundle:
    """Evidence over one broker nonce (32 bytes) and the exact bytes of runtime data, with that of ``devices``."""
    nonce_root = merkle.root([nonce])
    shown = (
        devices.collect(device_nonce(nonce_root, key_material))
        if devices
        else RawDeviceEvidence(evidence=b"")
    )
    raw = attester.quote(report_data(nonce_root, key_material, shown.evidence))
    return EvidenceBundle(
        tee=raw.tee,
        quote=raw.quote,
        key_material=key_material,
        nonce_proof=NonceProof(index=0, size=1, path=()),
        event_log=raw.event_log,
        firmware_log=raw.firmware_log,
        device_evidence=shown.evidence,
        endorsements=raw.endorsements,
        device_endorsements=shown.endorsements,
    )


_OWNER = (
    "ask the resource's owner for a rule that names this workload as it is now (any change of program, files or"
    " configuration is another one: measure again); the broker's audit log has the reason"
)
_RULE = "its owners sign a new rule"
_LATER = "nothing was released; ask again in a moment"
_PROTOCOL = "update the broker or this workload"
_OPERATOR = "nothing was released; the broker's operator has the details"
_REFUSALS: Final[dict[str, tuple[type[CloisterError], str, str]]] = {
    "attestation-refused": (ReleaseRefused, "the broker refused this workload", _OWNER),
    "no-rule": (ReleaseRefused, "the broker has no rule for this resource", _OWNER),
    "release-refused": (ReleaseRefused, "the resource's rule does not allow this workload", _OWNER),
    "unknown-resource": (
        UnknownResource,
        "the broker has a rule for this resource, but not the resource",
        "`cloister broker put` it there",
    ),
    "session-refused": (SessionRefused, "the broker does not know this session (any more)", "attest again"),
    "busy": (NetworkError, "the broker is busy", "try again in a minute"),
    "state-damaged": (BrokerError, "the broker's state is damaged", _OPERATOR),
    "rollback-found": (BrokerError, "the broker's state is an old copy of itself", _OPERATOR),
    "fork-found": (BrokerError, "the broker's state runs twice", _OPERATOR),
    "internal": (BrokerError, "the broker failed", _OPERATOR),
    "none-left": (ReleaseRefused, "the resource was released as often as its rule allows", _RULE),
    "unwitnessed": (NetworkError, "the broker's witnesses did not confirm its state", _LATER),
    "unavailable": (NetworkError, "something that the broker needs does not answer", _LATER),
    "locked": (
        NetworkError,
        "the broker waits for its owners' shares",
        "its owners run `cloister owner unlock`",
    ),
    "too-many-requests": (NetworkError, "the broker takes no more requests from here", _LATER),
    "superseded": (Superseded, "the broker knows a newer version", "read the newest first"),
    "unsupported-version": (BrokerError, "the broker speaks another version of the protocol", _PROTOCOL),
    "unsupported-tee": (BrokerError, "the broker does not take this kind of TEE", _PROTOCOL),
    "unsupported-profile": (BrokerError, "the broker does not take our evidence", _PROTOCOL),
}


def _refusal(response: httpx2.Response, path: str) -> CloisterError:
    """The error of a problem's class, about what was asked for; the broker's own words are not repeated."""
    try:
        problem = decode_json(response.content, Problem, what="broker's problem", limit=protocol.MAX_AUTH)
        name = problem.type.removeprefix(protocol.PROBLEM_PREFIX)
    except FormatError:
        name = ""
    if name not in _REFUSALS:
        return BrokerError(
            f"the broker answered with status {response.status_code}",
            todo="check that the address is a Cloister key broker's",
        )
    kind, what, todo = _REFUSALS[name]
    asked = path.removeprefix(protocol.RESOURCE_PATH)
    about = f"kbs:///{asked}: " if asked != path else ""
    return kind(f"{about}{what} ({name})", todo=todo)
