"""AWS KMS: one KMS key for each version, and one more, never used to encrypt, whose tags are the record of the versions.

KMS's own rotation cannot end one version, and an alias or tag goes with its key when the waiting time is over; the record
key stays. Each version is one tag, so two brokers never overwrite each other, and an alias gives each number away once. The
encryption context binds key, version and record, and shows them in CloudTrail. Nothing is read from ``~/.aws``.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

from cloister.broker.keystores import foreign
from cloister.broker.keystores.versioned import ForeignVersion, VersionedKeystore, numbered
from cloister.broker.keystores.versions import check_id
from cloister.errors import KeystoreError

STORE: Final = "AWS KMS"
WAITING_DAYS: Final = 7
"""The shortest that KMS allows between the order to delete a key and its end."""
MAX_VERSIONS: Final = 45
"""A KMS key has at most 50 tags."""
_PLAIN: Final = re.compile(r"[A-Za-z0-9_-]+")
_VERSION_TAG: Final = re.compile(r"cloister:v([1-9][0-9]{0,2})")
_VERSION: Final = re.compile(r"([0-9]{1,12}) ([A-Za-z0-9-]{1,64}) (live|destroyed)")
_CODE: Final = re.compile(r"[A-Za-z0-9.]{1,64}")
_THROTTLED: Final = frozenset(
    {"ThrottlingException", "LimitExceededException", "KMSInternalException", "DependencyTimeoutException"}
)
_DENIED: Final = frozenset(
    {
        "AccessDeniedException",
        "UnrecognizedClientException",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "SignatureDoesNotMatch",
        "ExpiredTokenException",
        "MissingAuthenticationTokenException",
        "IncompleteSignature",
    }
)


@dataclass(frozen=True, slots=True)
class AwsCredentials:
    """What IAM gave this broker."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str = field(default="", repr=False)


class _Absent(Exception):
    pass


class AwsKeystore(VersionedKeystore):
    """A :class:`~cloister.broker.keystores.Keystore` in one region of AWS KMS."""

    algorithm: ClassVar[str] = "AES-256-GCM"
    label: ClassVar[str] = "cloister/aws-keystore/v1"
    max_versions: ClassVar[int] = MAX_VERSIONS

    def __init__(
        self,
        region: str,
        credentials: AwsCredentials,
        *,
        endpoint: str = "",
        ca_file: Path | None = None,
    ) -> None:
        super().__init__()
        self._errors = foreign.imported("botocore.exceptions", "aws")
        self._method = foreign.imported("botocore", "aws").xform_name
        self._unparsed = foreign.imported("botocore.parsers", "aws").ResponseParserError
        self._client = _client(region, credentials, endpoint and foreign.check_address(endpoint), ca_file)

    def _read(self, key: str) -> tuple[ForeignVersion, ...]:
        record = self._key_behind(_alias(key, "record"))
        if record is None:
            return ()
        tags = self._tags(record)
        owner = tags.get("cloister:owner")
        if owner is None or tags.get("cloister:key") != key:
            raise KeystoreError(f"the alias {_alias(key, 'record')} in {STORE} is not of this key's record")
        return numbered([_parsed(number, value, owner) for number, value in _versions(tags)], STORE)

    def _make(self, key: str, number: int, owner: str, now: int) -> ForeignVersion:
        tags = {"cloister:key": key, "cloister:owner": owner}
        record = self._key_once(_alias(key, "record"), {**tags, "cloister:role": "record"})
        role = {**tags, "cloister:role": f"version {number}"}
        handle = self._key_once(_alias(key, str(number)), role)
        # The one of us that made the record is the owner of what follows from it.
        known = self._tags(record)
        value = known.get(f"cloister:v{number}")
        if value is None:
            value = f"{now} {handle} live"
            # Once: when it is not answered, somebody may have destroyed the version before it is sent again.
            self._tag(record, number, value, retry=False)
        return _parsed(number, value, known.get("cloister:owner", ""))

    def _shred(self, key: str, version: ForeignVersion) -> None:
        record = self._key_behind(_alias(key, "record"))
        if record is None:
            raise KeystoreError(f"there is no key {key}")
        # In this order: `_unwrapping` believes the alias, and only without one the record. Then KMS may be late.
        with contextlib.suppress(_Absent):
            self._ask("DeleteAlias", AliasName=_alias(key, str(version.number)))
        self._tag(record, version.number, f"{version.created} {version.handle} destroyed")
        try:
            self._ask("ScheduleKeyDeletion", KeyId=version.handle, PendingWindowInDays=WAITING_DAYS)
        except _Absent:
            self._is_ending(version.handle)

    def _is_ending(self, handle: str) -> None:
        try:
            state = self._ask("DescribeKey", KeyId=handle)["KeyMetadata"].get("KeyState")
        except _Absent:
            return
        if state not in ("PendingDeletion", "PendingReplicaDeletion"):
            raise foreign.unavailable(STORE, "a key cannot be deleted now")

    def _unwrapping(self, key: str, number: int) -> ForeignVersion:
        # KMS allows DescribeKey thousands of times a second, and the listing of tags only a few times.
        check_id(key)
        try:
            found = self._ask("DescribeKey", KeyId=_alias(key, str(number)))
        except _Absent:
            return self._version(key, number)
        handle = _key_id(found)
        if found["KeyMetadata"].get("KeyState") != "Enabled":
            return self._version(key, number)
        return ForeignVersion(number, 0, "", destroyed=False, handle=handle)

    def _encrypt(self, key: str, version: ForeignVersion, plaintext: bytes, aad: bytes) -> bytes:
        answer = self._existing(
            "Encrypt",
            KeyId=version.handle,
            Plaintext=plaintext,
            EncryptionContext=_context(key, version, aad),
        )
        return self._content(answer, "CiphertextBlob", version)

    def _decrypt(self, key: str, version: ForeignVersion, body: bytes, aad: bytes) -> bytes:
        answer = self._existing(
            "Decrypt",
            KeyId=version.handle,
            CiphertextBlob=body,
            EncryptionContext=_context(key, version, aad),
        )
        return self._content(answer, "Plaintext", version)

    def _content(self, answer: Any, name: str, version: ForeignVersion) -> bytes:
        content = answer.get(name)
        if str(answer.get("KeyId")).rpartition("/")[2] != version.handle or not isinstance(content, bytes):
            raise foreign.garbage(STORE)
        return content

    def _key_behind(self, alias: str) -> str | None:
        try:
            return _key_id(self._ask("DescribeKey", KeyId=alias))
        except _Absent:
            return None

    def _key_once(self, alias: str, tags: dict[str, str]) -> str:
        """The KMS key that ``alias`` names; if there is none, a new one, unless somebody was quicker."""
        if found := self._key_behind(alias):
            return found
        made = _key_id(
            self._existing(
                "CreateKey",
                retry=False,
                KeyUsage="ENCRYPT_DECRYPT",
                KeySpec="SYMMETRIC_DEFAULT",
                Description="made by cloister",
                Tags=[{"TagKey": name, "TagValue": value} for name, value in tags.items()],
            )
        )
        try:
            self._ask("CreateAlias", AliasName=alias, TargetKeyId=made)
        except _Absent:
            found = self._key_behind(alias)
            if found is None:
                raise foreign.unavailable(STORE, "an alias is not settled yet") from None
            if found != made:
                self._existing("ScheduleKeyDeletion", KeyId=made, PendingWindowInDays=WAITING_DAYS)
            return found
        return made

    def _tags(self, key_id: str) -> dict[str, str]:
        answer = self._existing("ListResourceTags", KeyId=key_id, Limit=50)
        found = answer.get("Tags")
        if not isinstance(found, list) or answer.get("Truncated"):
            raise foreign.garbage(STORE)
        return {str(one.get("TagKey")): str(one.get("TagValue")) for one in found}

    def _tag(self, key_id: str, number: int, value: str, *, retry: bool = True) -> None:
        tags = [{"TagKey": f"cloister:v{number}", "TagValue": value}]
        self._existing("TagResource", retry=retry, KeyId=key_id, Tags=tags)

    def _existing(self, operation: str, *, retry: bool = True, **fields: Any) -> Any:
        try:
            return self._ask(operation, retry=retry, **fields)
        except _Absent:
            raise KeystoreError(f"{STORE} has no such key any more ({operation})") from None

    def _ask(self, operation: str, *, retry: bool = True, **fields: Any) -> Any:
        def once() -> Any:
            try:
                return getattr(self._client, self._method(operation))(**fields)
            except self._errors.ClientError as error:
                raise _refused(error.response, operation) from None
            except self._errors.ParamValidationError:
                raise KeystoreError(f"{STORE} takes no such request ({operation})") from None
            except self._errors.BotoCoreError:
                raise foreign.unavailable(STORE, "no whole answer came") from None
            except (self._unparsed, AttributeError, KeyError, TypeError, ValueError):
                raise foreign.garbage(STORE) from None

        return foreign.retried(once) if retry else once()


def _refused(response: Any, operation: str) -> Exception:
    code = str(response.get("Error", {}).get("Code", ""))
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
    if code in ("NotFoundException", "AlreadyExistsException") or (
        code == "KMSInvalidStateException" and operation == "ScheduleKeyDeletion"
    ):
        return _Absent()
    if code in _THROTTLED or status >= foreign.UNANSWERED or status in foreign.BUSY:
        return foreign.unavailable(STORE, f"answered {code if _CODE.fullmatch(code) else status}")
    if code in _DENIED or status in (401, 403):
        return foreign.refusal(STORE, 403, operation)
    if code == "InvalidCiphertextException":
        return KeystoreError("this was not wrapped by this key, or for another record")
    return KeystoreError(f"{STORE} refused {operation} ({code if _CODE.fullmatch(code) else status})")


def _client(region: str, credentials: AwsCredentials, endpoint: str, ca_file: Path | None) -> Any:
    # Without the variables of the environment: no profile, no files of the user who happens to run us.
    nowhere: dict[str, tuple[None, None, str | None, None]] = {
        "profile": (None, None, None, None),
        "config_file": (None, None, os.devnull, None),
        "credentials_file": (None, None, os.devnull, None),
    }
    session = foreign.imported("botocore.session", "aws").Session(session_vars=nowhere)
    config = foreign.imported("botocore.config", "aws").Config(
        connect_timeout=foreign.CONNECT_SECONDS,
        read_timeout=foreign.READ_SECONDS,
        retries={"total_max_attempts": 1, "mode": "standard"},
        ignore_configured_endpoint_urls=True,
        proxies={"http": None, "https": None},
    )
    client = session.create_client(
        "kms",
        region_name=region,
        endpoint_url=endpoint or None,
        aws_access_key_id=credentials.access_key_id,
        aws_secret_access_key=credentials.secret_access_key,
        aws_session_token=credentials.session_token or None,
        verify=str(ca_file) if ca_file else True,
        config=config,
    )
    client.meta.events.register("before-send.kms", _bounded(client._endpoint.http_session))
    return client


def _bounded(http: Any) -> Callable[..., Any]:
    """Sends in botocore's place, to read no more of an answer than its bound."""
    failures = foreign.imported("botocore.httpsession", "aws")
    urllib3 = foreign.imported("urllib3", "aws")

    def send(request: Any, **_: Any) -> Any:
        request.stream_output = True
        answer = http.send(request)
        try:
            answer._content = foreign.read_bounded(answer.raw)
        except (urllib3.exceptions.HTTPError, OSError, ValueError):
            answer.raw.close()
            raise failures.ConnectionClosedError(endpoint_url=request.url) from None
        return answer

    return send


def _context(key: str, version: ForeignVersion, aad: bytes) -> dict[str, str]:
    return {"cloister": aad.hex(), "cloister-key": key, "cloister-version": str(version.number)}


def _alias(key: str, what: str) -> str:
    # An alias takes no point; a key id with one is named by its digest, in a folder of its own.
    if _PLAIN.fullmatch(key):
        return f"alias/cloister/id/{key}/{what}"
    return f"alias/cloister/sha256/{hashlib.sha256(key.encode()).hexdigest()}/{what}"


def _key_id(answer: Any) -> str:
    metadata = answer.get("KeyMetadata")
    found = metadata.get("KeyId") if isinstance(metadata, dict) else None
    if not isinstance(found, str) or not re.fullmatch(r"[A-Za-z0-9-]{1,64}", found):
        raise foreign.garbage(STORE)
    return found


def _versions(tags: dict[str, str]) -> list[tuple[int, str]]:
    found = ((_VERSION_TAG.fullmatch(name), value) for name, value in tags.items())
    return [(int(match[1]), value) for match, value in found if match]


def _parsed(number: int, value: str, owner: str) -> ForeignVersion:
    match = _VERSION.fullmatch(value)
    if match is None:
        raise KeystoreError(f"{STORE} has a malformed record of version {number} of a key")
    return ForeignVersion(number, int(match[1]), owner, match[3] == "destroyed", match[2])
