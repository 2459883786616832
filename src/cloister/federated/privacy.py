"""What differential privacy costs, whether another round may begin, and the noise that it takes.

The cost of what happened is an epsilon for the federation's delta, by Rényi divergences (Mironov 2017) of the Gaussian
mechanism, sampled (Mironov, Talwar and Zhang 2019) or not, as Opacus computes them. It is an upper bound and never an
estimate: an order that cannot be computed does not count. What would exceed the budget is refused before it begins.

Noise comes out of a :data:`Source`. In production that is AES-256-CTR under a fresh key or a secret one: who knows all noise
that was seen knows nothing of the next, which does not hold for the generators of numpy and torch.
"""

from __future__ import annotations

import functools
import hmac
import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from cloister.encoding import Record, labelled_hash
from cloister.errors import BudgetSpent, FederationError, UpdateRefused, UsageError
from cloister.federated.federation import EPSILON, MILLION, Federation, Privacy
from cloister.federated.progress import Fact, RoundDone

Source = Callable[[int], bytes]
"""So many random bytes, never the same twice."""
_LABEL: Final = "cloister/federation-noise/v1"
_ORDERS: Final = (
    *(1 + tenth / 10 for tenth in range(1, 100)),
    *(float(order) for order in range(11, 64)),
    *(
        float(order)
        for order in (64, 72, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 512, 640, 768, 1024)
    ),
)
_BEYOND: Final = (1280.0, 1536.0, 2048.0, 3072.0, 4096.0, 8192.0, 16384.0)
"""Orders that are cheap without sampling, and that much noise wants."""
_NOTHING: Final[Mapping[str, float]] = MappingProxyType({})


class Charge(Record, frozen=True, kw_only=True):
    """Steps of one kind that have been taken: to be kept by who takes them, before what came of them is shown."""

    noise: float
    """Standard deviation over the clipping norm."""
    rate: float
    """The chance that an example, or a party, takes part in a step."""
    steps: int


def spent(charges: Iterable[Charge], *, delta: float) -> float:
    """The epsilon of all of them together. Raises UsageError for what was never private."""
    if not 0 < delta < 1:
        raise UsageError("delta is between 0 and 1")
    orders = np.array([*_ORDERS, *_BEYOND])
    total = np.zeros(len(orders))
    taken = 0
    for charge in charges:
        if not (0 < charge.noise < math.inf and 0 < charge.rate <= 1 and charge.steps >= 0):
            raise UsageError("a charge has noise over 0, a rate up to 1, and no fewer than 0 steps")
        if charge.steps:
            taken += charge.steps
            total += np.array(_divergences(charge.noise, charge.rate)) * charge.steps
    if not taken:
        return 0.0
    counted = np.isfinite(total)
    if not counted.any():
        return math.inf
    from opacus.accountants.analysis.rdp import get_privacy_spent  # noqa: PLC0415 -- imports torch

    # At both ends an order that never is the best: Opacus warns where the first or the last one is.
    epsilon, _ = get_privacy_spent(
        orders=[1.01, *orders[counted], 1e6], rdp=[math.inf, *total[counted], math.inf], delta=delta
    )
    return max(0.0, float(epsilon))


class Budget:
    """A federation's budget of privacy. Without privacy nothing is spent, and every round may begin."""

    def __init__(self, federation: Federation) -> None:
        self._privacy = federation.privacy if isinstance(federation.privacy, Privacy) else None

    def spent(self, rounds: int, claims: Mapping[str, float] = _NOTHING) -> float:
        """Epsilon after so many rounds. Of clients it is computed: each of them may have been in all rounds.

        Of examples only their party knows, who counts its own; ``claims`` are what parties say, and the answer is the most.
        """
        if self._privacy is None:
            return 0.0
        if self._privacy.of == "examples":
            return max(claims.values(), default=0.0)
        charge = Charge(noise=self._privacy.noise_ppm / MILLION, rate=1.0, steps=rounds)
        return spent([charge], delta=1 / self._privacy.delta_inverse)

    def check_claim(
        self, party: str, metrics: Mapping[str, float], claims: Mapping[str, float] = _NOTHING
    ) -> None:
        """Whether an update says what its party has spent by now. Raises :class:`~cloister.errors.UpdateRefused`.

        Each round spends: who says no more than before lost its ledger, or was given back an older one. Of examples alone;
        0 is what so much noise costs that nobody can count it.
        """
        if self._privacy is None or self._privacy.of != "examples":
            return
        told, before = metrics.get(EPSILON, math.nan), claims.get(party, 0.0)
        # Written so that what is no number is refused.
        if not told >= 0:
            raise UpdateRefused(f"{party[:80]} does not say what privacy it spent")
        if told < before or told == before > 0:
            raise UpdateRefused(
                f"{party[:80]} says that it spent {told:.6g}, and said {before:.6g} before",
                todo="give its workload back the newest ledger",
            )
        budget = self._privacy.epsilon_ppm / MILLION
        if told > budget:
            raise UpdateRefused(
                f"{party[:80]} says that it spent {told:.6g}, and the privacy budget is {budget:.6g}"
            )

    def check_next(self, rounds_done: int, claims: Mapping[str, float] = _NOTHING) -> None:
        """Whether another round may begin. Raises BudgetSpent, and FederationError for what a party cannot have spent.

        Of examples each party refuses by itself before it learns; here is refused what a party should have.
        """
        if self._privacy is None:
            return
        budget = self._privacy.epsilon_ppm / MILLION
        if self._privacy.of == "clients":
            require_within(self.spent(rounds_done + 1), budget, what=f"round {rounds_done + 1}")
            return
        for party, claim in sorted(claims.items()):
            # Written so that what is no number is refused.
            if not 0 <= claim <= budget:
                raise FederationError(
                    f"{party[:80]} says that it spent {claim:.3g}, and the privacy budget is {budget:.6g}",
                    todo="ask it what it runs; no round follows",
                )


def claims_of(facts: Iterable[Fact]) -> dict[str, float]:
    """What each party last said that it has spent, as a run's facts have it."""
    found: dict[str, float] = {}
    for fact in facts:
        if isinstance(fact, RoundDone):
            found |= {
                party: share.metrics[EPSILON]
                for party, share in fact.shares.items()
                if EPSILON in share.metrics
            }
    return found


def require_within(epsilon: float, budget: float, *, what: str) -> None:
    """Raises BudgetSpent if ``what`` would come to more than there is."""
    if not epsilon <= budget:
        raise BudgetSpent(
            f"the privacy budget is spent: {what} would come to {epsilon:.4g}, and it is {budget:.6g}",
            todo="agree on a larger budget, more noise or fewer rounds",
        )


def keyed_source(secret: bytes, *context: bytes) -> Source:
    """Randomness that who knows the secret (32 bytes) can repeat, and nobody else can tell from any other.

    For a party that computes a round again after it was killed: what it shows a second time, with fresh noise, would tell
    more. One noise on two different things tells their difference: so ``context`` names all that is not the party's own
    (run, round, the digest of the model that it begins with), and the party's data have to be the same.
    """
    if len(secret) != 32:
        raise UsageError("the secret of noise is of 32 bytes")
    return _Stream(hmac.digest(secret, labelled_hash(_LABEL, *context), "sha256"))


def normal(source: Source, count: int) -> NDArray[np.float64]:
    """Independent numbers of the standard normal distribution, from 53 bits each, by the inverse of its integral.

    Mironov 2012 told values from the low bits of noise that was added to them. What these are added to is kept in float32
    or float16: to nearly every result lead many millions of them. This is no proof, as discrete noise would have one.
    """
    from scipy.special import ndtri  # noqa: PLC0415 -- only who adds noise needs it

    bits = _words(source, count)
    # Between 0 and 1/2, neither of them: the lower half of the curve, where numbers are dense, and a sign.
    below = ndtri(((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-53)
    found: NDArray[np.float64] = np.where(bits & np.uint64(1), below, -below)
    return found


def chosen(source: Source, count: int, rate: float) -> list[int]:
    """Places among ``count``, each with the chance ``rate`` and by itself (Poisson sampling)."""
    draws = (_words(source, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    found: list[int] = np.flatnonzero(draws < rate).tolist()
    return found


class _Stream:
    """AES-256-CTR from 0 on: a key is for one stream."""

    def __init__(self, key: bytes) -> None:
        self._encryptor: Any = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()

    def __call__(self, count: int) -> bytes:
        data: bytes = self._encryptor.update(bytes(count))
        return data


def _words(source: Source, count: int) -> NDArray[np.uint64]:
    return np.frombuffer(source(8 * count), dtype="<u8").astype(np.uint64, copy=False)


@functools.lru_cache(maxsize=64)
def _divergences(noise: float, rate: float) -> tuple[float, ...]:
    """Of one step, at each order; infinite where it cannot be computed."""
    from opacus.accountants.analysis.rdp import compute_rdp  # noqa: PLC0415 -- imports torch

    found: list[float] = []
    for order in (*_ORDERS, *_BEYOND):
        if rate < 1 and order > _ORDERS[-1]:
            found.append(math.inf)
            continue
        try:
            value = float(compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=order))
        except (ValueError, OverflowError, ZeroDivisionError):
            value = math.inf
        # Divergences rise with their order; what computes to less was rounded, and the larger one is a bound too.
        usable = math.isfinite(value) and value >= 0
        found.append(max(value, found[-1] if found else 0.0) if usable else math.inf)
    return tuple(found)
