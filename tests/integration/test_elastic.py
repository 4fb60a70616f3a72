"""A run goes on with another number of ranks: the same images in the same order, the same losses."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from spawn import run_ranks
from trainings import QUICK, SMALL, losses, records

from trainer.errors import ConfigError

SAVED, STEPS = 2, 5
# 103 images in batches of 48: the run is saved in mid-epoch, and step 3 has 7 images, fewer than 8 ranks.
BASE = (
    *SMALL,
    "data.loader=synthetic",
    "data.synthetic={samples: 103, classes: 10}",
    "train.precision=fp64",
    f"train.max_steps={STEPS}",
    "eval.every=0",
    f"checkpoint.every={SAVED}",
    "checkpoint.keep=9",
    "log.indicators_every=0",
)
RUNS = {
    "plain": BASE,
    # Statistics over 24 images: two groups on 4 ranks, each rank its own on 2.
    "grouped": (*BASE, "batchnorm={sync: {images: 24}}"),
    "local": (*BASE, "batchnorm.sync=off", "train.drop_last=true"),
    "rich": (*BASE, "train.accumulation=2", "train.ema=0.9", "train.clip_norm=0.5", "optim.name=adamw"),
}

Seen = dict[tuple[int, int], list[int]]


class Noting:
    """A feed that also notes which samples this rank is given."""

    def __init__(self, feed: Any) -> None:
        self.feed = feed
        self.seen: Seen = {}

    def take(self) -> Any:
        batch = self.feed.take()
        self.seen[batch.plan.step, batch.plan.micro] = batch.ids.tolist()
        return batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.feed, name)


def train_noting(config: str, *runs: list[str]) -> list[Seen | str]:
    """Train as the rank that the environment describes: what this rank was given in each run, or the refusal."""
    torch.set_num_threads(1)
    return [_train_noting(config, overrides) for overrides in runs]


def _train_noting(config: str, overrides: list[str]) -> Seen | str:
    from trainer.assembly import build
    from trainer.config import load_config
    from trainer.loop import train

    try:
        run = build(load_config(config, overrides))
    except ConfigError as error:
        return str(error)
    noting = Noting(run.feed)
    run.feed = noting
    train(run)
    run.close()
    return noting.seen


def over_ranks(by_rank: list[Seen]) -> Seen:
    """The samples of every micro-batch over all ranks, in rank order."""
    return {key: [sample for rank in by_rank for sample in rank[key]] for key in by_rank[0]}


class Saved:
    """Finished runs of `world` ranks, of which copies can be gone on with from an early step."""

    def __init__(self, folder: Path, world: int, *names: str) -> None:
        self.folder = folder
        commands = [[*RUNS[name], *self.place(name)] for name in names]
        by_rank = run_ranks(train_noting, world, str(QUICK), *commands, timeout_s=600, join=False)
        self.seen = {name: over_ranks([rank[n] for rank in by_rank]) for n, name in enumerate(names)}

    def place(self, name: str) -> list[str]:
        return [f"run.dir={self.folder}", f"run.name={name}"]

    def copy(self, name: str, world: int) -> list[str]:
        """The command that goes on with a copy whose only checkpoint is the early one."""
        copied = shutil.copytree(self.folder / name, self.folder / f"{name}-{world}", symlinks=True)
        for path in (copied / "checkpoints").iterdir():
            if path.name != f"step_{SAVED:08d}":
                path.unlink() if path.is_symlink() else shutil.rmtree(path)
        return [*RUNS[name], *self.place(f"{name}-{world}")]

    def go_on(self, world: int, *names: str) -> dict[str, list[Any]]:
        """Go on with `world` ranks: what each rank was given, or was told, by run."""
        commands = [self.copy(name, world) for name in names]
        by_rank = run_ranks(train_noting, world, str(QUICK), *commands, timeout_s=600, join=False)
        return {name: [rank[n] for rank in by_rank] for n, name in enumerate(names)}

    def check(self, name: str, world: int, by_rank: list[Seen]) -> None:
        """Same samples in the same order, none of before the save; same losses."""
        assert over_ranks(by_rank) == {key: ids for key, ids in self.seen[name].items() if key[0] >= SAVED}
        journal = self.folder / f"{name}-{world}" / "journal.jsonl"
        assert [r["step"] for r in records(journal) if r.get("event") == "resumed"] == [SAVED]
        found, expected = losses(journal), losses(self.folder / name / "journal.jsonl")
        assert len(found) == STEPS
        assert found[:SAVED] == expected[:SAVED]
        assert found == pytest.approx(expected, abs=1e-8, rel=0)


def test_two_ranks_go_on_as_one_unless_batch_statistics_would_change(tmp_path: Path) -> None:
    saved = Saved(tmp_path, 2, "plain", "local")
    found = saved.go_on(1, "plain", "local")
    saved.check("plain", 1, found["plain"])
    told = (
        "batchnorm.sync=off on 1 rank takes statistics over about 48 images, the checkpoint's run took them over 24: "
        "go on with a number of ranks that keeps them (2), or start a run of another name with model.init=CHECKPOINT"
    )
    assert told in found["local"][0]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_four_ranks_go_on_as_any_number(tmp_path: Path) -> None:
    saved = Saved(tmp_path, 4, "plain", "rich", "grouped", "local")
    for world, names in (
        (1, ("plain", "rich")),
        (2, ("plain", "rich", "grouped")),
        (3, ("plain", "rich")),
        (8, ("plain", "rich", "grouped")),
    ):
        found = saved.go_on(world, *names, "local")
        for name in names:
            saved.check(name, world, found[name])
        assert all("(4)" in told for told in found["local"])
