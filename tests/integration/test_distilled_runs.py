"""A student beside its teacher: equal on any number of ranks, on either engine, compiled or not; and bad teachers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from made_checkpoints import LABELS, configuration, write_checkpoint
from safetensors.torch import save_file
from spawn import run_ranks
from trainings import QUICK, SMALL, losses, metrics, train_here

from trainer.config import Config, load_config
from trainer.distill.criterion import pair
from trainer.distill.losses import attention_loss_sum, distribution_loss_sum
from trainer.distill.taps import Tapped, common_taps
from trainer.distill.teacher import load_teacher
from trainer.errors import ConfigError

CPU = torch.device("cpu")
# 103 images in batches of 48: two full ones and one of 7 images.
COMMON = (
    *SMALL,
    "data.loader=synthetic",
    "data.synthetic={samples: 103, classes: 10}",
    "eval.every=0",
    "checkpoint.every=0",
    "log.indicators_every=0",
    "train.max_steps=4",
)
TEACHER = ("model.weight_bits=32", "model.activation_bits=32", "run.name=teacher", "augment.mean=[0.4, 0.4, 0.4]")
STUDENT = (
    "distill.teacher=stage:teacher",
    "distill.weight=0.8",
    "distill.temperature=3",
    "distill.labels=0.5",
    "distill.attention=30",
    "train.label_smoothing=0.1",
)


def train(folder: Path, world: int, *runs: tuple[str, ...]) -> None:
    commands = [[*COMMON, f"run.dir={folder}", *run] for run in runs]
    assert run_ranks(train_here, world, str(QUICK), *commands, timeout_s=800, join=False) == [[0] * len(runs)] * world


@pytest.mark.timeout(300)
def test_a_student_learns_the_same_on_one_and_on_two_ranks_and_says_what_it_loses(tmp_path: Path) -> None:
    exact = (*STUDENT, "train.precision=fp64")
    train(tmp_path, 1, (*TEACHER, "train.max_steps=2"), (*exact, "run.name=one"))
    train(tmp_path, 2, (*exact, "run.name=two"), (*exact, "run.name=parts", "train.accumulation=2"))
    one, two = (tmp_path / name / "journal.jsonl" for name in ("one", "two"))
    assert len(losses(one)) == 4
    assert losses(two) == pytest.approx(losses(one), abs=1e-9, rel=0)
    for name in ("one", "two", "parts"):
        for _, told in [(s, v) for s, v in metrics(tmp_path / name / "journal.jsonl") if "train/loss" in v]:
            terms = (
                0.5 * told["train/label_loss"] + 0.8 * told["train/distill_loss"] + 30 * told["train/attention_loss"]
            )
            assert told["train/loss"] == pytest.approx(terms, rel=1e-9)
    saved = torch.load(tmp_path / "one/checkpoints/step_00000004/model.pt", weights_only=True)
    assert saved.keys() == torch.load(tmp_path / "teacher/checkpoints/step_00000002/model.pt", weights_only=True).keys()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_engines_agree_bit_for_bit_and_a_compiled_student_with_a_plain_one(tmp_path: Path) -> None:
    plain = (*STUDENT, "batchnorm.sync=off")
    half = (*STUDENT, "train.precision=bf16")
    train(
        tmp_path,
        1,
        (*TEACHER, "train.max_steps=2"),
        (*STUDENT, "run.name=eager", "train.precision=fp64"),
        (*STUDENT, "run.name=compiled", "train.precision=fp64", "train.compile=true"),
        (*half, "run.name=bf16"),
        (*STUDENT, "train.precision=fp16", "run.name=fp16"),
    )
    train(tmp_path, 2, (*plain, "run.name=ddp"), (*plain, "run.name=zero1", "engine=deepspeed", "deepspeed.zero=1"))
    found = {p.parent.name: losses(p) for p in tmp_path.glob("*/journal.jsonl")}
    assert found["compiled"] == pytest.approx(found["eager"], abs=1e-9, rel=0)
    assert found["ddp"] == found["zero1"]
    assert len(found["bf16"]) == len(found["fp16"]) == 4


def told(run: Path, *overrides: str) -> Config:
    return configuration(f"run.dir={run.parent}", "run.name=student", f"distill.teacher={run}", *overrides)


def test_a_teacher_gives_its_own_answer_to_its_own_images_and_no_gradient(tmp_path: Path) -> None:
    write_checkpoint(
        tmp_path / "runs" / "t", "model.weight_bits=32", "augment.mean=[0.1, 0.2, 0.3]", "augment.std=[1.0, 2.0, 3.0]"
    )
    config = told(tmp_path / "runs" / "t", "distill.attention=1")
    teacher = load_teacher(config, LABELS, CPU)
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
    assert not teacher.network.training
    pixels = torch.rand(3, 3, 16, 16)
    mine, theirs = (
        (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        for mean, std in ((config.augment.mean, config.augment.std), ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0)))
    )
    torch.testing.assert_close(teacher.images(mine), theirs)

    student = timm.create_model("resnet20_1w1a", num_classes=10).train()
    tapped, criterion = pair(config, student, teacher, CPU)
    logits, maps = tapped(mine)
    assert torch.equal(logits, tapped(mine)[0])
    labels = torch.tensor([1, 2, 3])
    loss = criterion((logits, maps), mine, labels, whole=True)
    with torch.no_grad():
        answers, their_maps = Tapped(teacher.network, [1, 2, 3])(teacher.images(mine))
    by_hand = (
        torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        + distribution_loss_sum(logits, answers, temperature=1.0)
        + attention_loss_sum(maps, tuple(their_maps), norm="max")
    )
    torch.testing.assert_close(loss.total, by_hand)


@pytest.mark.parametrize("name", ["resnet20_1w1a", "resnet18_1w1a", "vgg_small_1w1a"])
def test_features_and_answers_come_from_one_pass_that_is_the_model_s_own(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10).eval()
    images = torch.randn(2, 3, 32, 32)
    taps = list(range(len(model.feature_info)))
    logits, maps = Tapped(model, taps)(images)
    assert torch.equal(logits, model(images))
    extractor = timm.create_model(name, features_only=True).eval()
    extractor.load_state_dict(model.state_dict(), strict=False)
    for mine, theirs in zip(maps, extractor(images), strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(maps[-1], model.forward_features(images))
    [last] = model.forward_intermediates(images, indices=1, intermediates_only=True)
    assert torch.equal(last, maps[-1])
    with pytest.raises(ValueError, match="there are"):
        model.forward_intermediates(images, indices=[9])


def test_maps_of_one_resolution_belong_together() -> None:
    student, teacher = timm.create_model("resnet18_1w1a"), timm.create_model("resnet34")
    assert common_taps(student, teacher) == ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])
    assert common_taps(timm.create_model("resnet20_1w1a"), teacher) == ([2, 3], [0, 1])
    with pytest.raises(ConfigError, match="shows no features"):
        common_taps(torch.nn.Linear(2, 2), teacher)
    with pytest.raises(ConfigError, match="times smaller"):
        common_taps(student, timm.create_model("test_vit", img_size=32, patch_size=(3, 3)))


@pytest.mark.parametrize(
    ("teacher", "overrides", "message"),
    [
        ((), ("data.image_size=32",), "trained on images of 16 pixels, the run has 32"),
        ((), ("model.num_classes=12",), "tells 10 classes apart, the run's network 12"),
        (("model.num_classes=20",), (), "tells 20 classes apart, the run's network 10"),
    ],
)
def test_a_teacher_of_other_images_or_classes_is_refused_in_one_line(
    tmp_path: Path, teacher: tuple[str, ...], overrides: tuple[str, ...], message: str
) -> None:
    write_checkpoint(tmp_path / "t", *teacher)
    with pytest.raises(ConfigError, match=message) as caught:
        load_teacher(told(tmp_path / "t", *overrides), LABELS, CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet34.tv_in1k", "tells 1000 classes apart, the run's network 10"),
        ("resnet3x", "timm has no such model"),
        ("resnet20_1w1a", "no weights"),
        ("stage:nobody", "holds no checkpoint"),
        ("./nobody", "holds no checkpoint"),
    ],
)
def test_a_teacher_that_is_not_there_is_refused_in_one_line(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_teacher(configuration(f"run.dir={tmp_path}", f"distill.teacher={name}"), LABELS, CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18", "local-dir:/tmp/x", "stage:a/b", ""])
def test_a_teacher_is_no_address(name: str) -> None:
    with pytest.raises(ConfigError, match=r"distill\.teacher"):
        load_config(None, [f"distill.teacher={name!r}"])


def of_timm() -> tuple[float, str]:
    """In a process of its own, as the hub's library reads its variables once: what a teacher answers, or says."""
    overrides = ["distill.teacher=test_resnet.r160_in1k", "data.image_size=64", "model.num_classes=1000"]
    config: Any = configuration(*overrides)
    try:
        teacher = load_teacher(config, [str(n) for n in range(1000)], CPU)
    except ConfigError as error:
        return 0.0, str(error)
    return float(teacher.network(torch.ones(1, 3, 64, 64)).sum()), ""


def test_a_teacher_of_timm_comes_from_this_machine_s_cache_or_says_how_to_get_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    [(_, said)] = run_ranks(of_timm, 1, join=False)
    assert "hf download timm/test_resnet.r160_in1k model.safetensors" in said
    assert "\n" not in said

    torch.manual_seed(3)
    model = timm.create_model("test_resnet").eval()
    repository = tmp_path / "hf" / "hub" / "models--timm--test_resnet.r160_in1k"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    save_file(model.state_dict(), snapshot / "model.safetensors")
    [(found, said)] = run_ranks(of_timm, 1, join=False)
    assert said == ""
    assert found == pytest.approx(model(torch.ones(1, 3, 64, 64)).sum().item(), rel=1e-4, abs=1e-4)
