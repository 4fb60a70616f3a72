"""Memory of a long run: what every rank holds does not grow. Loaders decode in threads of the ranks themselves."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import pytest
from trainings import QUICK, Life, last_step

STEPS = 10_000
WARM = 0.2
"""Share of the steps after which nothing may grow any more."""
SETTINGS = (
    "data.image_size=8",
    "train.compile=false",
    "train.batch_size=4",
    "train.epochs=40",
    f"train.max_steps={STEPS}",
    "log.every=20",
    "log.indicators_every=200",
    "eval.every=1000",
    "checkpoint.every=250",
)


def resident_kib(pid: int) -> int:
    """The memory of a process that is its own and in use, in KiB: anonymous pages, not the libraries' files."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("RssAnon:")))


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("loader", ["torchvision", "dali"])
def test_ten_thousand_steps_take_no_more_memory_than_two_thousand(loader: str, tmp_path: Path, digits: Path) -> None:
    places = [f"data.root={digits}", f"run.dir={tmp_path}", "run.name=long", f"data.loader={loader}", "--nproc=2"]
    journal = tmp_path / "long" / "journal.jsonl"
    seen: list[tuple[int, list[int]]] = []
    with Life(QUICK, *SETTINGS, *places, log=tmp_path / "log") as life:
        life.wait_for_step(journal, 20)
        ranks = life.ranks()
        assert len(ranks) == 2
        while life.process.poll() is None:
            step = last_step(journal)
            try:
                seen.append((step, [resident_kib(pid) for pid in ranks]))
            except (OSError, StopIteration):
                break
            time.sleep(1)
        assert life.process.wait(120) == 0, (tmp_path / "log").read_text()
    warm = [held for step, held in seen if step >= WARM * STEPS]
    assert len(warm) >= 20
    tenth = max(len(warm) // 10, 2)
    for rank in (0, 1):
        before, after = (median(held[rank] for held in part) for part in (warm[:tenth], warm[-tenth:]))
        print(f"{loader}, rank {rank}: {before / 1024:.1f} MiB, at the end {after / 1024:.1f} MiB")
        assert after < 1.02 * before
