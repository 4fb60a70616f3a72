"""`reste doctor` on two real ranks, with everything right and with real faults."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from spawn import run_ranks
from trainings import QUICK, SMALL, reste

from trainer.config import load_config
from trainer.data.index import load_index
from trainer.data.prepare.folder import prepare_folder
from trainer.distributed.board import open_board
from trainer.distributed.environment import resolve_environment
from trainer.doctor.check import Check, Context
from trainer.doctor.data import IMAGES_DECODED, INDEX
from trainer.doctor.examine import Report, examine
from trainer.doctor.files import DISK, PLACE, SHARED_FOLDER
from trainer.doctor.machine import DEVICE
from trainer.doctor.network import ALL_REDUCE, CLOCKS, CONFIGURATION, PORTS
from trainer.doctor.tracker import TRACKER

CHECKS = {
    c.name: c
    for c in (CONFIGURATION, DEVICE, PLACE, SHARED_FOLDER, INDEX, DISK, IMAGES_DECODED, PORTS, CLOCKS, ALL_REDUCE)
}


def hang_on_rank_1(context: Context) -> dict[str, Any]:
    if context.rank == 1:
        time.sleep(600)
    return {}


def crash_on_rank_1(context: Context) -> dict[str, Any]:
    if context.rank == 1:
        raise ZeroDivisionError("by rank 1")
    return {}


def _fine(facts: Any, config: Any) -> tuple[str, list[Any]]:
    return "fine", []


ABSENT, SILENT = "rank 1 does not come", "rank 1 answers the first check alone"
CHECKS["tracker"] = TRACKER
CHECKS["hang"] = Check("hang", hang_on_rank_1, _fine, "end it", 1.0)
CHECKS["quick"] = Check("quick", lambda _: {}, _fine, "wake it", 1.0)
CHECKS["crash"] = Check("crash", crash_on_rank_1, _fine, "mend it")


def ask(rounds: list[tuple[list[str], list[str], list[str]]]) -> list[tuple[int, dict[str, Any] | None]]:
    """Examine once for each round of check names, overrides, and further overrides of rank 1."""
    answers = []
    # The store of all rounds: a rank that is early for the next one would otherwise come to a store that is closing.
    store = open_board(resolve_environment(os.environ), timeout_s=60).store
    for number, (names, overrides, of_rank_1) in enumerate(rounds):
        # A board of its own for each round, as for each start of torchrun's.
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(number)
        environment = resolve_environment(os.environ)
        if of_rank_1 == [ABSENT] and environment.rank == 1:
            continue
        asked = names[:1] if of_rank_1 == [SILENT] and environment.rank == 1 else names
        different = [value for value in of_rank_1 if "=" in value and environment.rank == 1]
        config = load_config(QUICK, [*overrides, *different])
        reports: list[Report] = []
        join_s = 3 if of_rank_1 == [ABSENT] else 60
        code = examine(config, environment, reports.append, checks=[CHECKS[name] for name in asked], join_s=join_s)
        answers.append((code, reports[0].to_json() if reports else None))
    del store
    return answers


def findings(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {finding["check"]: finding for finding in report["findings"]}


def test_faults_of_one_rank_are_named_with_their_fix(tmp_path: Path, digits: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    other, broken = (Path(shutil.copytree(digits, tmp_path / name)) for name in ("other", "broken"))
    index = load_index(digits, "train")
    victim = broken / index.paths[0]  # the first of the ten
    victim.write_bytes(victim.read_bytes()[:200])
    prepare_folder(_without_one_image(other), workers=1)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
    here = [*SMALL, f"data.root={digits}", f"run.dir={tmp_path / 'runs'}"]
    rounds = [
        (["configuration", "run folder", "shared folder"], here, [f"run.dir={in_the_way}"]),
        (["data set"], here, [f"data.root={other}"]),
        (["data set", "devices", "images"], here, [f"data.root={broken}"]),
        (["disk"], [*here, "checkpoint.keep=1000000000"], []),
        (["ports", "clocks", "devices", "all-reduce"], here, []),
        (["crash"], here, []),
        (["hang", "run folder", "shared folder"], here, []),
        (["tracker"], [*here, "tracking.enabled=true", f"tracking.uri={nobody}"], []),
        (["run folder", "quick", "shared folder"], here, [SILENT]),
        (["run folder", "shared folder"], here, [ABSENT]),
    ]
    by_rank = run_ranks(ask, 2, rounds, timeout_s=280, join=False)
    assert [code for code, _ in by_rank[0]] == [2, 3, 3, 2, 0, 2, 2, 2, 2, 2]
    assert [code for code, _ in by_rank[1]] == [2, 3, 3, 2, 0, 2, 2, 2, 2]
    folder, data, image, disk, network, crash, hang, tracker, silent, absent = (
        findings(report) for _, report in by_rank[0]
    )

    assert folder["configuration"]["problems"][0]["ranks"] == [1]
    for name in ("run folder", "shared folder"):
        [problem] = folder[name]["problems"]
        assert problem["ranks"] == [1]
        assert str(in_the_way) in problem["what"]
        assert "run.dir" in problem["fix"]
    assert not (tmp_path / "runs").exists(), "nothing is left"

    [problem] = data["data set"]["problems"]
    assert problem["ranks"] == [1]
    assert "(1,441 + 355 images)" in problem["what"]

    [problem] = image["images"]["problems"]
    assert (problem["ranks"], problem["exit_code"]) == ([1], 3)
    assert str(victim) in problem["what"]
    assert "changed since it was indexed" in problem["what"]

    [problem] = disk["disk"]["problems"]
    assert (problem["ranks"], problem["sure"]) == ([0], False)
    assert "checkpoint.keep" in problem["fix"]

    assert "gloo, sums right" in network["all-reduce"]["result"]
    assert 0 <= float(network["clocks"]["result"].split()[0]) < 500, "milliseconds; one machine has one clock"

    assert crash["crash"]["problems"][0] == {
        "ranks": [1], "what": "ZeroDivisionError: by rank 1", "fix": "mend it", "sure": True, "exit_code": 2,
    }  # fmt: skip
    assert hang["hang"]["problems"][0]["what"] == "did not end within 1 s"
    assert hang["shared folder"]["state"] == "ok", "the rank itself is still there"

    [problem] = tracker["tracker"]["problems"]
    assert (problem["ranks"], f"{nobody} does not take a run" in problem["what"]) == ([0], True)
    assert "tracking.uri" in problem["fix"]

    [problem] = silent["quick"]["problems"]
    assert (problem["ranks"], problem["what"], problem["fix"]) == ([1], "gave no answer within 6 s", "wake it")
    assert silent["shared folder"]["result"] == "not tried without rank 1"

    [problem] = absent["ranks"]["problems"]
    assert (problem["ranks"], problem["what"]) == ([1], "did not come within 3 s")
    assert absent["run folder"]["state"] == "ok"
    assert absent["shared folder"]["result"] == "not tried without rank 1"


def _without_one_image(root: Path) -> Path:
    shutil.rmtree(root / "index")
    next((root / "train" / "0").iterdir()).unlink()
    return root


@pytest.mark.slow
def test_the_command_starts_ranks_prints_one_table_and_leaves_nothing(tmp_path: Path, digits: Path) -> None:
    command = ("doctor", QUICK, f"data.root={digits}", f"run.dir={tmp_path}/runs", "--nproc=2")
    done = reste(*command, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["ok"]
    assert [finding["state"] for finding in report["findings"]] == ["ok"] * 15
    assert not list(tmp_path.iterdir())
    shutil.copytree(digits, tmp_path / "digits")
    shutil.rmtree(tmp_path / "digits" / "index")
    failed = reste(*command, f"data.root={tmp_path / 'digits'}")
    assert failed.returncode == 3, failed.stdout + failed.stderr
    assert "fix: reste prepare folder" in failed.stdout
    assert failed.stdout.count("doctor, 2 ranks") == 1
