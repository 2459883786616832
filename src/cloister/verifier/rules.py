"""What an appraisal policy decides about the platform below a workload, as the verifier takes it."""

from __future__ import annotations

from dataclasses import dataclass

TCB_STATUSES = (
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "TDRelaunchAdvised",
    "TDRelaunchAdvisedConfigurationNeeded",
)
"""Every status that a policy may accept, as Intel spells them. ``Revoked`` is not among them."""


@dataclass(frozen=True, slots=True)
class IntelRules:
    """What the platform below the workload may be. Everything beyond the defaults is a decision of the policy."""

    min_tcb_evaluation_number: int
    """Lowest ``tcbEvaluationDataNumber`` of TCB info and QE identity."""
    accepted_statuses: frozenset[str] = frozenset({"UpToDate"})
    rejected_advisories: frozenset[str] = frozenset()
    out_of_date_grace: int = 0
    """Seconds since the date of its TCB level for which an accepted ``OutOfDate`` platform or QE still passes."""
    allow_dynamic_platform: bool = False
    """Packages can be added to the platform later: true of genuine multi-socket servers."""
    allow_cached_keys: bool = False
    """The platform's root keys are cached by Intel's registration service: likewise."""
    allow_smt: bool = False
    """Hyper-threading is on: sibling threads share caches."""
