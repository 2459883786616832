"""A host that holds a sealed directory tries to make its reader accept something else. Each try has a name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cloister.encoding import encode_json
from cloister.errors import CloisterError, IndexMismatch, TamperedFile, TruncatedFile, WrongKey
from cloister.sealing.directory import unseal_directory, unseal_to_memory
from cloister.sealing.envelope import HEADER_SIZE, encode_header, new_header
from cloister.sealing.files import seal_file
from cloister.sealing.index import Index, open_index
from cloister.sealing.segments import SEGMENT_SIZE
from sealing_samples import KEK, OTHER_KEK, OWNER, STRANGER, URI, Keys, alter, patterned, sealed_folder

FILES = {"model.gguf": patterned(2_500_000), "config.json": b'{"temperature": 0}', "other.bin": b"the other"}
SIGNERS = [OWNER.public_key]


class Scene:
    """The owner's newest directory, an older version of it, and a stranger's."""

    def __init__(self, place: Path) -> None:
        old_files = {**FILES, "config.json": b'{"temperature": 9}'}
        self.old, self.old_index = sealed_folder(place, old_files)
        self.now, self.index = sealed_folder(place, FILES, after=self.old_index)
        self.foreign, self.foreign_index = sealed_folder(place, FILES, signing_key=STRANGER)
        self.place = place

    def file(self, path: str, index: Index | None = None, folder: Path | None = None) -> Path:
        return (folder or self.now) / (index or self.index).files[path].file_name


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def remove_a_file(scene: Scene) -> None:
    scene.file("config.json").unlink()


def add_a_file(scene: Scene) -> None:
    (scene.now / "extra.py").write_bytes(b"print('hello')")


def add_a_sealed_file(scene: Scene) -> None:
    shutil.copy(scene.file("config.json", scene.old_index, scene.old), scene.now)


def add_a_hidden_folder(scene: Scene) -> None:
    (scene.now / ".cache").mkdir()


def cut_a_file(scene: Scene) -> None:
    os.truncate(scene.file("model.gguf"), HEADER_SIZE + SEGMENT_SIZE)


def lengthen_a_file(scene: Scene) -> None:
    with scene.file("model.gguf").open("ab") as file:
        file.write(bytes(SEGMENT_SIZE))


def swap_two_files(scene: Scene) -> None:
    one, two = scene.file("config.json"), scene.file("other.bin")
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)


def swap_two_files_of_one_size(scene: Scene) -> None:
    files = {"allowed": b"yes", "refused": b"no."}
    shutil.rmtree(scene.now)
    folder, index = sealed_folder(scene.place, files)
    folder.rename(scene.now)
    one, two = (scene.now / index.files[path].file_name for path in files)
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)


def mix_in_a_file_of_the_older_version(scene: Scene) -> None:
    shutil.copy(scene.file("config.json", scene.old_index, scene.old), scene.file("config.json"))


def put_a_foreign_file_in_place(scene: Scene) -> None:
    shutil.copy(scene.file("model.gguf", scene.foreign_index, scene.foreign), scene.file("model.gguf"))


def put_a_link_in_place(scene: Scene) -> None:
    path = scene.file("model.gguf")
    path.rename(scene.place / "moved")
    path.symlink_to(scene.place / "moved")


def put_a_pipe_in_place(scene: Scene) -> None:
    scene.file("model.gguf").unlink()
    os.mkfifo(scene.file("model.gguf"))


def put_the_plaintext_in_place(scene: Scene) -> None:
    data = FILES["model.gguf"]
    path = scene.file("model.gguf")
    path.write_bytes(data.ljust(path.stat().st_size, b"\0"))


def link_the_index(scene: Scene) -> None:
    (scene.now / "index.json").rename(scene.place / "index")
    (scene.now / "index.json").symlink_to(scene.place / "index")


def remove_the_signature(scene: Scene) -> None:
    (scene.now / "index.sig").unlink()


def use_the_stranger_s_directory(scene: Scene) -> None:
    shutil.rmtree(scene.now)
    shutil.copytree(scene.foreign, scene.now)


def use_the_older_signature(scene: Scene) -> None:
    shutil.copy(scene.old / "index.sig", scene.now)


def roll_the_whole_tree_back(scene: Scene) -> None:
    shutil.rmtree(scene.now)
    shutil.copytree(scene.old, scene.now)


def rename_a_path_in_the_index(scene: Scene) -> None:
    path = scene.now / "index.json"
    path.write_bytes(path.read_bytes().replace(b"other.bin", b"model.bin"))


def claim_another_size(scene: Scene) -> None:
    document = json.loads((scene.now / "index.json").read_bytes())
    document["files"]["model.gguf"]["size"] -= 1
    (scene.now / "index.json").write_bytes(encode_json(document))


def rename_the_key_in_a_header(scene: Scene) -> None:
    path = scene.file("model.gguf")
    path.write_bytes(path.read_bytes().replace(URI.encode(), b"kbs:///default/key/evilkey", 1))


def wrap_a_key_of_the_host(scene: Scene) -> None:
    """The host controls the key at another URI, and wraps a data key of its own for the genuine file id."""
    path, uri = scene.file("model.gguf"), "kbs:///host/key/mine"
    id_ = scene.index.files["model.gguf"].id
    header = new_header(key_uri=uri, kek=OTHER_KEK, data_key=bytes(32), file_id=id_, salt=bytes(32))
    path.write_bytes(encode_header(header) + path.read_bytes()[HEADER_SIZE:])


def forge_with_the_real_key(scene: Scene) -> None:
    """Who may read (and so has the key) seals other content under the genuine file id."""
    id_ = scene.index.files["config.json"].id
    plain, forged = scene.place / "forged", scene.place / "forged.sealed"
    plain.write_bytes(b'{"temperature": 7}')

    def entropy(length: int, draws: list[bytes] = [id_]) -> bytes:  # noqa: B006 -- the first draw is the id
        return draws.pop() if draws else os.urandom(length)

    seal_file(plain, forged, key_uri=URI, kek=KEK, entropy=entropy)
    shutil.copy(forged, scene.file("config.json"))


ATTACKS: list[tuple[Callable[[Scene], None], type[CloisterError] | tuple[type[CloisterError], ...]]] = [
    (remove_a_file, IndexMismatch),
    (add_a_file, IndexMismatch),
    (add_a_sealed_file, IndexMismatch),
    (add_a_hidden_folder, IndexMismatch),
    (cut_a_file, TruncatedFile),
    (lengthen_a_file, TamperedFile),
    (swap_two_files, (TruncatedFile, TamperedFile)),
    (swap_two_files_of_one_size, IndexMismatch),
    (mix_in_a_file_of_the_older_version, IndexMismatch),
    (put_a_foreign_file_in_place, IndexMismatch),
    (put_a_link_in_place, IndexMismatch),
    (put_a_pipe_in_place, IndexMismatch),
    (put_the_plaintext_in_place, CloisterError),
    (link_the_index, IndexMismatch),
    (remove_the_signature, IndexMismatch),
    (use_the_stranger_s_directory, IndexMismatch),
    (use_the_older_signature, IndexMismatch),
    (roll_the_whole_tree_back, IndexMismatch),
    (rename_a_path_in_the_index, IndexMismatch),
    (claim_another_size, IndexMismatch),
    (rename_the_key_in_a_header, CloisterError),
    (wrap_a_key_of_the_host, TamperedFile),
    (forge_with_the_real_key, IndexMismatch),
]


@pytest.mark.parametrize(("attack", "error"), ATTACKS, ids=[attack.__name__ for attack, _ in ATTACKS])
def test_a_host_cannot_make_a_reader_accept_anything_else(
    scene: Scene, attack: Callable[[Scene], None], error: type[CloisterError]
) -> None:
    attack(scene)
    keys = Keys({URI: KEK, "kbs:///default/key/evilkey": OTHER_KEK, "kbs:///host/key/mine": OTHER_KEK})
    out = scene.place / "out"
    with pytest.raises(error) as refused:
        unseal_directory(
            scene.now, open_index(scene.now, signers=SIGNERS, minimum_version=2), keys, out, workers=2
        )
    assert not out.exists()
    assert len(str(refused.value).splitlines()) == 1


def test_a_file_altered_after_the_index_was_opened_is_refused(scene: Scene) -> None:
    index = open_index(scene.now, signers=SIGNERS)
    alter(scene.file("model.gguf"), HEADER_SIZE + SEGMENT_SIZE + 5)
    with pytest.raises(TamperedFile, match=r"segment 1 of model\.gguf"):
        unseal_to_memory(scene.now, index, "model.gguf", Keys())


def test_a_workload_with_another_key_gets_one_clear_line(scene: Scene) -> None:
    index = open_index(scene.now, signers=SIGNERS)
    with pytest.raises(WrongKey, match=r"the key at kbs:///default/key/medquad does not open model\.gguf"):
        unseal_to_memory(scene.now, index, "model.gguf", Keys({URI: OTHER_KEK}))


def test_the_measured_digest_tells_the_versions_apart(scene: Scene) -> None:
    digests = {scene.old_index.digest, scene.index.digest, scene.foreign_index.digest}
    assert len(digests) == 3


def test_the_index_gives_no_way_to_check_a_guess_of_the_plaintext(tmp_path: Path) -> None:
    """The same files sealed twice have different digests, so a digest confirms no guess."""
    _, one = sealed_folder(tmp_path, FILES)
    _, two = sealed_folder(tmp_path, FILES)
    for path in FILES:
        assert one.files[path].digest != two.files[path].digest
        assert one.files[path].id != two.files[path].id
