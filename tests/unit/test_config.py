"""Configuration: strict, layered, with the origin of every value."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.cadence import due, duration_steps
from trainer.config import config_digest, fixed_values, flat_config, load_config
from trainer.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_all_errors_come_at_once_with_file_line_and_suggestion(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "train:\n  epochs: ten\n  bach_size: 3\n\nesimator: {o_end: 3}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["lr=3", "train.drop_last=1"])
    text = str(caught.value)
    assert f"{path}:2: train.epochs" in text
    assert "got 'ten'" in text
    assert f"{path}:3: unknown key train.bach_size; did you mean train.batch_size" in text
    assert f"{path}:5: unknown key esimator; did you mean estimator" in text
    assert "command line: unknown key lr; did you mean optim.lr?" in text
    assert "command line: train.drop_last" in text


def test_cuda_graphs_need_a_compiled_step_and_are_no_part_of_the_digest() -> None:
    with pytest.raises(ConfigError, match=r"train.cuda_graphs=true replays compiled code: set train.compile=true"):
        load_config(None, ["train.cuda_graphs=true"])
    with pytest.raises(ConfigError, match=r"replay writes over the gradients of the micro-batch before"):
        load_config(None, ["train.cuda_graphs=true", "train.compile=true", "train.accumulation=2"])
    replayed, plain = (load_config(None, ["train.compile=true", f"train.cuda_graphs={on}"]) for on in ("true", "false"))
    assert config_digest(replayed) == config_digest(plain)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("estimator.options={x: [1]}", "estimator.options.x: input should be a valid boolean, or "),
        ("batchnorm.sync=none", "batchnorm.sync: input should be 'off' or 'world', or "),
        ("batchnorm.sync={images: 0}", "batchnorm.sync.images: input should be greater than or equal to 1 (got 0)"),
        ("augment.scale=[0.5, 0.1]", "augment.scale: must be the least and the largest, in this order"),
        ("augment.ratio=[2, 1]", "augment.ratio: must be the least and the largest, in this order"),
    ],
)
def test_one_mistake_is_one_error_under_its_own_key(override: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    told = str(caught.value)
    assert told.startswith("the configuration has an error: ")
    assert says in told
    assert "\n" not in told


def test_two_sizes_of_micro_batches_take_two_graphs_for_every_side() -> None:
    schedule = "data.image_size_schedule=[[0%, 96], [20%, 112], [40%, 128], [60%, 160], [80%, 224]]"
    common = [schedule, "train.compile=true", "train.batch_size=750", "train.accumulation="]
    load_config(None, [*common[:3], common[3] + "3"])
    with pytest.raises(ConfigError, match=r"in 4 micro-batches makes two sizes, and a compiler keeps 8 graphs"):
        load_config(None, [*common[:3], common[3] + "4"])


def test_a_child_overrides_its_parent_and_the_command_line_overrides_both(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path / "base.yaml", "seed: 1\ntrain: {epochs: 5, batch_size: 64}\n")
    child = write(tmp_path / "sub" / "child.yaml", "extends: ../base.yaml\ntrain: {epochs: 7}\n")
    config = load_config(child, ["train.batch_size=32", "train.batch_size=16"])
    assert (config.seed, config.train.epochs, config.train.batch_size) == (1, 7, 16)


def test_several_parents_are_taken_in_their_order(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "seed: 1\noptim: {lr: 0.5, momentum: 0.5}\n")
    write(tmp_path / "b.yaml", "optim: {momentum: 0.25}\n")
    config = load_config(write(tmp_path / "c.yaml", "extends: [a.yaml, b.yaml]\noptim: {weight_decay: 0}\n"))
    assert (config.seed, config.optim.lr, config.optim.momentum, config.optim.weight_decay) == (1, 0.5, 0.25, 0)


@pytest.mark.parametrize("parents", ["3", "{a: b}", "[a.yaml, 3]"])
def test_parents_that_are_no_paths_are_refused(tmp_path: Path, parents: str) -> None:
    write(tmp_path / "a.yaml", "seed: 1\n")
    with pytest.raises(ConfigError, match=r"c\.yaml:1: extends must be the path of a file, or a list"):
        load_config(write(tmp_path / "c.yaml", f"extends: {parents}\n"))


def test_numbers_and_words_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    config = load_config(write(tmp_path / "a.yaml", "optim: {lr: 5e-5, weight_decay: 0}\nbatchnorm: {sync: off}\n"))
    assert config.optim.lr == 5e-5
    assert config.optim.weight_decay == 0.0
    assert config.batchnorm.sync == "off"


@pytest.mark.parametrize("text", ["train: {epochs: true}", "train: {epochs: 1.5}", "seed: '3'", "train: {compile: 1}"])
def test_wrong_types_are_refused_not_converted(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError):
        load_config(write(tmp_path / "a.yaml", text))


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden"])
def test_a_run_name_cannot_leave_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"run\.name"):
        load_config(write(tmp_path / "a.yaml", f"run: {{name: '{name}'}}"))


def test_files_that_extend_each_other_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "extends: b.yaml")
    write(tmp_path / "b.yaml", "extends: a.yaml")
    with pytest.raises(ConfigError, match="extends itself"):
        load_config(tmp_path / "a.yaml")


@pytest.mark.parametrize("content", ["- a\n- b\n", "a: [1", "seed: 1\nseed: 2\n"])
def test_a_file_that_is_no_mapping_is_one_line(tmp_path: Path, content: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path / "a.yaml", content))
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_an_override_without_value_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no configuration file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"key\.path=value"):
        load_config(write(tmp_path / "a.yaml", ""), ["train.epochs"])


def test_the_resolved_configuration_reads_back_equal(tmp_path: Path) -> None:
    config = load_config(ROOT / "configs" / "quickstart.yaml", ["batchnorm.sync={images: 64}", "optim.lr=1e-7"])
    again = load_config(write(tmp_path / "resolved.yaml", config.to_yaml()))
    assert again == config
    assert config_digest(again) == config_digest(config)


def test_the_digest_ignores_what_may_change_and_nothing_else() -> None:
    path = ROOT / "configs" / "quickstart.yaml"
    base = config_digest(load_config(path))
    for harmless in (
        "run.name=x",
        "data.workers=7",
        "data.loader=torchvision",
        "tracking.enabled=false",
        "train.max_steps=3",
    ):
        assert config_digest(load_config(path, [harmless])) == base, harmless
    for telling in (
        "seed=1",
        "train.batch_size=31",
        "estimator.o_end=2",
        "augment.flip=true",
        "batchnorm.sync=off",
    ):
        assert config_digest(load_config(path, [telling])) != base, telling
    assert "train.batch_size" in fixed_values(load_config(path))


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_config_loads(path: Path) -> None:
    assert flat_config(load_config(path))["train.batch_size"] >= 1


@pytest.mark.parametrize(
    ("duration", "steps"),
    [("1ep", 45), ("0.5ep", 22), ("10", 10), ("0", 0), ("2%", 36), ("0.001ep", 1), ("0ep", 0)],
)
def test_durations_in_steps(duration: str, steps: int) -> None:
    # 40 epochs of 45 steps: 1800; half of 45 is 22.5 and rounds to even.
    assert duration_steps(duration, 45, 1800) == steps


@pytest.mark.parametrize("text", ["5 epochs", "-1", "1.5", "ep", "true"])
def test_a_duration_that_cannot_be_read_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="duration"):
        load_config(write(tmp_path / "a.yaml", f"optim: {{warmup: {text}}}"))


@pytest.mark.parametrize("value", ["1.0", "2.5", "-1", "soon", "true", "[1ep]"])
def test_a_moving_average_that_cannot_be_read_is_one_error(value: str) -> None:
    with pytest.raises(
        ConfigError, match=r"an error: .*train\.ema: must be a span as 1ep or 500 \(steps\), or a decay"
    ):
        load_config(None, [f"train.ema={value}"])


def test_due_is_every_nth_completed_step() -> None:
    assert [step for step in range(10) if due(step, 3)] == [3, 6, 9]
    assert not any(due(step, 0) for step in range(10))
