"""The model card: a README.md with the hub's header, the numbers, the recipe and the licence."""

from __future__ import annotations

import json
import re
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from models import summarize
from reste import binary_layers
from trainer.card.folder import Trained
from trainer.config import Config, flat_config
from trainer.published import data_set, published_for, same_schedule
from trainer.secrets import redact

HUB_NAMES = {"ImageNet-1k": "imagenet-1k", "CIFAR-10": "cifar10"}
"""Data sets with published results -> their names on the hub."""

MEASURED = (("val/top1", "top-1 accuracy", "accuracy"), ("val/top5", "top-5 accuracy", "accuracy"))
UNTOLD = ("run.", "tracking.", "resume", "data.root", "log.", "checkpoint.")
"""Keys that say where a run was and not what it is."""


def card_text(trained: Trained, *, licence: str) -> str:
    """The whole README.md of a checkpoint.

    Args:
        trained: what it is about.
        licence: of the weights, by the hub's name for it.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    config, size = trained.config, trained.config.data.image_size
    flat = flat_config(config)
    text = environment.get_template("card.md.j2").render(
        header=header(trained, licence=licence).to_yaml(),
        name=config.run.name,
        model=config.model,
        estimator=config.estimator.name,
        binary=any(True for _ in binary_layers(trained.model)),
        bits={1: "binary", 32: "full-precision"},
        data=_data_name(flat),
        known=data_set(flat) is not None,
        size=size,
        weights=trained.weights,
        step=trained.step,
        accuracy=trained.accuracy,
        leading=trained.leading,
        published=[(row, same_schedule(row, flat)) for row in published_for(flat)],
        summary=summarize(trained.model, size),
        recipe=recipe(flat),
        provenance=provenance(trained.path.parent.parent),
        licence=licence,
    )
    return text.rstrip() + "\n"


def header(trained: Trained, *, licence: str) -> ModelCardData:
    """What the hub reads: names, tags and the evaluation in its model index."""
    flat = flat_config(trained.config)
    data = _data_name(flat)
    hub = HUB_NAMES.get(data)
    kind = hub or re.sub(r"[^a-z0-9]+", "-", data.lower()).strip("-") or "unnamed"
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=kind,
            dataset_name=data,
            dataset_split="validation",
            metric_type=metric,
            metric_name=name,
            metric_value=round(trained.accuracy[key], 4),
        )
        for key, name, metric in MEASURED
        if key in trained.accuracy
    ]
    return ModelCardData(
        license=licence,
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "binary-neural-network", flat["estimator.name"]],
        datasets=[hub] if hub else None,
        model_name=trained.config.run.name if results else None,
        eval_results=results or None,
    )


def recipe(flat: dict[str, object]) -> dict[str, str]:
    """What the run set otherwise than the program's defaults, as `key=value` takes it; secrets masked."""
    default = flat_config(Config())
    told = {key: value for key, value in flat.items() if value != default.get(key) and not key.startswith(UNTOLD)}
    return {key: redact(value if isinstance(value, str) else json.dumps(value)) for key, value in told.items()}


def provenance(run: Path) -> str:
    """One sentence of code, software and hardware from a run's manifest; empty for a checkpoint without its run."""
    try:
        manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
        machine, code, found = manifest["machine"], manifest["code"], manifest["versions"]
        gpus = machine["gpus"]
        place = f"{len(gpus)} of {gpus[0]}" if gpus else f"{machine['cpus']} cores of {machine['cpu']}"
        commit = f"code {code['commit'][:12]}{', changed' if code['dirty'] else ''}; " if code["commit"] else ""
        return (
            f"{manifest['world_size']} ranks, {place} a machine; {commit}torch {found['torch']}, timm {found['timm']}."
        )
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _data_name(flat: dict[str, object]) -> str:
    """A known data set's name, else that of its folder."""
    return data_set(flat) or Path(str(flat["data.root"])).name or "unnamed data"
