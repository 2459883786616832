"""The signed index as a document: canonical, signed by someone named, with paths that stay where they belong."""

from __future__ import annotations

import json

import pytest

from cloister.encoding import encode_json, labelled_hash
from cloister.errors import FormatError, IndexMismatch, UsageError
from cloister.sealing.envelope import framed
from cloister.sealing.index import MAX_FILES, IndexEntry, check_path, sign_index, verify_index
from cloister.sealing.signing import SigningKey
from sealing_samples import OWNER, STRANGER

SIGNERS = [OWNER.public_key]
TREE = b"t" * 32


def entry(number: int = 0, size: int = 5) -> IndexEntry:
    return IndexEntry(id=number.to_bytes(32, "big"), size=size, digest=b"d" * 32)


def signed(document: object, key: SigningKey = OWNER) -> tuple[bytes, bytes]:
    """Sign any document at all, as a hostile owner's key could."""
    data = document if isinstance(document, bytes) else encode_json(document)
    digest = labelled_hash("cloister/index/v1", data)
    return data, key.sign(framed("cloister/index-signature/v1", digest))


def document(**changes: object) -> dict[str, object]:
    data, _ = sign_index({"a": entry(1), "b/c": entry(2)}, key=OWNER, tree=TREE, version=3)
    return {**json.loads(data), **changes}


def test_a_signed_index_comes_back() -> None:
    files = {"a": entry(1), "b/c": entry(2, size=0)}
    data, signature = sign_index(files, key=OWNER, tree=TREE, version=3)
    index = verify_index(data, signature, signers=SIGNERS)
    assert index.files == files
    assert (index.signer, index.tree, index.version) == (OWNER.public_key, TREE, 3)
    assert index.digest == labelled_hash("cloister/index/v1", data)
    assert index.size == 5
    assert index.entry("a") == entry(1)
    with pytest.raises(IndexMismatch):
        index.entry("c")


def test_the_digest_depends_on_files_version_tree_and_signer() -> None:
    digests = {
        verify_index(*sign_index(files, key=key, tree=tree, version=version), signers=[key.public_key]).digest
        for files, key, tree, version in [
            ({"a": entry(1)}, OWNER, TREE, 1),
            ({"b": entry(1)}, OWNER, TREE, 1),
            ({"a": entry(2)}, OWNER, TREE, 1),
            ({"a": entry(1, size=6)}, OWNER, TREE, 1),
            ({"a": entry(1)}, STRANGER, TREE, 1),
            ({"a": entry(1)}, OWNER, b"u" * 32, 1),
            ({"a": entry(1)}, OWNER, TREE, 2),
        ]
    }
    assert len(digests) == 7


def test_an_index_by_a_signer_who_is_not_named_is_refused() -> None:
    data, signature = sign_index({"a": entry()}, key=STRANGER, tree=TREE, version=1)
    with pytest.raises(IndexMismatch, match="not one of the accepted signers"):
        verify_index(data, signature, signers=SIGNERS)


def test_an_index_that_names_a_trusted_signer_but_is_signed_by_another_is_refused() -> None:
    data, _ = sign_index({"a": entry()}, key=OWNER, tree=TREE, version=1)
    with pytest.raises(IndexMismatch, match="does not verify"):
        verify_index(*signed(data, STRANGER), signers=[*SIGNERS, STRANGER.public_key])


def test_no_signers_is_an_error() -> None:
    data, signature = sign_index({"a": entry()}, key=OWNER, tree=TREE, version=1)
    with pytest.raises(UsageError):
        verify_index(data, signature, signers=[])


def test_a_flipped_bit_anywhere_in_index_or_signature_is_refused() -> None:
    data, signature = sign_index({"a": entry()}, key=OWNER, tree=TREE, version=1)
    for offset in range(len(data)):
        damaged = bytearray(data)
        damaged[offset] ^= 1
        with pytest.raises((FormatError, IndexMismatch)):
            verify_index(bytes(damaged), signature, signers=SIGNERS)
    for offset in range(len(signature)):
        damaged = bytearray(signature)
        damaged[offset] ^= 1
        with pytest.raises(IndexMismatch):
            verify_index(data, bytes(damaged), signers=SIGNERS)


def test_a_signature_of_the_same_bytes_for_another_purpose_is_refused() -> None:
    data, _ = sign_index({"a": entry()}, key=OWNER, tree=TREE, version=1)
    for message in (data, labelled_hash("cloister/index/v1", data)):
        with pytest.raises(IndexMismatch):
            verify_index(data, OWNER.sign(message), signers=SIGNERS)


ENTRY = json.loads(encode_json(entry(1)))


@pytest.mark.parametrize(
    "hostile",
    [
        pytest.param(document(extra=1), id="an unknown field"),
        pytest.param(document(format="cloister/index/v2"), id="another format"),
        pytest.param(document(files={}), id="no files"),
        pytest.param(document(version=0), id="version 0"),
        pytest.param(document(version=-1), id="a negative version"),
        pytest.param(document(version="1"), id="a version that is text"),
        pytest.param(document(tree="AAAA"), id="a short tree"),
        pytest.param(document(files={"a": ENTRY, "b": ENTRY}), id="one file id twice"),
        pytest.param(document(files={"a": {**ENTRY, "size": -1}}), id="a negative size"),
        pytest.param(document(files={"a": {**ENTRY, "size": 1 << 50}}), id="a size over the bound"),
        pytest.param(document(files={"a": {**ENTRY, "id": "AAAA"}}), id="a short file id"),
        pytest.param(document(files={"a": {**ENTRY, "digest": ""}}), id="no digest"),
        pytest.param(document(files={"../a": ENTRY}), id="a path that climbs"),
        pytest.param(encode_json(document()) + b"\n", id="a newline behind it"),
        pytest.param(json.dumps(document(), sort_keys=True).encode(), id="white space"),
        pytest.param(encode_json(document())[:-1] + b',"version":3}', id="a field twice"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b"", id="nothing"),
        pytest.param(b"\xff", id="not UTF-8"),
    ],
)
def test_a_document_that_is_not_exactly_an_index_is_refused_even_if_signed(hostile: object) -> None:
    with pytest.raises(FormatError):
        verify_index(*signed(hostile), signers=SIGNERS)


def test_too_many_files_are_refused() -> None:
    files = {f"f{number}": entry(number) for number in range(MAX_FILES + 1)}
    with pytest.raises(FormatError, match="1 to 50000 files"):
        sign_index(files, key=OWNER, tree=TREE, version=1)


HOSTILE_PATHS = {
    "empty": "",
    "absolute": "/etc/passwd",
    "parent": "..",
    "climbs": "a/../../b",
    "itself": ".",
    "dot inside": "a/./b",
    "empty component": "a//b",
    "ends in a slash": "a/",
    "NUL": "a\0b",
    "newline": "a\nb",
    "escape sequence": "a\x1b[2J",
    "delete": "a\x7f",
    "C1 control": "a\x9b",
    "backslash": "a\\b",
    "decomposed": "e\u0301",
    "decomposed folder": "e\u0301/x",
    "surrogate": "a\ud800",
    "component over 255 bytes": "ä" * 128,
    "over 1024 bytes": "/".join(["a" * 200] * 6),
}


@pytest.mark.parametrize("path", HOSTILE_PATHS.values(), ids=HOSTILE_PATHS.keys())
def test_a_path_that_could_lead_elsewhere_is_refused(path: str) -> None:
    with pytest.raises(FormatError):
        check_path(path)
    with pytest.raises(FormatError):
        sign_index({path: entry()}, key=OWNER, tree=TREE, version=1)


@pytest.mark.parametrize(
    "path", ["a", "a b", "..a", "a..", ".hidden", "modèle/Größe.bin", "…", "a" * 255, "模型"]
)
def test_a_plain_path_is_accepted(path: str) -> None:
    check_path(path)


def test_a_file_that_is_also_a_folder_is_refused() -> None:
    with pytest.raises(FormatError, match="a file and a folder"):
        sign_index({"a": entry(1), "a/b/c": entry(2)}, key=OWNER, tree=TREE, version=1)
