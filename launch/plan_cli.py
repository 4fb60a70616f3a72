"""The words of `reste plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.words import Overrides

MEASURED = "What was measured"
BELIEVED = "What is assumed"


def plan(
    config: Annotated[Path, typer.Argument(help="A YAML file, e.g. configs/imagenet/resnet18_reste.yaml.")],
    overrides: Overrides = None,
    gpus: Annotated[
        str, typer.Option(help="Numbers of devices: 8, 8,16,24 or 8..4096 (each twice the last).")
    ] = "1..64",
    batches: Annotated[
        str | None,
        typer.Option(help="Global batches, e.g. 750,2048; the configuration's, and 2048 where 100 fill an epoch."),
    ] = None,
    within_hours: Annotated[float, typer.Option(min=1e-3, help="Say from how many devices on a run ends in time.")] = 1,
    price: Annotated[float | None, typer.Option(min=0, help="Of a device for an hour, in any currency.")] = None,
    images_per_s: Annotated[
        float | None, typer.Option(min=1e-9, help="Rate of one device alone.", rich_help_panel=MEASURED)
    ] = None,
    at_images: Annotated[
        int, typer.Option(min=1, help="Images a step for which that holds.", rich_help_panel=MEASURED)
    ] = 128,
    record: Annotated[
        Path | None, typer.Option(help="JSON file of rates, see docs/plan.md.", rich_help_panel=MEASURED)
    ] = None,
    bytes_per_image: Annotated[
        float | None,
        typer.Option(min=1, help="Mean file; the index's, or 115000 without one.", rich_help_panel=MEASURED),
    ] = None,
    loader: Annotated[
        float | None,
        typer.Option(min=1e-9, help="Images/s that the loader of one device delivers.", rich_help_panel=MEASURED),
    ] = None,
    per_node: Annotated[int, typer.Option(min=1, help="Devices of a node.", rich_help_panel=BELIEVED)] = 8,
    inside_gb: Annotated[
        float, typer.Option(min=1e-9, help="Bus bandwidth within a node, GB/s.", rich_help_panel=BELIEVED)
    ] = 400,
    inside_us: Annotated[
        float, typer.Option(min=0, help="Latency within a node, microseconds.", rich_help_panel=BELIEVED)
    ] = 2,
    between_gb: Annotated[
        float, typer.Option(min=1e-9, help="Bus bandwidth between nodes, GB/s.", rich_help_panel=BELIEVED)
    ] = 50,
    between_us: Annotated[
        float, typer.Option(min=0, help="Latency between nodes, microseconds.", rich_help_panel=BELIEVED)
    ] = 5,
    start_us: Annotated[
        float, typer.Option(min=0, help="Of any collective beside its messages, us.", rich_help_panel=BELIEVED)
    ] = 6,
    algorithm: Annotated[str, typer.Option(help="All-reduce: best, ring or tree.", rich_help_panel=BELIEVED)] = "best",
    overlap: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of backward that gradients hide behind.", rich_help_panel=BELIEVED),
    ] = 0.7,
    fixed_ms: Annotated[
        float,
        typer.Option(min=0, help="Part of a step that few images do not shorten.", rich_help_panel=BELIEVED),
    ] = 1.0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Predict images/s, hours, storage bandwidth and cost of a training on other numbers of devices.

    The rate of one device is what `reste bench step` has measured on such a machine as this one, or what is given,
    measured elsewhere or hoped for. Every assumption is printed and can be set.

    Example: `reste plan configs/imagenet/resnet18_reste.yaml --gpus 8..4096 --images-per-s 12000`.
    """
    from launch import plan as view, plan_options as options

    view.run(
        config,
        overrides or [],
        gpus=gpus,
        batches=batches,
        within_hours=within_hours,
        measured=options.measured_rate(record, images_per_s, at_images, fixed_ms),
        bytes_per_image=bytes_per_image,
        given=options.assumptions(
            per_node=per_node,
            inside=(inside_us, inside_gb),
            between=(between_us, between_gb),
            start_us=start_us,
            algorithm=algorithm,
            overlap=overlap,
            loader=loader,
            price=price,
        ),
        as_json=json,
    )
