"""What agents and the aggregator say to each other, inside the sealed channel (docs/spec/federation-protocol.md). Pure.

Nothing here is secret on its own, and nothing is believed for being sealed: who asks is told by evidence over the
aggregator's nonce and by a signature of the key in it.
"""

from __future__ import annotations

from typing import Final, Literal

from cloister.encoding import Record
from cloister.evidence.binding import NONCE_SIZE

PREFIX: Final = "/federation/v1"
SESSIONS: Final = f"{PREFIX}/sessions"
ADMISSIONS: Final = f"{PREFIX}/admissions"
ATTENDANCE: Final = f"{PREFIX}/attendance"
DEPARTURES: Final = f"{PREFIX}/departures"
INQUIRIES: Final = f"{PREFIX}/inquiries"
FACTS: Final = f"{PREFIX}/facts"
MODEL: Final = f"{PREFIX}/model"
RENEWAL: Final = f"{PREFIX}/renewal"
STATE: Final = f"{PREFIX}/state"
TASK: Final = f"{PREFIX}/task"
IDENTITY: Final = f"{PREFIX}/identity"
JOIN: Final = f"{PREFIX}/join"
MAX_SMALL: Final = 64 * 1024
MAX_ADMISSION: Final = 4 * 1024 * 1024
MAX_ATTENDANCE: Final = 24 * 1024 * 1024
"""Bytes; evidence for each of 64 parties, 256 KiB each at most on average."""
MAX_TASK: Final = 4 * 1024 * 1024
TOKEN_SIZE: Final = 32
KEY_SIZE: Final = 32
"""Bytes of the key of a run's checkpoints."""
NONCE: Final = NONCE_SIZE


class Ask(Record, frozen=True, kw_only=True):
    """Who wants to be admitted asks for a nonce."""

    party: str
    federation: str
    """Digest of its document."""


class Session(Record, frozen=True, kw_only=True):
    """Answer: evidence over this nonce, within a minute."""

    session: str
    nonce: bytes


class Admission(Record, frozen=True, kw_only=True):
    """Evidence of a party's agent and workload over the session's nonce, and the party's word for the agent."""

    session: str
    delegation: bytes
    """A signed document of the kind ``delegation``."""
    agent: bytes
    """An evidence bundle."""
    agent_key: bytes
    """SubjectPublicKeyInfo, DER, whose digest the agent's evidence binds."""
    workload: bytes
    csr: bytes
    """PKCS #10, DER: for the key that the workload's evidence binds."""
    vouched: bytes
    """The agent key's signature that this key is its workload's, for the other parties."""
    nonce: bytes
    """Over which others' evidence is asked."""
    checkpoint_key: bytes | None
    """Where the party holds the key of an earlier aggregator's checkpoints."""
    seen: int
    """The last round whose end the party saw: an older checkpoint is refused."""
    signature: bytes
    """Of the agent's key over everything above."""


class Admitted(Record, frozen=True, kw_only=True):
    """The answer to an admission."""

    token: str
    run: str
    chain: tuple[bytes, ...]
    """The workload's certificate in the federation's mesh, DER, leaf first."""
    bundle: bytes
    """The mesh's trust bundle; the aggregator's evidence binds its root and the federation."""
    tunnel: str
    """``host:port`` of the aggregator's mutual TLS; without host the one that was asked."""
    checkpoint_key: bytes
    until: int
    """Unix seconds: when the evidence counts no more. Come again before."""


class Presented(Record, frozen=True, kw_only=True):
    """Another party's agent, for whom it concerns to verify."""

    evidence: bytes
    agent_key: bytes
    delegation: bytes
    workload_key: bytes
    """SubjectPublicKeyInfo, DER."""
    vouched: bytes
    """The agent key's signature that this is its workload's."""


class Attendance(Record, frozen=True, kw_only=True):
    """An agent says that it is there, shows evidence to others, and says whether its workload may begin."""

    token: str
    answers: dict[str, bytes]
    """Nonce of another party, hexadecimal → a bundle over it."""
    ready: bool
    refused: dict[str, str]
    """Parties whose evidence this agent refused, and why."""


class Attended(Record, frozen=True, kw_only=True):
    """The answer to attendance."""

    asked: dict[str, bytes]
    """Party → its nonce, where no evidence was shown to it yet."""
    presented: dict[str, Presented]
    """Party → its evidence over the asker's nonce."""
    states: dict[str, str]
    started: bool
    rounds: int
    """That are done."""
    over: bool
    """Whether all rounds are done, and the model may be asked for."""
    failed: str
    """Why the run ended early; empty while it has not."""


class Departure(Record, frozen=True, kw_only=True):
    """A party goes. Signed by its key, as a document of the kind ``departure``."""

    format: Literal["cloister/federation-departure/v1"] = "cloister/federation-departure/v1"
    federation: str
    party: str
    at: int


class Inquiry(Record, frozen=True, kw_only=True):
    """A party wants to see the run. Signed by its key, as a document of the kind ``inquiry``."""

    format: Literal["cloister/federation-inquiry/v1"] = "cloister/federation-inquiry/v1"
    federation: str
    party: str
    at: int


class SignedWord(Record, frozen=True, kw_only=True):
    """A signed document."""

    signed: bytes


class Token(Record, frozen=True, kw_only=True):
    """By which the sender is known from here on."""

    token: str


class FactsFrom(Record, frozen=True, kw_only=True):
    """Facts of the run from the one with this number on."""

    token: str
    start: int


class Facts(Record, frozen=True, kw_only=True):
    """Lines of progress.py, from the one that was asked for on; the next one has the number ``next``."""

    lines: bytes
    next: int
    states: dict[str, str]


class ModelAsked(Record, frozen=True, kw_only=True):
    """A receiver asks for what vouches for the final model."""

    token: str


class Vouched(Record, frozen=True, kw_only=True):
    """A statement, signed by the key of the evidence that is over its digest (provenance.py)."""

    statement: bytes
    evidence: bytes
    key: bytes
    """SubjectPublicKeyInfo, DER, whose digest the evidence binds."""
    signature: bytes


class Named(Record, frozen=True, kw_only=True):
    """For whom a workload shall make a certificate request."""

    party: str
    federation: str
    """Its name."""


class Requested(Record, frozen=True, kw_only=True):
    """The workload's request, PKCS #10, DER."""

    csr: bytes


class Renewal(Record, frozen=True, kw_only=True):
    """A workload's next certificate."""

    word: str
    lease: int
    """As in :class:`TaskOrder`."""
    chain: tuple[bytes, ...]
    bundle: bytes
    root: str
    tunnel: str
    run: str
    peers: dict[str, bytes]
    """As in the order."""


class ModelOrder(Record, frozen=True, kw_only=True):
    """Write the final model, sealed to this party."""

    word: str
    vouched: Vouched


class Written(Record, frozen=True, kw_only=True):
    """It is written; what the workload says of it, over whose digest it shows evidence."""

    vouched: Vouched


class WorkAsked(Record, frozen=True, kw_only=True):
    """How is it?"""

    word: str
    hold: bool
    """Answer nobody until the next renewal: what the agent verified does not hold any more."""


class Done(Record, frozen=True, kw_only=True):
    """The answer where there is nothing to say."""


class WorkState(Record, frozen=True, kw_only=True):
    """How a workload is."""

    running: bool
    rounds: int


class TaskOrder(Record, frozen=True, kw_only=True):
    """What an agent hands to its party's verified workload."""

    federation: tuple[bytes, ...]
    """Signed, from version 1 on; the last is in force."""
    digest: str
    """Of the first of them, as the party's people pinned it."""
    word: str
    """By which later orders of the same agent are known."""
    lease: int
    """Seconds in which the workload may answer the aggregator: until the agent verifies it anew."""
    party: str
    run: str
    chain: tuple[bytes, ...]
    bundle: bytes
    root: str
    """SHA-256 of the mesh's root, as the aggregator's evidence binds it."""
    tunnel: str
    keys: dict[str, bytes]
    """Key URI → data key."""
    signers: tuple[str, ...]
    """Whose signature on an index of data or model is believed, hexadecimal."""
    output: str
    """The URI of the key to which the final model is sealed."""
    peers: dict[str, bytes]
    """Other parties whose agents this one verified → the keys of their workloads, SubjectPublicKeyInfo, DER."""


class JoinOrder(Record, frozen=True, kw_only=True):
    """What an owner hands to the party's verified agent."""

    federation: tuple[bytes, ...]
    digest: str
    """Of the first of them, which they looked at."""
    party: str
    delegation: bytes
    keys: dict[str, bytes]
    signers: tuple[str, ...]
    output: str
