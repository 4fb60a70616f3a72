"""Whole trainings on a GPU: against the same on a CPU, compiled with CUDA graphs against without, and resumed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from trainings import QUICK, ROOT

from trainer.tracking.journal import read_journal

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

STEPS = 12
COMMON = (
    "data.loader=synthetic",
    "data.expect={}",
    "data.synthetic={samples: 256, classes: 10}",
    "data.image_size=32",
    "train.batch_size=64",
    f"train.max_steps={STEPS}",
    "train.tf32=false",
    "log.every=1",
    "checkpoint.every=6",
    "tracking.enabled=false",
)


def train(folder: Path, name: str, *overrides: str, gpu: bool = True) -> tuple[list[float], str]:
    """One run of the real program; the loss of every step, and what was logged."""
    own = [*COMMON, f"run.dir={folder}", f"run.name={name}", *overrides]
    done = subprocess.run(
        [sys.executable, "-m", "launch", "train", QUICK, *own, "--nproc", "1"],
        env=os.environ
        | {"RESTE_SITE": "", "PYTHONPATH": str(ROOT), "TORCH_LOGS": "cudagraphs"}
        | ({} if gpu else {"CUDA_VISIBLE_DEVICES": ""}),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    records = [record for _, record in read_journal(folder / name / "journal.jsonl")]
    return [r["metrics"]["train/loss"] for r in records if "train/loss" in r.get("metrics", {})], done.stderr


def test_the_first_steps_are_those_of_a_cpu(tmp_path: Path) -> None:
    """Later ones part: a sum that is nearly zero takes the other sign, and binary weights multiply that."""
    exact = "train.precision=fp64"
    gpu, cpu = (train(tmp_path, name, exact, gpu=name == "gpu")[0] for name in ("gpu", "cpu"))
    assert len(gpu) == len(cpu) == STEPS
    assert gpu[:3] == pytest.approx(cpu[:3], rel=1e-9)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cuda_graphs_change_no_number(tmp_path: Path, precision: str) -> None:
    common = ("train.compile=true", f"train.precision={precision}", "train.deterministic=true")
    plain, told = train(tmp_path, "plain", *common)
    assert "Recording function" not in told
    replayed, told = train(tmp_path, "replayed", *common, "train.cuda_graphs=true")
    assert "Recording function" in told, "nothing was recorded, so nothing was replayed"
    assert len(plain) == STEPS
    assert replayed == plain


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    common = ("train.deterministic=true", "train.precision=bf16", "train.compile=true")
    whole, _ = train(tmp_path, "whole", *common)
    train(tmp_path, "broken", *common, "train.max_steps=6")
    broken, _ = train(tmp_path, "broken", *common)
    assert broken == whole
