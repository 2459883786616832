"""``python -I -m cloister.workload.enter SPEC REPORT``: the last process before the program, which it becomes.

Reads an :class:`Entry` from the descriptor SPEC, gives up everything that the program must not have (confinement.py), and
executes it. If any step fails the program is not started: one line goes to the descriptor REPORT, and the exit code is 125.
Nothing is left out because it does not work here, unless the specification says that it may be.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from typing import IO, TYPE_CHECKING, Any, Final, Literal, NoReturn

from cloister.encoding import Record, decode_json, encode_json
from cloister.errors import CloisterError, FormatError, IsolationRefused, UsageError, WorkloadError
from cloister.workload.confinement import confine
from cloister.workload.isolation import Isolation

if TYPE_CHECKING:
    from subprocess import Popen

MAX_SPEC: Final = 4 << 20
MAX_REPORT: Final = 8192
MAX_ARGUMENTS: Final = 16384
EXIT_NOT_STARTED: Final = 125
_EXECUTING: Final = b"executing\n"
_ASKED_TO_END: Final = tuple(-one for one in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM))


class Entry(Record, frozen=True, kw_only=True):
    """One program, with everything that it gets."""

    program: str
    """The file to execute, an absolute path: nothing is looked up."""
    argv: tuple[str, ...]
    """What the program sees as its arguments, its own name first."""
    environment: dict[str, str]
    """All of it."""
    directory: str
    """Where it starts, an absolute path."""
    isolation: Isolation
    keep_fds: tuple[int, ...] = ()
    """Descriptors over 2 that stay open, under their numbers. Every other is closed."""
    group: Literal["same", "own", "session"] = "same"
    """The process group: the launcher's, one of its own, or a session of its own, without a terminal."""
    parent: int = 0
    """Process id of the launcher; the program is killed when the thread that started it ends. 0: it is not."""

    def __post_init__(self) -> None:
        if not self.program.startswith("/") or not self.directory.startswith("/"):
            raise UsageError("the program and its directory are absolute paths")
        if not 1 <= len(self.argv) <= MAX_ARGUMENTS or len(self.environment) > MAX_ARGUMENTS:
            raise UsageError(f"a program has 1 to {MAX_ARGUMENTS} arguments and at most as many variables")
        texts = (self.program, self.directory, *self.argv, *self.environment, *self.environment.values())
        if any("\0" in text for text in texts):
            raise UsageError("an argument, a variable or a path holds a NUL")
        if any(not name or "=" in name for name in self.environment):
            raise UsageError("a variable's name is empty or holds `=`")
        if any(not 3 <= number < 1 << 20 for number in self.keep_fds):
            raise UsageError("`keep_fds` names what is no descriptor over 2")

    def encode(self) -> bytes:
        """Strict JSON. Raises :class:`~cloister.errors.UsageError` for text that is not UTF-8."""
        try:
            return encode_json(self)
        except FormatError:
            raise UsageError("an argument, a variable or a path is not UTF-8") from None

    @classmethod
    def decode(cls, data: bytes) -> Entry:
        """Raises :class:`~cloister.errors.FormatError`."""
        return decode_json(data, cls, what="the specification of a program", limit=MAX_SPEC)


class _Report(Record, frozen=True, kw_only=True):
    kind: Literal["isolation", "usage", "workload"]
    what: str
    todo: str = ""


def start(
    entry: Entry,
    *,
    stdin: int | IO[Any] | None = None,
    stdout: int | IO[Any] | None = None,
    stderr: int | IO[Any] | None = None,
) -> Popen[bytes]:
    """Start the program, and return once it runs: what is refused is refused here, and the program never ran.

    The process keeps its id from here to the program's end. ``stdin``, ``stdout`` and ``stderr`` are as for
    :class:`subprocess.Popen`. With :attr:`Entry.parent` the program dies with the *thread* that calls this.
    Raises :class:`~cloister.errors.IsolationRefused`, :class:`~cloister.errors.UsageError` (no such program) and
    :class:`~cloister.errors.WorkloadError`.
    """
    import subprocess  # noqa: PLC0415 -- this module is also what runs in between, which has to be quick

    encoded = entry.encode()
    if len(encoded) > MAX_SPEC:
        raise UsageError(f"arguments and environment are over {MAX_SPEC} bytes")
    with contextlib.ExitStack() as stack:
        spec = stack.enter_context(os.fdopen(os.memfd_create("entry"), "w+b", buffering=0))
        spec.write(encoded)
        spec.seek(0)
        reading, writing = os.pipe()
        report = stack.enter_context(os.fdopen(reading, "rb"))
        with os.fdopen(writing, "wb") as end:
            child = subprocess.Popen(  # noqa: S603 -- this interpreter, and numbers
                [
                    sys.executable,
                    "-I",
                    "-m",
                    "cloister.workload.enter",
                    str(spec.fileno()),
                    str(end.fileno()),
                ],
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                env={},
                pass_fds=(spec.fileno(), end.fileno(), *entry.keep_fds),
            )
        try:
            said = report.read(MAX_REPORT)
        except BaseException:
            child.kill()
            child.wait()
            raise
    if said == _EXECUTING:
        return child
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout, child.stderr):
        if pipe is not None:
            pipe.close()
    if not said.removeprefix(_EXECUTING) and child.returncode in _ASKED_TO_END:
        raise KeyboardInterrupt
    raise _refusal(said.removeprefix(_EXECUTING), child.returncode)


def _refusal(said: bytes, code: int) -> CloisterError:
    if not said:
        return WorkloadError(
            f"the program was not started (its entry ended with {code})", todo="look at stderr"
        )
    report = decode_json(said, _Report, what="the report of a program's entry", limit=MAX_REPORT)
    kinds = {"isolation": IsolationRefused, "usage": UsageError, "workload": WorkloadError}
    return kinds[report.kind](report.what, todo=report.todo)


def main(arguments: list[str]) -> NoReturn:
    """Become the program, or exit with 125."""
    report = -1
    try:
        spec, report = (int(argument) for argument in arguments)
        os.set_inheritable(report, False)
        with os.fdopen(spec, "rb") as file:
            entry = Entry.decode(file.read(MAX_SPEC + 1))
        confine(
            entry.isolation,
            directory=entry.directory,
            keep_fds=(*entry.keep_fds, report),
            group=entry.group,
            parent=entry.parent,
        )
        os.write(report, _EXECUTING)
        _execute(entry)
    except CloisterError as error:
        kind = "isolation" if isinstance(error, IsolationRefused) else "workload"
        kind = "usage" if isinstance(error, UsageError) else kind
        line = {"kind": kind, "what": error.what[:1024], "todo": error.todo[:1024]}
        with contextlib.suppress(OSError):
            os.write(report, encode_json(line))
    except Exception as error:
        # Whatever it is, the program does not start. Its kind alone is told: its text could quote the environment.
        line = {"kind": "workload", "what": f"the entry failed unforeseen ({type(error).__name__})"}
        with contextlib.suppress(OSError):
            os.write(report, encode_json(line))
    os._exit(EXIT_NOT_STARTED)


def _execute(entry: Entry) -> NoReturn:
    name = entry.program[:256]
    try:
        os.execve(entry.program, entry.argv, entry.environment)  # noqa: S606 -- no shell is what is meant
    except OSError as error:
        reasons = {
            errno.ENOENT: f"there is no program {name}, or not the interpreter that it names",
            errno.EACCES: f"{name} may not be executed by this user, or `read` leaves it out",
            errno.EPERM: f"{name} may not be executed without new privileges",
            errno.ENOEXEC: f"{name} is not a program that this kernel runs: a script needs its #! line",
            errno.E2BIG: "arguments and environment are longer than this kernel takes",
        }
        if error.errno in reasons:
            raise UsageError(reasons[error.errno]) from None
        raise WorkloadError(f"{name} cannot be executed: {error.strerror}") from None


if __name__ == "__main__":
    main(sys.argv[1:])
