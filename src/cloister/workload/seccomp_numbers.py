"""The numbers of the system calls that are named here, by processor (Linux 6.18).

x86-64 from ``arch/x86/entry/syscalls/syscall_64.tbl``, AArch64 from ``scripts/syscall.tbl`` (the generic table). From 424
on both are the same. ``None`` where a processor never had the call.
"""

from __future__ import annotations

from typing import Final, Literal

Architecture = Literal["x86_64", "aarch64"]
ARCHITECTURES: Final[tuple[Architecture, ...]] = ("x86_64", "aarch64")
AUDIT_ARCH: Final[dict[Architecture, int]] = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""What ``seccomp_data.arch`` holds (``linux/audit.h``): ELF machine, 64 bits, little-endian."""
X32_BIT: Final = 0x40000000
"""x86-64 only: the x32 calling convention has numbers of its own."""
HIGHEST: Final = 469
"""The last number that was looked at, ``file_setattr``: what is higher did not exist when this list was made."""

_NUMBERS: Final[dict[str, tuple[int | None, int | None]]] = {
    "_sysctl": (156, None),
    "acct": (163, 89),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "capset": (126, 91),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "clone": (56, 220),
    "clone3": (435, 435),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsetxattr": (190, 7),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioctl": (16, 29),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "landlock_add_rule": (445, 445),
    "landlock_create_ruleset": (444, 444),
    "landlock_restrict_self": (446, 446),
    "lookup_dcookie": (212, 18),
    "lsetxattr": (189, 6),
    "memfd_secret": (447, 447),
    "modify_ldt": (154, None),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "name_to_handle_at": (303, 264),
    "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_madvise": (440, 440),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "seccomp": (317, 277),
    "sendmmsg": (307, 269),
    "sendmsg": (46, 211),
    "sendto": (44, 206),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "setxattr": (188, 5),
    "setxattrat": (463, 463),
    "socket": (41, 198),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "uselib": (134, None),
    "userfaultfd": (323, 282),
}


def numbers(architecture: Architecture) -> dict[str, int]:
    """Name to number on this processor; without the calls that it never had."""
    column = ARCHITECTURES.index(architecture)
    return {name: number for name, pair in _NUMBERS.items() if (number := pair[column]) is not None}
