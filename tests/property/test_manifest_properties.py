"""Signed documents: what is written is read, what is altered is refused, and a parser raises nothing of its own."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

import manifest_parts as parts
from cloister.encoding import encode_json
from cloister.errors import ManifestError, SignatureRefused
from cloister.manifest.acceptance import AcceptedManifest, accept_genesis, accept_successor
from cloister.manifest.manifest import governing, origin, parse_manifest
from cloister.manifest.order import parse_order
from cloister.manifest.owner_key import parse_public_key, ssh_key_text
from cloister.manifest.rule import Rule, Window, parse_rule
from cloister.manifest.signed import encode_signed, parse_signed, verified_signers
from cloister.manifest.ssh import parse_ssh_key
from manifest_parts import accepted, manifest, quorum, signed, successor
from ssh_keys import Ed25519Token, P256Token

NAMES = st.from_regex(r"\A[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}\Z")
DIGESTS = st.binary(min_size=32, max_size=32).map(bytes.hex)
MESSAGE = b"cloister/rule-signature/v1\nsha256 00\n"


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    start = draw(st.integers(0, 2**40))
    return Rule(
        application=draw(NAMES),
        resource="/".join(draw(st.tuples(NAMES, NAMES, NAMES))),
        version=2,
        previous=draw(DIGESTS),
        workloads=draw(
            st.dictionaries(
                NAMES,
                st.one_of(
                    st.just("manifest"), st.lists(DIGESTS, min_size=1, max_size=3, unique=True).map(tuple)
                ),
                min_size=1,
                max_size=4,
            )
        ),
        policies=(),
        purposes=draw(
            st.one_of(st.just("any"), st.lists(NAMES, min_size=1, max_size=3, unique=True).map(tuple))
        ),
        window=draw(
            st.one_of(
                st.just("always"),
                st.integers(start + 1, 2**41).map(lambda end: Window(not_before=start, not_after=end)),
            )
        ),
        releases=draw(st.one_of(st.just("unlimited"), st.integers(1, 2**50))),
    )


@given(rules())
def test_every_rule_reads_as_it_was_written(rule: Rule) -> None:
    assert parse_rule(encode_json(rule)) == rule


@cache
def genesis_bytes() -> bytes:
    return encode_signed(signed(manifest(), "alice", "bob"))


@cache
def genesis() -> AcceptedManifest:
    return accepted()


@given(st.data())
def test_a_signed_manifest_with_any_bit_flipped_is_refused(data: st.DataObject) -> None:
    whole = bytearray(genesis_bytes())
    at = data.draw(st.integers(0, 8 * len(whole) - 1))
    whole[at // 8] ^= 1 << at % 8
    with pytest.raises(ManifestError):
        accept_genesis(parse_signed(bytes(whole)), origin=origin(manifest()))


@given(st.data())
def test_a_truncated_signed_manifest_is_refused(data: st.DataObject) -> None:
    whole = genesis_bytes()
    with pytest.raises(ManifestError):
        parse_signed(whole[: data.draw(st.integers(0, len(whole) - 1))])


@given(st.binary(max_size=300), st.sampled_from([parse_signed, parse_manifest, parse_rule, parse_order]))
def test_parsers_raise_their_own_error_on_any_bytes(data: bytes, parser: object) -> None:
    with pytest.raises(ManifestError):
        parser(data)  # type: ignore[operator]


@given(st.data(), st.sampled_from(["rule", "manifest"]))
def test_parsers_raise_their_own_error_on_nearly_right_bytes(data: st.DataObject, kind: str) -> None:
    plain = encode_json(parts.rule() if kind == "rule" else manifest())
    at = data.draw(st.integers(0, len(plain) - 1))
    piece = data.draw(st.binary(max_size=8))
    changed = plain[:at] + piece + plain[at + data.draw(st.integers(0, 8)) :]
    parser = parse_rule if kind == "rule" else parse_manifest
    try:
        document = parser(changed)
    except ManifestError:
        return
    assert encode_json(document) == changed


@given(st.text(max_size=200))
def test_any_text_is_a_key_or_refused(text: str) -> None:
    try:
        key = parse_public_key(text)
    except ManifestError:
        return
    assert key.text == text


@given(st.binary(max_size=200))
def test_any_bytes_are_an_ssh_key_or_refused(blob: bytes) -> None:
    try:
        key = parse_ssh_key(blob)
    except SignatureRefused:
        return
    assert key.blob == blob


TOKENS = (Ed25519Token(), P256Token())
SIGNATURES = tuple(token.sign(MESSAGE) for token in TOKENS)


@given(st.sampled_from([0, 1]), st.data())
def test_a_tokens_signature_with_any_bit_flipped_is_refused(which: int, data: st.DataObject) -> None:
    signature = bytearray(SIGNATURES[which])
    at = data.draw(st.integers(0, 8 * len(signature) - 1))
    signature[at // 8] ^= 1 << at % 8
    with pytest.raises(SignatureRefused):
        parse_public_key(ssh_key_text(TOKENS[which].blob)).verify(MESSAGE, bytes(signature))


@given(st.sampled_from([0, 1]), st.data())
def test_a_truncated_signature_is_refused(which: int, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(SIGNATURES[which]) - 1))
    with pytest.raises(SignatureRefused):
        parse_public_key(ssh_key_text(TOKENS[which].blob)).verify(MESSAGE, SIGNATURES[which][:cut])


@given(st.sets(st.sampled_from(["alice", "bob", "carol"])))
def test_who_signed_is_exactly_who_is_reported(names: set[str]) -> None:
    document = signed(manifest(), *names)
    keys = {name: parse_public_key(text) for name, text in manifest().owners.items()}
    assert verified_signers("manifest", document, keys) == names


@given(
    st.sets(st.sampled_from(["alice", "bob", "carol"])),
    st.dictionaries(
        st.sampled_from(["default", "default/key", "default/key/demo", "default/x", "models"]),
        st.sampled_from(["alice", "bob", "carol"]).map(quorum),
    ),
)
def test_no_path_changes_hands_without_whoever_decided_about_it(
    signers: set[str], resources: dict[str, object]
) -> None:
    new = successor(genesis(), resources=resources)
    try:
        after = accept_successor(signed(new, *signers), predecessor=genesis())
    except ManifestError:
        return
    for path in ("default/key/demo", "default/key/other", "default/x/y", "default/y/y"):
        before, now = governing(manifest(), path), governing(after.manifest, path)
        assert before is not None
        if now is None or now[1] != before[1]:
            assert set(before[1].owners) <= signers, path
