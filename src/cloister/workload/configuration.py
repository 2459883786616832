"""``workload.toml``: what an owner and an operator say of a program that shall run attested (docs/spec/workload.md).

Reading decides everything that the file alone can show. Refused: unknown fields, two things at one path, a path that is
not absolute and plain, a tree that is written without a key, a network that is not one of the three, a configuration that
asks for nothing at all of which program may be what. Nothing is opened and no key is asked for here.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final, Literal

import msgspec
from msgspec import structs

from cloister.encoding import Record, convert, from_hex
from cloister.errors import FormatError, UsageError
from cloister.manifest.names import check_names
from cloister.manifest.storage import read_bounded
from cloister.sealing.uri import parse_key_uri
from cloister.workload.isolation import Network, Strictness
from cloister.workload.swap import SwapPolicy

FORMAT: Final = "cloister/workload/v1"
NAME: Final = "workload.toml"
"""What ``cloister run`` looks for in the current directory."""
MAX_FILE: Final = 256 * 1024
MAX_ENTRIES: Final = 64
"""Of each kind: mounts, secrets, measured files."""
PAGE: Final = "docs/spec/workload.md"

_LOADING: Final = ("LD_", "PYTHON", "GLIBC_", "MALLOC_", "PERL5", "RUBY", "NODE_", "BASH_FUNC_")
_LOADERS: Final = frozenset(
    {"PATH", "BASH_ENV", "ENV", "SHELLOPTS", "BASHOPTS", "IFS", "GCONV_PATH", "LOCPATH", "NLSPATH", "PERLLIB"}
    | {
        "JAVA_TOOL_OPTIONS",
        "_JAVA_OPTIONS",
        "JDK_JAVA_OPTIONS",
        "CLASSPATH",
        "OPENSSL_CONF",
        "OPENSSL_MODULES",
    }
    | {"HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "R_PROFILE", "R_LIBS", "LUA_PATH", "LUA_CPATH", "LUA_INIT"}
)
"""Variables that let interpreters and the C library load code; their values are measured or they are not there."""
Pin = Literal["measured", "signed"]
Optimisation = Literal["off", "auto", "int8", "int4", "bf16"]
Profile = Literal["ray", "uvicorn", "postgres", "grpc"]


class Broker(Record, frozen=True, kw_only=True):
    """``[broker]``: where it is, and what it must be: policies, or a manifest that says it. Files beside this one."""

    url: str
    policy: str | None = None
    manifest: str | None = None


class Restored(Record, frozen=True, kw_only=True):
    """``[[restore]]``: a sealed directory that is opened into memory and appears at ``path``."""

    source: str
    path: str
    index: Pin = "measured"
    minimum_version: int = 1


class Mounted(Record, frozen=True, kw_only=True):
    """``[[mount]]``: a sealed directory to read, or with ``write`` a sealed tree under ``key``, at ``path``."""

    source: str
    path: str
    write: bool = False
    key: str | None = None
    index: Pin = "measured"
    minimum_version: int = 1
    verify: Literal["whole", "segments"] = "whole"
    record_seconds: int = 30
    """The broker learns a tree's newest version this often; 0: before any ``fsync`` returns."""
    record: bool = True
    """False: nobody remembers the newest version, and an old copy of the whole tree is not noticed."""


class Secret(Record, frozen=True, kw_only=True):
    """``[[secret]]``: a resource, in a private file whose path is in the environment."""

    resource: str
    file: str
    env: str


class GramineKey(Record, frozen=True, kw_only=True):
    """``[[gramine]]``: the key of an encrypted mount of Gramine's manifest, on SGX only."""

    name: str
    key: str


class Program(Record, frozen=True, kw_only=True):
    """``[program]``: what is measured besides the command line, and what the program is given."""

    files: tuple[str, ...] = ()
    """Files and folders; each is measured, and the measured copy is what the program sees."""
    environment: dict[str, str] = msgspec.field(default_factory=dict)
    inherit: tuple[str, ...] = ()
    """Names of variables that are taken from whoever starts it, unmeasured."""
    user: str | None = None
    """Name or number; without it the program runs as whoever started ``cloister run``."""
    hooks: bool = True
    """Let Python libraries open sealed paths."""
    optimize: Optimisation = "off"
    """To which precision models that the program loads with ``transformers`` and does not train are brought."""
    memory: str = "50%"
    """Bound of the private tmpfs, as tmpfs takes it: bytes, or a share of the machine's memory."""


class Identity(Record, frozen=True, kw_only=True):
    """``[identity]``: the name in the mesh, by the manifest of the broker's owners."""

    workload: str
    application: str
    profiles: tuple[Profile, ...] = ()
    """Whose environment variables are set besides our own."""


class Outputs(Record, frozen=True, kw_only=True):
    """``[outputs]``: under which key and whose signature the program writes sealed directories (``sealed://``)."""

    key: str
    signing_key: str


class Isolated(Record, frozen=True, kw_only=True):
    """``[isolation]``: what may not be missing."""

    landlock: Strictness = "require"
    seccomp: bool = True
    swap: SwapPolicy = "refuse"
    devices: tuple[str, ...] = ()
    """Device nodes of a GPU, say."""
    write: tuple[str, ...] = ()
    """Further paths that the program may write to, in the clear."""


class WorkloadFile(Record, frozen=True, kw_only=True):
    """The whole file."""

    format: Literal["cloister/workload/v1"] = FORMAT
    name: str
    broker: Broker
    signers: tuple[str, ...] = ()
    """Ed25519 public keys (hexadecimal) whose signature on an index is believed."""
    restore: tuple[Restored, ...] = ()
    mount: tuple[Mounted, ...] = ()
    secret: tuple[Secret, ...] = ()
    gramine: tuple[GramineKey, ...] = ()
    resources: tuple[str, ...] = ()
    """Further key URIs that the program's libraries may ask for."""
    program: Program = Program()
    identity: Identity | None = None
    outputs: Outputs | None = None
    network: Network = Network(access="none")
    isolation: Isolated = Isolated()

    @property
    def inputs(self) -> tuple[Restored | Mounted, ...]:
        """The sealed directories that are read."""
        return (*self.restore, *(mount for mount in self.mount if not mount.write))

    @property
    def trees(self) -> tuple[Mounted, ...]:
        """The sealed trees that are written to."""
        return tuple(mount for mount in self.mount if mount.write)


@dataclass(frozen=True, slots=True)
class WorkloadConfiguration:
    """A file that passed :func:`read_workload`, and the folder that its relative paths mean."""

    file: WorkloadFile
    base: Path

    def path(self, text: str) -> Path:
        """A source or file named by the configuration."""
        return self.base / text

    @property
    def signers(self) -> frozenset[bytes]:
        """Public keys, 32 bytes each."""
        return frozenset(bytes.fromhex(text) for text in self.file.signers)

    @property
    def key_uris(self) -> frozenset[str]:
        """Every key that the program's own libraries may ask the launcher for."""
        outputs = () if self.file.outputs is None else (self.file.outputs.key,)
        return frozenset((*self.file.resources, *outputs))


def read_workload(path: Path) -> WorkloadConfiguration:
    """Read and check. Raises :class:`~cloister.errors.UsageError`, which names the file and what is wrong."""
    data = read_bounded(path, limit=MAX_FILE, what="the workload configuration")
    try:
        file = convert(tomllib.loads(data.decode("utf-8")), WorkloadFile, what=str(path))
        check_workload(file)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}", todo=f"see {PAGE}") from None
    except (FormatError, UsageError) as error:
        what = error.what if str(path) in error.what else f"{path}: {error.what}"
        raise UsageError(what, todo=error.todo or f"see {PAGE}") from None
    return WorkloadConfiguration(file=file, base=path.resolve().parent)


def optimised(configuration: WorkloadConfiguration, precision: Optimisation) -> WorkloadConfiguration:
    """The same with ``--optimize`` of the command line, which is measured as if the file said it. Raises UsageError."""
    program = structs.replace(configuration.file.program, optimize=precision)
    file = structs.replace(configuration.file, program=program)
    check_workload(file)
    return replace(configuration, file=file)


def check_workload(file: WorkloadFile) -> None:
    """Everything that the file alone can show. Raises UsageError or FormatError."""
    _check_name(file.name, "the workload")
    if (file.broker.policy is None) == (file.broker.manifest is None):
        raise UsageError("[broker] says what the broker must be by policy or by manifest, and by one of them")
    for signer in file.signers:
        from_hex(signer, 32, what="a signer")
    kinds = (file.restore, file.mount, file.secret, file.gramine, file.resources, file.program.files)
    if any(len(entries) > MAX_ENTRIES for entries in kinds):
        raise UsageError(f"at most {MAX_ENTRIES} of a kind may be named")
    _check_places(file)
    _check_keys(file)
    _check_variables(file)
    if file.program.optimize != "off" and not file.program.hooks:
        raise UsageError(
            "models are optimised by the hooks, which this configuration turns off", todo="hooks = true"
        )
    if file.identity is not None:
        _check_name(file.identity.workload, "the identity's workload")
        _check_name(file.identity.application, "the identity's application")


def _check_places(file: WorkloadFile) -> None:
    for mount in file.mount:
        if mount.write != (mount.key is not None):
            raise UsageError(f"the mount at {mount.path} has a key if and only if it is written to")
        if not 0 <= mount.record_seconds <= 3600:
            raise UsageError("record_seconds is from 0 to 3600")
    if file.inputs and not file.signers:
        raise UsageError(
            "sealed directories are read, but nobody's signature is believed", todo="name signers"
        )
    if any(one.minimum_version < 1 for one in file.inputs):
        raise UsageError("versions count from 1")
    places = [*(one.path for one in file.restore), *(one.path for one in file.mount)]
    for place in (*places, *file.isolation.write):
        if not place.startswith("/") or str(PurePosixPath(place)) != place or ".." in place.split("/"):
            raise UsageError(f"the path {place[:80]!a} is not absolute and plain")
    for place in places:
        if place == "/" or any(one != place and _within(one, place) for one in places):
            raise UsageError(f"something else is mounted below {place}")
    if len(set(places)) != len(places):
        raise UsageError("two things are to appear at the same path")
    sources = [tree.source for tree in file.trees]
    if len(set(sources)) != len(sources):
        raise UsageError("one sealed tree is mounted twice")


def _within(path: str, folder: str) -> bool:
    return PurePosixPath(path).is_relative_to(folder)


def _check_keys(file: WorkloadFile) -> None:
    uris = [mount.key for mount in file.mount if mount.key]
    if len(set(uris)) != len(uris):
        raise UsageError("two trees under one key: the broker remembers one newest version for each key")
    uris += [secret.resource for secret in file.secret] + [key.key for key in file.gramine]
    uris += list(file.resources)
    if file.outputs is not None:
        uris += [file.outputs.key, file.outputs.signing_key]
    for uri in uris:
        parse_key_uri(uri)
    _check_unique((secret.file for secret in file.secret), "secret files")
    _check_unique((key.name for key in file.gramine), "Gramine keys")


def _check_variables(file: WorkloadFile) -> None:
    names = [*(secret.env for secret in file.secret), *file.program.environment, *file.program.inherit]
    for name in names:
        if not name.isascii() or not name.isidentifier() or name.startswith("CLOISTER_"):
            raise UsageError(
                f"{name[:64]!a} is no name for a variable", todo="A-Z, 0-9 and _, not CLOISTER_…"
            )
        if name in file.program.inherit and (name.startswith(_LOADING) or name in _LOADERS):
            raise UsageError(f"{name} would let whoever starts the program put code into it")
    if any("\0" in value for value in file.program.environment.values()):
        raise UsageError("a variable's value holds a NUL")
    if len(set(names)) != len(names):
        raise UsageError("a variable is named twice")


def _check_unique(names: Iterable[str], what: str) -> None:
    found = list(names)
    for name in found:
        _check_name(name, f"one of the {what}")
    if len(set(found)) != len(found):
        raise UsageError(f"two {what} have one name")


def _check_name(name: str, what: str) -> None:
    try:
        check_names([name], what)
    except Exception as error:
        raise UsageError(f"{what} is named {name[:64]!a}", todo=str(getattr(error, "todo", ""))) from None
