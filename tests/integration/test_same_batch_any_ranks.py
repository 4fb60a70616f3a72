"""The same global batch gives the same training, however many ranks share it."""

from __future__ import annotations

from pathlib import Path

import pytest
from spawn import run_ranks
from trainings import QUICK, SMALL, losses, metrics, train_here

STEPS = 20
# 343 images in batches of 48: seven full ones and one of 7 images, which 2 and 3 ranks share unevenly.
BINARY = (
    *SMALL,
    "data.loader=synthetic",
    "data.synthetic={samples: 343, classes: 10}",
    "train.precision=fp64",
    f"train.max_steps={STEPS}",
    "eval.every=0",
    "checkpoint.every=0",
)
# A network without batch norm, for which two micro-batches are one batch.
TRANSFORMER = (
    *BINARY,
    "model.name=test_vit",
    "data.image_size=160",
    "augment.crop=none",
    "train.max_steps=2",
    "train.batch_size=7",
    "data.synthetic={samples: 14, classes: 10}",
    "estimator={threshold: null, knee: null}",
)
# Noise in every sign, of weights and of activations, over the end of an epoch.
STOCHASTIC = (
    *BINARY,
    "train.max_steps=9",
    "log.indicators_every=0",
    "estimator={name: identity, threshold: null, knee: null}",
    "quantizer={weight: stochastic_mirror, activation: stochastic, scaling: none}",
)
RUNS = {
    1: {"binary": BINARY, "transformer": TRANSFORMER, "stochastic": STOCHASTIC},
    2: {
        "binary": BINARY,
        "unprobed": (*BINARY, "log.indicators_every=0"),
        "unsynchronised": (*BINARY, "batchnorm.sync=off"),
        "transformer": (*TRANSFORMER, "train.accumulation=3"),
        "stochastic": STOCHASTIC,
    },
    3: {"binary": BINARY},
}


@pytest.fixture(scope="module")
def journals(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], Path]:
    """Journals by (number of ranks, run)."""
    folder = tmp_path_factory.mktemp("runs")
    collected = {}
    for world, runs in RUNS.items():
        commands = [[*overrides, f"run.dir={folder}", f"run.name={name}{world}"] for name, overrides in runs.items()]
        codes = run_ranks(train_here, world, str(QUICK), *commands, timeout_s=280, join=False)
        assert codes == [[0] * len(runs)] * world
        for name in runs:
            collected[world, name] = folder / f"{name}{world}" / "journal.jsonl"
    return collected


@pytest.fixture(scope="module")
def found(journals: dict[tuple[int, str], Path]) -> dict[tuple[int, str], list[float]]:
    """Losses by (number of ranks, run)."""
    return {key: losses(journal) for key, journal in journals.items()}


def probes(journal: Path) -> list[tuple[int, dict[str, float]]]:
    """The indicators of every probed step."""
    only = [
        (step, {k: v for k, v in values.items() if k.startswith("indicator/")}) for step, values in metrics(journal)
    ]
    return [(step, values) for step, values in only if values]


@pytest.mark.parametrize("world", [2, 3])
def test_synchronised_batchnorm_makes_ranks_equal_to_one(found: dict[tuple[int, str], list[float]], world: int) -> None:
    assert len(found[1, "binary"]) == STEPS
    assert found[world, "binary"] == pytest.approx(found[1, "binary"], abs=1e-9, rel=0)


@pytest.mark.parametrize("world", [2, 3])
def test_indicators_are_those_of_one_rank(journals: dict[tuple[int, str], Path], world: int) -> None:
    alone, together = probes(journals[1, "binary"]), probes(journals[world, "binary"])
    # Step 8, the end of an epoch, has 7 images.
    assert [step for step, _ in together] == [step for step, _ in alone] == [4, 8, 12, 16, 20]
    for (_, here), (_, there) in zip(together, alone, strict=True):
        assert here == pytest.approx(there, rel=1e-6)
        kinds = ("estimating_error", "estimating_error_current", "gradient_instability")
        for kind in (*kinds, "activation_error", "activation_error_current"):
            assert here[f"indicator/{kind}"] > 0
            layers = [value for name, value in here.items() if name.startswith(f"indicator/{kind}/")]
            assert here[f"indicator/{kind}"] == pytest.approx(sum(layers))
            assert len(layers) == 18


def test_probes_leave_training_and_evaluation_as_they_are(journals: dict[tuple[int, str], Path]) -> None:
    probed, unprobed = metrics(journals[2, "binary"]), metrics(journals[2, "unprobed"])
    kept = [(step, values) for step, values in probed if not any(name.startswith("indicator/") for name in values)]
    assert kept == unprobed
    assert "val/loss" in unprobed[-1][1]


def test_random_signs_are_the_same_on_any_number_of_ranks(found: dict[tuple[int, str], list[float]]) -> None:
    alone = found[1, "stochastic"]
    assert len(alone) == 9
    assert found[2, "stochastic"] == pytest.approx(alone, abs=1e-9, rel=0)


def test_plain_batchnorm_does_not(found: dict[tuple[int, str], list[float]]) -> None:
    pairs = zip(found[2, "unsynchronised"], found[1, "binary"], strict=True)
    assert max(abs(a - b) for a, b in pairs) > 1e-3


def test_accumulation_over_uneven_ranks_gives_the_gradient_of_the_whole_batch(
    found: dict[tuple[int, str], list[float]],
) -> None:
    assert len(found[1, "transformer"]) == 2
    assert found[2, "transformer"] == pytest.approx(found[1, "transformer"], abs=1e-9, rel=0)
