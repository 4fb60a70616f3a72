"""The list of what is left out: agreed between real ranks, on the disk at the right steps, honoured afterwards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from image_tree import make_tree
from spawn import run_ranks
from trainings import records

from trainer.config_schema import DataConfig
from trainer.data.index import load_index
from trainer.data.order import Augment, TrainOrder
from trainer.data.prepare.folder import prepare_folder
from trainer.data.replacing import Replacing
from trainer.data.torchvision import TorchvisionLoader
from trainer.distributed import collectives
from trainer.errors import DataError
from trainer.quarantine import SharedQuarantine
from trainer.tracking.recorder import Recorder

BATCH, STEPS = 6, 8  # two epochs of 24 images
Life = tuple[list[list[int]], list[float], str]


def life(root: Path, run: Path, start: int, stop: int, **data: Any) -> Life:
    """What a rank sees of some steps: ids of each batch, the metric every second step, how it ended."""
    index, rank, world = load_index(root, "train"), collectives.rank(), collectives.world_size()
    order = TrainOrder(index, Augment(16, crop="none"), seed=7, batch_size=BATCH, rank=rank, world=world)
    config = DataConfig(**{"on_error": "quarantine", **data})
    inner = TorchvisionLoader(index, root, image_size=16, kind="window", max_batch=BATCH, rank=rank)
    loader = Replacing(inner, order, root, limit=config.max_quarantined, rank=rank)
    recorder = Recorder(run, enabled=rank == 0, total_steps=STEPS, steps_per_epoch=4, print_s=1e9)
    seen: list[list[int]] = []
    told: list[float] = []
    ended = "finished"
    try:
        shared = SharedQuarantine(order, config, recorder, step=start)
        for batch in loader.load(order.plans(start, stop)):
            seen.append(batch.ids.tolist())
            step = batch.plan.step + 1
            if step % 2 == 0:
                told.append(shared.share(step)["data/quarantined"])
    except DataError as error:
        ended = f"everywhere={error.everywhere}: {error}"
    recorder.abandon()
    loader.close()
    return seen, told, ended


def lives(root: Path, runs: Path, bad: list[Path], whole: Path) -> dict[str, Life]:
    """Lives of one rank; top level, for `run_ranks`."""
    found = {
        "whole": life(root, runs / "whole", 0, STEPS),
        "few": life(root, runs / "few", 0, STEPS, max_quarantined=2),
    }
    found["first"] = life(root, runs / "lives", 0, 4)
    collectives.barrier()
    if collectives.is_main():  # what is on the list stays out, though it could be read again
        for file in bad[:2]:
            shutil.copy(whole / file.relative_to(root), file)
        (runs / "lives" / "config.yaml").touch()
    collectives.barrier()
    found["second"] = life(root, runs / "lives", 4, STEPS, on_error="quarantine")
    return found


@pytest.mark.timeout(120)
def test_two_ranks_leave_out_what_one_does_and_go_on_so_after_a_repair(tmp_path: Path) -> None:
    whole = make_tree(tmp_path / "whole", train=24, val=3, size=(40, 30))
    prepare_folder(whole)
    index = load_index(whole, "train")
    order = TrainOrder(index, Augment(16), seed=7, batch_size=BATCH)
    batches = [plan.ids.tolist() for plan in order.plans(0, 4)]
    victims = {batches[0][5]: 0, batches[1][1]: 1, batches[3][0]: 3}
    found = {}
    for world in (1, 2):
        root = Path(shutil.copytree(whole, tmp_path / f"root{world}"))
        bad = [root / index.paths[sample] for sample in victims]
        for file in bad:
            file.write_bytes(b"no")
        runs = tmp_path / f"runs{world}"
        found[world] = run_ranks(lives, world, root, runs, bad, whole)
        list_ = [json.loads(line) for line in (runs / "whole" / "quarantine.jsonl").read_text().splitlines()]
        assert [(entry["sample"], entry["step"]) for entry in list_] == list(victims.items())
        told = [r for r in records(runs / "whole" / "journal.jsonl") if r.get("event") == "quarantined"]
        assert [(r["sample"], r["since"], r["step"]) for r in told] == [
            (sample, since, since + 2 - since % 2) for sample, since in victims.items()
        ]
        assert (runs / "lives" / "quarantine.jsonl").exists()

    [alone] = found[1]
    assert alone["whole"][1] == [2, 3, 3, 3]
    assert alone["first"][0] + alone["second"][0] == alone["whole"][0]
    assert alone["second"][1] == [3, 3]
    for name in ("whole", "first", "second"):
        ranks = [rank[name] for rank in found[2]]
        assert [a + b for a, b in zip(*(seen for seen, _, _ in ranks), strict=True)] == alone[name][0]
        assert [told for _, told, _ in ranks] == [alone[name][1]] * 2
        assert not set(victims) & {sample for batch in alone[name][0] for sample in batch}
    says = "3 training images cannot be read, data.max_quarantined=2 allows no more; the last is "
    assert says in alone["few"][2]
    assert all(f"everywhere=True: {says}" in rank["few"][2] for rank in found[2])
