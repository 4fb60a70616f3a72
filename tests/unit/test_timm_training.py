"""Our networks trained by what timm's train script is made of: optimizer, schedule, mixup and loss, average, saver."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import timm
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.models import load_checkpoint, resume_checkpoint
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import CheckpointSaver, ModelEmaV3, dispatch_clip_grad
from torch import nn

import models
from reste import binary_layers, get_power, set_power
from reste.schedules import cosine_power

CLASSES, EPOCHS, UPDATES = 4, 5, 8
assert models.MODELS, "registered with timm"


def batch(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with one of its colours brighter, which is the class, or none."""
    labels = torch.randint(CLASSES, (32,), generator=generator)
    images = torch.randn(32, 3, 16, 16, generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[label : label + 1] += 2
    return images, labels


def network() -> nn.Module:
    return timm.create_model("resnet20_1w1a", num_classes=CLASSES)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return create_optimizer_v2(model, opt="sgd", lr=0.1, momentum=0.9, weight_decay=1e-4)


def correct(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.inference_mode():
        return (model.eval()(images).argmax(1) == labels).double().mean().item()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, ModelEmaV3, dict[str, torch.Tensor], Path]:
    """A network and its average after some epochs, its weights before them, and the folder of timm's checkpoints."""
    torch.manual_seed(0)
    folder, generator = tmp_path_factory.mktemp("timm"), torch.Generator().manual_seed(1)
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer, average = optimizer_of(model), ModelEmaV3(model, decay=0.6)
    schedule, epochs = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=EPOCHS, warmup_epochs=1, step_on_epochs=False, updates_per_epoch=UPDATES
    )
    mixup, loss_of = Mixup(0.1, num_classes=CLASSES), SoftTargetCrossEntropy()
    saver = CheckpointSaver(
        model, optimizer, args=argparse.Namespace(model="resnet20_1w1a"), model_ema=average, checkpoint_dir=str(folder)
    )
    rates = []
    for epoch in range(epochs):
        model.train()
        set_power(model, cosine_power(epoch / epochs, 3.0))
        for update in range(epoch * UPDATES, (epoch + 1) * UPDATES):
            images, targets = mixup(*batch(generator))
            loss = loss_of(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            dispatch_clip_grad(model.parameters(), value=5.0)
            optimizer.step()
            average.update(model, step=update)
            schedule.step_update(num_updates=update + 1)
            rates.append(optimizer.param_groups[0]["lr"])
        saver.save_checkpoint(epoch, metric=float(epoch))
    assert max(rates) > 0.05 > 0.01 > rates[-1], "warm-up and cosine have been followed"
    return model, average, before, folder


def test_network_and_average_learn_and_binary_weights_turn(trained: tuple) -> None:
    model, average, before, _ = trained
    images, labels = batch(torch.Generator().manual_seed(2))
    assert correct(model, images, labels) > 0.8
    assert correct(average.module, images, labels) > 0.8
    assert get_power(model) == pytest.approx(cosine_power(4 / 5, 3.0)), "set by the one who trains, kept by timm"
    for name, layer in binary_layers(model):
        turned = (layer.weight >= 0) != (before[f"{name}.weight"] >= 0)
        assert turned.any(), name


def test_weights_decay_and_norms_and_biases_do_not() -> None:
    model = network()
    decays = {id(p): group["weight_decay"] for group in optimizer_of(model).param_groups for p in group["params"]}
    assert {name for name, p in model.named_parameters() if decays[id(p)]} == {
        name for name, p in model.named_parameters() if p.ndim > 1
    }
    assert all(decays[id(layer.weight)] == 1e-4 for _, layer in binary_layers(model))


def test_timms_checkpoints_are_resumed_and_loaded_as_tensors_alone(trained: tuple) -> None:
    model, average, _, folder = trained
    images, _ = batch(torch.Generator().manual_seed(3))
    again, evaluated = network(), network()
    optimizer = optimizer_of(again)
    with torch.serialization.safe_globals([argparse.Namespace]):
        assert resume_checkpoint(again, str(folder / "last.pth.tar"), optimizer) == EPOCHS
        load_checkpoint(evaluated, str(folder / "model_best.pth.tar"), use_ema=True)
    with torch.inference_mode():
        assert torch.equal(again.eval()(images), model.eval()(images))
        assert torch.equal(evaluated.eval()(images), average.module.eval()(images))
    assert all("momentum_buffer" in optimizer.state[p] for p in again.parameters())
