"""The words of `reste slurm`: one set of options for its two commands; what they mean is in `batch_options.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

slurm_app = typer.Typer(no_args_is_help=True, help="Jobs of SLURM that save in time, are queued again and go on.")

_USE, _GOES_ON, _WHERE, _SEVERAL = "What a job may use", "How it goes on", "Where it runs", "Several runs"
_NO_OPTIONS_OF_THE_JOB = ("config", "overrides", "case", "seeds", "more", "engine", "site", "out")


def job(
    ctx: typer.Context,
    config: Annotated[Path, typer.Argument(help="A YAML file, as found from the folder you are in.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides.", show_default=False)
    ] = None,
    case: Annotated[
        list[str] | None,
        typer.Option(
            metavar="'NAME: KEY=VALUE ...'",
            help="Of `reste study runs`: an array of its runs; repeat it.",
            rich_help_panel=_SEVERAL,
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs for each case.", rich_help_panel=_SEVERAL)] = 1,
    nodes: Annotated[int | None, typer.Option(help="Machines; 1 by default.", rich_help_panel=_USE)] = None,
    gpus_per_node: Annotated[
        int | None, typer.Option(help="One rank for each; 0 on nodes without GPUs.", rich_help_panel=_USE)
    ] = None,
    ranks_per_node: Annotated[
        int | None, typer.Option(help="Where that is not one for each GPU.", rich_help_panel=_USE)
    ] = None,
    cpus_per_node: Annotated[int | None, typer.Option(help="Whole nodes by default.", rich_help_panel=_USE)] = None,
    mem: Annotated[str | None, typer.Option(help="Memory of a node, e.g. 480G.", rich_help_panel=_USE)] = None,
    time: Annotated[
        str | None, typer.Option(help="Limit of one start: minutes, H:MM:SS or D-HH:MM:SS.", rich_help_panel=_USE)
    ] = None,
    signal_before: Annotated[
        int | None, typer.Option(help="Seconds before the limit to save; 300 by default.", rich_help_panel=_GOES_ON)
    ] = None,
    partition: Annotated[
        str | None, typer.Option(help="Of the cluster; its own default otherwise.", rich_help_panel=_USE)
    ] = None,
    account: Annotated[str | None, typer.Option(help="Whose time is used.", rich_help_panel=_USE)] = None,
    qos: Annotated[
        str | None, typer.Option(help="Quality of service: priority and limits.", rich_help_panel=_USE)
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the job; run.name by default.")] = None,
    array: Annotated[
        str | None, typer.Option(help="E.g. 0-4; %a in an override is the task's number.", rich_help_panel=_SEVERAL)
    ] = None,
    requeues: Annotated[
        int | None, typer.Option(help="Times it is queued again at most; 20 by default.", rich_help_panel=_GOES_ON)
    ] = None,
    failures: Annotated[
        int | None, typer.Option(help="Starts in a row without a checkpoint; 3 by default.", rich_help_panel=_GOES_ON)
    ] = None,
    setup: Annotated[
        list[str] | None, typer.Option(help="A shell line before training; may be repeated.", rich_help_panel=_WHERE)
    ] = None,
    sbatch: Annotated[
        list[str] | None, typer.Option(help="A further option of sbatch; may be repeated.", rich_help_panel=_WHERE)
    ] = None,
    container: Annotated[
        str | None, typer.Option(help="Image; .sif for Apptainer, else for Enroot by pyxis.", rich_help_panel=_WHERE)
    ] = None,
    runtime: Annotated[
        str | None, typer.Option(help="apptainer or pyxis, if the image's name misleads.", rich_help_panel=_WHERE)
    ] = None,
    mount: Annotated[
        list[str] | None, typer.Option(help="A folder for the container; may be repeated.", rich_help_panel=_WHERE)
    ] = None,
    more: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An override, as an option; may be repeated.")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="Short for `engine=...`.")] = None,
    site: Annotated[Path | None, typer.Option(help="YAML of your cluster's defaults.")] = None,
    out: Annotated[Path | None, typer.Option(help="render: file to write instead of printing.")] = None,
) -> None:
    """Shared by both commands; their own words are given where they are named, below."""
    from launch import batch
    from launch.batch_options import load_options

    given = {key: value for key, value in ctx.params.items() if key not in _NO_OPTIONS_OF_THE_JOB}
    options = load_options(given, site)
    values = [*(overrides or []), *(more or []), *([f"engine={engine}"] if engine else [])]
    if ctx.command.name == "render":
        batch.write(batch.render(config, values, options, cases=case or [], seeds=seeds), out)
    else:
        batch.submit(config, values, options, cases=case or [], seeds=seeds, out=out)


_SITE = """

    What is always the same on your cluster goes to `~/.config/reste/slurm.yaml` (or `--site`, or the variable
    RESTE_SLURM_SITE), under the options' names with `_` for `-`, e.g. `{gpus_per_node: 8, account: vision,
    time: "24:00:00", setup: [source .venv/bin/activate]}`; the command line wins.
    """
slurm_app.command(
    "render",
    help="Print the sbatch script of a training: one torchrun on each node, saved and queued again in time." + _SITE,
    epilog="Example: `reste slurm render configs/quickstart.yaml --nodes 2 --gpus-per-node 0 --ranks-per-node 1`.",
)(job)
slurm_app.command(
    "submit",
    help="Submit the script that `reste slurm render` prints; it is kept with its output in `slurm/` of the run's "
    "folder." + _SITE,
    epilog="Example: `reste slurm submit configs/imagenet/resnet18_reste.yaml data.root=/data/imagenet --nodes 8 "
    "--gpus-per-node 8 --time 24:00:00`. Of a study: `... --seeds 3 --case 'published:' "
    "--case 'steep: estimator.o_end=5'`.",
)(job)
