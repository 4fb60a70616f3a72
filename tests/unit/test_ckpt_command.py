"""`reste ckpt list` and `reste ckpt verify` tell of each checkpoint what is so, and change nothing."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from launch.checkpoints import print_list, print_verified
from trainer import checkpoint, checkpoints
from trainer.errors import ConfigError, DataError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "digits" / "checkpoints"
    for step, top1 in ((30, None), (60, 71.5), (90, 70.25)):
        last = {} if top1 is None else {"val/top1": top1, "val/loss": 1.0}
        path = checkpoint.save(
            folder,
            {"model": {"w": torch.zeros(100_000)}},
            progress=checkpoint.Progress(step, 0, 0.0, last, {}, 60, 0, []),
            config_yaml="seed: 1\n",
            about={"steps_per_epoch": 60},
        )
        if step == 60:
            checkpoints.mark_best(folder, path)
    return tmp_path / "digits"


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 8
    file.write_bytes(content)


def snapshot(run: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.lstat().st_mtime_ns) for path in run.rglob("*"))


def test_the_list_has_what_a_run_knew_when_it_saved(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_list(run, as_json=True)
    entries = json.loads(capsys.readouterr().out)
    assert [(e["step"], e["epoch"], e["top1"], e["best"], e["problems"]) for e in entries] == [
        (30, 0.5, None, False, []),
        (60, 1.0, 71.5, True, []),
        (90, 1.5, 70.25, False, []),
    ]
    for entry in entries:
        assert entry["bytes"] == sum(file.stat().st_size for file in Path(entry["path"]).iterdir())
        assert 0 <= time.time() - entry["time"] < 600
    print_list(run / "checkpoints", as_json=False)
    shown = capsys.readouterr().out
    assert "71.50" in shown
    assert shown.count("whole") == 3
    assert shown.count("best") == 1


def test_the_list_shows_what_is_wrong(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(run / "checkpoints" / "step_00000090" / "manifest.json")
    (run / "checkpoints" / "step_00000030" / "manifest.json").unlink()
    before = snapshot(run)
    print_list(run, as_json=True)
    entries = json.loads(capsys.readouterr().out)
    assert [entry["step"] for entry in entries] == [30, 60, 90]
    assert "is no checkpoint" in entries[0]["problems"][0]
    assert entries[1]["problems"] == []
    assert "manifest.json is damaged" in entries[2]["problems"][0]
    assert snapshot(run) == before


def test_verify_says_nothing_is_wrong_and_reads_links_and_copies_too(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "manifest.json").write_text("{}")  # a run folder has one of another kind
    print_verified([run, run / "checkpoints" / "best"], as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("whole") for line in lines)
    assert lines[-1].endswith("step_00000060")
    (run / "checkpoints" / "step_00000060").rename(run.parent / "kept")
    print_verified([run.parent / "kept"], as_json=True)
    assert json.loads(capsys.readouterr().out) == [{"path": str(run.parent / "kept"), "problems": []}]


def test_verify_names_every_damaged_file_and_what_a_start_would_take(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = run / "checkpoints" / "step_00000090"
    flip(newest / "model.pt")
    (newest / "config.yaml").unlink()
    before = snapshot(run)
    with pytest.raises(DataError, match=r"^1 of 3 damaged: ") as caught:
        print_verified([run], as_json=False)
    assert caught.value.exit_code == 3
    shown = capsys.readouterr().out
    assert f"DAMAGED  {newest}" in shown
    assert f"{newest / 'model.pt'} is damaged" in shown
    assert f"{newest / 'config.yaml'} is missing" in shown
    assert "a start of its run goes on from step_00000060" in shown
    assert snapshot(run) == before
    for step in (30, 60):
        flip(run / "checkpoints" / f"step_{step:08d}" / "model.pt")
    with pytest.raises(DataError, match=r"^1 of 1 damaged: "):
        print_verified([newest], as_json=False)
    assert "a start of its run begins anew" in capsys.readouterr().out


def test_a_place_without_checkpoints_is_one_line(tmp_path: Path) -> None:
    for command in (lambda: print_list(tmp_path, as_json=False), lambda: print_verified([tmp_path], as_json=False)):
        with pytest.raises(ConfigError, match="holds no checkpoint: name a run folder"):
            command()
