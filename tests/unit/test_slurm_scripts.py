"""`reste slurm render`: ready scripts are what it prints, wrong input is one line, the shell reads words as given."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from launch.batch import render
from launch.batch_cli import job
from launch.batch_options import BatchOptions, array_tasks, load_options, seconds
from launch.cli import app
from trainer.config import load_config
from trainer.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent.parent
READY = sorted(path for path in (ROOT / "launch" / "slurm").glob("*.sh") if path.name != "template.sh")
QUICK = ROOT / "configs" / "quickstart.yaml"
CPU = {"gpus_per_node": 0, "ranks_per_node": 1}


@pytest.fixture(autouse=True)
def _no_site_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("")
    monkeypatch.setenv("RESTE_SLURM_SITE", str(tmp_path / "empty.yaml"))


def script(*overrides: str, **options: object) -> str:
    return render(QUICK, list(overrides), load_options(CPU | options, None))


def test_there_are_ready_scripts_for_more_nodes_deepspeed_and_containers() -> None:
    names = " ".join(path.stem for path in READY)
    assert all(word in names for word in ("2x8", "8x8", "deepspeed", "apptainer", "pyxis"))


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_a_ready_script_is_what_its_second_line_prints(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    command = shlex.split(path.read_text().splitlines()[1].removeprefix("# "))
    assert command[:3] == ["reste", "slurm", "render"]
    assert CliRunner().invoke(app, command[1:]).stdout == path.read_text()


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_a_ready_script_is_valid_and_short_enough_to_read(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True)
    assert len(path.read_text().splitlines()) < 75


def test_an_override_may_be_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = ["slurm", "render", "configs/quickstart.yaml", "--nodes", "2", "--gpus-per-node", "8"]
    plain = CliRunner().invoke(app, [*words, "optim.lr=0.2", "train.epochs=3"])
    option = CliRunner().invoke(app, [*words, "--set", "optim.lr=0.2", "--set", "train.epochs=3"])
    assert plain.exit_code == 0
    assert option.stdout == plain.stdout


def test_options_of_the_command_and_of_the_site_file_are_the_same() -> None:
    named = set(job.__annotations__) - {"ctx", "config", "overrides", "more", "engine", "site", "out", "return"}
    named -= {"case", "seeds"}
    assert named == set(BatchOptions.model_fields)


def test_the_command_line_wins_over_the_site_file(tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("{gpus_per_node: 8, account: vision, time: 24:00:00, setup: [module load cuda, umask 027]}")
    options = load_options({"account": "other", "nodes": None, "setup": []}, site)
    assert (options.account, options.ranks, options.nodes) == ("other", 8, 1)
    text = render(QUICK, [], options)
    assert "#SBATCH --account=other\n" in text
    assert "\nmodule load cuda\numask 027\n" in text
    assert "--exclusive" in text


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"nodes": 0}, "nodes: input should be greater than or equal to 1 (got 0)"),
        ({"gpus_per_node": None}, "give --gpus-per-node"),
        ({"ranks_per_node": None}, "nodes without GPUs need --ranks-per-node"),
        ({"gpus_per_node": 4, "ranks_per_node": 5}, "5 ranks need more than 4 GPUs"),
        ({"time": "1 day"}, "time:"),
        ({"time": "1:2:3:4"}, "must be SLURM's minutes"),
        ({"time": "0:00:00"}, "above 0"),
        ({"time": "5"}, "leaves nothing before the signal 300 s ahead"),
        ({"array": "1-"}, "must be SLURM's list of numbers"),
        ({"array": "3-1"}, "must be SLURM's list of numbers"),
        ({"partition": "a b"}, "partition:"),
        ({"sbatch": ["constraint=a100"]}, "must begin with a dash"),
        ({"setup": ["one\ntwo"]}, "setup"),
        ({"mount": ["/data"]}, "--mount need --container"),
        ({"runtime": "docker", "container": "x.sif"}, "runtime:"),
    ],
)
def test_wrong_options_are_refused_in_one_line(given: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_options(CPU | given, None)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_key_of_a_site_file_is_named_with_its_line(tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("gpus_per_node: 8\ngpu_per_node: 4\n")
    with pytest.raises(ConfigError, match=r"site\.yaml:2: unknown key gpu_per_node; did you mean gpus_per_node"):
        load_options({}, site)
    with pytest.raises(ConfigError, match="there is no configuration file"):
        load_options({}, tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("overrides", "options", "says"),
    [
        (("train.epoch=3",), {}, "did you mean train.epochs"),
        (("resume=never",), {}, "must go on from its own newest checkpoint"),
        (("seed=%a",), {}, "give --array"),
        (("seed=%a",), {"array": "0-4"}, "run.name=digits-%a"),
    ],
)
def test_what_a_requeued_job_cannot_train_is_refused(
    overrides: tuple[str, ...], options: dict[str, object], says: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        script(*overrides, **options)


def test_the_shell_reads_every_word_as_it_was_given() -> None:
    wild = ["run.dir=/tmp/it's $HOME", 'tracking.experiment="a b; exit 3 `date`"', "run.name=digits-%a", "seed=%a"]
    text = script(*wild, array="7-9")
    agent = text[text.index("agent() {") : text.index("newest()")]
    shown = subprocess.run(
        ["bash", "-c", f'torchrun() {{ printf "%s\\n" "$@"; }}\n{agent}\nagent'],
        env={"SLURM_ARRAY_TASK_ID": "8", "PATH": "/bin:/usr/bin"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    given = shown[shown.index("trainer") + 1 :]
    assert given == [str(QUICK), *(word.replace("%a", "8") for word in wild)]
    run = re.search(r"^RUN=.*$", text, re.MULTILINE)
    assert run
    told = subprocess.run(
        ["bash", "-c", f'SLURM_ARRAY_TASK_ID=8\n{run[0]}\nprintf %s "$RUN"'], capture_output=True, text=True, check=True
    )
    assert told.stdout == str(load_config(QUICK, [wild[0], "run.name=digits-8"]).run_dir)


def test_a_job_without_requeues_says_so_to_slurm() -> None:
    assert "#SBATCH --no-requeue\n" in script(requeues=0)
    assert "#SBATCH --requeue\n" in script()


def test_cpus_are_asked_for_where_they_are_given() -> None:
    text = script(cpus_per_node=12, mem="64G")
    assert "#SBATCH --cpus-per-task=12\n#SBATCH --mem=64G\n" in text
    assert "--exclusive" not in text


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("90", 5400),
        ("10:30", 630),
        ("1:00:00", 3600),
        ("2-0", 172800),
        ("1-2:30", 95400),
        ("1-0:0:1", 86401),
        ("", None),
        ("1d", None),
        ("-5", None),
    ],
)
def test_times_are_read_as_slurm_reads_them(form: str, expected: int | None) -> None:
    assert seconds(form) == expected


@pytest.mark.parametrize(
    ("form", "tasks"),
    [("3", [3]), ("0-6:2,9%2", [0, 2, 4, 6, 9]), ("1,1", [1]), ("0-3%0", []), ("%2", []), ("a", []), ("1,,2", [])],
)
def test_arrays_are_read_as_slurm_reads_them(form: str, tasks: list[int]) -> None:
    assert array_tasks(form) == tasks


def test_submitting_without_slurm_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    words = ["slurm", "submit", str(QUICK), "--gpus-per-node=0", "--ranks-per-node=1"]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, ConfigError)
    assert "there is no sbatch here" in str(done.exception)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.yaml"]


def test_out_writes_a_script_that_can_be_started(tmp_path: Path) -> None:
    words = ["slurm", "render", str(QUICK), "--gpus-per-node=0", "--ranks-per-node=1", "--out"]
    assert CliRunner().invoke(app, [*words, str(tmp_path / "job.sh")]).exit_code == 0
    assert (tmp_path / "job.sh").read_text() == script()
    assert (tmp_path / "job.sh").stat().st_mode & 0o111
    refused = CliRunner().invoke(app, [*words, str(tmp_path / "absent" / "job.sh")])
    assert "there is no folder" in str(refused.exception)
