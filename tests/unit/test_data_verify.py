"""`reste prepare verify` names what is not as it was prepared, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from image_tree import make_tree, photo, save_jpeg, store_in_both_forms
from imagenet_sources import every_form
from typer.testing import CliRunner

from trainer.data.index import Index, load_index
from trainer.data.prepare.verify import verify
from trainer.data.storage import shard_path

VICTIM = 5


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("verify")
    source = make_tree(folder / "source", train=12, val=3, size=(60, 50))
    return store_in_both_forms(folder, source, shard_bytes=12_000)


@pytest.fixture
def roots(made: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    return {form: Path(shutil.copytree(root, tmp_path / form)) for form, root in made.items()}


def place(root: Path) -> tuple[Index, Path, int, int]:
    """Index, file, first byte and length of the victim."""
    index = load_index(root, "train")
    length = int(index.bytes[VICTIM])
    if index.places is None:
        return index, root / index.paths[VICTIM], 0, length
    return index, shard_path(root, "train", int(index.places.shards[VICTIM])), int(index.places.offsets[VICTIM]), length


def write(file: Path, at: int, content: bytes) -> None:
    with open(file, "r+b") as opened:
        opened.seek(at)
        opened.write(content)


@every_form
def test_what_is_whole_has_no_damage(form: str, roots: dict[str, Path]) -> None:
    root = roots[form]
    steps: list[tuple[int, int]] = []
    verdict = verify(root, workers=2, progress=lambda done, total: steps.append((done, total)))
    indexes = [load_index(root, split) for split in ("train", "val")]
    assert verdict.damaged == []
    assert (verdict.images, verdict.bytes) == (15, sum(int(index.bytes.sum()) for index in indexes))
    assert steps == [(n, 15) for n in range(1, 16)]


@every_form
@pytest.mark.parametrize("at", [2, 200, -1])
def test_every_changed_byte_of_an_image_is_noticed(form: str, at: int, roots: dict[str, Path]) -> None:
    index, file, start, length = place(roots[form])
    byte = start + at % length
    write(file, byte, bytes([file.read_bytes()[byte] ^ 4]))
    [damage] = verify(roots[form], workers=1).damaged
    assert damage.file == str(file)
    assert "its content changed since it was indexed" in damage.what
    if form == "shards":
        assert (damage.byte, damage.image) == (start, index.paths[VICTIM])
        assert str(damage).startswith(f"{file}, byte {start} ({index.paths[VICTIM]}): ")


def test_files_that_are_gone_longer_or_another_image_are_named(roots: dict[str, Path]) -> None:
    root = roots["folder"]
    index = load_index(root, "train")
    files = [root / index.paths[sample] for sample in (1, 4, 7)]
    files[0].unlink()
    os.truncate(files[1], 1 << 40)  # sparse: a terabyte that nobody has the memory for
    save_jpeg(photo(3, size=(60, 50)), files[2])
    found = {damage.file: damage.what for damage in verify(root).damaged}
    assert list(found) == [str(file) for file in files]
    assert found[str(files[0])] == "No such file or directory"
    assert found[str(files[1])] == f"it has {1 << 40} bytes, {index.bytes[4]} when it was indexed"


def test_headers_fillings_and_end_marks_of_tar_files_are_looked_at(roots: dict[str, Path]) -> None:
    root = roots["shards"]
    index, file, start, length = place(root)
    write(file, start - 512, b"X")
    filling = -(-(start + length) // 512) * 512 - 1
    write(file, filling, b"X")
    write(file, file.stat().st_size - 700, b"X")
    found = verify(root).damaged
    assert {damage.file for damage in found} == {str(file)}
    assert [(damage.byte, damage.what) for damage in found[1:]] == [
        (start - 512, "the header is damaged"),
        (start + length, "what fills up the last block is damaged"),
    ]
    assert found[0].what == "the end mark is damaged"
    assert index.paths[VICTIM] == found[1].image


@pytest.mark.parametrize("change", [lambda file: file.unlink(), lambda file: os.truncate(file, 700)])
def test_a_tar_file_that_is_gone_or_cut_is_named(change: Callable[[Path], None], roots: dict[str, Path]) -> None:
    _, file, _, _ = place(roots["shards"])
    change(file)
    found = verify(roots["shards"]).damaged
    assert {damage.file for damage in found} == {str(file)}


@pytest.mark.parametrize("name", ["train.npz", "val.places.npz", "index.json"])
def test_a_damaged_file_of_the_index_is_named_and_the_other_split_looked_at(name: str, roots: dict[str, Path]) -> None:
    file = roots["shards"] / "index" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    verdict = verify(roots["shards"])
    assert [damage.file for damage in verdict.damaged] == [str(file)]
    assert verdict.images == {"train.npz": 3, "val.places.npz": 12, "index.json": 0}[name]


def test_the_command_says_it_in_words_and_in_json(roots: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    from launch.cli import app

    root = roots["folder"]
    index, file, _, _ = place(root)
    run = CliRunner()
    good = run.invoke(app, ["prepare", "verify", str(root), "--json"])
    assert (good.exit_code, json.loads(good.stdout)["damaged"]) == (0, [])
    file.write_bytes(b"")
    bad = run.invoke(app, ["prepare", "verify", str(root), "--json"])
    what = f"it has 0 bytes, {index.bytes[VICTIM]} when it was indexed"
    assert json.loads(bad.stdout)["damaged"] == [{"file": str(file), "what": what, "byte": None, "image": None}]
    short = run.invoke(app, ["prepare", "--verify", str(root)])
    assert f"{file}: {what}" in short.stdout
    for result in (bad, short):
        assert result.exit_code != 0
        assert getattr(result.exception, "exit_code", None) == 3
        assert f"1 places of {root}" in str(result.exception)
