"""A TPM's response codes in words (TPM 2.0 Library, Part 2, 6.6): what went wrong, and what to do about it."""

from __future__ import annotations

from typing import Final

_WARNING: Final = 0x900
_VERSION_1: Final = 0x100
_FORMAT_1: Final = 0x080
RETRY_CODES: Final = frozenset({0x908, 0x90A, 0x922})
"""Yielded, testing, retry: ask again."""
_BOOT: Final = "reboot the machine; if it stays so, the TPM is broken"
_CLOSE: Final = "close other programs that use the TPM, or use the resource manager /dev/tpmrm0"

_PLAIN: Final = {
    0x100: ("it was not started", "let the firmware or swtpm start it (TPM2_Startup)"),
    0x101: ("it is in failure mode", _BOOT),
    0x120: ("the command is disabled", "enable it, or the hierarchy, in the firmware's settings"),
    0x125: ("authorisation is missing", ""),
    0x143: ("it does not know the command", "this TPM is older than TPM 2.0 revision 1.16"),
    0x146: ("the NV index asks for more than its size", ""),
    0x148: ("the NV index may not be read with this authorisation", "ask who defined it"),
    0x149: ("the NV index asks for another authorisation", "ask who defined it"),
    0x14A: ("the NV index was never written", "this machine has no such certificate or report"),
    0x902: ("no room for another key", _CLOSE),
    0x903: ("no room for another session", _CLOSE),
    0x904: ("no room in its memory", _CLOSE),
    0x908: ("it is busy", "try again"),
    0x909: ("the command was cancelled", "try again"),
    0x90A: ("it is testing itself", "try again"),
    0x921: ("it is locked after wrong authorisations", "wait, or reset its dictionary-attack lockout"),
    0x922: ("it is busy", "try again"),
}
_NUMBERED: Final = {
    0x81: ("an algorithm is not supported", "choose another kind of key or bank"),
    0x82: ("attributes are not allowed", "choose another kind of key"),
    0x83: ("a hash is not supported", "choose another bank of PCRs"),
    0x84: ("a value is out of range", ""),
    0x85: ("the hierarchy is disabled", "enable the endorsement hierarchy in the firmware's settings"),
    0x8A: ("a key is of another type", ""),
    0x8B: ("there is no such key, session or NV index", ""),
    0x8E: ("authorisation failed", "a hierarchy or key has a password: it must be empty here"),
    0x92: ("a signature scheme is not supported", "choose another kind of key"),
    0x95: ("a structure has the wrong size", ""),
    0x96: ("a symmetric algorithm is not supported", "choose another kind of endorsement key"),
    0x9C: ("the key is not of the kind that the command needs", ""),
    0x9D: ("the key's policy was not satisfied", "this endorsement key is not of the TCG's templates"),
    0x9F: ("the credential does not open: it was made for another key or another TPM", "enrol again"),
    0xA2: ("authorisation failed", "a hierarchy or key has a password: it must be empty here"),
    0xA6: ("a curve is not supported", "choose another kind of key"),
}


def words(code: int) -> tuple[str, str]:
    """What response ``code`` means, and what to do; never empty."""
    found = _PLAIN.get(code)
    if found is None and code & _FORMAT_1:
        # Format one: the number of the handle, session or parameter stands around the error's six bits.
        found = _NUMBERED.get(_FORMAT_1 | code & 0x3F)
    if found is None:
        kind = "a warning" if code & _WARNING == _WARNING else "an error"
        if not code & (_VERSION_1 | _FORMAT_1):
            kind = "an error of TPM 1.2"
        found = (kind, "look the code up in TPM 2.0 Library, Part 2, section 6.6")
    return f"{found[0]} ({code:#05x})", found[1]
