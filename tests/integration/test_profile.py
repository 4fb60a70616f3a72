"""The account of real steps against clocks of its own: the journal's, and sleeps of known length."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pytest
from trainings import QUICK, SMALL, environment, losses, records

from trainer.assembly import build
from trainer.config import load_config
from trainer.errors import ConfigError
from trainer.loop import train, train_step
from trainer.pixels import Pixels
from trainer.run import Run

pytestmark = [pytest.mark.timeout(400), pytest.mark.alone]
SLEPT_S = 0.7
SYNTHETIC = ("data.loader=synthetic", "data.synthetic.samples=96", "eval.every=0", "log.indicators_every=0")


@pytest.mark.slow
def test_the_sections_of_two_ranks_add_up_and_a_slow_loader_shows(tmp_path: Path) -> None:
    run = tmp_path / "x"
    command = ["train", QUICK, *SMALL, *SYNTHETIC, f"run.dir={tmp_path}", "run.name=x", "log.profile=3+3", "--nproc=2"]
    command += ["train.epochs=4", "train.max_steps=6", "data.image_size=8", "checkpoint.every=0"]
    done = subprocess.run(
        [sys.executable, "-m", "launch", *map(str, command)],
        # Step 5 is one of the three that are recorded, step 2 comes before them.
        env=environment() | {"OMP_NUM_THREADS": "1", "RESTE_FAULTS": f"slow@0:2-2=1 slow@0:5-5={SLEPT_S}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    table = json.loads((run / "profile" / "table.json").read_text())
    assert table["steps"] == [4, 6]
    took_s = [
        record["metrics"]["perf/step_time_s"]
        for record in records(run / "journal.jsonl")
        if record["type"] == "metrics" and 4 <= record["step"] <= 6 and "perf/step_time_s" in record["metrics"]
    ]
    slept_ms = 1000 * SLEPT_S / 3
    for rank in table["ranks"]:
        assert sum(rank["sections"].values()) == pytest.approx(1000 * fmean(took_s), rel=0.05)
        assert len(rank["step_ms"]) == 3
        for section in ("to_device", "forward", "backward", "communication", "optimizer", "other"):
            assert rank["sections"][section] > 0, section
    slow, other = (rank["sections"] for rank in table["ranks"])
    assert slow["data"] >= slept_ms > other["data"]
    assert other["communication"] >= slept_ms - slow["communication"], "the other rank waited for it"
    assert "steps 4 to 6 took" in done.stdout
    assert "waiting for data" in done.stdout
    assert "ERROR" not in done.stderr
    for number in (0, 1):
        with gzip.open(run / "profile" / f"rank_{number}.json.gz") as file:
            assert json.load(file)["traceEvents"]


def losses_of(folder: Path, *overrides: str) -> tuple[list[float], Run]:
    """The loss of every step of a run made here, and the run."""
    values = [*SMALL, *SYNTHETIC, "train.epochs=3", f"run.dir={folder}", "data.image_size=8", *overrides]
    run = build(load_config(QUICK, values))
    try:
        train(run)
    finally:
        run.close()
    return losses(run.directory / "journal.jsonl"), run


def test_a_profile_changes_no_loss_and_leaves_the_parts_as_they_were(tmp_path: Path) -> None:
    plain, _ = losses_of(tmp_path, "run.name=plain")
    recorded, run = losses_of(tmp_path, "run.name=recorded", "log.profile=2+2")
    assert recorded == plain
    assert (run.directory / "profile" / "table.json").is_file()
    assert not marked(run)


def marked(run: Run) -> list[object]:
    """The parts of a run that are not themselves."""
    methods = {"take", "paused", "forward", "backward", "finish_gradients", "step", "step_done"}
    parts = [part for part in (run.feed, run.engine, run.pulse) if any(callable(vars(part).get(m)) for m in methods)]
    return parts + ([] if type(run.pixels) is Pixels else [run.pixels])


def test_a_recording_that_is_cut_short_leaves_nothing(tmp_path: Path) -> None:
    values = [*SMALL, *SYNTHETIC, f"run.dir={tmp_path}", "run.name=cut", "data.image_size=8", "log.profile=1+2"]
    run = build(load_config(QUICK, values))
    train_step(run)
    run.pulse.step_done(1)
    train_step(run)
    assert len(marked(run)) == 4
    run.close()
    assert not marked(run)
    assert not (run.directory / "profile").exists()


@pytest.mark.slow
def test_what_compiling_took_is_journalled_and_kept_where_the_user_says(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    values = [*SMALL, *SYNTHETIC, "train.compile=true", "data.image_size=8", f"run.dir={tmp_path}", "run.name=x"]
    command = [sys.executable, "-m", "launch", "train", QUICK, *values, "train.max_steps=1"]
    done = subprocess.run(
        list(map(str, command)),
        env=environment() | {"TORCHINDUCTOR_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        timeout=390,
    )
    assert done.returncode == 0, done.stderr
    [first] = [r for r in records(tmp_path / "x" / "journal.jsonl") if "perf/compile_s" in r.get("metrics", {})]
    assert first["metrics"]["perf/compile_s"] > 0
    assert f"the compiler keeps its work in {cache}" in done.stdout
    assert any(cache.rglob("*.so"))


def test_a_profile_that_cannot_be_is_refused_or_named(tmp_path: Path) -> None:
    for wrong in ("5", "0+5", "5+0", "5+2000", "5-7"):
        with pytest.raises(ConfigError, match=r"log\.profile"):
            load_config(QUICK, [f"log.profile={wrong}"])
    late, _ = losses_of(tmp_path, "run.name=late", "log.profile=9+2")
    assert len(late) == 6
    assert not (tmp_path / "late" / "profile").exists()
