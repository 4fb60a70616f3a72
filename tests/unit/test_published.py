"""The table of published results and the recipes that repeat it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trainer.config import flat_config, load_config
from trainer.published import PUBLISHED, Published, published_for, same_schedule

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
EXPECTED = re.compile(
    r"# Expected:  (paper|official code's page|larq's page) (\d\d\.\d\d) top-1(?:, (\d\d\.\d\d) top-5)?( \([^)]*\))?;"
)
SOURCES = {"paper": "paper", "official code's page": "code", "larq's page": "larq"}


def stated() -> dict[Path, tuple[str, float, float | None, bool]]:
    """What the first lines of the recipes say is published, and whether they say that the training was another."""
    found = {path: EXPECTED.search(path.read_text(encoding="utf-8")) for path in sorted(CONFIGS.rglob("*.yaml"))}
    return {
        path: (SOURCES[match[1]], float(match[2]), float(match[3]) if match[3] else None, match[4] is not None)
        for path, match in found.items()
        if match
    }


def row(path: Path) -> tuple[Published, bool]:
    """The published row of a recipe's schedule, or the one of its network; whether it is another schedule."""
    flat = flat_config(load_config(path))
    known = published_for(flat)
    same = [row for row in known if same_schedule(row, flat)]
    [found] = same or known
    return found, not same


@pytest.mark.parametrize("path", stated(), ids=lambda path: path.stem)
def test_a_recipe_states_the_published_row_of_its_network_data_and_schedule(path: Path) -> None:
    found, other = row(path)
    assert stated()[path] == (found.source, found.top1, found.top5, other)


def test_every_published_row_has_its_recipe() -> None:
    assert {row(path)[0] for path in stated()} == set(PUBLISHED)


def test_nothing_is_published_for_other_data_or_other_bits() -> None:
    assert published_for(flat_config(load_config(CONFIGS / "quickstart.yaml"))) == []
    full = flat_config(load_config(CONFIGS / "cifar10" / "resnet20_1w1a.yaml", ["model.weight_bits=32"]))
    assert published_for(full) == []


def test_a_row_says_in_words_whose_it_is_and_how_long_was_trained() -> None:
    [staged] = [row for row in PUBLISHED if row.model == "reactnet18_1w1a"]
    assert (staged.whose, staged.schedule) == ("the official code's page", "128 epochs of 512, the last of 2 stages")
    assert PUBLISHED[0].schedule == "250 epochs of 750"
    one_stage = {"train.epochs": 128, "train.batch_size": 512}
    assert not same_schedule(staged, one_stage)
