"""SGX under Gramine: what takes the place of mounts there, and the manifest by which a run is measured.

An enclave has no FUSE, no namespaces and no Landlock. Gramine's own encrypted mounts do the work: their key is 16 bytes,
set through a pseudo-file before a file is opened. The launch is measured because the manifest names it: the configuration,
the program's files and the arguments are in MRENCLAVE (https://gramine.readthedocs.io, "Manifest syntax").
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cloister.attester.gramine import ATTESTATION
from cloister.attester.kernel_files import write_file
from cloister.errors import UsageError, WorkloadError
from cloister.sealing import KeySource
from cloister.workload.configuration import GramineKey, WorkloadFile
from cloister.workload.plan import Plan
from cloister.workload.program import file_digest

LABEL: Final = b"cloister/gramine-key/v1"
KEY_SIZE: Final = 16
KEYS: Final = ATTESTATION / "keys"


def gramine_key(kek: bytes, name: str) -> bytes:
    """The 16 bytes of the mount ``name``: HKDF-SHA256 of the 32-byte resource, label and name as info."""
    return HKDF(SHA256(), KEY_SIZE, None, LABEL + b"\0" + name.encode()).derive(kek)


def set_keys(entries: Sequence[GramineKey], keys: KeySource, *, folder: Path = KEYS) -> None:
    """Give Gramine its keys. Raises :class:`~cloister.errors.WorkloadError`, and what ``keys`` raises."""
    for entry in entries:
        try:
            write_file(folder / entry.name, gramine_key(keys.key(entry.key), entry.name))
        except OSError as error:
            raise WorkloadError(
                f"Gramine does not take the key {entry.name} ({error.strerror})",
                todo=f"name it in the manifest: fs.mounts with key_name = {entry.name!r}",
            ) from None


def require_gramine_form(file: WorkloadFile) -> None:
    """Raise :class:`~cloister.errors.UsageError` for what an enclave cannot have."""
    if file.mount or file.restore:
        raise UsageError(
            "in an SGX enclave nothing can be mounted",
            todo="use [[gramine]] and encrypted mounts of the manifest",
        )
    if file.secret or file.resources or file.outputs or file.identity:
        # Gramine gives each process a tmpfs of its own, so nothing that this process writes there reaches the program.
        raise UsageError(
            "in an SGX enclave a program gets the keys of encrypted mounts alone",
            todo="put secrets into an encrypted mount, and leave resources, outputs and identity out",
        )
    if file.program.user is not None:
        raise UsageError("in an SGX enclave there are no users", todo="leave [program] user out")


def require_no_gramine_keys(file: WorkloadFile) -> None:
    """The other way round. Raises :class:`~cloister.errors.UsageError`."""
    if file.gramine:
        raise UsageError("[[gramine]] is for SGX only", todo="use [[mount]] here")


def manifest_fragment(plan: Plan, configuration: Path) -> str:
    """What the Gramine manifest of this run must hold besides what its image needs, as TOML.

    Trusted files carry their digests; with them and the arguments fixed, MRENCLAVE stands for this launch.
    """
    broker = plan.configuration.file.broker
    # Whom to believe is read from a file as well: one that is not named here would have to be allowed, and be the host's.
    believed = plan.configuration.path(broker.policy or str(broker.manifest)).absolute()
    trusted = {
        **plan.program.files,
        plan.program.argv[0]: plan.program.executable,
        str(configuration): file_digest(configuration),
        str(believed): file_digest(believed),
    }
    arguments = ["cloister", "run", "--config", str(configuration), "--", *plan.program.argv]
    lines = [
        "# Made by `cloister run --gramine-manifest`: add it to your manifest template, and sign.",
        f"loader.argv = {json.dumps(arguments)}",
        'sgx.remote_attestation = "dcap"',
        "sgx.debug = false",
        f"loader.insecure__use_cmdline_argv = {json.dumps(False)}",
        f"loader.insecure__use_host_env = {json.dumps(False)}",
        "sgx.trusted_files = [",
        *(
            f"  {{ uri = {json.dumps(f'file:{path}')}, sha256 = {json.dumps(digest)} }},"
            for path, digest in sorted(trusted.items())
            if not Path(path).is_dir()
        ),
        *(f"  {{ uri = {json.dumps(f'file:{path}/')} }}," for path in sorted(trusted) if Path(path).is_dir()),
        "]",
        f"fs.start_dir = {json.dumps(str(plan.directory))}",
        "fs.mounts = [",
        f'  {{ type = "tmpfs", path = {json.dumps(str(plan.folders.root))} }},',
        *(
            f'  {{ type = "encrypted", path = {json.dumps(f"/sealed/{key.name}")}, '
            f"uri = {json.dumps(f'file:sealed/{key.name}')}, key_name = {json.dumps(key.name)} }},"
            for key in plan.configuration.file.gramine
        ),
        "]",
    ]
    return "\n".join(lines) + "\n"
