"""A guest of the Confidential Containers as its documents describe it, made without this package's broker code.

It speaks JSON, keeps a key, writes canonical JSON by itself, and opens answers as the guest's library does: it parses
the protected header and authenticates it as *it* writes it. Its quotes are the simulated TEEs'.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap

from cloister.attester.simulation.quote import Layout, report_body
from cloister.evidence.nvidia import DeviceReport
from cloister.evidence.snp import SnpReport, TcbVersion
from simulated_evidence import forge, platform

CURVES: dict[str, ec.EllipticCurve] = {
    "P-256": ec.SECP256R1(),
    "P-384": ec.SECP384R1(),
    "P-521": ec.SECP521R1(),
}
FIELDS = {"tdx": slice(184, 232), "sgx": slice(192, 256)}
"""Where MRCONFIGID stands in a TD report, and CONFIGID in an enclave's."""
REQUEST = {
    "version": "0.4.0",
    "tee": "tdx",
    "extra-params": {"supported-hash-algorithms": ["sha256", "sha384", "sha512", "sm3"]},
}


def url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unurl(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


@dataclass
class Guest:
    """One guest with one key for its sessions."""

    tee: str = "tdx"
    curve: str = "P-256"
    """Or ``RSA``."""
    key: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.curve == "RSA":
            self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        else:
            self.key = ec.generate_private_key(CURVES[self.curve])

    @property
    def jwk(self) -> dict[str, str]:
        """In the order in which the guest's library writes it."""
        numbers = self.key.public_key().public_numbers()
        if self.curve == "RSA":
            size = (numbers.n.bit_length() + 7) // 8
            return {
                "kty": "RSA",
                "alg": "RSA-OAEP-256",
                "n": url(numbers.n.to_bytes(size, "big")),
                "e": url(numbers.e.to_bytes(3, "big")),
            }
        size = (self.key.curve.key_size + 7) // 8
        return {
            "kty": "EC",
            "crv": self.curve,
            "alg": "ECDH-ES+A256KW",
            "x": url(numbers.x.to_bytes(size, "big")),
            "y": url(numbers.y.to_bytes(size, "big")),
        }

    def request(self, **changes: object) -> bytes:
        return json.dumps({**REQUEST, "tee": self.tee, **changes}).encode()

    def bound(self, nonce: str, additional: str = "") -> bytes:
        """The digest's input of primary evidence."""
        return canonical({"additional-evidence": additional, "nonce": nonce, "tee-pubkey": self.jwk})

    def device_nonce(self, nonce: str, algorithm: str = "sha384") -> bytes:
        runtime = canonical({"nonce": nonce, "tee-pubkey": self.jwk})
        return hashlib.new(algorithm, runtime).digest()[:32]

    def attestation(
        self,
        challenge: bytes,
        evidence: Callable[[bytes], dict[str, Any]],
        *,
        additional: str = "",
        init_data: str | None = None,
        bind: bytes | None = None,
    ) -> dict[str, Any]:
        """The body of /attest. ``evidence`` quotes 64 bytes; ``bind`` is hashed in the place of what should be."""
        document = json.loads(challenge)
        parameters = document["extra-params"]
        algorithm = parameters.get("selected-hash-algorithm", "sha384") if parameters else "sha384"
        data = self.bound(document["nonce"], additional) if bind is None else bind
        return {
            "init-data": None if init_data is None else {"format": "toml", "body": init_data},
            "runtime-data": {"nonce": document["nonce"], "tee-pubkey": self.jwk},
            "tee-evidence": {
                "primary_evidence": evidence(hashlib.new(algorithm, data).digest().ljust(64, b"\0")),
                "additional_evidence": additional,
            },
        }

    def open(self, answer: bytes) -> bytes:
        """The content of a resource answer."""
        document = json.loads(answer)
        header = json.loads(unurl(document["protected"]))
        first = {name: header.pop(name) for name in ("alg", "enc")}
        assert first["enc"] == "A256GCM"
        others = json.loads(json.dumps(header, sort_keys=True))
        written = json.dumps({**first, **others}, separators=(",", ":"), ensure_ascii=False)
        wrapped = unurl(document["encrypted_key"])
        if first["alg"] == "RSA-OAEP-256":
            oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
            content_key = self.key.decrypt(wrapped, oaep)
        else:
            assert first["alg"] == "ECDH-ES+A256KW"
            content_key = aes_key_unwrap(self._agreed(header["epk"]), wrapped)
        sealed = unurl(document["ciphertext"]) + unurl(document["tag"])
        return AESGCM(content_key).decrypt(unurl(document["iv"]), sealed, url(written.encode()).encode())

    def _agreed(self, epk: dict[str, str]) -> bytes:
        assert epk["crv"] == self.curve
        x, y = (int.from_bytes(unurl(epk[name]), "big") for name in ("x", "y"))
        public = ec.EllipticCurvePublicNumbers(x, y, CURVES[self.curve]).public_key()
        shared = self.key.exchange(ec.ECDH(), public)
        name = b"ECDH-ES+A256KW"
        other = len(name).to_bytes(4, "big") + name + bytes(8) + (256).to_bytes(4, "big")
        return ConcatKDFHash(hashes.SHA256(), 32, other).derive(shared)


def intel(
    tee: str = "tdx", *, launched_with: bytes = b"", log: bytes = b"", **measured: bytes
) -> Callable[[bytes], dict[str, Any]]:
    """Evidence of a TDX guest or an SGX enclave; ``launched_with`` stands in MRCONFIGID or CONFIGID."""
    layout = Layout.SGX_V3 if tee == "sgx" else Layout.TDX_V4

    def evidence(data: bytes) -> dict[str, Any]:
        source = platform()
        measurements = {**source.tee(layout.kind, clock=lambda: 0).measurements, **measured}
        body = bytearray(report_body(layout, source.hardware, measurements, debug=False, report_data=data))
        body[FIELDS[tee]] = launched_with.ljust(len(body[FIELDS[tee]]), b"\0")
        quote = base64.b64encode(forge(source, layout, body=bytes(body))).decode()
        if tee == "sgx":
            return {"quote": quote}
        return {"cc_eventlog": base64.b64encode(log).decode() if log else None, "quote": quote}

    return evidence


def snp_members(report: SnpReport, signature: bytes) -> dict[str, Any]:
    """A report as the ``sev`` crate serialises it; ``signature`` is r ‖ s of 72 bytes each, little-endian."""
    family, model, stepping = report.cpuid or (None, None, None)
    return {
        "version": report.version,
        "guest_svn": report.guest_svn,
        "policy": report.policy,
        "family_id": list(report.family_id),
        "image_id": list(report.image_id),
        "vmpl": report.vmpl,
        "sig_algo": 1,
        "current_tcb": _tcb(report.current_tcb),
        "plat_info": report.platform_info,
        "key_info": report.author_key_enabled
        | report.mask_chip_key << 1
        | (report.signing_key == "vlek") << 2,
        "report_data": list(report.report_data),
        "measurement": list(report.measurement),
        "host_data": list(report.host_data),
        "id_key_digest": list(report.id_key_digest),
        "author_key_digest": list(report.author_key_digest),
        "report_id": list(report.report_id),
        "report_id_ma": list(report.report_id_ma),
        "reported_tcb": _tcb(report.reported_tcb),
        "cpuid_fam_id": family,
        "cpuid_mod_id": model,
        "cpuid_step": stepping,
        "chip_id": list(report.chip_id),
        "committed_tcb": _tcb(report.committed_tcb),
        "current": _version(report.current_version),
        "committed": _version(report.committed_version),
        "launch_tcb": _tcb(report.launch_tcb),
        "launch_mit_vector": report.launch_mitigations,
        "current_mit_vector": report.current_mitigations,
        "signature": {"r": list(signature[:72]), "s": list(signature[72:144])},
    }


def nvidia(reports: Sequence[DeviceReport]) -> str:
    """Additional evidence of GPUs, as text."""
    devices = [
        {
            "arch": "HOPPER",
            "uuid": "unknown",
            "evidence": base64.b64encode(report.report).decode(),
            "certificate": base64.b64encode(b"".join(_pem(one) for one in report.certificates)).decode(),
        }
        for report in reports
    ]
    return json.dumps({"nvidia": {"device_evidence_list": devices}})


def _pem(der: bytes) -> bytes:
    text = base64.encodebytes(der).decode().replace("\n", "")
    lines = "\n".join(text[start : start + 64] for start in range(0, len(text), 64))
    return f"-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n".encode()


def _tcb(tcb: TcbVersion) -> dict[str, int | None]:
    return {
        "fmc": tcb.fmc,
        "bootloader": tcb.bootloader,
        "tee": tcb.tee,
        "snp": tcb.snp,
        "microcode": tcb.microcode,
    }


def _version(version: tuple[int, int, int]) -> dict[str, int]:
    return dict(zip(("major", "minor", "build"), version, strict=True))
