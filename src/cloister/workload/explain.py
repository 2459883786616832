"""What a plan comes to on this machine: the confinement of its program, and the whole in words."""

from __future__ import annotations

import grp
import os
import pwd

from cloister.errors import IsolationRefused, UsageError
from cloister.workload.isolation import Isolation, User, check
from cloister.workload.linux import Finding, Machine, look
from cloister.workload.plan import Plan


def confinement(plan: Plan) -> Isolation:
    """What the program may do. Raises :class:`~cloister.errors.UsageError` for a user that is not there."""
    file = plan.configuration.file
    return Isolation(
        write=tuple(dict.fromkeys(plan.writable)),
        read="all",
        landlock=file.isolation.landlock,
        network=file.network,
        seccomp=file.isolation.seccomp,
        devices=file.isolation.devices,
        user=None if file.program.user is None else find_user(file.program.user),
        swap=file.isolation.swap,
    )


def find_user(name: str) -> User:
    """By name or number, with the groups it has. Raises :class:`~cloister.errors.UsageError`."""
    try:
        entry = pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
    except (KeyError, OverflowError):
        raise UsageError(f"there is no user {name[:64]!a}", todo="check [program] user") from None
    groups = tuple(group for group in os.getgrouplist(entry.pw_name, entry.pw_gid) if group != entry.pw_gid)
    known = tuple(group for group in groups if _exists(group))
    return User(uid=entry.pw_uid, gid=entry.pw_gid, groups=known)


def explained(
    plan: Plan, machine: Machine | None = None
) -> tuple[tuple[tuple[str, str], ...], tuple[Finding, ...]]:
    """The steps of a run, and what this machine gives of its isolation; what it cannot give is said, not raised."""
    try:
        findings = check(confinement(plan), machine or look())
    except IsolationRefused as error:
        findings = (
            Finding("isolation", "missing", f"{error.what}: the program would not be started", error.todo),
        )
    return tuple(plan.steps()), findings


def _exists(group: int) -> bool:
    try:
        grp.getgrgid(group)
    except KeyError:
        return False
    return True
