"""What the checks make of facts: written by hand here, and of small real ones."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainer import checkpoint
from trainer.config import Config, load_config
from trainer.data.index import load_summary
from trainer.distributed.environment import Environment
from trainer.doctor import data, files, machine, network
from trainer.doctor.check import Check, Context, Problem
from trainer.doctor.examine import Report, attempt, examine, verdict
from trainer.doctor.preflight import preflight
from trainer.errors import ConfigError, DataError
from trainer.network import create_network
from trainer.optim import create_optimizer

CONFIG = load_config(None, ["data.loader=synthetic", "tracking.enabled=false"])
GIB = 2**30


def gpu(unit: str, **changes: Any) -> dict[str, Any]:
    return {"host": "a", "kind": "cuda", "name": "H100", "memory": 80 * GIB, "free": 79 * GIB, "unit": unit, **changes}


def cpu(**changes: Any) -> dict[str, Any]:
    return {"host": "a", "kind": "cpu", "name": "x86_64", "cores": 2, "memory": 8 * GIB, **changes}


def test_equal_machines_have_no_problem() -> None:
    assert machine.judge_device({0: gpu("0"), 1: gpu("1"), 2: gpu("0", host="b")}, CONFIG) == (
        "3 x cuda (H100, 80 GiB) on 2 machines",
        [],
    )
    assert machine.judge_device({0: cpu()}, CONFIG) == ("1 x cpu (x86_64, 2 cores, 8 GiB) on 1 machine", [])


def test_a_shared_a_taken_and_another_gpu_are_named() -> None:
    facts = {0: gpu("0"), 1: gpu("0"), 2: gpu("2", free=40 * GIB), 3: gpu("3", name="A100")}
    _, problems = machine.judge_device(facts, CONFIG)
    told = {problem.ranks[0]: (problem.what, problem.sure) for problem in problems}
    assert told[1] == ("shares its GPU with rank 0", True)
    assert told[2] == ("40.0 GiB of its GPU's memory are taken", False)
    assert told[3] == ("A100 instead of rank 0's H100", False)
    [mixed] = machine.judge_device({0: gpu("0"), 1: cpu()}, CONFIG)[1]
    assert mixed.sure


def test_other_software_is_sure_to_harm_where_it_computes() -> None:
    facts = {0: {"torch": "2.9", "mlflow": "3", "python": "3.12", "code": "x", "cuda": None, "driver": None}}
    facts[1] = facts[0] | {"torch": "2.8"}
    facts[2] = facts[1] | {"mlflow": "2"}
    _, problems = machine.judge_software(facts, CONFIG)
    assert [(p.ranks, p.sure) for p in problems] == [([1, 2], True), ([2], False)]
    assert problems[0].what == "torch 2.8 instead of rank 0's 2.9"


def test_threads_and_limits_are_held_against_the_machine() -> None:
    facts = {rank: {"kind": "cpu", "threads": 4, "cores": 8, "ranks": 2} for rank in range(2)}
    assert machine.judge_threads(facts, CONFIG)[1] == []
    facts[1]["threads"] = 5
    [problem] = machine.judge_threads(facts, CONFIG)[1]
    assert (problem.ranks, problem.fix) == ([1], "unset OMP_NUM_THREADS, or set it to 4")
    limits = {0: {"files": 256, "shared_memory": 64 * 2**20, "nccl_ranks": 8}}
    limits[1] = limits[0] | {"files": -1, "nccl_ranks": 1}
    few, small = machine.judge_limits(limits, CONFIG)[1]
    assert (few.ranks, small.ranks) == ([0], [0])
    assert "512" in small.what


def test_clocks_count_only_beyond_what_could_be_measured() -> None:
    facts = {0: {"ahead_s": 0.0, "within_s": 0.0}, 1: {"ahead_s": -3.0, "within_s": 2.5}}
    assert network.judge_clocks(facts, CONFIG) == ("3000.0 ms apart, +- 2500.0 ms", [])
    facts[1]["within_s"] = 0.5
    [problem] = network.judge_clocks(facts, CONFIG)[1]
    assert problem.what == "its clock is 3.0 s behind rank 0's"


def test_a_rank_out_of_reach_and_a_name_that_leads_home_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "a")
    monkeypatch.setenv("MASTER_PORT", "29500")
    good = {"host": "a", "address": "10.0.0.1", "ports": 28232, "unreached": None}
    assert network.judge_ports({0: good, 1: good | {"address": "127.0.1.1"}}, CONFIG)[1] == []
    facts = {0: good | {"unreached": "10.0.0.2:4711 (timed out)"}, 1: good | {"host": "b", "address": "127.0.1.1"}}
    cut, home = network.judge_ports(facts, CONFIG)[1]
    assert cut.what == "cannot reach rank 1 at 10.0.0.2:4711 (timed out)"
    assert home.ranks == [1]
    assert "GLOO_SOCKET_IFNAME" in home.fix


@pytest.mark.parametrize(("free", "problems"), [(100, []), (99, [False]), (29, [False]), (24, [True])])
def test_room_for_no_checkpoint_is_sure_to_harm_and_for_too_few_may(free: int, problems: list[bool]) -> None:
    facts = {0: {"place": "/runs", "free": free, "size": 25, "needed": 100}, 1: {}}
    assert [problem.sure for problem in files.judge_disk(facts, CONFIG)[1]] == problems


def test_checkpoints_that_are_there_need_no_more_room(tmp_path: Path) -> None:
    step = tmp_path / "run" / "checkpoints" / "step_00000001"
    step.mkdir(parents=True)
    (step / "manifest.json").write_bytes(bytes(30))
    assert files.room(tmp_path / "run", 25, 4)["needed"] == 70
    (step / "manifest.json").write_bytes(bytes(300))
    assert files.room(tmp_path / "run", 25, 4)["needed"] == 25


@pytest.mark.parametrize(("name", "numbers"), [("sgd", 1), ("adamw", 2), ("lion", 1)])
def test_the_state_of_an_optimizer_is_counted(name: str, numbers: int) -> None:
    config = load_config(None, [f"optim.name={name}"])
    assert files.state_per_parameter(config.optim) == pytest.approx(numbers, abs=0.01)


@pytest.mark.parametrize("extra", [(), ("train.ema=0.9", "optim.name=adamw", "train.precision=fp64")])
def test_the_size_of_a_checkpoint_is_that_of_its_files(tmp_path: Path, extra: tuple[str, ...]) -> None:
    config = load_config(None, ["model.name=resnet20_1w1a", "data.image_size=32", *extra])
    model = create_network(config, [str(label) for label in range(10)], torch.device("cpu"))
    optimizer, _ = create_optimizer(model, config.optim, fused=False)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    saved = [model.state_dict(), optimizer.state_dict(), *([model.state_dict()] if config.train.ema else [])]
    for number, payload in enumerate(saved):
        torch.save(payload, tmp_path / f"{number}.pt")
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert files.checkpoint_bytes(model, config) == pytest.approx(size, rel=0.06)


def test_other_data_is_a_fault_of_the_data() -> None:
    facts = {0: {"digest": "a" * 64, "train": 5, "val": 2, "classes": 2}}
    facts[1] = facts[0] | {"digest": "b" * 64}
    [problem] = data.judge_index(facts, CONFIG)[1]
    assert (problem.ranks, problem.exit_code) == ([1], DataError.exit_code)


def check(look: Any, **changes: Any) -> Check:
    settings = {"judge": lambda facts, config: ("fine", []), "stuck": "look there", "limit_s": 0.3, **changes}
    return Check("x", look, **settings)


def context() -> Context:
    return Context(CONFIG, Environment())


def test_a_check_that_crashes_or_hangs_or_is_judged_badly_is_one_that_does_not_hold(tmp_path: Path) -> None:
    def crash(_: Context) -> dict[str, Any]:
        raise KeyError("no such\nthing")

    def user(_: Context) -> dict[str, Any]:
        raise DataError("/a: b is broken: mend it")

    assert attempt(check(crash), context())["what"] == "KeyError: 'no such\\nthing'"
    assert attempt(check(user), context()) == {"what": "/a: b is broken", "fix": "mend it", "exit_code": 3}
    no_index = check(lambda _: load_summary(tmp_path).__dict__)
    assert attempt(no_index, context()) == {
        "what": f"{tmp_path} has no index", "fix": f"reste prepare folder {tmp_path}", "exit_code": 3,
    }  # fmt: skip
    ended = threading.Event()
    started = time.monotonic()
    answer = attempt(check(lambda _: ended.wait(60)), context())
    ended.set()
    assert time.monotonic() - started < 10
    assert answer == {"what": "did not end within 0 s", "fix": "look there", "exit_code": 2}
    badly = check(lambda _: {}, judge=lambda facts, config: 1 / 0)
    assert verdict(badly, {0: {"facts": {}}, 1: {"facts": {}}}, CONFIG)[1][0].ranks == [0, 1]


def test_like_problems_of_several_ranks_are_one() -> None:
    same = {"what": "full", "fix": "empty it", "exit_code": 2}
    result, [problem] = verdict(check(None), {0: {"facts": {}}, 1: same, 3: same}, CONFIG)
    assert (result, problem.ranks) == ("fine", [1, 3])


def test_a_check_is_skipped_without_what_it_needs() -> None:
    def bad(_: Context) -> dict[str, Any]:
        raise ConfigError("no: yes")

    reports: list[Report] = []
    checks = [check(bad), Check("y", lambda _: {}, lambda f, c: ("", []), "", needs=("x",))]
    assert examine(CONFIG, Environment(), reports.append, checks=checks) == 2
    assert [finding.state for finding in reports[0].findings] == ["ok", "failed", "skipped"]
    assert reports[0].findings[2].result == "not tried without x"


@pytest.mark.parametrize(("codes", "expected"), [([], 0), ([3], 3), ([3, 2], 2)])
def test_only_data_alone_makes_the_exit_code_of_data(codes: list[int], expected: int) -> None:
    report = Report(1, [])
    reports: list[Report] = []

    def judge(facts: Any, config: Config) -> tuple[str, list[Problem]]:
        return "", [Problem([0], "what", "fix", exit_code=code) for code in codes]

    assert report.exit_code == 0
    assert examine(CONFIG, Environment(), reports.append, checks=[check(lambda _: {}, judge=judge)]) == expected
    assert reports[0].to_json()["ok"] is (expected == 0)


def test_the_probe_of_the_run_folder_leaves_nothing(tmp_path: Path) -> None:
    config = load_config(None, [f"run.dir={tmp_path / 'a' / 'b'}"])
    facts = files.look_at_place(Context(config, Environment()))
    assert facts["place"] == str(tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "a").write_text("in the way")
    with pytest.raises(ConfigError, match="is a file, not a folder"):
        files.look_at_place(Context(config, Environment()))


def test_before_training_a_doubt_is_a_warning_and_a_sure_failure_refuses(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    preflight(load_config(None, [f"run.dir={tmp_path}"]), Environment(), nn.Linear(10, 10))
    assert caplog.messages == []
    many = load_config(None, [f"run.dir={tmp_path}", "checkpoint.keep=1000000000000"])
    preflight(many, Environment(), nn.Linear(10, 10))
    [warning] = caplog.messages
    assert "lower checkpoint.keep" in warning
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"is a file, not a folder.*choose another run\.dir") as caught:
        preflight(load_config(None, [f"run.dir={tmp_path / 'file'}"]), Environment(), nn.Linear(10, 10))
    assert caught.value.everywhere
    assert "\n" not in str(caught.value)


def test_every_linear_layer_counts_once() -> None:
    model = nn.Linear(10, 10)
    assert files.checkpoint_bytes(model, CONFIG) == pytest.approx(2 * 110 * 4, rel=0.01)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_room_asked_for_is_what_a_checkpoint_takes(tmp_path: Path, name: str) -> None:
    config = load_config(None, ["model.name=resnet20_1w1a", f"optim.name={name}", "train.ema=0.9"])
    model = create_network(config, ["0", "1"], torch.device("cpu"))
    optimizer, _ = create_optimizer(model, config.optim, fused=False)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    weights = model.state_dict()
    path = checkpoint.save(
        tmp_path / "checkpoints",
        {"model": weights, "engine": {"optimizer": optimizer.state_dict()}, "ema": weights},
        progress=checkpoint.Progress(1, 0, 0.0, {}, {}, None, 0, []),
        config_yaml=config.to_yaml(),
        about={},
    )
    taken = sum(file.stat().st_size for file in path.iterdir())
    assert files.checkpoint_bytes(model, config) == pytest.approx(taken, rel=0.05)
    facts = files.room(tmp_path, taken, count=4)
    assert facts["needed"] == 3 * taken, "what is there is not asked for again"
    path.rename(checkpoint.temporary(path))
    assert files.room(tmp_path, taken, count=4)["needed"] == 3 * taken, "nor is what will be cleared away"
