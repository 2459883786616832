"""The federation: parties, what their machines must prove, the task, what may leave, who receives (docs/spec/federation.md).
Pure.

Reading checks everything that the document alone can show. That every party signed it is agreement.py's matter. Numbers
are whole: canonical JSON has no fractions, so rates and bounds are counted in millionths.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from cloister.broker.mesh_request import dns_name
from cloister.encoding import Record
from cloister.errors import FormatError, ManifestError
from cloister.manifest.manifest import Policies, load_policies, named_keys
from cloister.manifest.names import check_digest, check_names, check_number, check_succession
from cloister.manifest.owner_key import PublicKey
from cloister.manifest.signed import MAX_DOCUMENT, decode_canonical

MAX_PARTIES: Final = 64
MAX_ROUNDS: Final = 10_000
MAX_DEADLINE: Final = 7 * 86_400
MAX_ATTEST_MINUTES: Final = 1440
MILLION: Final = 1_000_000
AGGREGATOR: Final = "aggregator"
"""The name of its certificate, which no party may have."""
Method = Literal["fedavg", "fedprox", "fedadam", "median", "trimmed-mean", "krum"]
LOOKS: Final[frozenset[Method]] = frozenset({"median", "trimmed-mean", "krum"})
"""Methods that look at single updates, and so cannot be had where nobody may see one."""
EPSILON: Final = "epsilon"
METRICS: Final = frozenset({"loss", "f1", "precision", "recall", "examples", "seconds", EPSILON})
"""What may be told of a party's data beside its update."""


class Party(Record, frozen=True, kw_only=True):
    """One organisation. Evidence of its agent, and of its workload, meets one of the policies."""

    key: str
    """That signs for it."""
    agent: tuple[str, ...]
    workload: tuple[str, ...]


class Task(Record, frozen=True, kw_only=True):
    """What is trained, by which code, on what it begins with."""

    plugin: str
    """Of the entry points ``cloister.tasks``."""
    code: str
    """SHA-256 of what the workload runs, as the launcher measures it."""
    model: str
    """SHA-256 of the signed index of the model directory that training begins with."""
    settings: dict[str, int | str | tuple[str, ...]]
    """The plugin's own, which it checks when it is loaded."""


class Privacy(Record, frozen=True, kw_only=True):
    """Differential privacy: of clients (the aggregator adds noise) or of examples (each party does, DP-SGD)."""

    of: Literal["clients", "examples"]
    noise_ppm: int
    """Noise multiplier: standard deviation over the clipping norm."""
    clip_ppm: int
    """The norm that updates, or gradients of single examples, are cut to."""
    epsilon_ppm: int
    """The budget: training stops before it is exceeded."""
    delta_inverse: int
    """1 / delta."""


class Aggregation(Record, frozen=True, kw_only=True):
    """How updates become a model."""

    method: Method
    secure: bool
    """Not even the aggregator sees one party's update (docs/spec/secure-aggregation.md)."""
    tolerated: int
    """Parties that may be poisoned, for ``trimmed-mean`` and ``krum``; else 0."""
    proximal_ppm: int
    """FedProx's μ; else 0."""
    largest_ppm: int
    """The norm that an update's difference to the model may have; what is larger is refused."""


class Federation(Record, frozen=True, kw_only=True):
    """A federation that passed :func:`read_federation`: well formed, signed by nobody yet."""

    format: Literal["cloister/federation/v1"] = "cloister/federation/v1"
    name: str
    version: int
    previous: str
    """Digest of the predecessor's document; empty for version 1."""
    issued: int
    parties: dict[str, Party]
    aggregator: tuple[str, ...]
    """Policies that its evidence meets one of."""
    everyone: bool
    """Whether agents verify each other's evidence, and not the aggregator's alone."""
    attest_minutes: int
    """After which evidence is asked for again."""
    task: Task
    rounds: int
    deadline: int
    """Seconds of a round, after which late updates are refused."""
    minimum: int
    """Parties without which a round has no result."""
    aggregation: Aggregation
    privacy: Literal["none"] | Privacy
    metrics: tuple[str, ...]
    """That may leave a party beside its update."""
    receivers: tuple[str, ...]
    """Parties to whom the final model is sealed."""


def read_federation(data: bytes) -> tuple[Federation, Policies]:
    """Read and check, with the policies that were loaded on the way. Raises :class:`~cloister.errors.ManifestError`."""
    federation = decode_canonical(data, Federation, what="the federation", limit=MAX_DOCUMENT)
    return federation, check_federation(federation)


def party_keys(federation: Federation) -> Mapping[str, PublicKey]:
    """The key of each party. Raises :class:`~cloister.errors.ManifestError`, also if two of them are one."""
    return named_keys({name: party.key for name, party in federation.parties.items()}, "a party")


def check_federation(federation: Federation) -> Policies:
    """Everything that the document alone can show. Raises :class:`~cloister.errors.ManifestError`."""
    check_names([federation.name], "a federation")
    check_succession(federation.version, federation.previous, what="a federation")
    check_number(federation.issued, what="the time of issue", low=0)
    parties = len(federation.parties)
    check_number(parties, what="the number of parties", low=2, high=MAX_PARTIES)
    party_keys(federation)
    _check_party_names(federation)
    check_number(federation.rounds, what="the number of rounds", low=1, high=MAX_ROUNDS)
    check_number(federation.deadline, what="the seconds of a round", low=1, high=MAX_DEADLINE)
    check_number(
        federation.attest_minutes, what="the minutes between two attestations", low=1, high=MAX_ATTEST_MINUTES
    )
    # With one party left its update, and so its data, would be what everybody receives.
    check_number(federation.minimum, what="the least parties of a round", low=2, high=parties)
    _check_task(federation.task)
    _check_aggregation(federation)
    if isinstance(federation.privacy, Privacy):
        _check_privacy(federation.privacy, federation.aggregation)
    _check_list(federation.metrics, METRICS, "metrics that may leave")
    examples = isinstance(federation.privacy, Privacy) and federation.privacy.of == "examples"
    if examples and EPSILON not in federation.metrics:
        raise ManifestError(
            "what privacy of examples a party spends only the party can say, and no metric tells it",
            todo=f'add "{EPSILON}" to the metrics',
        )
    _check_list(federation.receivers, federation.parties, "receivers")
    if not federation.receivers:
        raise ManifestError("nobody receives the model", todo="name a party at least")
    texts = {"the aggregator": federation.aggregator}
    for name, party in federation.parties.items():
        texts |= {f"the agent of {name}": party.agent, f"the workload of {name}": party.workload}
    for what, policies in texts.items():
        if not policies:
            raise ManifestError(f"{what} has no policy, so nothing could ever be it", todo="give it one")
    return load_policies(texts)


def _check_party_names(federation: Federation) -> None:
    """They are names of certificates, too."""
    for name in federation.parties:
        try:
            dns_name(name, federation.name)
        except FormatError as error:
            raise ManifestError(f"the party {name} cannot have a certificate", todo=error.todo) from None
        if name == AGGREGATOR:
            raise ManifestError("no party is called aggregator", todo="give it another name")


def _check_task(task: Task) -> None:
    check_names([task.plugin], "a task")
    check_digest(task.code, what="the digest of the task's code")
    check_digest(task.model, what="the digest of the task's model")
    check_names(task.settings, "a setting")
    check_number(len(task.settings), what="the number of settings", low=0, high=64)


def _check_aggregation(federation: Federation) -> None:
    how, parties = federation.aggregation, len(federation.parties)
    if how.secure and how.method in LOOKS:
        raise ManifestError(
            f"{how.method} looks at each update, and secure aggregation shows none",
            todo="choose one of them",
        )
    if how.secure and isinstance(federation.privacy, Privacy) and federation.privacy.of == "clients":
        raise ManifestError(
            "the aggregator cuts each update to its norm for the privacy of clients, and secure aggregation shows none",
            todo='choose one of them, or the privacy of "examples"',
        )
    if how.secure and not federation.everyone:
        raise ManifestError(
            "with secure aggregation no party may know another's key by the aggregator's word, and so all verify all",
            todo="let everyone verify each other",
        )
    # Of 2 f + 3 parties Krum stands f (Blanchard et al. 2017); trimming f at both ends has to leave one.
    needs = {"krum": 2 * how.tolerated + 3, "trimmed-mean": 2 * how.tolerated + 1}.get(how.method, 0)
    if needs > federation.minimum:
        raise ManifestError(
            f"{how.method} that stands {how.tolerated} poisoned parties needs {needs} in a round, and {federation.minimum} "
            "may be all",
            todo="raise the minimum, or tolerate fewer",
        )
    takes_tolerated = how.method in ("krum", "trimmed-mean")
    check_number(
        how.tolerated, what="the parties that may be poisoned", low=int(takes_tolerated),
        high=parties if takes_tolerated else 0,
    )  # fmt: skip
    proximal = how.method == "fedprox"
    check_number(
        how.proximal_ppm, what="FedProx's μ", low=int(proximal), high=1000 * MILLION if proximal else 0
    )
    check_number(how.largest_ppm, what="the largest norm of an update", low=1)


def _check_privacy(privacy: Privacy, how: Aggregation) -> None:
    check_number(privacy.noise_ppm, what="the noise multiplier", low=1, high=1000 * MILLION)
    check_number(privacy.clip_ppm, what="the clipping norm", low=1)
    check_number(privacy.epsilon_ppm, what="the privacy budget", low=1, high=1000 * MILLION)
    check_number(privacy.delta_inverse, what="1 / delta", low=100)
    if privacy.of == "clients" and how.method != "fedavg":
        raise ManifestError(
            "the budget of clients is accounted for the plain average alone", todo='use the method "fedavg"'
        )


def _check_list(names: tuple[str, ...], known: Mapping[str, object] | frozenset[str], what: str) -> None:
    unknown = [name for name in names if name not in known]
    if unknown or len(set(names)) != len(names):
        raise ManifestError(
            f"{what}: {unknown[0][:80]!r} is none" if unknown else f"{what}: one is named twice",
            todo=f"choose from {', '.join(sorted(known))}, each once",
        )
