"""What a user can get wrong: an exit code, one line that names the fix, and nothing half-made left behind."""

from __future__ import annotations

import contextlib
import io
import shutil
from pathlib import Path

from spawn import run_ranks
from trainings import QUICK, SMALL, Life, reste, train_here


def refuse(code: int, *arguments: object, says: str, runs: Path | None = None) -> str:
    """Run, expect this exit code and one error line holding `says`, and no run folder."""
    done = reste(*arguments)
    assert done.returncode == code, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert says in done.stderr
    if runs is not None:
        assert not runs.exists() or not list(runs.iterdir()), "a run folder was left"
    return done.stderr


def train(digits: Path, runs: Path, *extra: str) -> list[str]:
    return ["train", str(QUICK), *SMALL, f"data.root={digits}", f"run.dir={runs}", "run.name=x", *extra]


WRONG_VALUES = {
    "data.root=nowhere": (3, "data root nowhere does not exist: set data.root"),
    "train.batch_size=1443": (2, "larger than the training set of 1442"),
    "model.name=resnet20_1w1b": (2, "did you mean resnet20_1w1a"),
    "estimator.name=rest": (2, "did you mean 'reste'"),
    "optim.name=sdg": (2, "optim.name='sdg'"),
    "train.epoch=3": (2, "did you mean train.epochs"),
    "train={batch_size: 131, accumulation: 2}": (2, "train.drop_last=true"),
    "model.init=nothing": (2, "no checkpoint"),
    "model.num_classes=3": (2, "leave it null"),
    "tracking={enabled: true, uri: file:/tmp/x}": (2, "sqlite:///"),
    "resume=nothing": (2, "no checkpoint"),
    "optim={schedule: reference, warmup: 20ep}": (2, "optim.warmup"),
    f"run.dir={QUICK}": (2, "is a file, not a folder"),
}


def collect(config: str, runs: list[list[str]]) -> list[tuple[int, str]]:
    """Exit code and standard error of each start, as a rank of its own; top level, for `run_ranks`."""
    found = []
    for overrides in runs:
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            code = train_here(config, overrides)[0]
        found.append((code, errors.getvalue()))
    return found


def test_a_wrong_value_is_refused_in_one_line_and_leaves_no_run(tmp_path: Path, digits: Path) -> None:
    commands = [train(digits, tmp_path / "runs", value)[2:] for value in WRONG_VALUES]
    [found] = run_ranks(collect, 1, str(QUICK), commands, timeout_s=200, join=False)
    for (value, (code, says)), (got, errors) in zip(WRONG_VALUES.items(), found, strict=True):
        assert got == code, (value, errors)
        lines = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, (value, errors)
        assert says in lines[0], value
        assert "Traceback" not in errors, value
    assert not list(tmp_path.glob("runs/*"))


def test_two_ranks_say_it_once(tmp_path: Path, digits: Path) -> None:
    command = train(digits, tmp_path / "runs", "model.name=resnet20_1w1b", "--nproc=2")
    refuse(2, *command, says="did you mean resnet20_1w1a", runs=tmp_path / "runs")


def test_ranks_with_different_configurations_are_named(tmp_path: Path, digits: Path) -> None:
    command = train(digits, tmp_path / "runs")[2:]
    codes = run_ranks(different, 2, str(QUICK), command, timeout_s=120, join=False)
    assert codes == [[2], [2]]
    assert not list(tmp_path.glob("runs/*"))


def different(config: str, overrides: list[str]) -> list[int]:
    import os

    return train_here(config, [*overrides, f"seed={os.environ['RANK']}"])


def test_a_damaged_image_is_named_at_run_time_with_file_sample_and_rank(tmp_path: Path, digits: Path) -> None:
    root = tmp_path / "digits"
    shutil.copytree(digits, root)
    for victim in sorted((root / "train" / "7").iterdir()):
        victim.write_bytes(victim.read_bytes()[:200])
    done = reste(*train(root, tmp_path / "runs", "--nproc=2"))
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    line = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert str(root / "train" / "7") in line
    assert "sample" in line
    assert "rank" in line
    status = (tmp_path / "runs" / "x" / "status.json").read_text()
    assert '"failed"' in status
    assert '"exit_code": 3' in status


def test_a_run_folder_in_use_and_another_models_checkpoint(tmp_path: Path, digits: Path) -> None:
    runs = tmp_path / "runs"
    with Life(*train(digits, runs, "checkpoint.every=2")[1:], log=tmp_path / "log") as life:
        life.wait_for_step(runs / "x" / "journal.jsonl", 5)
        refuse(2, *train(digits, runs), says="in use by another process")
    assert '"running"' in (runs / "x" / "status.json").read_text()
    refuse(2, *train(digits, runs, "optim.lr=0.2"), says="optim.lr: 0.1 -> 0.2")
    other = ("run.name=y", f"model.init={runs / 'x'}", "model.name=resnet20_bireal_1w1a")
    refuse(
        2, *train(digits, runs, *other, "model.activation_bits=32", "model.name=vgg_small_1w1a"), says="another model"
    )
    assert not (runs / "y").exists()
    bad = reste("evaluate", runs / "x", "--data", tmp_path)
    assert bad.returncode == 3
    assert "reste prepare folder" in bad.stderr


def test_prepare_refuses_and_leaves_nothing(tmp_path: Path, digits: Path) -> None:
    root = tmp_path / "tree"
    shutil.copytree(digits, root)
    shutil.rmtree(root / "index")
    victim = sorted((root / "train" / "3").iterdir())[5]
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])
    refuse(3, "prepare", "folder", root, says=str(victim))
    assert not (root / "index").exists()
    victim.write_bytes(whole)
    (root / "train" / "10").mkdir()
    refuse(3, "prepare", "folder", root, says="10")
    (root / "train" / "10").rmdir()
    shutil.rmtree(root / "val" / "4")
    refuse(3, "prepare", "folder", root, says="4")
    refuse(3, "prepare", "folder", tmp_path / "absent", says="absent")


def test_an_unknown_summary_model_offers_the_nearest() -> None:
    refuse(2, "summary", "resnet18_1w1", says="resnet18_1w1a")
