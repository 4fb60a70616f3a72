"""Requests to stop at every moment of a run's life, and violent ends: what is saved, said and left behind."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from trainings import QUICK, SMALL, Life, metrics, records, reste

from trainer import signals

pytestmark = [pytest.mark.timeout(900), pytest.mark.alone]
slow = pytest.mark.slow
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "trainer")


def arguments(runs: Path, digits: Path, *extra: str, name: str = "x") -> list[str]:
    where = [f"data.root={digits}", f"run.dir={runs}", f"run.name={name}"]
    return [str(QUICK), *SMALL, "data.loader=torchvision", "eval.every=0", "checkpoint.every=2", *where, *extra]


def wait_until(what: Callable[[], bool], life: Life, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert life.process.poll() is None, f"ended with {life.process.returncode}"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def status(run: Path) -> dict[str, object]:
    return json.loads((run / "status.json").read_text())


@slow
def test_one_ctrl_c_of_a_terminal_saves_and_a_second_one_ends_at_once(tmp_path: Path, digits: Path) -> None:
    run, log = tmp_path / "x", tmp_path / "log"
    with Life(*arguments(tmp_path, digits, "--nproc=2"), log=log) as life:
        life.wait_for_step(run / "journal.jsonl", 3)
        # To the group, as a terminal does, and to the ranks as a launcher of another kind would.
        os.killpg(life.process.pid, signal.SIGINT)
        for rank in life.ranks():
            os.kill(rank, signal.SIGINT)
        assert life.process.wait(180) == 85, log.read_text()
        assert not life.survivors()
    assert (status(run)["state"], status(run)["exit_code"]) == ("stopped", 85)
    assert "SIGINT" in str(status(run)["error"])
    assert "Traceback" not in log.read_text()
    with Life(*arguments(tmp_path, digits, "--nproc=2"), log=log) as life:
        wait_until(lambda: "resumed" in [r.get("event") for r in records(run / "journal.jsonl")], life)
        for rank in life.ranks():
            os.kill(rank, signal.SIGSTOP)  # so that they cannot answer the first
        os.killpg(life.process.pid, signal.SIGINT)
        time.sleep(signals.SAME_S + 2)
        os.killpg(life.process.pid, signal.SIGINT)
        assert life.process.wait(60) == 130, log.read_text()
        assert not life.survivors()
    assert log.read_text().splitlines()[-1] == "stopped at once: start again to go on from the last checkpoint"


@pytest.mark.parametrize("after", ["launcher", pytest.param("folder", marks=slow)])
def test_a_request_while_starting_up_ends_cleanly(tmp_path: Path, digits: Path, after: str) -> None:
    run, log = tmp_path / "x", tmp_path / "log"
    with Life(*arguments(tmp_path, digits, "train.compile=true", "--nproc=2"), log=log) as life:
        wait_until(lambda: bool(life.ranks()) if after == "launcher" else (run / "logs" / "rank_0.log").exists(), life)
        if after == "folder":
            time.sleep(1)  # into the compilation
        life.process.send_signal(signal.SIGTERM)
        assert life.process.wait(180) == 85, log.read_text()
        assert not life.survivors()
    assert "before there was anything new to save: start again to go on" in log.read_text().splitlines()[-1]
    assert "Traceback" not in log.read_text()
    assert not run.exists(), "nothing was there before, and nothing was trained"


@slow
@pytest.mark.parametrize("last", [False, True], ids=["in between", "at the end"])
def test_a_request_cuts_an_evaluation_short_which_is_made_after_resuming(
    tmp_path: Path, digits: Path, last: bool
) -> None:
    """Evaluating image by image takes longer than a step here; a run that was not stopped is the reference."""
    long = ["eval.every=4", "eval.batch_size=2", "checkpoint.every=0", f"train.max_steps={4 if last else 6}"]
    whole = reste("train", *arguments(tmp_path, digits, *long, "--nproc=2", name="whole"))
    assert whole.returncode == 0, whole.stderr
    run, log = tmp_path / "x", tmp_path / "log"
    command = arguments(tmp_path, digits, *long, "--nproc=2")
    with Life(*command, log=log) as life:
        life.wait_for_step(run / "journal.jsonl", 4)
        time.sleep(0.2)
        life.process.send_signal(signal.SIGUSR1)
        assert life.process.wait(180) == 85, log.read_text()
    assert not [values for _, values in metrics(run / "journal.jsonl") if "val/top1" in values]
    again = reste("train", *command)
    assert again.returncode == 0, again.stderr
    assert metrics(run / "journal.jsonl") == metrics(tmp_path / "whole" / "journal.jsonl")
    left, right = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "x"))
    for key in ("final", "best", "best_step", "steps", "samples"):
        assert left[key] == right[key], key


@slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 1), (signal.SIGUSR1, -signal.SIGUSR1)])
def test_under_torchrun_the_truth_is_in_the_status(
    tmp_path: Path, digits: Path, number: signal.Signals, code: int
) -> None:
    """SIGUSR1 is one that torchrun dies of; its ranks notice."""
    run, log = tmp_path / "x", tmp_path / "log"
    with Life(*arguments(tmp_path, digits), log=log, program=TORCHRUN) as life:
        life.wait_for_step(run / "journal.jsonl", 3)
        life.process.send_signal(number)
        assert life.process.wait(180) == code
        assert not life.survivors(60)
    assert (status(run)["state"], status(run)["exit_code"]) == ("stopped", 85)
    assert (run / str(status(run)["checkpoint"]) / "manifest.json").is_file()


@slow
def test_a_time_limit_and_an_old_stop_file(tmp_path: Path, digits: Path) -> None:
    run, log = tmp_path / "x", tmp_path / "log"
    first = reste("train", *arguments(tmp_path, digits, "train.max_steps=2"))
    assert first.returncode == 0, first.stderr
    (run / "STOP").touch()
    began = time.monotonic()
    second = reste("train", *arguments(tmp_path, digits), "--max-minutes=0.25")
    assert second.returncode == 85, second.stderr
    assert time.monotonic() - began >= 15
    assert f"{run / 'STOP'} is older than this start: removed" in second.stderr
    assert "time limit" in str(status(run)["error"])
    assert int(str(status(run)["step"])) > 2
    assert not log.exists()


@slow
@pytest.mark.parametrize("victim", ["rank", "launcher"])
def test_nothing_survives_a_kill_and_the_last_line_tells(tmp_path: Path, digits: Path, victim: str) -> None:
    run, log = tmp_path / "x", tmp_path / "log"
    with Life(*arguments(tmp_path, digits, "--nproc=2"), log=log) as life:
        life.wait_for_step(run / "journal.jsonl", 3)
        os.kill(life.ranks()[1] if victim == "rank" else life.process.pid, signal.SIGKILL)
        code = life.process.wait(120)
        assert not life.survivors()
    if victim == "launcher":
        assert "gone" in reste("status", run).stdout
        return
    assert code == 1
    assert log.read_text().splitlines()[-1].startswith("error: rank 1 was killed by SIGKILL")
    assert "start again to go on from the last checkpoint" in log.read_text().splitlines()[-1]
    assert (status(run)["state"], status(run)["exit_code"]) == ("failed", 1)
    assert "rank 1 was killed by SIGKILL" in str(status(run)["error"])


@slow
def test_the_traceback_of_the_rank_that_failed_first_comes_last(tmp_path: Path, digits: Path) -> None:
    """A library that breaks on rank 1 alone, by way of Python's own start-up hook."""
    run, log, hook = tmp_path / "x", tmp_path / "log", tmp_path / "broken.py"
    hook.write_text(
        "import os, sys\n"
        "from trainer import loop, main\n"
        "inner, count = loop.train_step, []\n"
        "def breaking(run):\n"
        "    count.append(1)\n"
        "    if len(count) == 3 and run.environment.rank == 1:\n"
        "        raise TypeError('rank 1 is ill')\n"
        "    return inner(run)\n"
        "loop.train_step = breaking\n"
        "from pathlib import Path\n"
        "from trainer.distributed.elastic import start_ranks\n"
        "from launch import local\n"
        "from trainer.distributed.environment import is_rank\n"
        "if is_rank(os.environ):\n"
        "    sys.exit(main.run_rank(Path(sys.argv[1]), sys.argv[2:]))\n"
        "import time\n"
        "from trainer.config import load_config\n"
        "began = time.time()\n"
        "ended = start_ranks([sys.executable, *sys.argv], 2)\n"
        "sys.exit(local.tell(ended, load_config(Path(sys.argv[1]), sys.argv[2:]), began))\n"
    )
    with Life(*arguments(tmp_path, digits), log=log, program=(str(hook),)) as life:
        assert life.process.wait(180) == 1, log.read_text()
        assert not life.survivors()
    said = log.read_text()
    assert "[rank 1 on " in said
    assert said.count("Traceback") == 1
    assert said.rstrip().endswith("TypeError: rank 1 is ill")
    assert "TypeError: rank 1 is ill" in (run / "logs" / "rank_1.log").read_text()
    assert status(run)["error"] == "TypeError: rank 1 is ill"
