"""A registered model as files: MLflow's folder with the exported graph, the code that serves it, and what both need."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from PIL import Image

SERVED = Path(__file__).with_name("served_model.py")
PROGRAM, CONFIG = "model.pt2", "config.yaml"
ARTIFACTS = "artifacts"
"""Where in a registered model these two files are."""

_PACKAGES = ("mlflow", "torch", "numpy", "pandas", "pillow")


def pack(folder: Path, program: Path, config: Path, *, model_id: str, run_id: str, facts: Mapping[str, Any]) -> Path:
    """Write MLflow's model folder; the one pickle in it is torch's file of the example, a tensor.

    It has two flavours: `python_function`, which takes images (`served_model.py`), and `pytorch`, the graph alone.

    Args:
        folder: to be made.
        program: the exported graph.
        config: the run's resolved configuration.
        model_id: MLflow's name for it.
        run_id: of the MLflow run that it comes from.
        facts: labels, preprocessing and the like, kept in `MLmodel` for readers.

    Returns:
        `folder`.
    """
    import mlflow.pyfunc
    import torch
    from mlflow.models import Model

    model = Model(artifact_path="model", run_id=run_id, model_uuid=model_id, model_id=model_id)
    mlflow.pyfunc.save_model(
        path=str(folder),
        python_model=str(SERVED),
        artifacts={"program": str(program), "config": str(config)},
        signature=_signature(),
        input_example=_example(int(facts["image_size"])),
        pip_requirements=[f"{name}=={metadata.version(name)}" for name in _PACKAGES],
        metadata=dict(facts),
        mlflow_model=model,
    )
    model.add_flavor("pytorch", model_data=ARTIFACTS, pytorch_version=str(torch.__version__), code=None)
    _forget_places(model.flavors["python_function"])
    model.save(str(folder / "MLmodel"))
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    return folder


def _forget_places(flavour: dict[str, Any]) -> None:
    """Take out where files were on this machine: nobody needs it, and it names users and folders."""
    flavour["model_code_path"] = SERVED.name
    for artifact in flavour["artifacts"].values():
        artifact["uri"] = Path(artifact["path"]).name


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Schema

    outputs = [ColSpec(DataType.string, "label"), ColSpec(Array(DataType.double), "probabilities")]
    # Bytes, base64 text or pixels: MLflow has no type for "one of these".
    return ModelSignature(inputs=Schema([ColSpec(AnyType(), "image")]), outputs=Schema(outputs))


def _example(side: int) -> Any:
    """A table of one image file, a grey ramp, as base64 text."""
    import pandas as pd

    file = io.BytesIO()
    Image.linear_gradient("L").resize((side, side)).convert("RGB").save(file, "PNG")
    return pd.DataFrame({"image": [base64.b64encode(file.getvalue()).decode()]})
