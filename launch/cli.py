"""`reste`: train, evaluate, prepare and look at binary networks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from launch.batch_cli import slurm_app
from launch.plan_cli import plan
from trainer.errors import ConfigError, UserError
from trainer.secrets import redact

app = typer.Typer(
    name="reste",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Train binary neural networks on ImageNet with the ReSTE estimator, on one device or many.",
    epilog="First steps: `reste prepare digits data/digits`, then `reste train configs/quickstart.yaml --nproc 2`.",
)
prepare_app = typer.Typer(no_args_is_help=True, help="Make a data set ready: verify every image, write the index.")
track_app = typer.Typer(no_args_is_help=True, help="MLflow, after the run.")
ckpt_app = typer.Typer(no_args_is_help=True, help="Checkpoints.")
study_app = typer.Typer(no_args_is_help=True, help="Questions that take several trainings to answer.")
app.add_typer(prepare_app, name="prepare")
app.add_typer(study_app, name="study")
app.add_typer(slurm_app, name="slurm")
app.add_typer(ckpt_app, name="ckpt")
app.add_typer(track_app, name="track")
app.command("plan")(plan)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Overrides, e.g. `train.epochs=10 optim.lr=0.05`.", show_default=False
    ),
]
Nproc = Annotated[
    int | None,
    typer.Option("--nproc", min=1, help="Ranks to start on this machine; all GPUs by default, one process on a CPU."),
]


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

    Exit codes: 0 finished, 2 bad configuration or input, 3 data, 4 loss not finite, 5 no progress within the time-out,
    85 stopped on request with a checkpoint saved.

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
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or a run folder (its best checkpoint).")],
    data: Annotated[Path | None, typer.Option("--data", help="Data root; the run's own by default.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Global batch size; changes nothing but speed.")] = None,
    loader: Annotated[str | None, typer.Option(help="dali or torchvision; the run's own by default.")] = None,
    weights: Annotated[str, typer.Option(help="auto (the moving average if there is one), model or ema.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    nproc: Nproc = None,
) -> None:
    """Exact top-1, top-5 and loss of a checkpoint on a validation split, in integer counts over every image."""
    from launch import local

    raise typer.Exit(
        local.evaluate(
            checkpoint, data, batch_size=batch_size, loader=loader, weights=weights, as_json=json, nproc=nproc
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
    list_models: Annotated[bool, typer.Option("--list", help="List the binary models.")] = False,
) -> None:
    """Bits, parameters, memory and multiply-accumulates of a model, by precision and layer."""
    from launch import summary as view

    if list_models or model is None:
        view.print_models()
        return
    view.print_summary(
        model,
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        num_classes=num_classes,
        image_size=image_size,
    )


@app.command()
def status(run: Annotated[Path, typer.Argument(help="A run folder, e.g. runs/digits.")]) -> None:
    """Where a run stands: step, time to go, last metrics, last checkpoint, how it ended."""
    from launch.status import print_status

    print_status(run)


@prepare_app.callback(invoke_without_command=True)
def prepare_callback(
    verify: Annotated[
        Path | None, typer.Option("--verify", metavar="ROOT", help="Short for `reste prepare verify ROOT`.")
    ] = None,
) -> None:
    """Make a data set ready: verify every image, write the index."""
    if verify is not None:
        from launch import prepare

        prepare.verify(verify, workers=None, as_json=False)
        raise typer.Exit


@prepare_app.command("verify")
def prepare_verify_command(
    root: Annotated[Path, typer.Argument(help="A prepared data set.")],
    workers: Annotated[int | None, typer.Option(min=1, help="Decoders at work; all cores by default.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Read every byte of a data set again, compare it with the index, decode every image; name what is damaged.

    Exit codes: 0 all is as it was prepared, 3 something is not.
    """
    from launch import prepare

    prepare.verify(root, workers=workers, as_json=json)


@prepare_app.command("digits")
def prepare_digits_command(
    root: Annotated[Path, typer.Argument(help="Folder to make.")] = Path("data/digits"),
) -> None:
    """1,797 real handwritten digits as 32-pixel JPEGs in train and val folders; needs no download."""
    from launch import prepare

    prepare.digits(root)


@prepare_app.command("folder")
def prepare_folder_command(
    root: Annotated[Path, typer.Argument(help="Holds train/CLASS/*.JPEG and val/CLASS/*.JPEG (or a flat val/).")],
    val_labels: Annotated[
        Path | None,
        typer.Option(help="For a flat val/: lines `name label`, or Kaggle's csv. Found by itself in ROOT."),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Decoders at work; all cores by default.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave unreadable images out and list them.")] = False,
) -> None:
    """Verify every image of a folder tree and write its index, in place; goes on where it was interrupted."""
    from launch import prepare

    prepare.folder(root, val_labels=val_labels, workers=workers, skip_bad=skip_bad)


Form = Annotated[str, typer.Option("--format", help="folder (a file per image) or shards (tar files).")]


@prepare_app.command("imagenet")
def prepare_imagenet_command(
    source: Annotated[Path, typer.Argument(help="Holds the official tars, Kaggle's folders, shards or a tree.")],
    root: Annotated[Path, typer.Argument(help="Folder to make.")],
    layout: Annotated[
        str | None, typer.Option(help="official, kaggle, webdataset or tree; told by what is there by default.")
    ] = None,
    form: Form = "folder",
    max_side: Annotated[int | None, typer.Option(min=1, help="Shrink images to this longer side, in pixels.")] = None,
    expect: Annotated[str, typer.Option(help="imagenet (its checksums and counts) or any.")] = "imagenet",
    shard_mib: Annotated[int, typer.Option(min=1, help="Size of a tar file, for shards.")] = 1024,
    workers: Annotated[int | None, typer.Option(min=1, help="Decoders at work; all cores by default.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave unreadable images out and list them.")] = False,
) -> None:
    """ImageNet from its archives, Kaggle, WebDataset shards or a tree; verified, goes on where it was interrupted."""
    from launch import prepare

    _choice("--layout", layout, None, "official", "kaggle", "webdataset", "tree")
    _choice("--format", form, "folder", "shards")
    _choice("--expect", expect, "imagenet", "any")
    prepare.imagenet(
        source,
        root,
        layout=layout,
        form=form,
        max_side=max_side,
        expect=expect,
        shard_mib=shard_mib,
        workers=workers,
        skip_bad=skip_bad,
    )


@prepare_app.command("cifar10")
def prepare_cifar10_command(
    source: Annotated[Path, typer.Argument(help="cifar-10-python.tar.gz, or the folder it unpacks to.")],
    root: Annotated[Path, typer.Argument(help="Folder to make.")] = Path("data/cifar10"),
    form: Form = "folder",
    expect: Annotated[str, typer.Option(help="cifar10 (its checksum and counts) or any.")] = "cifar10",
    workers: Annotated[int | None, typer.Option(min=1, help="Threads at work; one per core by default.")] = None,
) -> None:
    """CIFAR-10 from the official archive as lossless PNG files; goes on where it was interrupted."""
    from launch import prepare

    _choice("--format", form, "folder", "shards")
    _choice("--expect", expect, "cifar10", "any")
    prepare.cifar10(source, root, form=form, expect=expect, workers=workers)


def _choice(option: str, value: str | None, *allowed: str | None) -> None:
    if value not in allowed:
        raise ConfigError(f"{option} {value} is none of {', '.join(filter(None, allowed))}: choose one of them")


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


@app.command()
def bench(
    rows: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ROW]...",
            help="estimator, layer, step, memory, loader, loop, trainer, indicators, scaling; all by default.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="ROOT", help="With `loader`: search the best settings for this prepared data set."
        ),
    ] = None,
    repeats: Annotated[int | None, typer.Option(min=1, help="Measured rounds; 7, or 3 with --data.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes: to see that it runs.")] = False,
    processor: Annotated[
        bool, typer.Option("--processor", help="Processors' time, for machines that others use too.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the figures; `benchmarks/records/DATE_HARDWARE` by default.")
    ] = None,
) -> None:
    """Speed and memory of this machine as ratios of two things measured side by side, with their spread.

    `reste bench loader --data ROOT` tries numbers of threads, depths of prefetching and, on a GPU, shares of its
    decoder unit, and writes the best into this user's site file, which every later run here reads beneath its
    configuration.

    Examples: `reste bench`, `reste bench estimator step --repeats 9`, `reste bench loader --data /data/imagenet`.
    """
    if data is not None and rows != ["loader"]:
        raise ConfigError("--data is for the search of loader settings: write reste bench loader --data ROOT")
    from launch import bench as view

    if data is not None:
        view.sweep(data, repeats=repeats or 3, seconds=0.1 if quick else 4.0, out=out, keep=not quick)
        return
    view.run(rows or [], repeats=repeats or 7, quick=quick, processor=processor, out=out)


@study_app.command("equilibrium")
def study_equilibrium(
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
    from launch import study

    raise typer.Exit(study.equilibrium(config, overrides or [], o_end=o_end, seeds=seeds, out=out, nproc=nproc))


def main() -> Any:
    """Run the command line; user errors end in one line and their exit code."""
    try:
        return app()
    except UserError as error:
        print(f"error: {redact(str(error))}", file=sys.stderr)
        return sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
