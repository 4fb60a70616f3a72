"""The words of `reste study`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

study_app = typer.Typer(no_args_is_help=True, help="Questions that take several trainings to answer.")

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides for all runs.", show_default=False),
]
Nproc = Annotated[
    int | None,
    typer.Option("--nproc", min=1, help="Ranks of each run; all GPUs by default, one process on a CPU."),
]


@study_app.command("runs")
def runs(
    config: Annotated[Path, typer.Argument(help="A YAML file, e.g. configs/quickstart.yaml.")],
    case: Annotated[
        list[str],
        typer.Option("--case", metavar="'NAME: KEY=VALUE ...'", help="A name and its overrides, if any; repeat it."),
    ],
    overrides: Overrides = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs for each case; seeds count up from the config's.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Folder; `NAME-study` in `run.dir` by default.")] = None,
    nproc: Nproc = None,
    report: Annotated[
        bool, typer.Option("--report", help="Train nothing: compare the runs that are finished.")
    ] = False,
) -> None:
    """Train every case with every seed; compare them by mean, standard deviation and number of runs.

    Each training is an ordinary run. Start the same command again to go on where it was interrupted, also with more
    seeds or cases. A run that fails is named, and the others are trained.

    As an array of SLURM: `reste slurm submit` takes the same `--case` and `--seeds`; afterwards `--report` here.

    Exit codes: those of `reste train`.

    Example: `reste study runs configs/quickstart.yaml --seeds 3 --case "published:" --case "steep: estimator.o_end=5"`.
    """
    from launch import study_runs

    raise typer.Exit(
        study_runs.runs(config, overrides or [], cases=case, seeds=seeds, out=out, nproc=nproc, report_only=report)
    )


@study_app.command("methods")
def methods(
    config: Annotated[Path, typer.Argument(help="A YAML file: data, network, schedule and budget of all methods.")],
    overrides: Overrides = None,
    method: Annotated[
        list[str] | None, typer.Option("--method", help="One of the folder's methods, all by default; repeat it.")
    ] = None,
    folder: Annotated[Path, typer.Option("--methods", help="Folder of methods, a YAML file each.")] = Path(
        "configs/methods"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="Runs for each method; seeds count up from the config's.")] = 3,
    out: Annotated[Path | None, typer.Option(help="Folder; `NAME-study` in `run.dir` by default.")] = None,
    nproc: Nproc = None,
    report: Annotated[
        bool, typer.Option("--report", help="Train nothing: compare the runs that are finished.")
    ] = False,
) -> None:
    """Train every method with every seed under one budget; compare accuracy, indicators, step time and memory.

    Writes a table (CSV), a picture (PNG) and a page (HTML). Each training is an ordinary run; start the same command
    again to go on where it was interrupted, also with more seeds or methods.

    Exit codes: those of `reste train`.

    Example: `reste study methods configs/quickstart.yaml --seeds 3 --method reste --method ste`.
    """
    from launch import study_methods

    raise typer.Exit(
        study_methods.methods(
            config,
            overrides or [],
            names=method or [],
            folder=folder,
            seeds=seeds,
            out=out,
            nproc=nproc,
            report_only=report,
        )
    )


@study_app.command("equilibrium")
def equilibrium(
    config: Annotated[Path, typer.Argument(help="A YAML file, e.g. configs/equilibrium.yaml.")],
    o_end: Annotated[str, typer.Option("--o-end", help="Last powers, e.g. 1,1.5,2,3.")],
    overrides: Overrides = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs for each power; seeds count up from the config's.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Folder; `NAME-equilibrium` in `run.dir` by default.")] = None,
    nproc: Nproc = None,
) -> None:
    """Train once for each last power; draw estimating error against gradient instability, and accuracy.

    Each training is an ordinary run. Start the same command again to go on where it was interrupted.

    Exit codes: those of `reste train`.

    Example: `reste study equilibrium configs/equilibrium.yaml --o-end 1,2,3`.
    """
    from launch import study_equilibrium

    raise typer.Exit(
        study_equilibrium.equilibrium(config, overrides or [], o_end=o_end, seeds=seeds, out=out, nproc=nproc)
    )


@study_app.command("toy")
def toy(
    out: Annotated[Path, typer.Option(help="Folder for figure and table.")] = Path("runs/toy"),
    seed: Annotated[int, typer.Option(min=0, help="Of the problem and of the first start.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Descents for each slope and start.")] = 5,
    steps: Annotated[int, typer.Option(min=1, max=100_000, help="Of each descent.")] = 500,
    rate: Annotated[float, typer.Option(min=1e-6, max=10.0, help="Of each step.")] = 0.1,
) -> None:
    """Two layers and a normal input: where straight-through estimators go, computed without noise; no training.

    The slopes of ReLU, of clipped ReLU and of the identity descend from a place drawn at random, from beside the
    spurious minimum and from beside the global one (Yin et al., ICLR 2019).

    Example: `reste study toy --seeds 20`.
    """
    from launch import study_toy

    raise typer.Exit(study_toy.toy(out, seed=seed, seeds=seeds, steps=steps, rate=rate))
