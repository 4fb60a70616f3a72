"""What the best-of recipe on the icons is made of, and what each part gives.

First candidates, on a part of the training images; then, once that is decided, the reference recipe, its steps towards
the best-of recipe and that recipe itself, on the test images:

    python benchmarks/icons.py data/icons
    python benchmarks/best_recipe.py choose --record benchmarks/records/best_recipe_choose.json
    python benchmarks/best_recipe.py final --record benchmarks/records/best_recipe.json

Two runs at a time, one thread each; finished runs are not made again.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from studies import REFERENCE, about, series, show, spread, train, write_record

Split = Literal["choose", "final"]
BEST = "configs/icons/best.yaml"
STUDY = "configs/icons/study.yaml"
SHORTCUTS = ("model.name=resnet20_bireal_1w1a",)
CANDIDATES: dict[str, tuple[str, tuple[str, ...]]] = {
    "default": (STUDY, ()),
    "shortcuts": (STUDY, SHORTCUTS),
    "shortcuts, scale by channel": (STUDY, (*SHORTCUTS, "quantizer.scaling=channel")),
}
FINAL: dict[str, tuple[str, tuple[str, ...]]] = {
    "reference": (STUDY, REFERENCE),
    "with one rate, normalised slope": (STUDY, (*REFERENCE, "estimator.normalize=true")),
    "with binary weights' own rate": (STUDY, (*REFERENCE, "estimator.normalize=true", "optim.binary_lr=auto")),
    "best": (BEST, ()),
    "best, ten epochs": (BEST, ("train.epochs=10", "checkpoint.every=10ep")),
}
"""Name -> configuration, and what the case sets beyond it."""


def main(
    split: Annotated[Split, typer.Argument(help="choose: candidates on training images; final: on the test images.")],
    folder: Annotated[Path, typer.Option(help="Where the runs go.")] = Path("runs/best_recipe"),
    data: Annotated[Path, typer.Option(help="The data sets, from benchmarks/icons.py.")] = Path("data/icons"),
    cases: Annotated[list[str] | None, typer.Option("--case", help="Only these; all by default.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each case.")] = 3,
    epochs: Annotated[int, typer.Option(min=2, help="Length of a run that does not say its own.")] = 12,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 2,
    record: Annotated[Path | None, typer.Option(help="Write what was measured to this JSON file.")] = None,
) -> None:
    """Train every case with every seed; compare accuracy and time."""
    known = CANDIDATES if split == "choose" else FINAL
    chosen = {name: known[name] for name in cases or known}
    sizes = {"choose": "{train: 2452, val: 539, classes: 9}", "final": "{train: 2991, val: 2004, classes: 9}"}
    common = [f"data.root={data / split}", f"data.expect={sizes[split]}", f"train.epochs={epochs}"]
    common += ["eval.every=5ep" if split == "choose" else "eval.every=1ep"]
    place = folder / split
    with ThreadPoolExecutor(jobs) as pool:
        started = [
            pool.submit(train, place, name_of(case, seed), config, [*common, *overrides, f"seed={seed}"])
            for seed in range(seeds)
            for case, (config, overrides) in chosen.items()
        ]
        for future in started:
            future.result()
    rows = [row(place, case, *chosen[case], seeds) for case in chosen]
    show(rows, ("best_top1", "final_top1", "seconds"))
    if record is not None:
        what = f"top-1 in percent on the icons at 24 pixels, {split}; seconds of training, {jobs} runs side by side"
        facts = about(place, name_of(next(iter(chosen)), 0))
        write_record(record, {"what": what, **facts, "common": common, "rows": rows})


def name_of(case: str, seed: int) -> str:
    """The run's folder."""
    return "".join(letter if letter.isalnum() else "_" for letter in case) + f"_{seed}"


def row(place: Path, case: str, config: str, overrides: tuple[str, ...], seeds: int) -> dict[str, Any]:
    """What the runs of one case came to."""
    names = [name_of(case, seed) for seed in range(seeds)]
    results = [train(place, name, config, []) for name in names]
    top1 = [series(place, name, "val/top1") for name in names]
    return {
        "case": case,
        "config": config,
        "overrides": list(overrides),
        "best_top1": spread([max(run) for run in top1]),
        "final_top1": spread([run[-1] for run in top1]),
        "seconds": spread([result["seconds"] for result in results], 1),
        "top1_by_evaluation": [[round(value, 2) for value in run] for run in top1],
    }


if __name__ == "__main__":
    typer.run(main)
