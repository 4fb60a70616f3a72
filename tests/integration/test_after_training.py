"""What a real training ends in: its page in MLflow, its card, and timm's own evaluation of what the card holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.utils import AverageMeter, accuracy
from trainings import QUICK, reste

import models
from trainer.tracking.sent import mlflow_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400), pytest.mark.filterwarnings("ignore::ResourceWarning")]


@pytest.fixture(scope="module")
def run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("after")
    overrides = (f"data.root={digits}", f"run.dir={parent}", "run.name=mine", "train.epochs=3", "optim.warmup=1ep")
    loader, page = "data.loader=torchvision", "tracking.report=true"
    # Pillow decodes in timm too; DALI's JPEG decoder gives other pixels, and here another accuracy.
    done = reste("train", QUICK, *overrides, loader, page, timeout_s=300, threads=1)
    assert done.returncode == 0, done.stderr
    return parent / "mine"


def artifacts(run: Path) -> set[str]:
    from mlflow import MlflowClient

    uri, run_id = mlflow_run(run) or ("", "")
    return {file.path for file in MlflowClient(uri).list_artifacts(run_id)}


def test_the_page_drawn_at_the_end_is_with_the_run_in_mlflow(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert f"{json.loads((run / 'result.json').read_text())['final']['top1']:.2f}" in page
    assert "Turned signs by layer" in page
    assert "report.html" in artifacts(run)


def test_a_later_page_replaces_the_one_in_mlflow(run: Path) -> None:
    from mlflow import MlflowClient

    (run / "report.html").write_text("an older page")
    done = reste("report", run, "--log", timeout_s=120)
    assert done.returncode == 0, done.stderr
    after = (run / "report.html").read_bytes()
    assert b"Top-1 accuracy" in after
    uri, run_id = mlflow_run(run) or ("", "")
    assert run_id in done.stdout
    assert Path(MlflowClient(uri).download_artifacts(run_id, "report.html")).read_bytes() == after


def test_timms_own_evaluation_of_the_cards_folder_gives_the_runs_number(run: Path, digits: Path) -> None:
    assert models.MODELS, "registered with timm"
    done = reste("card", run, timeout_s=120)
    assert done.returncode == 0, done.stderr
    model = timm.create_model(f"local-dir:{run / 'card'}", pretrained=True).eval()
    model = model.to(memory_format=torch.channels_last)
    data = resolve_data_config({}, model=model)
    loader = create_loader(
        create_dataset("", root=str(digits), split="val"),
        input_size=data["input_size"],
        batch_size=16,
        use_prefetcher=False,
        interpolation=data["interpolation"],
        mean=data["mean"],
        std=data["std"],
        crop_pct=data["crop_pct"],
        num_workers=0,
        persistent_workers=False,
        device=torch.device("cpu"),
    )
    top1, top5 = AverageMeter(), AverageMeter()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for images, labels in loader:
                logits = model(images.to(memory_format=torch.channels_last))
                for meter, value in zip((top1, top5), accuracy(logits, labels, topk=(1, 5)), strict=True):
                    meter.update(value.item(), len(labels))
    finally:
        torch.set_num_threads(threads)
    best = json.loads((run / "result.json").read_text())["best"]
    assert top1.count > 300
    assert (top1.avg, top5.avg) == (pytest.approx(best["top1"], abs=1e-4), pytest.approx(best["top5"], abs=1e-4))
