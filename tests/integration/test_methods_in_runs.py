"""Every method in real runs of two processes: engines, precisions, batch norms and graphs in pairs, stopped, continued.

Compiled networks are captured whole and differentiated, and then run by torch's own operators: that inductor's code
computes the same is its own business, and tests of single runs.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from method_pairs import pairs
from spawn import run_ranks
from timm.models import generate_default_cfgs, register_model
from trainings import QUICK, ROOT, SMALL, losses, train_here

from models.entry import build, default_cfg
from models.resnet import RESNET20, BinaryResNet, PlainBlock
from trainer.study.methods import find_methods
from trainer.study.sweep import keys_of, written

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
STEPS = 4
METHODS = {case.name: case.overrides for case in find_methods(ROOT / "configs" / "methods")}
METHODS["dsq_learned"] = (*METHODS["dsq"], "estimator.options={learn: true}")
STAGED = [name for name, overrides in METHODS.items() if "stages" in keys_of(overrides)]
WAYS = {
    "engine": ["ddp", "deepspeed"],
    "train.precision": ["fp32", "bf16"],
    "batchnorm.sync": ["world", "off"],
    "train.compile": [False, True],
    "continued": [True, False],
}
ROWS = pairs({"method": [name for name in METHODS if name not in STAGED], **WAYS})
# What goes on within a stage is tests/integration/test_staged_runs.py.
ROWS += pairs({"method": STAGED, **WAYS, "continued": [False]})
COMMON = (
    *SMALL,
    "data.loader=synthetic",
    "data.synthetic={samples: 40, classes: 10}",
    "data.image_size=16",
    "train.batch_size=16",
    "log.indicators_every=2",
    "eval.every=0",
)


default_cfgs = generate_default_cfgs(
    {"resnet8_1w1a": default_cfg(size=32, num_classes=10, first_conv="conv1", classifier="linear")}
)


@register_model
def resnet8_1w1a(pretrained: bool = False, **kwargs: Any) -> BinaryResNet:
    """ResNet-20 with a third of its blocks, whose graphs are captured in a third of the time."""
    return build(
        BinaryResNet, "resnet8_1w1a", pretrained, 4, block=PlainBlock, **(RESNET20 | {"depths": (1, 1, 1)}), **kwargs
    )


def command(folder: Path, row: dict[str, Any], name: str, steps: int) -> list[str]:
    """The overrides of one run of a row."""
    own = {key: value for key, value in row.items() if key not in ("method", "continued")}
    place = {"run.dir": str(folder), "run.name": f"{ROWS.index(row)}-{name}", "train.max_steps": steps}
    method = METHODS[row["method"]]
    # A method's own network stays, also where it is a stage that names one: the command line would win.
    small = [] if any("model.name" in each for each in method) else ["model.name=resnet8_1w1a"]
    return [*COMMON, *small, *method, *written(own | place)]


def train_captured(config: str, *runs: list[str]) -> list[int]:
    """`train_here`, with graphs that nobody turns into machine code. Top level, for `run_ranks`."""
    torch.compiler.set_stance("default", force_backend="aot_eager")
    return train_here(config, *runs)


def journal(run: Path) -> Path:
    """Of a run, or of the last stage of one."""
    found = sorted(run.glob("*/journal.jsonl"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else run / "journal.jsonl"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs: each row whole; some stopped after half of their steps too, and continued by others."""
    folder = tmp_path_factory.mktemp("runs")
    continued = [row for row in ROWS if row["continued"]]
    first = [command(folder, row, "whole", STEPS) for row in ROWS]
    first += [command(folder, row, "parted", STEPS // 2) for row in continued]
    for commands in (first, [command(folder, row, "parted", STEPS) for row in continued]):
        codes = run_ranks(train_captured, 2, str(QUICK), *commands, timeout_s=2400, join=False)
        assert codes == [[0] * len(commands)] * 2
    return folder


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(map(str, row.values())))
def test_a_method_trains_and_goes_on_bit_for_bit(runs: Path, row: dict[str, Any]) -> None:
    number = ROWS.index(row)
    whole = losses(journal(runs / f"{number}-whole"))
    assert len(whole) == STEPS
    assert all(map(math.isfinite, whole))
    if not row["continued"]:
        return
    assert losses(runs / f"{number}-parted" / "journal.jsonl") == whole
    status = json.loads((runs / f"{number}-parted" / "status.json").read_text())
    assert status["state"] == "finished"
