"""Owners' keys: every form verifies what its own tools sign, and nothing else."""

from __future__ import annotations

import base64
import os
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from cloister.errors import ManifestError, SignatureRefused, UsageError
from cloister.manifest.owner_key import parse_public_key, ssh_key_text
from cloister.manifest.signers import Ed25519Signer, Es256Signer, SshSigner, read_ssh_public_key
from cloister.manifest.ssh import ssh_string
from spec_vectors import spec_vectors
from ssh_keys import Ed25519Token, P256Token, frame, make_ssh_key, mpint, to_be_signed

MESSAGE = b"cloister/rule-signature/v1\nsha256 00\n"
ORDER_OF_P256 = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
P256 = ec.derive_private_key(4711, ec.SECP256R1())
TOKENS = (Ed25519Token(), P256Token())


def pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey = P256) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


class TestEd25519:
    def test_a_signature_of_the_key_verifies(self) -> None:
        signer = Ed25519Signer(bytes(32))
        parse_public_key(signer.key).verify(MESSAGE, signer.sign(MESSAGE))

    @pytest.mark.parametrize("size", [0, 63, 65])
    def test_a_signature_of_another_length_is_refused(self, size: int) -> None:
        signer = Ed25519Signer(bytes(32))
        with pytest.raises(SignatureRefused):
            parse_public_key(signer.key).verify(MESSAGE, (signer.sign(MESSAGE) + b"\0")[:size])

    def test_a_signature_over_another_message_is_refused(self) -> None:
        signer = Ed25519Signer(bytes(32))
        with pytest.raises(SignatureRefused):
            parse_public_key(signer.key).verify(MESSAGE + b"x", signer.sign(MESSAGE))

    def test_the_seed_shows_nowhere(self) -> None:
        assert repr(Ed25519Signer(b"\x5a" * 32)) == f"Ed25519Signer({Ed25519Signer(b'Z' * 32).key})"


class TestEs256:
    def test_a_signature_of_the_key_verifies(self) -> None:
        signer = Es256Signer(pem())
        parse_public_key(signer.key).verify(MESSAGE, signer.sign(MESSAGE))

    def test_high_and_low_s_verify_alike(self) -> None:
        signer = Es256Signer(pem())
        signature = signer.sign(MESSAGE)
        other = ORDER_OF_P256 - int.from_bytes(signature[32:], "big")
        parse_public_key(signer.key).verify(MESSAGE, signature[:32] + other.to_bytes(32, "big"))

    def test_the_der_form_is_refused(self) -> None:
        signer = Es256Signer(pem())
        raw = signer.sign(MESSAGE)
        der = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
        with pytest.raises(SignatureRefused, match="64 bytes"):
            parse_public_key(signer.key).verify(MESSAGE, der)

    @pytest.mark.parametrize("pair", [(0, 1), (1, 0), (0, 0), (ORDER_OF_P256, 1)])
    def test_numbers_outside_their_range_are_refused(self, pair: tuple[int, int]) -> None:
        signature = b"".join(number.to_bytes(32, "big") for number in pair)
        with pytest.raises(SignatureRefused):
            parse_public_key(Es256Signer(pem()).key).verify(MESSAGE, signature)

    @pytest.mark.parametrize(
        "text",
        [
            pem(ec.generate_private_key(ec.SECP384R1())),
            pem(ed25519.Ed25519PrivateKey.generate()),
            P256.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
            b"not a key",
        ],
        ids=["P-384", "Ed25519", "public", "text"],
    )
    def test_another_private_key_is_refused(self, text: bytes) -> None:
        with pytest.raises(UsageError):
            Es256Signer(text)

    def test_an_encrypted_key_is_refused_without_asking(self) -> None:
        encrypted = P256.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
        with pytest.raises(UsageError, match="unencrypted"):
            Es256Signer(encrypted)


class TestSshKeygen:
    """What the installed OpenSSH makes."""

    @pytest.mark.parametrize("kind", ["ed25519", "ecdsa"])
    def test_a_signature_of_ssh_keygen_verifies(self, tmp_path: Path, kind: str) -> None:
        signer = SshSigner(make_ssh_key(tmp_path / "id", kind))
        key = parse_public_key(signer.key)
        for number in range(8):  # ECDSA's numbers have a leading zero in half of all cases
            message = MESSAGE + bytes([number])
            key.verify(message, signer.sign(message))

    @pytest.mark.parametrize("kind", ["ed25519", "ecdsa"])
    def test_a_hash_of_sha256_verifies_too(self, tmp_path: Path, kind: str) -> None:
        path = make_ssh_key(tmp_path / "id", kind)
        armoured = subprocess.run(
            ["ssh-keygen", "-Y", "sign", "-n", "cloister", "-O", "hashalg=sha256", "-f", str(path)],
            input=MESSAGE,
            capture_output=True,
            check=True,
        ).stdout
        signature = base64.b64decode("".join(armoured.decode().splitlines()[1:-1]))
        assert b"sha256" in signature
        parse_public_key(read_ssh_public_key(tmp_path / "id.pub")).verify(MESSAGE, signature)

    def test_a_signature_for_git_is_no_signature_for_us(self, tmp_path: Path) -> None:
        path = make_ssh_key(tmp_path / "id")
        armoured = subprocess.run(
            ["ssh-keygen", "-Y", "sign", "-n", "git", "-f", str(path)],
            input=MESSAGE,
            capture_output=True,
            check=True,
        ).stdout
        signature = base64.b64decode("".join(armoured.decode().splitlines()[1:-1]))
        with pytest.raises(SignatureRefused, match="something else"):
            parse_public_key(read_ssh_public_key(tmp_path / "id.pub")).verify(MESSAGE, signature)

    def test_a_key_in_an_agent_signs_by_its_public_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path, socket = make_ssh_key(tmp_path / "id"), tmp_path / "agent"
        agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(socket)], stdout=subprocess.DEVNULL)
        try:
            while not socket.exists():
                assert agent.poll() is None
            monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
            subprocess.run(["ssh-add", "-q", str(path)], check=True)
            path.unlink()
            signer = SshSigner(tmp_path / "id.pub")
            parse_public_key(signer.key).verify(MESSAGE, signer.sign(MESSAGE))
        finally:
            agent.terminate()
            agent.wait()

    def test_a_public_file_of_another_key_is_found(self, tmp_path: Path) -> None:
        path, other = make_ssh_key(tmp_path / "id"), make_ssh_key(tmp_path / "other")
        (tmp_path / "id.pub").write_bytes((tmp_path / "other.pub").read_bytes())
        assert other.exists()
        with pytest.raises(UsageError, match=r"another key|did not sign"):
            SshSigner(path).sign(MESSAGE)

    def test_an_rsa_key_is_refused_by_name(self, tmp_path: Path) -> None:
        make_ssh_key(tmp_path / "id", "rsa")
        with pytest.raises(ManifestError, match="not accepted"):
            SshSigner(tmp_path / "id")

    def test_a_file_that_is_no_key_makes_no_signature(self, tmp_path: Path) -> None:
        make_ssh_key(tmp_path / "id")
        (tmp_path / "id").write_text("nothing")
        with pytest.raises(UsageError, match="did not sign"):
            SshSigner(tmp_path / "id").sign(MESSAGE)

    def test_who_does_not_answer_in_time_is_not_waited_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_ssh_key(tmp_path / "id")
        slow = tmp_path / "bin" / "ssh-keygen"
        slow.parent.mkdir()
        slow.write_text("#!/bin/sh\nexec sleep 60\n")
        slow.chmod(0o755)
        monkeypatch.setenv("PATH", str(slow.parent), prepend=os.pathsep)
        with pytest.raises(UsageError, match=r"within 0\.3 seconds"):
            SshSigner(tmp_path / "id", seconds=0.3).sign(MESSAGE)

    def test_an_answer_that_is_no_signature_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_ssh_key(tmp_path / "id")
        odd = tmp_path / "bin" / "ssh-keygen"
        odd.parent.mkdir()
        odd.write_text("#!/bin/sh\necho hello\n")
        odd.chmod(0o755)
        monkeypatch.setenv("PATH", str(odd.parent), prepend=os.pathsep)
        with pytest.raises(UsageError, match="no signature"):
            SshSigner(tmp_path / "id").sign(MESSAGE)


class TestToken:
    """Security tokens, laid out by hand."""

    @pytest.mark.parametrize("token", TOKENS, ids=["ed25519", "p256"])
    def test_a_touched_token_signs(self, token: Ed25519Token) -> None:
        parse_public_key(ssh_key_text(token.blob)).verify(MESSAGE, token.sign(MESSAGE))

    @pytest.mark.parametrize("token", TOKENS, ids=["ed25519", "p256"])
    def test_a_token_that_nobody_touched_is_refused(self, token: Ed25519Token) -> None:
        with pytest.raises(SignatureRefused, match="touched"):
            parse_public_key(ssh_key_text(token.blob)).verify(MESSAGE, token.sign(MESSAGE, flags=4))

    @pytest.mark.parametrize("kind", [Ed25519Token, P256Token])
    def test_a_signature_for_another_application_is_refused(self, kind: type[Ed25519Token]) -> None:
        mine, other = kind(), kind(application=b"ssh:login")
        signature = frame(mine.blob, other.raw(to_be_signed(MESSAGE)))
        with pytest.raises(SignatureRefused, match="does not verify"):
            parse_public_key(ssh_key_text(mine.blob)).verify(MESSAGE, signature)

    @pytest.mark.parametrize("token", TOKENS, ids=["ed25519", "p256"])
    def test_flags_and_counter_are_signed(self, token: Ed25519Token) -> None:
        raw = token.raw(to_be_signed(MESSAGE))
        for at, change in ((5, 4), (1, 1)):  # another flag, another counter
            altered = raw[:-at] + bytes([raw[-at] ^ change]) + raw[len(raw) - at + 1 :]
            with pytest.raises(SignatureRefused, match="does not verify"):
                parse_public_key(ssh_key_text(token.blob)).verify(MESSAGE, frame(token.blob, altered))

    def test_a_plain_signature_of_a_tokens_key_is_refused(self) -> None:
        token = TOKENS[0]
        raw = ssh_string(b"ssh-ed25519") + ssh_string(token.core(to_be_signed(MESSAGE)))
        with pytest.raises(SignatureRefused, match="another kind"):
            parse_public_key(ssh_key_text(token.blob)).verify(MESSAGE, frame(token.blob, raw))


class TestFrame:
    """Each field of an SSHSIG, wrong by itself."""

    TOKEN = TOKENS[0]

    @pytest.mark.parametrize(
        ("changes", "why"),
        [
            ({"magic": b"SSHSIH"}, "version 1"),
            ({"version": 2}, "version 1"),
            ({"version": 0}, "version 1"),
            ({"namespace": b"file"}, "something else"),
            ({"namespace": b""}, "something else"),
            ({"reserved": b"x"}, "reserved"),
            ({"algorithm": b"sha1"}, "another hash"),
            ({"algorithm": b"sha384"}, "another hash"),
        ],
    )
    def test_a_wrong_field_is_refused(self, changes: dict[str, bytes], why: str) -> None:
        inner = {name: value for name, value in changes.items() if name not in ("magic", "version")}
        raw = self.TOKEN.raw(to_be_signed(MESSAGE, **inner))  # signed as it stands: only the field is wrong
        with pytest.raises(SignatureRefused, match=why):
            parse_public_key(ssh_key_text(self.TOKEN.blob)).verify(
                MESSAGE,
                frame(self.TOKEN.blob, raw, **changes),  # type: ignore[arg-type]
            )

    def test_a_signature_that_names_another_key_is_refused(self) -> None:
        other = Ed25519Token(b"\1" * 32)
        with pytest.raises(SignatureRefused, match="names another key"):
            parse_public_key(ssh_key_text(self.TOKEN.blob)).verify(MESSAGE, other.sign(MESSAGE))

    @pytest.mark.parametrize("where", ["frame", "raw"])
    def test_bytes_behind_the_end_are_refused(self, where: str) -> None:
        raw = self.TOKEN.raw(to_be_signed(MESSAGE))
        whole = frame(self.TOKEN.blob, raw + b"\0") if where == "raw" else frame(self.TOKEN.blob, raw) + b"\0"
        with pytest.raises(SignatureRefused, match="behind its end"):
            parse_public_key(ssh_key_text(self.TOKEN.blob)).verify(MESSAGE, whole)

    def test_a_length_over_everything_is_refused(self) -> None:
        signature = b"SSHSIG\0\0\0\1" + b"\xff\xff\xff\xff" + bytes(100)
        with pytest.raises(SignatureRefused, match="too early"):
            parse_public_key(ssh_key_text(self.TOKEN.blob)).verify(MESSAGE, signature)

    def test_an_endless_signature_is_refused_by_its_length(self) -> None:
        with pytest.raises(SignatureRefused, match="longer"):
            parse_public_key(ssh_key_text(self.TOKEN.blob)).verify(MESSAGE, bytes(3000))

    @pytest.mark.parametrize("form", ["negative", "padded", "empty", "long"])
    def test_numbers_of_ecdsa_have_one_form(self, form: str) -> None:
        key = P256.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        blob = b"".join(ssh_string(part) for part in (b"ecdsa-sha2-nistp256", b"nistp256", key))
        r, s = decode_dss_signature(P256.sign(to_be_signed(MESSAGE), ec.ECDSA(SHA256())))
        number = {
            "negative": ssh_string(b"\x80" + bytes(31)),
            "padded": ssh_string(b"\0\0" + r.to_bytes(32, "big")),
            "empty": ssh_string(b""),
            "long": ssh_string(b"\1" * 40),
        }[form]
        good = ssh_string(b"ecdsa-sha2-nistp256") + ssh_string(mpint(r) + mpint(s))
        parse_public_key(ssh_key_text(blob)).verify(MESSAGE, frame(blob, good))
        bad = ssh_string(b"ecdsa-sha2-nistp256") + ssh_string(number + mpint(s))
        with pytest.raises(SignatureRefused, match="form"):
            parse_public_key(ssh_key_text(blob)).verify(MESSAGE, frame(blob, bad))


POINT = P256.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
COMPRESSED = P256.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)


def ssh(*parts: bytes) -> str:
    return ssh_key_text(b"".join(ssh_string(part) for part in parts))


class TestText:
    @pytest.mark.parametrize(
        "text",
        [
            "",
            "ed25519",
            "ed25519:",
            "ED25519:" + "00" * 32,
            "ed25519:" + "AA" * 32,
            "ed25519:" + "00" * 31,
            " ed25519:" + "00" * 32,
            "es256:" + "02" + "ff" * 32,
            "es256:" + POINT.hex(),
            "es256:04" + COMPRESSED[1:].hex(),
            "rsa:" + "00" * 32,
            "ssh:AAAA AAAA",
            "ssh:AB==",
            "ssh:" + base64.b64encode(bytes(600)).decode(),
            ssh(b"ssh-rsa", b"\1\0\1", b"\0" + b"\xff" * 255),
            ssh(b"ssh-ed25519-cert-v01@openssh.com", bytes(32)),
            ssh(b"ssh-ed25519", bytes(31)),
            ssh(b"ssh-ed25519", bytes(32), b""),
            ssh(b"ecdsa-sha2-nistp256", b"nistp384", POINT),
            ssh(b"ecdsa-sha2-nistp256", b"nistp256", COMPRESSED),
            ssh(b"ecdsa-sha2-nistp256", b"nistp256", b"\4" + b"\1" * 64),
            ssh(b"sk-ssh-ed25519@openssh.com", bytes(32)),
        ],
    )
    def test_what_is_no_key_is_refused(self, text: str) -> None:
        with pytest.raises(ManifestError):
            parse_public_key(text)

    def test_one_key_in_two_forms_has_one_identity(self) -> None:
        seed = bytes(range(32))
        point = ed25519.Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
        plain, by_ssh = (
            parse_public_key(Ed25519Signer(seed).key),
            parse_public_key(ssh(b"ssh-ed25519", point)),
        )
        assert plain.text != by_ssh.text
        assert plain.identity == by_ssh.identity

    def test_one_point_of_p256_in_three_forms_has_one_identity(self) -> None:
        texts = [
            Es256Signer(pem()).key,
            ssh(b"ecdsa-sha2-nistp256", b"nistp256", POINT),
            ssh(b"sk-ecdsa-sha2-nistp256@openssh.com", b"nistp256", POINT, b"ssh:"),
        ]
        assert len({parse_public_key(text).identity for text in texts}) == 1


def test_the_ssh_vector_of_the_page_verifies() -> None:
    vector = spec_vectors("signed-document.md")["ssh"]
    signature = base64.b64decode(vector["signature"])
    parse_public_key(vector["key"]).verify(vector["message"].encode(), signature)
    with pytest.raises(SignatureRefused):
        parse_public_key(vector["key"]).verify(b"hallo", signature)
