"""`reste slurm` with the cases of a study: each task of the array trains what `reste study runs` would train there."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from trainings import QUICK

from launch.batch import render
from launch.batch_options import load_options
from trainer.config import flat_config, load_config
from trainer.errors import ConfigError
from trainer.study.cases import Sweep, parse_case, plan_cases

CASES = ["plain:", "wild: optim.lr=0.2 'run={dir: \"it is $HOME; exit 3\"}'", "steep: estimator.o_end=5"]


@pytest.fixture(autouse=True)
def _no_site_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("")
    monkeypatch.setenv("RESTE_SLURM_SITE", str(tmp_path / "empty.yaml"))


def given(folder: Path) -> list[str]:
    return [f"run.dir={folder}/some runs", "train.epochs=2"]


def script(folder: Path, *cases: str, seeds: int = 2, more: tuple[str, ...] = (), **options: object) -> str:
    asked = load_options({"gpus_per_node": 0, "ranks_per_node": 1} | options, None)
    return render(QUICK, [*given(folder), *more], asked, cases=cases, seeds=seeds)


def sweep(folder: Path) -> Sweep:
    return plan_cases(QUICK, given(folder), [parse_case(case) for case in CASES], 2, None)


def told_to_train(text: str, task: int) -> tuple[str, list[str]]:
    """RUN and the words behind `-m trainer`, as bash has them on another node: only what is passed on is known."""
    place = text[text.index("case $SLURM_ARRAY_TASK_ID") : text.index("REQUEUES=")]
    agent = text[text.index("agent() {") : text.index("newest()")]
    passed = text[text.index("declare -p ") : text.index(" PORT;")]
    node = f'{passed}; declare -f agent torchrun; echo agent; echo \'printf "%s\\n" "$RUN"\''
    shell = (
        f'torchrun() {{ printf "%s\\n" "$@"; }}\n{place}{agent}\nenv -i SLURM_ARRAY_TASK_ID={task} bash -c "$({node})"'
    )
    done = subprocess.run(
        ["bash", "-c", shell], env={"SLURM_ARRAY_TASK_ID": str(task), "PATH": "/bin:/usr/bin"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    return lines[-1], lines[lines.index("trainer") + 1 : -1]


def test_every_task_trains_its_run_of_the_study(tmp_path: Path) -> None:
    text = script(tmp_path, *CASES)
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    assert "#SBATCH --array=0-5\n" in text
    plan = sweep(tmp_path)
    for task, point in enumerate(plan.points):
        run, (path, *overrides) = told_to_train(text, task)
        assert Path(run) == plan.folder(point)
        config = load_config(path, overrides)
        assert config.run_dir == plan.folder(point)
        assert flat_config(config) == flat_config(plan.configuration(point))


def test_a_task_that_the_study_does_not_have_ends_before_it_touches_anything(tmp_path: Path) -> None:
    text = script(tmp_path, *CASES)
    for number in ("6", ""):
        environment = {"SLURM_ARRAY_TASK_ID": number, "PATH": "/bin:/usr/bin"}
        done = subprocess.run(["bash"], input=text, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stderr == "the tasks are 0-5: give --array\n"
    assert [path.name for path in tmp_path.iterdir()] == ["empty.yaml"]


def test_finished_runs_are_no_tasks_and_a_finished_study_is_no_job(tmp_path: Path) -> None:
    plan = sweep(tmp_path)
    for point in plan.points:
        folder = plan.folder(point)
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(plan.configuration(point).to_yaml())
        if point.name not in ("plain-seed1235", "steep-seed1234"):
            (folder / "result.json").write_text("{}")
    assert "#SBATCH --array=1,4\n" in script(tmp_path, *CASES)
    assert "#SBATCH --array=0-3%2\n" in script(tmp_path, *CASES, array="0-3%2")
    for point in plan.points:
        (plan.folder(point) / "result.json").write_text("{}")
    with pytest.raises(ConfigError, match="are finished"):
        script(tmp_path, *CASES)


@pytest.mark.parametrize(
    ("cases", "options", "says"),
    [
        (("plain:",), {"array": "0-4"}, "the tasks of this study are 0-1"),
        (("plain: optim.lr=%a",), {}, "without --case"),
        ((), {}, "--seeds is for the cases"),
        (("plain: optim.lr",), {}, "write 'NAME: key=value"),
        (("plain: tracking.experiment=x",), {}, "is the study's to set"),
        (("plain: 'model.init=https://a:b@c/d'",), {}, "holds a password"),
        (("plain: 'model.init=a\nb'",), {}, "control character"),
    ],
)
def test_what_makes_no_array_is_refused_in_one_line(
    tmp_path: Path, cases: tuple[str, ...], options: dict[str, object], says: str
) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        script(tmp_path, *cases, **options)
    assert "\n" not in str(caught.value)
