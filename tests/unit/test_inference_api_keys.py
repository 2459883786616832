from __future__ import annotations

from pathlib import Path

import pytest

from cloister.errors import UsageError
from cloister.inference.api_errors import RequestRefused
from cloister.inference.api_keys import ApiKeys

KEY = "sk-" + "a" * 40
OTHER = "sk-" + "b" * 40


def test_each_key_of_the_file_is_accepted_and_comments_are_not(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.touch(0o600)
    file.write_text(f"# alice\n{KEY}\n\n  {OTHER}  \n")
    keys = ApiKeys.read(file)
    keys.check(f"Bearer {KEY}")
    keys.check(f"bearer {OTHER}")
    assert keys.required
    assert repr(keys) == "ApiKeys(2 keys)"


@pytest.mark.parametrize(
    "authorization",
    [
        pytest.param(None, id="none"),
        pytest.param("", id="empty"),
        pytest.param("Bearer", id="no key"),
        pytest.param("Bearer ", id="empty key"),
        pytest.param(f"Basic {KEY}", id="another scheme"),
        pytest.param(KEY, id="no scheme"),
        pytest.param(f"Bearer {KEY[:-1]}", id="prefix"),
        pytest.param(f"Bearer {KEY}a", id="longer"),
        pytest.param(f"Bearer {KEY.upper()}", id="upper case"),
        pytest.param("Bearer \udcff", id="not ASCII"),
    ],
)
def test_anything_but_a_whole_key_is_refused_with_401(authorization: str | None) -> None:
    with pytest.raises(RequestRefused) as refused:
        ApiKeys([KEY]).check(authorization)
    assert refused.value.status == 401
    assert KEY not in str(refused.value)


def test_serving_without_keys_is_an_explicit_choice(tmp_path: Path) -> None:
    ApiKeys.nobody_asks().check(None)
    assert not ApiKeys.nobody_asks().required
    empty = tmp_path / "keys"
    empty.touch(0o600)
    empty.write_text("# none yet\n")
    with pytest.raises(UsageError):
        ApiKeys.read(empty)


@pytest.mark.parametrize("key", ["short", "a" * 600, "with spaces in it, yes", "ümlaut-ümlaut-ümlaut"])
def test_a_bad_key_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(UsageError) as refused:
        ApiKeys([key])
    assert key not in str(refused.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_an_api_key_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{KEY}\n")
    file.chmod(mode)
    with pytest.raises(UsageError, match="read by others") as refused:
        ApiKeys.read(file)
    assert KEY not in str(refused.value)


def test_a_missing_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        ApiKeys.read(tmp_path / "absent")
