"""The words of `reste prepare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainer.errors import ConfigError

prepare_app = typer.Typer(no_args_is_help=True, help="Make a data set ready: verify every image, write the index.")


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
