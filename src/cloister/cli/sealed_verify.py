"""``cloister verify`` of what is sealed: signature, set of files, digests of bodies; with the key also every segment.

Without a key it shows that the directory is the one its owner signed, to whoever cannot read it: a mirror, an auditor.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import typer


def is_sealed(source: str) -> bool:
    """Whether ``cloister verify`` was given what is sealed and no evidence: a directory or a file of our formats."""
    from cloister.errors import UsageError
    from cloister.sealing.descriptors import open_regular
    from cloister.sealing.envelope import MAGIC
    from cloister.sealing.index import INDEX_NAME, SIGNATURE_NAME
    from cloister.sealing.reseal import TREE_HEADER

    path = Path(source)
    try:
        if path.is_dir():
            return any(os.path.lexists(path / name) for name in (INDEX_NAME, SIGNATURE_NAME, TREE_HEADER))
        if not path.is_file():
            return False
        with open_regular(path, UsageError) as descriptor:
            return os.pread(descriptor, len(MAGIC), 0) == MAGIC
    except (OSError, ValueError, UsageError):
        return False  # whoever reads evidence says what is wrong with it


def verify_sealed(
    sealed: Path,
    *,
    signer: list[str] | None,
    key_file: Path | None,
    key: str | None,
    minimum_version: int,
    as_json: bool,
) -> None:
    """Verify, and say what was. Raises the errors of sealing (errors.py)."""
    from cloister.cli.sealed_options import key_at_hand, kind_of, refuse_pointless

    kind = kind_of(sealed)
    refuse_pointless(kind, signer, minimum_version)
    if kind == "tree":
        from cloister.cli.sealed_tree import verify_tree

        facts, line = verify_tree(sealed, key_at_hand(key_file, key), minimum_version, quiet=as_json)
    elif kind == "file":
        facts, line = _file(sealed, key_file, key, quiet=as_json)
    else:
        facts, line = _directory(sealed, signer, key_file, key, minimum_version, quiet=as_json)
    typer.echo(json.dumps({"kind": kind, **facts}) if as_json else line)


def _directory(
    sealed: Path,
    signer: list[str] | None,
    key_file: Path | None,
    key: str | None,
    minimum_version: int,
    *,
    quiet: bool,
) -> tuple[dict[str, Any], str]:
    from cloister.cli.sealed_options import accepted_signers, counted, key_at_hand
    from cloister.cli.sealing_progress import progress_bar
    from cloister.sealing.check import check_files
    from cloister.sealing.index import claimed_signer, open_index

    signers = accepted_signers(signer) if signer else [claimed_signer(sealed)]
    index = open_index(sealed, signers=signers, minimum_version=minimum_version)
    keys = None if key_file is None else key_at_hand(key_file, key)
    with progress_bar("verifying", quiet=quiet) as phase:
        check_files(sealed, index.files, keys=keys, progress=phase)
    facts = {
        "files": len(index.files), "bytes": index.size, "version": index.version, "index_digest": index.digest.hex(),
        "signer": index.signer.hex(), "signer_compared": bool(signer), "opened": keys is not None, **phase.facts(),
    }  # fmt: skip
    checked = "signature, files, digests" + (" and every segment" if keys is not None else "")
    lines = [
        f"{counted(len(index.files))}, {index.size:,} bytes (version {index.version}): {checked} verified: {phase}",
        f"index digest  {index.digest.hex()}",
        f"signer        {index.signer.hex()}" + ("" if signer else "  (compared with nobody: give --signer)"),
    ]
    if keys is None:
        lines.append("not opened: give --key-file to open every segment too")
    return facts, "\n".join(lines)


def _file(sealed: Path, key_file: Path | None, key: str | None, *, quiet: bool) -> tuple[dict[str, Any], str]:
    from cloister.cli.sealed_options import key_at_hand
    from cloister.cli.sealing_progress import progress_bar
    from cloister.sealing.check import check_file
    from cloister.sealing.workers import Tally, cpus

    keys = key_at_hand(key_file, key)
    with progress_bar("verifying", quiet=quiet) as phase:
        entry = check_file(
            sealed,
            name=sealed.name,
            expected=None,
            keys=keys,
            workers=cpus(),
            tally=Tally(0, phase),
        )
    facts = {
        "bytes": entry.size,
        "id": entry.id.hex(),
        "digest": entry.digest.hex(),
        "opened": True,
        **phase.facts(),
    }
    return facts, f"{entry.size:,} bytes: header and every segment verified: {phase}; signed by nobody"
