"""The one error tree. Every error names the layer that refused and what to do next.

An error's text is one line for a person: ``<layer>: <what is wrong>; <what to do>``. It never holds key
material, prompts or decrypted bytes: callers pass facts (names, lengths, digests), not contents.
The exit codes are those of the command line: a script can tell a wrong argument from a refused workload.
"""

from __future__ import annotations

from typing import ClassVar

EXIT_INTERNAL = 1
EXIT_USAGE = 2
EXIT_VERIFICATION = 3
EXIT_NETWORK = 4
EXIT_POLICY = 5


class CloisterError(Exception):
    """Root of the tree. ``what`` is wrong, ``todo`` is what the reader can do about it."""

    layer: ClassVar[str] = "cloister"
    exit_code: ClassVar[int] = EXIT_INTERNAL

    def __init__(self, what: str, *, todo: str = "") -> None:
        super().__init__(what, todo)
        self.what = what
        self.todo = todo

    def __str__(self) -> str:
        line = f"{self.layer}: {self.what}"
        return f"{line}; {self.todo}" if self.todo else line


class UsageError(CloisterError):
    """A wrong argument, a missing file, a configuration that cannot be meant."""

    layer = "usage"
    exit_code = EXIT_USAGE


class FormatError(CloisterError):
    """Bytes that are not what their format says: strict decoding never guesses."""

    layer = "encoding"
    exit_code = EXIT_VERIFICATION


class EvidenceError(CloisterError):
    """Evidence that cannot be parsed, or that does not belong to this nonce and these keys."""

    layer = "evidence"
    exit_code = EXIT_VERIFICATION


class StaleNonce(EvidenceError):
    """The evidence answers another nonce than the one that was asked."""


class BindingMismatch(EvidenceError):
    """The report data does not bind the keys or devices that travelled with the quote."""


class EventLogMismatch(EvidenceError):
    """The event log does not replay to the measured register."""


class EndorsementError(CloisterError):
    """Vendor collateral that is missing, malformed, out of its time, or not signed by its root."""

    layer = "endorsements"
    exit_code = EXIT_VERIFICATION


class VerificationError(CloisterError):
    """The evidence is not genuine: chain, signature, revocation or TCB."""

    layer = "verifier"
    exit_code = EXIT_VERIFICATION


class PolicyError(CloisterError):
    """A policy that cannot be used: empty, unknown fields, contradictory."""

    layer = "policy"
    exit_code = EXIT_USAGE


class AppraisalRefused(CloisterError):
    """Genuine evidence of something that the policy does not allow."""

    layer = "appraisal"
    exit_code = EXIT_POLICY


class ResultExpired(CloisterError):
    """An attestation result was used after its end."""

    layer = "appraisal"
    exit_code = EXIT_VERIFICATION


class ManifestError(CloisterError):
    """A manifest, rule or order that cannot be used: malformed, contradictory, of another application."""

    layer = "manifest"
    exit_code = EXIT_VERIFICATION


class SignatureRefused(ManifestError):
    """A signature that does not verify, or of a key that nobody named."""


class QuorumMissing(ManifestError):
    """Signed, but not by as many owners as must sign it."""

    exit_code = EXIT_POLICY


class Superseded(ManifestError):
    """Not the successor of what is in force: an older version, a fork, or a gap."""


class AttesterError(CloisterError):
    """This machine could not produce evidence."""

    layer = "attester"
    exit_code = EXIT_INTERNAL


class SealingError(CloisterError):
    """A sealed file or index that cannot be opened."""

    layer = "sealing"
    exit_code = EXIT_VERIFICATION


class ForeignFile(SealingError):
    """Not a file of this format, or of a version this release does not read."""


class TruncatedFile(SealingError):
    """The file ends before its last segment."""


class TamperedFile(SealingError):
    """A segment, header or wrapped key does not authenticate."""


class IndexMismatch(SealingError):
    """The directory is not what its signed index says, or nobody we trust signed it."""


class WrongKey(SealingError):
    """The key at hand does not unwrap this file's data key."""


class RolledBack(SealingError):
    """Genuine, and older than what is known to exist: an old copy was put in its place."""


class KeyUnavailable(SealingError):
    """No key source answers for this key URI."""

    exit_code = EXIT_POLICY


class ChannelError(CloisterError):
    """A sealed request or response that is refused."""

    layer = "channel"
    exit_code = EXIT_VERIFICATION


class DecapsulationFailed(ChannelError):
    """Sealed to another key, or altered on the way."""


class UnknownKey(ChannelError):
    """Sealed to a key that this workload does not hold (any more): re-verify and retry once."""


class TruncatedMessage(ChannelError):
    """The stream ended without its final chunk."""


class ChunkRefused(ChannelError):
    """A chunk altered, out of order, from another stream, or answering another request."""


class OversizedChunk(ChannelError):
    """A chunk or message over its bound."""


class ReplayedRequest(ChannelError):
    """This encapsulated key was already seen."""


class PlaintextRequest(ChannelError):
    """A request that arrived in the clear where only sealed ones are served."""


class PlaintextResponse(ChannelError):
    """Something between answered in the clear; it was not read."""


class Overloaded(ChannelError):
    """More at once than this workload takes; nothing was done."""

    exit_code = EXIT_NETWORK


class NetworkError(CloisterError):
    """The peer cannot be reached, or broke off."""

    layer = "network"
    exit_code = EXIT_NETWORK


class BrokerError(CloisterError):
    """The key broker cannot do what was asked."""

    layer = "broker"
    exit_code = EXIT_INTERNAL


class ReleaseRefused(BrokerError):
    """No rule of the resource's owner allows this workload to have it."""

    exit_code = EXIT_POLICY


class UnknownResource(BrokerError):
    """There is no such resource, or nobody may know that there is."""

    exit_code = EXIT_POLICY


class SessionRefused(BrokerError):
    """An attestation session that is unknown, spent, expired or not yours."""

    exit_code = EXIT_VERIFICATION


class KeystoreError(BrokerError):
    """The key store cannot be opened, or refuses."""


class KeystoreUnavailable(KeystoreError):
    """The key store does not answer: nothing was changed, and asking again is safe."""

    exit_code = EXIT_NETWORK


class InferenceError(CloisterError):
    """The engine cannot load or run the model."""

    layer = "inference"
    exit_code = EXIT_INTERNAL


class WorkloadError(CloisterError):
    """The program could not be given what it was promised: a mount, a key, an identity."""

    layer = "workload"
    exit_code = EXIT_INTERNAL


class IsolationRefused(WorkloadError):
    """This machine cannot isolate the program as its configuration demands: it was not started."""

    exit_code = EXIT_POLICY


class FederationError(CloisterError):
    """A federation, a party or a round that cannot go on as it was agreed."""

    layer = "federation"
    exit_code = EXIT_POLICY


class BudgetSpent(FederationError):
    """No more can be learned: what would come next exceeds the privacy budget."""


class UpdateRefused(FederationError):
    """One party's update that does not count: its form, its size, its round or its time is not what was agreed."""


class KnowledgeError(CloisterError):
    """Documents, their index or what was asked of it cannot be used as they are."""

    layer = "knowledge"
    exit_code = EXIT_INTERNAL


class DocumentRefused(KnowledgeError):
    """A document that is not what its name says, cannot be read, or is over a bound."""

    exit_code = EXIT_USAGE
