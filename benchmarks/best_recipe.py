"""What the best-of recipe on the icons is made of, and what each part gives.

First candidates, on a part of the training images; then, once that is decided, the reference recipe, its steps towards
the best-of recipe and that recipe itself, on images that nothing else is evaluated on:

    python benchmarks/icons.py data/icons
    python benchmarks/best_recipe.py tune --record benchmarks/records/best_recipe_tune.json
    python benchmarks/best_recipe.py sealed --record benchmarks/records/best_recipe.json

Two runs at a time, one thread each; finished runs are not made again.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from studies import REFERENCE, about, series, show, spread, train, write_record

Split = Literal["tune", "sealed"]
Case = tuple[str, tuple[str, ...]]
BEST = "configs/icons/best.yaml"
STUDY = "configs/icons/study.yaml"
SIZES = {"tune": "{train: 2384, val: 1578, classes: 9}", "sealed": "{train: 2923, val: 2204, classes: 9}"}
NORMALISED = (*REFERENCE, "estimator.normalize=true")
CANDIDATES: dict[str, Case] = {
    "default": (STUDY, ()),
    "batch 64": (STUDY, ("train.batch_size=64",)),
    "batch 32": (STUDY, ("train.batch_size=32",)),
    "batch 64, standardised": (STUDY, ("train.batch_size=64", "quantizer.weight=standardize")),
    "batch 64, shortcuts": (STUDY, ("train.batch_size=64", "model.name=resnet20_bireal_1w1a")),
}
FINAL: dict[str, Case] = {
    "reference": (STUDY, REFERENCE),
    "with a normalised slope": (STUDY, (*REFERENCE, "estimator.normalize=true")),
    "with eight times the rate for binary weights, too": (
        STUDY,
        (*REFERENCE, "estimator.normalize=true", "optim.binary_lr=8"),
    ),
    "default": (STUDY, ()),
    "best": (BEST, ()),
}
"""Name -> configuration, and what the case sets beyond it."""


def main(
    split: Annotated[Split, typer.Argument(help="tune: candidates on training images; sealed: on the test images.")],
    folder: Annotated[Path, typer.Option(help="Where the runs go.")] = Path("runs/best_recipe"),
    data: Annotated[Path, typer.Option(help="The data sets, from benchmarks/icons.py.")] = Path("data/icons"),
    cases: Annotated[list[str] | None, typer.Option("--case", help="Only these; all by default.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each case.")] = 3,
    epochs: Annotated[int, typer.Option(min=2, help="Length of a run that does not say its own.")] = 12,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 2,
    record: Annotated[Path | None, typer.Option(help="Write what was measured to this JSON file.")] = None,
) -> None:
    """Train every case with every seed; compare accuracy and time."""
    known = CANDIDATES if split == "tune" else FINAL
    chosen = {name: known[name] for name in cases or known}
    common = [
        f"data.root={data / split}",
        f"data.expect={SIZES[split]}",
        f"train.epochs={epochs}",
        "train.precision=fp32",
    ]
    common += ["eval.every=5ep" if split == "tune" else "eval.every=1ep"]
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
