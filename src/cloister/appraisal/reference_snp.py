"""``[snp]`` of a policy: what an SEV-SNP guest may be, and what it must measure. SKELETON, to be completed."""

from __future__ import annotations

from typing import Literal

from cloister.appraisal.values import check_digests, check_some
from cloister.encoding import Record


class SnpReference(Record, frozen=True, kw_only=True):
    """``[snp]``. Its presence accepts the kind."""

    measurement: tuple[str, ...]
    """Accepted launch measurements, 96 hexadecimal digits each; never "any"."""
    products: tuple[str, ...]
    """Of ``milan``, ``genoa``, ``turin``."""
    revocation: Literal["required", "unchecked"]
    """``required``: AMD's CRL must be among the endorsements; ``unchecked`` accepts its absence."""


def check_snp(snp: SnpReference) -> None:
    """Raise :class:`~cloister.errors.FormatError` unless the table can be meant."""
    check_digests("measurement", snp.measurement, 48)
    check_some("products", snp.products)
