"""`reste`: train, evaluate, prepare and look at binary networks."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from launch.batch_cli import slurm_app
from launch.bench_cli import bench
from launch.card_cli import card
from launch.export_cli import export
from launch.plan_cli import plan
from launch.prepare_cli import prepare_app
from launch.registry_cli import promote, register
from launch.report_cli import report
from launch.study_cli import study_app
from launch.words import Nproc, Overrides, Uri
from trainer.errors import UserError
from trainer.secrets import redact

app = typer.Typer(
    name="reste",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    epilog="First steps: `reste prepare digits data/digits`, then `reste train configs/quickstart.yaml --nproc 2`.",
)
track_app = typer.Typer(no_args_is_help=True, help="MLflow, after the run.")
ckpt_app = typer.Typer(no_args_is_help=True, help="Checkpoints.")
app.add_typer(prepare_app, name="prepare")
app.add_typer(study_app, name="study")
app.add_typer(slurm_app, name="slurm")
app.add_typer(ckpt_app, name="ckpt")
app.add_typer(track_app, name="track")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"reste-trainer {version('reste-trainer')}")
        raise typer.Exit


@app.callback()
def reste(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Train binary neural networks on ImageNet with the ReSTE estimator, on one device or many."""


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A YAML file, e.g. configs/quickstart.yaml.")],
    overrides: Overrides = None,
    nproc: Nproc = None,
    engine: Annotated[str | None, typer.Option(help="ddp or deepspeed; short for `engine=...`.")] = None,
    max_minutes: Annotated[
        float | None, typer.Option(help="Save and stop after so long; short for `run.time_limit_min=...`.")
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Show where the time of 5 steps goes; short for `log.profile=10+5`.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan; train nothing, write nothing.")] = False,
) -> None:
    """Train as a configuration says; going on where an earlier start of the same run was interrupted.

    Under torchrun, srun or deepspeed this process *is* a rank; otherwise it starts the ranks of this machine.

    Exit codes: 0 finished, 1 a bug or a killed rank, 2 bad configuration or input, 3 data, 4 loss not finite,
    5 no progress within the time-out, 85 stopped on request with a checkpoint saved, 130 stopped at once.

    Examples: `reste train configs/quickstart.yaml --nproc 2`, `reste train configs/imagenet/resnet18_reste.yaml
    data.root=/data/imagenet --dry-run`, `torchrun --nproc-per-node 8 -m trainer configs/imagenet/resnet18_reste.yaml`.
    """
    from launch import local

    values = [*(overrides or []), *([f"engine={engine}"] if engine else [])]
    values += [f"run.time_limit_min={max_minutes}"] if max_minutes is not None else []
    values += ["log.profile=10+5"] if profile else []
    if dry_run:
        from launch.dry_run import print_plan

        print_plan(config, values, local.world_size(nproc))
        return
    raise typer.Exit(local.train(config, values, nproc))


@app.command()
def config(
    prefix: Annotated[str, typer.Argument(help="A key or a group of keys, e.g. train; all by default.")] = "",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print all keys as docs/configuration.md.")] = False,
) -> None:
    """Every key of a configuration: what it takes, its default, what it is for.

    Examples: `reste config`, `reste config optim`, `reste config batchnorm.sync`.
    """
    if markdown:
        from trainer.reference import markdown as page

        print(page(), end="")
        return
    from launch.config import print_keys

    print_keys(prefix)


@app.command()
def evaluate(
    checkpoint: Annotated[
        str, typer.Argument(help="A checkpoint, a run folder (its best checkpoint), or models:/NAME@ALIAS.")
    ],
    data: Annotated[Path | None, typer.Option("--data", help="Data root; the run's own by default.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Global batch size; changes nothing but speed.")] = None,
    loader: Annotated[str | None, typer.Option(help="dali or torchvision; the run's own by default.")] = None,
    weights: Annotated[str, typer.Option(help="auto (the moving average if there is one), model or ema.")] = "auto",
    uri: Uri = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    nproc: Nproc = None,
) -> None:
    """Exact top-1, top-5 and loss of a checkpoint or a registered model on a validation split.

    Integer counts over every image, the same for any number of ranks and any batch size.

    Examples: `reste evaluate runs/digits`, `reste evaluate models:/digits@champion --data data/digits`.
    """
    from launch import local

    raise typer.Exit(
        local.evaluate(
            checkpoint,
            data,
            batch_size=batch_size,
            loader=loader,
            weights=weights,
            uri=uri,
            as_json=json,
            nproc=nproc,
        )
    )


@app.command()
def doctor(
    config: Annotated[Path, typer.Argument(help="A YAML file, e.g. configs/quickstart.yaml.")],
    overrides: Overrides = None,
    nproc: Nproc = None,
    wait: Annotated[float, typer.Option(min=1, help="Seconds to wait for all ranks to come.")] = 60.0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Ask on every rank whether what a run needs is there: devices, network, folders, disk, clocks, data, tracker.

    Starts the ranks of this machine, or is one under torchrun, srun or deepspeed. Trains nothing, leaves nothing.

    Exit codes: 0 all holds, 2 something does not, 3 nothing but the data.
    """
    from launch import local

    raise typer.Exit(local.doctor(config, overrides or [], nproc, wait_s=wait, as_json=json))


@app.command()
def summary(
    model: Annotated[str | None, typer.Argument(help="A model name, e.g. resnet18_1w1a.", show_default=False)] = None,
    weight_bits: Annotated[int, typer.Option(help="1 or 32.")] = 1,
    activation_bits: Annotated[int, typer.Option(help="1 or 32.")] = 1,
    num_classes: Annotated[int | None, typer.Option(help="The model's own by default.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Pixels; the model's own by default.")] = None,
    list_models: Annotated[
        bool, typer.Option("--list", help="List binary models, estimators, quantisers and scalings.")
    ] = False,
) -> None:
    """Bits, parameters, memory and multiply-accumulates of a model, by precision and layer."""
    from launch import summary as view

    if list_models or model is None:
        view.print_names()
        return
    view.print_summary(
        model,
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        num_classes=num_classes,
        image_size=image_size,
    )


@app.command()
def status(run: Annotated[Path, typer.Argument(help="A run folder, e.g. runs/digits, or a folder of runs.")]) -> None:
    """Where a run stands: step, time to go, last metrics, last checkpoint, how it ended; or a line for each run."""
    from launch.status import print_status

    print_status(run)


@ckpt_app.command("convert")
def ckpt_convert(
    official: Annotated[Path, typer.Argument(help="checkpoint.pth.tar or model_best.pth.tar of the official code.")],
    model: Annotated[str, typer.Option(help="Our name of the network, e.g. resnet20_1w1a.")],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    config: Annotated[Path | None, typer.Option(help="Its recipe here; gives data, bits and augmentation.")] = None,
    overrides: Overrides = None,
) -> None:
    """Turn an official checkpoint into one that `reste evaluate` and `model.init=` take. Nothing in it is run.

    The file does not say its bits: give `model.activation_bits=32` for a network of 1-bit weights alone.
    """
    from launch import checkpoints

    checkpoints.convert_official(official, model, out, config, overrides or [])


@ckpt_app.command("list")
def ckpt_list(
    run: Annotated[Path, typer.Argument(help="A run folder, e.g. runs/digits.")],
    json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """The checkpoints of a run: step, epoch, accuracy then, size, age, which is the best, and what is wrong with them.

    Every byte is read. Nothing is changed; a run that is training may be looked at.

    Example: `reste ckpt list runs/digits`.
    """
    from launch import checkpoints

    checkpoints.print_list(run, as_json=json)


@ckpt_app.command("verify")
def ckpt_verify(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Run folders or checkpoints.")],
    json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """Compare every file of checkpoints with the digests in their manifests; name each damaged file.

    Beside a damaged one stands what a start of its run goes on from.

    Exit codes: 0 all are whole, 3 some are damaged.

    Examples: `reste ckpt verify runs/digits`, `reste ckpt verify runs/digits/checkpoints/best`.
    """
    from launch import checkpoints

    checkpoints.print_verified(paths, as_json=json)


@track_app.command("sync")
def track_sync(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    uri: Annotated[str | None, typer.Option(help="MLflow store; the run's own by default.")] = None,
) -> None:
    """Send to MLflow what it does not have of a run."""
    from trainer.tracking.sync import sync_run

    report = sync_run(run, uri=uri)
    typer.echo(f"{report.points} points sent to {report.uri}, run {report.run_id}")


app.command("plan")(plan)
app.command("bench")(bench)
app.command("register")(register)
app.command("promote")(promote)
app.command("export")(export)
app.command("report")(report)
app.command("card")(card)


def main() -> Any:
    """Run the command line; user errors end in one line and their exit code."""
    try:
        return app()
    except UserError as error:
        print(f"error: {redact(str(error))}", file=sys.stderr)
        return sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
