"""Which ranks share batch statistics, and the conversion of a model; no process group needed."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from trainer.config import Config
from trainer.distributed.batchnorm import (
    BatchNormGroup,
    SyncBatchNorm,
    bn_groups,
    choose_group_size,
    convert_batchnorm,
    make_bn_group,
)
from trainer.distributed.environment import Environment
from trainer.errors import ConfigError
from trainer.ranks import batchnorm_ranks, missing_images

PAIR = BatchNormGroup("pair", 2)


@pytest.mark.parametrize(
    ("images", "per_rank", "world", "local_world", "size"),
    [
        (256, 32, 64, 8, 8),
        (256, 64, 64, 8, 4),
        (256, 256, 64, 8, 1),
        (256, 16, 64, 8, 16),
        (256, 4, 64, 8, 64),
        (1, 1, 1, 1, 1),
        (192, 64, 12, 4, 4),  # 3 ranks would do, but such a group would lie across two nodes
        (384, 64, 12, 4, 12),
        (192, 64, 12, 6, 3),
        (128, 64, 6, 1, 2),
    ],
)
def test_the_smallest_group_that_reaches_the_images_is_chosen(
    images: int, per_rank: int, world: int, local_world: int, size: int
) -> None:
    assert choose_group_size(images, images_per_rank=per_rank, world=world, local_world=local_world) == size


def test_a_world_that_is_too_small_is_used_whole() -> None:
    assert choose_group_size(256, images_per_rank=16, world=8, local_world=4) == 8


@pytest.mark.parametrize(
    ("sync", "batch", "world", "said"),
    [
        ({"images": 256}, 128, 8, "over 256 images; all 8 ranks together hold 128"),
        ({"images": 256}, 256, 8, None),
        ("world", 128, 8, None),
        ("off", 128, 8, None),
        ({"images": 256}, 128, 1, None),
    ],
)
def test_images_that_statistics_miss_are_named(sync: object, batch: int, world: int, said: str | None) -> None:
    config = Config.model_validate({"batchnorm": {"sync": sync}, "train": {"batch_size": batch}})
    group = batchnorm_ranks(config, Environment(world_size=world, local_world_size=world))
    missing = missing_images(config, group, world)
    assert missing is None if said is None else said in str(missing)


def test_groups_are_neighbours_and_cover_the_world() -> None:
    assert bn_groups(6, 2) == [[0, 1], [2, 3], [4, 5]]
    assert bn_groups(3, 3) == [[0, 1, 2]]


def test_one_rank_needs_no_group() -> None:
    assert make_bn_group(1) is None
    model = nn.Sequential(nn.BatchNorm2d(3))
    assert convert_batchnorm(model, None) is model
    assert type(model[0]) is nn.BatchNorm2d


def network() -> nn.Module:
    inner = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=1e-3, momentum=None))
    return nn.ModuleDict({"stem": inner, "head": nn.BatchNorm1d(4, affine=False)})


def test_conversion_keeps_parameters_buffers_names_and_options() -> None:
    model = network()
    tensors = dict(model.state_dict(keep_vars=True))
    stem = model["stem"][1]
    stem.weight.requires_grad_(False)
    model["head"].eval()
    model = convert_batchnorm(model, PAIR)
    new = model["stem"][1]
    assert isinstance(new, SyncBatchNorm)
    assert (new.eps, new.momentum, new.affine) == (1e-3, None, True)
    assert not new.weight.requires_grad
    assert new.training
    assert not model["head"].training
    assert model["head"].weight is None
    converted = model.state_dict(keep_vars=True)
    assert list(converted) == list(tensors)
    assert all(converted[name] is tensor for name, tensor in tensors.items())
    assert "ranks=2" in repr(model)


def test_a_batch_norm_itself_is_converted_and_converting_twice_changes_nothing() -> None:
    new = convert_batchnorm(nn.BatchNorm2d(3), PAIR)
    assert isinstance(new, SyncBatchNorm)
    assert convert_batchnorm(new, BatchNormGroup("other", 4)) is new


def test_another_kind_of_batch_norm_is_refused_by_name() -> None:
    class BatchNormWithActivation(nn.BatchNorm2d):
        pass

    with pytest.raises(ConfigError, match=r"BatchNormWithActivation.*batchnorm\.sync=off"):
        convert_batchnorm(nn.Sequential(BatchNormWithActivation(3)), PAIR)


def test_a_converted_model_can_be_copied_and_pickled() -> None:
    model = convert_batchnorm(network(), PAIR)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copied["stem"][1].group == PAIR


def test_evaluation_is_plain_batch_norm_and_needs_no_other_rank() -> None:
    plain = nn.BatchNorm2d(3)
    nn.init.uniform_(plain.running_mean)
    nn.init.uniform_(plain.weight)
    plain.eval()
    x = torch.randn(2, 3, 4, 4)
    expected = plain(x)
    assert torch.equal(convert_batchnorm(copy.deepcopy(plain), PAIR)(x), expected)


@pytest.mark.parametrize("shape", [(3,), (2, 4, 5, 5)])
def test_a_wrong_shape_is_refused_before_anything_is_sent(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(N, 3"):
        SyncBatchNorm(3, PAIR)(torch.zeros(shape))
