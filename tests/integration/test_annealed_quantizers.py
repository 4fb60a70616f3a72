"""What a schedule changes and no file holds is in evaluations, exports and moving averages as training left it.

ReCU's clamp is such: it moves with training, and a scale taken of clamped weights moves with it.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from trainings import QUICK, SMALL, metrics, train_here

from reste import binary_layers
from trainer.evaluate_checkpoint import evaluate_request, prepare
from trainer.network import stored_network

STEPS = 8
WORDS = (
    *SMALL,
    "data.loader=torchvision",
    "quantizer.weight=recu",
    "train.epochs=1",
    "train.batch_size=181",
    "train.ema=0.5",
    "eval.every=4",
    "checkpoint.every=4",
    "log.indicators_every=0",
)


def tau_after(step: int) -> float:
    """ReCU's tau (Xu et al., ICCV 2021) in the last of so many steps of a training of eight."""
    share = (step - 1) / (STEPS - 1)
    return 0.08147674 * math.exp(share) + 0.76852326


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    assert train_here(str(QUICK), [*WORDS, f"data.root={digits}", f"run.dir={folder}", "run.name=recu"]) == [0]
    return folder / "recu"


@pytest.mark.parametrize("step", [STEPS // 2, STEPS])
def test_an_evaluation_of_a_checkpoint_is_that_of_its_training(run: Path, digits: Path, step: int) -> None:
    folder = run / f"checkpoints/step_{step:08d}"
    told = {s: v for s, v in metrics(run / "journal.jsonl") if "val/loss" in v}
    found = evaluate_request(prepare(folder, digits, batch_size=None, loader=None, weights="auto"))
    assert found is not None
    assert found.top1 == told[step]["val/top1"]
    assert found.loss == pytest.approx(told[step]["val/loss"], rel=1e-9)
    (tau,) = {layer.weight_quantizer.tau.item() for _, layer in binary_layers(stored_network(folder, "it").network)}
    assert tau == pytest.approx(tau_after(step), abs=1e-6)
