"""What a configuration of several stages comes to, and what is refused before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainer.checkpoints import best, mark_best, named, resolve
from trainer.config import config_digest, load_config
from trainer.errors import ConfigError
from trainer.failures import note_failure
from trainer.staged import is_finished, rehearse
from trainer.stages import Training, begun_stages, load_training
from trainer.tracking.staging import run_label
from trainer.tracking.status import read_status, write_status

DIGITS = Path(__file__).resolve().parents[2] / "configs" / "digits_two_stage.yaml"


def training(tmp_path: Path, stages: str, *overrides: str) -> Training:
    path = tmp_path / "config.yaml"
    path.write_text(f"model: {{name: resnet20_1w1a}}\nrun: {{name: whole, dir: there}}\nstages:\n{stages}")
    return load_training(path, list(overrides))


def test_every_stage_is_a_run_of_its_own_below_the_whole() -> None:
    found = load_training(DIGITS, ["run.dir=there"])
    assert [stage.name for stage in found.stages] == ["real_weights", "binary"]
    first, second = (stage.config for stage in found.stages)
    assert (first.run_dir, second.run_dir) == tuple(
        Path("there/digits_two_stage") / name for name in ("real_weights", "binary")
    )
    assert (first.model.weight_bits, first.model.init, first.distill.teacher) == (32, None, None)
    assert (second.model.weight_bits, second.model.init, second.model.transfer) == (1, "stage:real_weights", "copy")
    assert second.distill.teacher == "stage:real_weights"
    assert (first.stages, second.stages) == ((), ())
    # The store of MLflow is the one that a run of this name would have.
    assert first.tracking.uri == second.tracking.uri == f"sqlite:///{Path('there').resolve() / 'mlflow.db'}"


def test_a_stage_wins_over_the_file_and_the_command_line_over_every_stage(tmp_path: Path) -> None:
    stages = "  - {name: a, set: {train.epochs: 7, optim: {lr: 0.3}}}\n  - {name: b}\n"
    first, second = training(tmp_path, stages).stages
    assert (first.config.train.epochs, first.config.optim.lr) == (7, 0.3)
    assert (second.config.train.epochs, second.config.optim.lr) == (250, 0.1)
    for stage in training(tmp_path, stages, "train.epochs=9").stages:
        assert stage.config.train.epochs == 9


def test_a_share_of_the_epochs_follows_the_whole_wherever_its_length_is_said(tmp_path: Path) -> None:
    stages = "  - {name: a, share: 0.3}\n  - {name: b, share: 0.7}\n  - {name: c, share: 0.001}\n"
    lengths = [stage.config.train.epochs for stage in training(tmp_path, stages, "train.epochs=20").stages]
    assert lengths == [6, 14, 1]
    with pytest.raises(ConfigError, match="share"):
        training(tmp_path, "  - {name: a, share: 1.5}\n")


def test_a_stage_without_transfer_starts_anew_and_only_the_last_registers(tmp_path: Path) -> None:
    stages = "  - {name: a}\n  - {name: b, transfer: null}\n  - {name: c, start: last}\n"
    found = training(tmp_path, stages, "registry.name=net").stages
    assert [stage.config.model.init for stage in found] == [None, None, "stage:b"]
    assert [stage.config.model.init_at for stage in found] == ["best", "best", "last"]
    assert [stage.config.registry.name for stage in found] == [None, None, "net"]


def test_where_a_training_lies_does_not_change_what_its_stages_compute() -> None:
    here, there = (load_training(DIGITS, [f"run.dir={name}", f"run.name={name}"]).stages for name in ("a", "b"))
    assert [config_digest(s.config) for s in here] == [config_digest(s.config) for s in there]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("  - {name: a}\n  - {name: a}\n", "two stages a"),
        ("  - {name: a, teacher: b}\n  - {name: b}\n", "no earlier stage"),
        ("  - {name: checkpoints}\n", "every run has"),
        ("  - {name: a, set: {run.name: x}}\n", "the whole training's"),
        ("  - {name: a, set: {train.epoch: 3}}\n", "stage a: .*unknown key train.epoch; did you mean train.epochs"),
        ("  - {name: a, set: {train.epochs: many}}\n", "stage a: .*train.epochs"),
        ("  - {name: a, sets: {}}\n", "unknown key"),
    ],
)
def test_what_is_wrong_with_a_stage_is_said_in_one_line(tmp_path: Path, stages: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        training(tmp_path, stages)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (
            "  - {name: a}\n  - {name: b, set: {model.name: vgg_small_1w1a}}\n",
            "stage b: .*no place",
        ),
        ("  - {name: a}\n  - {name: b, transfer: magic}\n", "stage b: model.transfer='magic'.*copy"),
        ("  - {name: a}\n  - {name: b, set: {estimator.name: odd}}\n", "stage b: estimator.name"),
    ],
)
def test_a_stage_that_cannot_follow_is_found_before_the_first_is_trained(
    tmp_path: Path, stages: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        rehearse(training(tmp_path, stages))
    rehearse(load_training(DIGITS, []))


def test_a_stage_is_finished_at_its_end_wherever_that_has_moved(tmp_path: Path) -> None:
    def finished(steps: int, *overrides: str) -> bool:
        [stage] = training(tmp_path, "  - {name: a}\n", f"run.dir={tmp_path}", "train.epochs=2", *overrides).stages
        stage.config.run_dir.mkdir(parents=True, exist_ok=True)
        result = {"steps": steps, "steps_per_epoch": 10}
        (stage.config.run_dir / "result.json").write_text(json.dumps(result))
        return is_finished(stage)

    assert [finished(19), finished(20), finished(4, "train.max_steps=4")] == [False, True, True]
    assert not finished(4, "train.max_steps=8")
    (tmp_path / "whole" / "a" / "result.json").write_text("{")
    [stage] = training(tmp_path, "  - {name: a}\n", f"run.dir={tmp_path}").stages
    assert not is_finished(stage)


def folder_of_two(tmp_path: Path) -> Path:
    whole = tmp_path / "whole"
    for name in ("a", "b"):
        (whole / name).mkdir(parents=True)
        (whole / name / "config.yaml").write_text("")
    (whole / "stages.json").write_text('{"stages": ["a", "b", "c"]}')
    return whole


def test_what_a_stage_says_of_itself_is_said_of_the_whole_but_for_its_end(tmp_path: Path) -> None:
    whole = folder_of_two(tmp_path)
    facts = {"step": 3, "total_steps": 8, "epoch": 1}
    write_status(whole / "a", "running", checkpoint="checkpoints/step_00000003", **facts)
    status = read_status(whole)
    assert status is not None
    assert (status.stage, status.state, status.step) == ("a", "running", 3)
    assert status.checkpoint == "a/checkpoints/step_00000003"

    write_status(whole / "a", "finished", exit_code=0, **facts)
    own, above = read_status(whole / "a"), read_status(whole)
    assert own is not None
    assert above is not None
    assert (own.state, own.exit_code, above.state, above.exit_code) == ("finished", 0, "running", None)

    write_status(whole / "b", "stopped", exit_code=85, **facts)
    above = read_status(whole)
    assert above is not None
    assert (above.stage, above.state, above.exit_code) == ("b", "stopped", 85)

    write_status(whole / "b", "running", **facts)
    note_failure(whole, 1, "rank 0 was killed")
    above = read_status(whole)
    assert above is not None
    assert (above.stage, above.state, above.error) == ("b", "failed", "rank 0 was killed")


def test_a_run_beside_others_is_no_stage(tmp_path: Path) -> None:
    whole = folder_of_two(tmp_path)
    (whole / "other").mkdir()
    write_status(whole / "other", "running", step=1, total_steps=2, epoch=1)
    assert read_status(whole) is None
    assert (run_label(whole / "other"), run_label(whole / "a")) == ("other", "whole/a")
    assert begun_stages(whole) == [whole / "a", whole / "b"]
    assert begun_stages(whole / "a") == [whole / "a"]


def test_the_folder_of_the_whole_means_the_newest_stage(tmp_path: Path) -> None:
    whole = folder_of_two(tmp_path)
    checkpoints = whole / "b" / "checkpoints"
    for step in (1, 2):
        folder = checkpoints / f"step_{step:08d}"
        folder.mkdir(parents=True)
        for name in ("manifest.json", "model.pt"):
            (folder / name).touch()
    mark_best(checkpoints, checkpoints / "step_00000001")
    (whole / "checkpoints").symlink_to("b/checkpoints")
    assert resolve(whole) == best(checkpoints) == (checkpoints / "step_00000001").resolve()
    assert named("stage:b", whole / "c") == whole / "b"
    assert named("runs/x", whole / "c") == Path("runs/x")


def test_an_ordinary_configuration_has_no_stages() -> None:
    found = load_training(DIGITS.with_name("quickstart.yaml"), [])
    assert found.stages == ()
    assert found.config == load_config(DIGITS.with_name("quickstart.yaml"))
