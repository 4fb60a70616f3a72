"""Job scripts from anybody's words: the shell and sbatch read each as it was given, or it is refused."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from launch.batch import render, submit
from launch.batch_options import load_options
from trainer.errors import ConfigError

pytestmark = pytest.mark.timeout(60)
ROOT = Path(__file__).resolve().parents[2]
QUICK = ROOT / "configs" / "quickstart.yaml"
CPU = {"gpus_per_node": 0, "ranks_per_node": 1}
WILD = "a'b\"c $(touch hurt) `touch hurt` ; touch hurt & | > hurt * ? ~ \\ $HOME ${IFS} !! # %j"

RECORD = """#!/bin/bash
printf '%s\\n' "$(basename "$0")" "$@" end >> "$RECORD"
"""
# srun runs its command here, on this one node.
SRUN = '#!/bin/bash\nwhile [ "${1#-}" != "$1" ]; do shift; done\nexec "$@"\n'


@pytest.fixture(autouse=True)
def _no_site_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("")
    monkeypatch.setenv("RESTE_SLURM_SITE", str(tmp_path / "empty.yaml"))


def script(*overrides: str, path: Path = QUICK, **options: object) -> str:
    return render(path, list(overrides), load_options(CPU | options, None))


def stub(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(stat.S_IRWXU)


def run(text: str, tmp_path: Path) -> list[list[str]]:
    """Run a job script as SLURM would on one node; the words that each program of it was given."""
    programs, work = tmp_path / "programs", tmp_path / "work"
    programs.mkdir()
    work.mkdir()
    for name in ("torchrun", "scontrol", "sbatch"):
        stub(programs, name, RECORD)
    stub(programs, "srun", SRUN)
    job = tmp_path / "job.sh"
    job.write_text(text)
    subprocess.run(["bash", "-n", job], check=True)
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "RECORD": str(tmp_path / "record"),
        "HOME": str(work),
        "SLURM_JOB_ID": "7",
        "SLURM_NODEID": "0",
        "SLURM_CPUS_ON_NODE": "1",
        "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1",
    }
    subprocess.run(["bash", job], cwd=work, env=environment, capture_output=True, timeout=30)
    assert not list(tmp_path.rglob("hurt")), "a word was run"
    words = (tmp_path / "record").read_text().split("\nend\n")
    return [call.split("\n") for call in words if call]


def test_words_with_every_sign_of_the_shell_reach_the_trainer_as_they_were_given(tmp_path: Path) -> None:
    folder = tmp_path / "runs $(touch hurt); touch hurt"
    quoted = WILD.replace("\\", "\\\\").replace('"', '\\"')
    overrides = [f'tracking.experiment="{quoted}"', f"run.dir='{folder}'", f'data.root="{quoted}"']
    calls = run(script(*overrides), tmp_path)
    [torchrun] = [call for call in calls if call[0] == "torchrun"]
    assert torchrun[torchrun.index("trainer") + 1 :] == [str(QUICK), *overrides]
    assert (folder / "digits" / "slurm").is_dir(), "the run's folder, letter by letter"


@pytest.mark.parametrize("option", ["partition", "account", "qos", "name", "mem", "time", "array"])
@pytest.mark.parametrize("word", ["a;touch hurt", "$(touch hurt)", "`x`", "a\nb", "a b", "'", '"', "\\", "#", "-x", ""])
def test_names_of_slurm_hold_nothing_that_anyone_could_take_for_more(option: str, word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_options(CPU | {option: word}, None)
    assert option in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a/b", "../up", "%x/../../up"])
def test_a_job_name_cannot_send_its_output_elsewhere(name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        load_options(CPU | {"name": name}, None)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--comment=a\ntouch hurt", "sbatch"),
        ("--comment=a\rtouch hurt", "sbatch"),
        ("--comment='a", "must close the quotes"),
        ('--comment="a', "must close the quotes"),
        ("touch hurt", "must begin with a dash"),
    ],
)
def test_a_further_option_stays_one_line_of_sbatch(line: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_options(CPU | {"sbatch": [line]}, None)


def test_further_options_are_comments_to_the_shell(tmp_path: Path) -> None:
    text = script("run.dir=runs", sbatch=['--comment="$(touch hurt); `touch hurt`"', "--exclude=a;touch,hurt"])
    assert run(text, tmp_path)[0][0] == "torchrun"


@pytest.mark.parametrize("end", ["\n", "\r", "\x0b", "\u2028"])
def test_a_line_end_in_a_word_cannot_end_the_scripts_first_comment(tmp_path: Path, end: str) -> None:
    with pytest.raises(ConfigError, match=r"line end"):
        script(f'tracking.experiment="a{end}touch hurt #"')
    odd = tmp_path / f"a{end}touch hurt.yaml"
    odd.write_text("seed: 1")
    with pytest.raises(ConfigError, match="line end"):
        script(path=odd)


def test_a_password_is_not_written_into_a_script() -> None:
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_PASSWORD") as caught:
        script("tracking.uri=https://ann:hunter2@host")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("folder", ["it's", "a b", "100%", 'a"b', "a\\b", "a#b"])
def test_a_folder_that_sbatch_cannot_write_to_is_refused(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub(tmp_path, "sbatch", RECORD)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    quoted = folder.replace("'", "''")
    with pytest.raises(ConfigError, match=r"choose another run\.dir"):
        submit(QUICK, [f"run.dir='{quoted}'"], load_options(CPU, None))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.yaml", "sbatch"]
