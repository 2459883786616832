"""Stand-ins for the key stores that cannot be had here, on a loopback socket, and a front that breaks a real one's answers.

Vault, Key Vault (with Entra's token endpoint) and Cloud KMS: paths, bodies and status codes are those of their documented
REST interfaces, and what they do to keys is real (AES-GCM, RSA-OAEP). None was ever compared with the service itself.
AWS KMS is a real ``moto`` server behind :class:`AwsFront`. Any operation can be made to fail as services and networks do.
"""

from __future__ import annotations

import base64
import datetime
import http.client
import ipaddress
import json
import re
import secrets
import ssl
import threading
import urllib.parse
from collections import defaultdict, deque
from collections.abc import Callable
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.x509.oid import NameOID

from cloister.broker.keystores.crc32c import crc32c
from vendor_services import Answer, Changed, Closed, Cut, Endless, Fault, Says, status

__all__ = [
    "AwsFront",
    "AzureServer",
    "Changed",
    "GcpServer",
    "VaultServer",
    "broken_answers",
    "edited",
]


@cache
def authority() -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """A CA of this process, and what it signed last a day."""
    return _certificate("Test CA", None)


def _certificate(
    name: str, issuer: tuple[ec.EllipticCurvePrivateKey, x509.Certificate] | None
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    signer, issued_by = (key, subject) if issuer is None else (issuer[0], issuer[1].subject)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issued_by)
        .serial_number(x509.random_serial_number())
        .public_key(key.public_key())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    if issuer is None:
        builder = builder.add_extension(
            x509.KeyUsage(*(5 * [False]), True, True, False, False), critical=True
        )
    else:
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return key, builder.sign(signer, hashes.SHA256())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10
    disable_nagle_algorithm = True
    services: KeyServer

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or "0"))
        services = self.services
        operation = services.operation(self.command, self.path, self.headers)
        with services.lock:
            services.requests.append(operation)
            queue = next(
                (queue for name, queue in services.faults.items() if re.match(name, operation)), None
            )
            fault = queue.popleft() if queue else None
            # An answer can be lost before or after the work was done: faults come after it, `Unasked` before.
            due = None if isinstance(fault, Unasked | Instead) else services.answer(self, operation, body)
        if fault is None:
            assert due is not None
            self.whole(due)
        else:
            fault.send(self, due or Answer(b"", "text/plain"))  # type: ignore[arg-type]

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_LIST = _serve  # noqa: N815 - names of http.server

    def whole(self, answer: Answer) -> None:
        self.head(answer, {"Content-Length": str(len(answer.body))})
        self.write(answer.body)

    def head(self, answer: Answer, framing: dict[str, str]) -> None:
        self.send_response(answer.status)
        for name, value in {"Content-Type": answer.kind, **framing, **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def write(self, data: bytes) -> bool:
        try:
            self.wfile.write(data)
            self.wfile.flush()
        except OSError:
            self.close_connection = True
            return False
        return True

    def log_message(self, *_: Any) -> None:
        pass


class Unasked(Closed):
    """Closes without a word, before anything was done."""


class Instead(Says):
    """Another answer, and nothing was done."""


def edited(change: Callable[[Any], Any]) -> Fault:
    """The due answer, its JSON edited."""
    return Changed(
        lambda due: Answer(
            json.dumps(change(json.loads(due.body))).encode(), due.kind, due.status, due.headers
        )
    )


def broken_answers() -> dict[str, tuple[Fault, bool]]:
    """Answers that are none, by name, and whether the store then counts as unavailable."""
    page = Answer(b"<html>welcome to the airport's wireless</html>", "text/html")
    return {
        "no answer": (Closed(), True),
        "half an answer": (Cut(), True),
        "an answer without end": (Endless(), True),
        "a huge answer": (Says(Answer(b'"' + b"x" * (3 << 20) + b'"', "application/json")), True),
        "internal error": (status(500), True),
        "overloaded": (status(503), True),
        "too many requests": (status(429, retry_after="3600"), True),
        "forbidden": (status(403), False),
        "bad request": (status(400), False),
        "a page": (Says(page), False),
        "not JSON": (Says(Answer(b'{"data": ', "application/json")), False),
        "a list": (Says(Answer(b"[]", "application/json")), False),
        "an empty object": (Says(Answer(b"{}", "application/json")), False),
        "a number": (Says(Answer(b"7", "application/json")), False),
        "not UTF-8": (Says(Answer(b'{"data": "\xff"}', "application/json")), False),
    }


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        pass


class KeyServer:
    """A service over TLS with the certificate of :func:`authority`; a context that runs while it is open."""

    tls = True

    def __init__(self, folder: Path) -> None:
        self.faults: dict[str, deque[Fault]] = defaultdict(deque)
        self.requests: list[str] = []
        self.lock = threading.RLock()
        self.stopping = threading.Event()
        handler = type("Handler", (_Handler,), {"services": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.ca_file = folder / "ca.pem"
        self.ca_file.write_bytes(authority()[1].public_bytes(serialization.Encoding.PEM))
        if self.tls:
            self._server.socket = self._context(folder).wrap_socket(self._server.socket, server_side=True)
        port = self._server.server_address[1]
        self.base = f"https://localhost:{port}" if self.tls else f"http://127.0.0.1:{port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @staticmethod
    def _context(folder: Path) -> ssl.SSLContext:
        key, certificate = _certificate("localhost", authority())
        chain = folder / f"server-{secrets.token_hex(4)}.pem"
        chain.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain)
        return context

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def fail(self, operation: str, *faults: Fault) -> None:
        """The next requests whose operation matches the pattern meet ``faults``, one each."""
        self.faults[operation].extend(faults)

    def asked(self, operation: str) -> int:
        return sum(re.match(operation, one) is not None for one in self.requests)

    def operation(self, method: str, path: str, headers: Any) -> str:
        return f"{method} {path}"

    def answer(self, handler: _Handler, operation: str, body: bytes) -> Answer:
        raise NotImplementedError


def _json(value: Any, code: int = 200, **headers: str) -> Answer:
    return Answer(json.dumps(value).encode(), "application/json", code, headers)


class VaultServer(KeyServer):
    """Transit and KV version 2, as Vault 1.x and OpenBao 2.x document them."""

    token = "hvs.CAESIJcanary-token-of-vault"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.keys: dict[str, dict[str, Any]] = {}
        self.records: dict[str, list[Any]] = {}

    def answer(self, handler: _Handler, operation: str, body: bytes) -> Answer:
        if handler.headers.get("X-Vault-Token") != self.token:
            return _json({"errors": ["permission denied"]}, 403)
        method, _, path = operation.partition(" ")
        fields = json.loads(body) if body else {}
        engine, _, rest = path.removeprefix("/v1/").partition("/")
        try:
            if engine == "secret" and rest.startswith("data/"):
                return self._record(method, urllib.parse.unquote(rest.removeprefix("data/")), fields)
            verb, _, name = rest.partition("/")
            if engine == "transit":
                return self._transit(method, verb, urllib.parse.unquote(name), fields)
        except ValueError as error:
            return _json({"errors": [str(error)]}, 400)
        return _json({"errors": ["no handler for route"]}, 404)

    def _record(self, method: str, path: str, fields: Any) -> Answer:
        versions = self.records.get(path, [])
        if method == "GET":
            if not versions:
                return _json({"errors": []}, 404)
            return _wrapped({"data": versions[-1], "metadata": _metadata(len(versions))})
        cas = fields.get("options", {}).get("cas")
        if cas != len(versions):
            raise ValueError("check-and-set parameter did not match the current version")
        self.records[path] = [*versions, fields["data"]]
        return _wrapped(_metadata(len(versions) + 1))

    def _transit(self, method: str, verb: str, name: str, fields: Any) -> Answer:  # noqa: PLR0911 - a routing table
        if verb == "keys" and name.endswith("/config"):
            key = self._key(name.removesuffix("/config"))
            key["deletion_allowed"] = bool(fields["deletion_allowed"])
            return _wrapped(_described(name.removesuffix("/config"), key))
        if verb == "keys" and method == "POST":
            made = {"key": secrets.token_bytes(32), "type": "aes256-gcm96", "deletion_allowed": False}
            key = self.keys.setdefault(name, {**made, **{k: v for k, v in fields.items() if k != "context"}})
            return _wrapped(_described(name, key))
        if verb == "keys" and method == "GET":
            found = self.keys.get(name)
            return _json({"errors": []}, 404) if found is None else _wrapped(_described(name, found))
        if verb == "keys" and method == "DELETE":
            if not self._key(name)["deletion_allowed"]:
                raise ValueError("error deleting policy: deletion is not allowed for this policy")
            del self.keys[name]
            return Answer(b"", "application/json", 204)
        cipher = AESGCM(self._key(name)["key"])
        bound = base64.b64decode(fields.get("associated_data", ""))
        if verb == "encrypt":
            nonce = secrets.token_bytes(12)
            sealed = nonce + cipher.encrypt(nonce, base64.b64decode(fields["plaintext"]), bound)
            return _wrapped({"ciphertext": f"vault:v1:{base64.b64encode(sealed).decode()}", "key_version": 1})
        if verb == "decrypt":
            if not fields["ciphertext"].startswith("vault:v1:"):
                raise ValueError("invalid ciphertext: no prefix")
            sealed = base64.b64decode(fields["ciphertext"].removeprefix("vault:v1:"))
            if len(sealed) < 28:
                raise ValueError("invalid ciphertext length")
            try:
                plain = cipher.decrypt(sealed[:12], sealed[12:], bound)
            except InvalidTag:
                raise ValueError("cipher: message authentication failed") from None
            return _wrapped({"plaintext": base64.b64encode(plain).decode()})
        return _json({"errors": ["unsupported operation"]}, 405)

    def _key(self, name: str) -> dict[str, Any]:
        if name not in self.keys:
            raise ValueError("encryption key not found")
        return self.keys[name]


def _wrapped(data: Any) -> Answer:
    return _json(
        {
            "request_id": secrets.token_hex(16),
            "lease_id": "",
            "renewable": False,
            "lease_duration": 0,
            "data": data,
            "wrap_info": None,
            "warnings": None,
            "auth": None,
        }
    )


def _metadata(version: int) -> dict[str, Any]:
    return {
        "created_time": "2026-03-22T02:24:06.945319214Z",
        "custom_metadata": None,
        "deletion_time": "",
        "destroyed": False,
        "version": version,
    }


def _described(name: str, key: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "type": key["type"],
        "derived": key.get("derived", False),
        "deletion_allowed": key["deletion_allowed"],
        "exportable": key.get("exportable", False),
        "allow_plaintext_backup": key.get("allow_plaintext_backup", False),
        "keys": {"1": 1_442_851_412},
        "latest_version": 1,
        "min_available_version": 0,
        "min_decryption_version": 1,
        "min_encryption_version": 0,
        "supports_encryption": True,
        "supports_decryption": True,
        "supports_derivation": True,
        "supports_signing": False,
        "auto_rotate_period": 0,
        "imported_key": False,
    }


@cache
def _rsa_keys() -> tuple[rsa.RSAPrivateKey, ...]:
    # Making one takes most of a second; a real vault never hands the same out twice.
    return tuple(rsa.generate_private_key(65537, 3072) for _ in range(3))


class AzureServer(KeyServer):
    """Key Vault's keys, REST version 7.x, and the token endpoint of Microsoft Entra, at one address."""

    tenant = "72f988bf-86f1-41af-91ab-2d7cd011db47"
    client = "11111111-2222-3333-4444-555555555555"
    secret = "canary~client-secret"
    token = "eyJcanary-token-of-entra"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.keys: dict[str, dict[str, dict[str, Any]]] = {}
        self.deleted: dict[str, dict[str, dict[str, Any]]] = {}
        self.made = 0
        self.page = 3

    def answer(self, handler: _Handler, operation: str, body: bytes) -> Answer:
        method, _, target = operation.partition(" ")
        parts = urllib.parse.urlsplit(target)
        if parts.path.startswith(f"/{self.tenant}/"):
            return self._entra(parts.path, body)
        if handler.headers.get("Authorization") != f"Bearer {self.token}":
            challenge = (
                f'Bearer authorization="{self.base}/{self.tenant}", resource="https://vault.azure.net"'
            )
            return _json(_azure_error("Unauthorized"), 401, **{"WWW-Authenticate": challenge})
        fields = json.loads(body) if body else {}
        root, *rest = parts.path.strip("/").split("/")
        if root == "deletedkeys":
            return self._deleted(method, rest[0])
        return self._key(method, rest, fields, urllib.parse.parse_qs(parts.query))

    def _entra(self, path: str, body: bytes) -> Answer:
        base = f"{self.base}/{self.tenant}"
        if path.endswith("/.well-known/openid-configuration"):
            return _json(
                {
                    "token_endpoint": f"{base}/oauth2/v2.0/token",
                    "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
                    "issuer": f"{base}/v2.0",
                }
            )
        fields = urllib.parse.parse_qs(body.decode())
        if fields.get("client_secret") != [self.secret] or fields.get("client_id") != [self.client]:
            return _json({"error": "invalid_client", "error_description": "AADSTS7000215"}, 401)
        return _json({"token_type": "Bearer", "expires_in": 3599, "access_token": self.token})

    def _key(self, method: str, rest: list[str], fields: Any, query: dict[str, list[str]]) -> Answer:  # noqa: PLR0911 - a routing table
        name = rest[0]
        if rest[1:] == ["create"]:
            return self._create(name, fields)
        if method == "DELETE":
            if name not in self.keys:
                return _json(_azure_error("KeyNotFound"), 404)
            self.deleted[name] = self.keys.pop(name)
            newest = list(self.deleted[name].values())[-1]
            return _json({**self._bundle(newest), "recoveryId": f"{self.base}/deletedkeys/{name}"})
        versions = self.keys.get(name)
        if rest[1:] == ["versions"]:
            if versions is None:
                return _json(_azure_error("KeyNotFound"), 404)
            skip = int(query.get("$skiptoken", ["0"])[0])
            page = [
                {"kid": one["kid"], "attributes": one["attributes"], "tags": one["tags"]}
                for one in sorted(versions.values(), key=lambda one: one["kid"])[skip : skip + self.page]
            ]
            more = skip + self.page < len(versions)
            link = f"{self.base}/keys/{name}/versions?api-version=7.5&$skiptoken={skip + self.page}"
            return _json({"value": page, "nextLink": link if more else None})
        wanted = rest[1] if len(rest) > 1 else ""
        found = (versions or {}).get(wanted) if wanted else next(reversed((versions or {"": None}).values()))
        if found is None:
            return _json(_azure_error("KeyNotFound"), 404)
        if method == "GET":
            return _json(self._bundle(found))
        value = _url_bytes(fields["value"])
        pad = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
        if fields["alg"] != "RSA-OAEP-256" or not found["attributes"]["enabled"]:
            return _json(_azure_error("BadParameter"), 400)
        if rest[2] == "unwrapkey":
            try:
                result = found["key"].decrypt(value, pad)
            except ValueError:
                return _json(_azure_error("BadParameter"), 400)
        else:
            result = found["key"].public_key().encrypt(value, pad)
        return _json({"kid": found["kid"], "value": _url_text(result)})

    def _create(self, name: str, fields: Any) -> Answer:
        if name in self.deleted:
            return _json(_azure_error("ObjectIsDeletedButRecoverable"), 409)
        self.made += 1
        version = secrets.token_hex(16)
        key: Any = (
            _rsa_keys()[self.made % 3]
            if fields["kty"].startswith("RSA")
            else ec.generate_private_key(ec.SECP256R1())
        )
        now = int(datetime.datetime.now(datetime.UTC).timestamp())
        made = {
            "kid": f"{self.base}/keys/{name}/{version}",
            "key": key,
            "kty": fields["kty"],
            "key_ops": fields.get("key_ops", []),
            "tags": fields.get("tags", {}),
            "attributes": {
                "enabled": fields.get("attributes", {}).get("enabled", True),
                "created": now,
                "updated": now,
                "recoveryLevel": "Recoverable+Purgeable",
            },
        }
        self.keys.setdefault(name, {})[version] = made
        return _json(self._bundle(made))

    def _deleted(self, method: str, name: str) -> Answer:
        if name not in self.deleted:
            return _json(_azure_error("KeyNotFound"), 404)
        if method == "DELETE":
            del self.deleted[name]
            return Answer(b"", "application/json", 204)
        newest = list(self.deleted[name].values())[-1]
        return _json({**self._bundle(newest), "recoveryId": f"{self.base}/deletedkeys/{name}"})

    @staticmethod
    def _bundle(one: dict[str, Any]) -> dict[str, Any]:
        numbers = one["key"].public_key().public_numbers()
        key = {"kid": one["kid"], "kty": one["kty"], "key_ops": one["key_ops"]}
        if one["kty"].startswith("RSA"):
            key |= {"n": _url_text(numbers.n.to_bytes(384, "big")), "e": "AQAB"}
        else:
            key |= {
                "crv": "P-256",
                "x": _url_text(numbers.x.to_bytes(32, "big")),
                "y": _url_text(numbers.y.to_bytes(32, "big")),
            }
        return {"key": key, "attributes": one["attributes"], "tags": one["tags"]}


def _azure_error(code: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": f"{code}: as Key Vault words it"}}


def _url_text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _url_bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class GcpServer(KeyServer):
    """Cloud KMS v1 over REST, and the OAuth token endpoint that a service account's assertion goes to."""

    token = "ya29.canary-token-of-google"
    ring = "projects/acme-test/locations/europe-west3/keyRings/cloister"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.keys: dict[str, dict[str, Any]] = {}
        self.page = 2
        self.account = rsa.generate_private_key(65537, 2048)

    def service_account(self) -> bytes:
        private = self.account.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return json.dumps(
            {
                "type": "service_account",
                "project_id": "acme-test",
                "private_key_id": "1",
                "private_key": private.decode(),
                "client_email": "cloister@acme-test.iam.gserviceaccount.com",
                "client_id": "1",
                "token_uri": f"{self.base}/token",
            }
        ).encode()

    def answer(self, handler: _Handler, operation: str, body: bytes) -> Answer:  # noqa: PLR0911 - routes
        method, _, target = operation.partition(" ")
        parts = urllib.parse.urlsplit(target)
        if parts.path == "/token":
            return self._grant(body)
        if handler.headers.get("Authorization") != f"Bearer {self.token}":
            return _google_error(401, "UNAUTHENTICATED")
        fields = json.loads(body) if body else {}
        query = urllib.parse.parse_qs(parts.query)
        path = parts.path.removeprefix("/v1/")
        if path == f"{self.ring}/cryptoKeys":
            return self._create(query["cryptoKeyId"][0], fields)
        name, _, verb = path.partition(":")
        key_name, _, version = name.removeprefix(f"{self.ring}/cryptoKeys/").partition("/")
        key = self.keys.get(key_name)
        if key is None:
            return _google_error(404, "NOT_FOUND")
        if version == "cryptoKeyVersions":
            return self._add(key_name, key) if method == "POST" else self._list(key, query)
        number = version.removeprefix("cryptoKeyVersions/")
        if verb == "destroy":
            key["versions"][int(number)]["state"] = "DESTROY_SCHEDULED"
            return _json(key["versions"][int(number)])
        if verb:
            return self._operate(key, verb, int(number or 0), fields)
        if method == "PATCH":
            key["labels"] = fields["labels"]
        return _json({name: value for name, value in key.items() if name not in ("versions", "material")})

    def _grant(self, body: bytes) -> Answer:
        assertion = urllib.parse.parse_qs(body.decode())["assertion"][0]
        signed, _, signature = assertion.rpartition(".")
        try:
            self.account.public_key().verify(
                _url_bytes(signature), signed.encode(), padding.PKCS1v15(), hashes.SHA256()
            )
        except InvalidSignature:
            return _json({"error": "invalid_grant", "error_description": "Invalid JWT Signature."}, 400)
        return _json({"access_token": self.token, "expires_in": 3599, "token_type": "Bearer"})

    def _create(self, name: str, fields: Any) -> Answer:
        if name in self.keys:
            return _google_error(409, "ALREADY_EXISTS")
        made = {
            "name": f"{self.ring}/cryptoKeys/{name}",
            "purpose": fields["purpose"],
            "labels": fields["labels"],
            "versionTemplate": fields["versionTemplate"],
            "destroyScheduledDuration": fields["destroyScheduledDuration"],
            "createTime": "2026-11-28T12:00:00.123456789Z",
            "versions": {},
            "material": {},
        }
        assert all(re.fullmatch(r"[a-z0-9_-]{0,63}", one) for one in made["labels"].values())
        assert all(re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", one) for one in made["labels"])
        assert re.fullmatch(r"[a-zA-Z0-9_-]{1,63}", name)
        self.keys[name] = made
        self._add(name, made)
        return _json({name: value for name, value in made.items() if name not in ("versions", "material")})

    def _add(self, name: str, key: dict[str, Any]) -> Answer:
        number = len(key["versions"]) + 1
        key["material"][number] = secrets.token_bytes(32)
        key["versions"][number] = {
            "name": f"{self.ring}/cryptoKeys/{name}/cryptoKeyVersions/{number}",
            "state": "ENABLED",
            "protectionLevel": "SOFTWARE",
            "algorithm": "GOOGLE_SYMMETRIC_ENCRYPTION",
            "createTime": "2026-11-28T12:00:00.123456Z",
        }
        return _json(key["versions"][number])

    def _list(self, key: dict[str, Any], query: dict[str, list[str]]) -> Answer:
        skip = int(query.get("pageToken", ["0"])[0])
        listed = list(key["versions"].values())
        answer = {"cryptoKeyVersions": listed[skip : skip + self.page], "totalSize": len(listed)}
        if skip + self.page < len(listed):
            answer["nextPageToken"] = str(skip + self.page)
        return _json(answer)

    def _operate(self, key: dict[str, Any], verb: str, number: int, fields: Any) -> Answer:
        bound = base64.b64decode(fields["additionalAuthenticatedData"])
        if fields["additionalAuthenticatedDataCrc32c"] != str(crc32c(bound)):
            return _google_error(400, "INVALID_ARGUMENT")
        if verb == "encrypt":
            plain = base64.b64decode(fields["plaintext"])
            nonce = secrets.token_bytes(12)
            sealed = bytes([10, 36, number]) + nonce
            sealed += AESGCM(key["material"][number]).encrypt(nonce, plain, bound)
            return _json(
                {
                    "name": key["versions"][number]["name"],
                    "ciphertext": base64.b64encode(sealed).decode(),
                    "ciphertextCrc32c": str(crc32c(sealed)),
                    "verifiedPlaintextCrc32c": fields["plaintextCrc32c"] == str(crc32c(plain)),
                    "verifiedAdditionalAuthenticatedDataCrc32c": True,
                    "protectionLevel": "SOFTWARE",
                }
            )
        sealed = base64.b64decode(fields["ciphertext"])
        material = key["material"].get(sealed[2]) if sealed[:2] == b"\x0a\x24" and len(sealed) > 31 else None
        if material is None:
            return _google_error(400, "INVALID_ARGUMENT")
        if key["versions"][sealed[2]]["state"] != "ENABLED":
            return _google_error(400, "FAILED_PRECONDITION")
        try:
            plain = AESGCM(material).decrypt(sealed[3:15], sealed[15:], bound)
        except InvalidTag:
            return _google_error(400, "INVALID_ARGUMENT")
        return _json(
            {
                "plaintext": base64.b64encode(plain).decode(),
                "plaintextCrc32c": str(crc32c(plain)),
                "usedPrimary": False,
                "protectionLevel": "SOFTWARE",
            }
        )


def _google_error(code: int, name: str) -> Answer:
    return _json({"error": {"code": code, "message": "as Google words it", "status": name}}, code)


class AwsFront(KeyServer):
    """Before a real ``moto`` server: passes requests on, and breaks those answers that it is told to."""

    tls = False
    access_key_id = "AKIACANARYACCESSKEY0"
    secret_access_key = "canary/secret+access/key"

    def __init__(self, folder: Path) -> None:
        from moto.server import ThreadedMotoServer

        super().__init__(folder)
        self._moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)

    def __enter__(self) -> Self:
        self._moto.start()
        self._address = self._moto.get_host_and_port()
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._moto.stop()

    def operation(self, method: str, path: str, headers: Any) -> str:
        return str(headers.get("X-Amz-Target", "")).removeprefix("TrentService.")

    def answer(self, handler: _Handler, operation: str, body: bytes) -> Answer:
        connection = http.client.HTTPConnection(*self._address, timeout=10)
        try:
            connection.request("POST", "/", body, dict(handler.headers))
            answer = connection.getresponse()
            headers = {"x-amzn-RequestId": "1"}
            return Answer(answer.read(), "application/x-amz-json-1.1", answer.status, headers)
        finally:
            connection.close()
