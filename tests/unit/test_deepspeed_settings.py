"""DeepSpeed's JSON follows from the configuration; what contradicts it is refused, all at once."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import timm.optim
import torch

from launch.dry_run import plan_rows
from trainer.config import Config, config_digest, load_config
from trainer.distributed.deepspeed import prepare
from trainer.distributed.deepspeed_settings import deepspeed_settings
from trainer.errors import ConfigError
from trainer.resume import differences

ENGINE = ["engine=deepspeed"]


def told(*overrides: str, world: int = 2) -> dict[str, object]:
    return deepspeed_settings(load_config(None, [*ENGINE, *overrides]), world)


def test_everything_follows_from_the_configuration() -> None:
    found = told("deepspeed.zero=1", "train.batch_size=750", "train.accumulation=2", "train.clip_norm=1.5", world=8)
    assert found["train_micro_batch_size_per_gpu"] == 47
    assert found["gradient_accumulation_steps"] == 2
    assert found["gradient_clipping"] == 0.0
    assert found["zero_optimization"]["stage"] == 1  # type: ignore[index]
    assert told("deepspeed.zero=0")["zero_optimization"] == {"stage": 0}


def test_a_users_file_is_merged(tmp_path: Path) -> None:
    file = tmp_path / "more.json"
    more = {"wall_clock_breakdown": True, "zero_optimization": {"stage": 1, "allgather_bucket_size": 1000}}
    file.write_text(json.dumps({**more, "fp16": {"enabled": False}, "gradient_accumulation_steps": 1}))
    found = told("deepspeed.zero=1", f"deepspeed.config={file}")
    assert found["wall_clock_breakdown"] is True
    assert found["zero_optimization"]["allgather_bucket_size"] == 1000  # type: ignore[index]
    assert found["zero_optimization"]["round_robin_gradients"] is False  # type: ignore[index]


def test_contradictions_are_named_all_at_once_with_the_key_that_decides(tmp_path: Path) -> None:
    file = tmp_path / "more.json"
    text = {
        "gradient_accumulation_steps": 4,
        "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}},
        "bf16": {"enabled": True},
        "optimizer": {"type": "Adam"},
        "train_batch_size": 64,
        "zero_force_ds_cpu_optimizer": False,
    }
    file.write_text(json.dumps(text))
    with pytest.raises(ConfigError) as refused:
        told("deepspeed.zero=1", f"deepspeed.config={file}")
    message = str(refused.value)
    assert "\n" not in message
    for expected in (
        "gradient_accumulation_steps=4 is 1 here (train.accumulation decides)",
        "zero_optimization.stage=3 is 1 here (deepspeed.zero decides)",
        "zero_optimization.offload_optimizer.device: the state stays on the device",
        "bf16.enabled=True (train.precision decides)",
        "optimizer.type=Adam (optim decides)",
        "train_batch_size=64 (train.batch_size decides)",
    ):
        assert expected in message
    assert "zero_force_ds_cpu_optimizer" not in message


@pytest.mark.parametrize(("text", "said"), [("{", "is not JSON"), ("[1]", "no JSON object"), (None, "cannot be read")])
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, text: str | None, said: str) -> None:
    file = tmp_path / "more.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(said)) as refused:
        told(f"deepspeed.config={file}")
    assert str(file) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_float64_is_refused() -> None:
    with pytest.raises(ConfigError, match=re.escape("engine=ddp or train.precision=fp32")):
        told("train.precision=fp64")


def test_a_plan_shows_the_engine_and_what_deepspeed_is_told() -> None:
    config = load_config(None, [*ENGINE, "deepspeed.zero=1", "data.loader=synthetic", "model.name=resnet20_1w1a"])
    rows = dict(plan_rows(config, 2))
    assert "engine deepspeed" in rows["ranks"]
    assert json.loads(rows["deepspeed"]) == deepspeed_settings(config, 2)
    assert "deepspeed" not in dict(plan_rows(load_config(None, ["data.loader=synthetic"]), 2))


def test_a_resumed_run_may_change_its_engine() -> None:
    ddp, zero = Config(), load_config(None, [*ENGINE, "deepspeed.zero=1"])
    assert differences(ddp, zero) == []
    assert config_digest(ddp) == config_digest(zero)


def test_a_missing_package_is_one_line_that_names_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    for name in ("DS_ACCELERATOR", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(ConfigError, match="needs the deepspeed package") as refused:
        prepare(torch.device("cpu"), 0, told(), torch.optim.SGD([weight]))
    assert "engine=ddp" in str(refused.value)


def test_zero_1_refuses_an_optimizer_that_computes_over_whole_tensors() -> None:
    optimizer = timm.optim.create_optimizer_v2([torch.nn.Parameter(torch.zeros(2))], opt="lamb", lr=0.1)
    with pytest.raises(ConfigError, match="over which Lamb computes"):
        prepare(torch.device("cpu"), 0, told("deepspeed.zero=1"), optimizer)
