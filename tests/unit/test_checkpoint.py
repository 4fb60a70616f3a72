"""Checkpoints: whole or not there, verified, never executed."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer import checkpoint, checkpoints
from trainer.errors import ConfigError


def progress(step: int, **changes: Any) -> checkpoint.Progress:
    values: dict[str, Any] = {
        "step": step,
        "samples_seen": 10 * step,
        "seconds": 1.5,
        "last": {"val/top1": 50.0},
        "best": {"val/top1": 50.0},
        "best_step": step,
        "journal_offset": 7,
        "meters": [0.1, 1 / 3, 0.0, 2.0],
    }
    return checkpoint.Progress(**(values | changes))


def save(folder: Path, step: int, **changes: Any) -> Path:
    payload = {"w": torch.arange(4.0) + step}
    return checkpoint.save(
        folder, {"model": payload}, progress=progress(step, **changes), config_yaml="seed: 1\n", about={"world_size": 2}
    )


def test_what_was_saved_comes_back_exactly(tmp_path: Path) -> None:
    path = save(tmp_path, 12)
    assert path == tmp_path / "step_00000012"
    assert torch.equal(checkpoint.load_payload(path, "model")["w"], torch.arange(4.0) + 12)
    manifest = checkpoint.read_manifest(path)
    assert checkpoint.Progress(**manifest["progress"]) == progress(12)
    assert manifest["world_size"] == 2
    assert checkpoint.problems(path) == []


def test_a_checkpoint_whose_evaluation_was_cut_short_is_replaced_once_it_is_made(tmp_path: Path) -> None:
    def due(path: Path) -> bool:
        return bool(checkpoint.read_manifest(path)["progress"]["evaluation_due"])

    cut = save(tmp_path, 12, evaluation_due=True)
    assert due(cut)
    made = save(tmp_path, 12, best_step=11)
    assert made == cut
    assert not due(made)
    assert save(tmp_path, 12, best_step=10) == made
    assert checkpoint.read_manifest(made)["progress"]["best_step"] == 11, "a whole one is left as it is"
    assert [path.name for path in tmp_path.iterdir()] == [made.name]


@pytest.mark.parametrize("name", ["model.pt", "config.yaml"])
def test_one_flipped_bit_is_found_and_passed_over(tmp_path: Path, name: str) -> None:
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    file = newer / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert "damaged" in checkpoint.problems(newer)[0]
    assert checkpoints.newest_valid(tmp_path) == older


def test_a_checkpoint_without_manifest_or_with_a_missing_file_does_not_count(tmp_path: Path) -> None:
    older, newer, newest = save(tmp_path, 1), save(tmp_path, 2), save(tmp_path, 3)
    (newest / "manifest.json").unlink()
    (newer / "model.pt").unlink()
    assert checkpoints.newest_valid(tmp_path) == older
    assert save(tmp_path, 2) == newer
    assert checkpoints.newest_valid(tmp_path) == newer


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20):
        path = save(tmp_path, step)
        if step == 5:
            checkpoints.mark_best(tmp_path, path)
        checkpoints.prune(tmp_path, 2)
    assert [p.name for p in checkpoints.steps(tmp_path)] == ["step_00000005", "step_00000015", "step_00000020"]
    assert checkpoints.resolve(tmp_path).name == "step_00000005"


def test_going_back_keeps_later_checkpoints_aside(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        checkpoints.mark_best(tmp_path, save(tmp_path, step))
    checkpoints.set_aside(tmp_path, progress(10, best_step=5))
    assert [p.name for p in checkpoints.steps(tmp_path)] == ["step_00000005", "step_00000010"]
    assert (tmp_path / "best").resolve().name == "step_00000005"
    assert checkpoint.problems(tmp_path / "set_aside" / "step_00000015") == []


def test_a_full_disk_leaves_no_stump(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=256k tmpfs {disk} 2>/dev/null") != 0:
        pytest.skip("no tmpfs can be mounted here")
    try:
        kept = save(disk, 1)
        with pytest.raises(OSError, match="cannot save"):
            checkpoint.save(disk, {"model": torch.zeros(200_000)}, progress=progress(2), config_yaml="", about={})
        assert [p for p in disk.iterdir() if p != kept] == []
        assert checkpoints.newest_valid(disk) == kept
    finally:
        os.system(f"umount {disk}")


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch trapped",)


def test_a_pickle_is_never_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path, 1)
    (path / "model.pt").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ConfigError, match="cannot be loaded as tensors alone"):
        checkpoint.load_payload(path, "model")
    torch.save({"a": Trap()}, path / "model.pt")
    with pytest.raises(ConfigError, match="cannot be loaded as tensors alone"):
        checkpoint.load_payload(path, "model")
    assert not (tmp_path / "trapped").exists()


def test_a_manifest_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["../../etc/passwd"] = {"sha256": "", "bytes": 0}
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert not checkpoint.is_valid(path)


def seal(manifest: dict[str, Any]) -> str:
    """A manifest as a forger who knows the form would write it."""
    digest = hashlib.sha256(json.dumps(manifest).encode()).hexdigest()
    return json.dumps(manifest | {"seal": digest}, indent=1) + "\n"


def forge(path: Path, **changes: Any) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    manifest.pop("seal", None)
    (path / "manifest.json").write_text(seal(manifest | changes))


def test_a_forged_manifest_is_damaged_and_no_traceback(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    whole = (path / "manifest.json").read_text()
    forge(path)
    assert (path / "manifest.json").read_text() == whole, "the form is what this test takes it to be"
    progress = json.loads(whole)["progress"]
    wrong: list[dict[str, Any]] = [
        {"files": {"../../etc/passwd": {"sha256": "", "bytes": 0}}},
        {"files": {"model.pt": {"sha256": 1}}},
        {"files": []},
        {"progress": {"step": 1}},
        {"progress": progress | {"step": "1"}},
        {"progress": progress | {"new": 1}},
    ]
    for change in wrong:
        (path / "manifest.json").write_text(whole)
        forge(path, **change)
        [problem] = checkpoint.problems(path)
        assert "\n" not in problem
    (path / "manifest.json").write_text("[" * 100_000)
    assert "damaged" in checkpoint.problems(path)[0]


def test_a_checkpoint_under_another_steps_name_does_not_count(tmp_path: Path) -> None:
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    newer.rename(tmp_path / "step_00000003")
    assert checkpoints.newest_valid(tmp_path) == older
    older.rename(tmp_path / "kept")
    assert checkpoint.problems(tmp_path / "kept") == [], "a copy may have any other name"


def test_checkpoints_of_another_version_are_refused_and_not_passed_over(tmp_path: Path) -> None:
    older, old = save(tmp_path, 1), save(tmp_path, 2)
    for path in (old, older):
        manifest = json.loads((path / "manifest.json").read_text())
        del manifest["seal"]
        (path / "manifest.json").write_text(json.dumps(manifest | {"format": 1}))
    with pytest.raises(ConfigError, match="step_00000002 is a checkpoint of another format"):
        checkpoints.take_up(tmp_path)
    newest = save(tmp_path, 3)
    assert checkpoints.take_up(tmp_path) == newest
    assert checkpoints.steps(tmp_path) == [older, old, newest]


def test_damaged_checkpoints_do_not_push_out_the_good_ones_of_a_new_beginning(tmp_path: Path) -> None:
    for step in (10, 20):
        (save(tmp_path, step) / "model.pt").unlink()
    assert checkpoints.take_up(tmp_path) is None
    assert checkpoints.steps(tmp_path) == []
    assert len(list((tmp_path / "set_aside").iterdir())) == 2
    for step in (1, 2, 3):
        save(tmp_path, step)
        checkpoints.prune(tmp_path, 2)
    assert [path.name for path in checkpoints.steps(tmp_path)] == ["step_00000002", "step_00000003"]


def test_the_stumps_of_killed_writers_are_cleared_away(tmp_path: Path) -> None:
    kept = save(tmp_path, 1)
    stump = tmp_path / ".step_00000002.tmp"
    stump.mkdir()
    (stump / "model.pt").write_bytes(b"half")
    assert checkpoints.take_up(tmp_path) == kept
    assert [path.name for path in tmp_path.iterdir()] == [kept.name]


def test_what_gets_its_name_is_on_the_disk_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real calls, watched: a power cut after the rename must find files and entries that were waited for."""
    synced: dict[int, tuple[int, int]] = {}
    renames: list[str] = []
    fsync, rename = os.fsync, os.rename

    def state(path: Path | int) -> tuple[int, tuple[int, int]]:
        found = os.stat(path)
        return found.st_ino, (found.st_size, found.st_mtime_ns)

    def watched_fsync(descriptor: int) -> None:
        fsync(descriptor)
        inode, now = state(descriptor)
        synced[inode] = now

    def watched_rename(source: Path, target: Path, **options: Any) -> None:
        for path in (Path(source), *Path(source).iterdir()):
            inode, now = state(path)
            assert synced.get(inode) == now, f"{path} was renamed before it was on the disk"
        renames.append(Path(source).name)
        rename(source, target, **options)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "rename", watched_rename)
    save(tmp_path, 1)
    assert renames == [".step_00000001.tmp"]
    inode, now = state(tmp_path)
    assert synced[inode] == now, "and the new name, too, is on the disk"


@pytest.mark.parametrize("content", ["", "[]", '{"format": 99}', "3", '{"format": 2}'])
def test_what_is_no_manifest_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ConfigError) as caught:
        checkpoint.read_manifest(tmp_path)
    assert "\n" not in str(caught.value)
