"""Which numbers of ranks keep a run's batch statistics."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from trainer.config import load_config
from trainer.distributed.environment import Environment
from trainer.errors import ConfigError
from trainer.ranks import batchnorm_groups, check_ranks, ranks_that_keep, refuse_other_statistics


def test_a_model_without_batch_norm_may_go_on_anywhere() -> None:
    assert batchnorm_groups(nn.Sequential(nn.LayerNorm(4)), 8, 1) == 1
    assert batchnorm_groups(nn.Sequential(nn.BatchNorm2d(4)), 8, 1) == 8
    assert batchnorm_groups(nn.Sequential(nn.BatchNorm2d(4)), 8, 4) == 2


@pytest.mark.parametrize(
    ("sync", "groups", "keeping"),
    [
        ("world", 1, list(range(1, 33))),
        ("off", 4, [4]),
        # 8 images need 8 ranks of 1, 4 of 2, 2 of 4 or 1 of 8 to share: four groups of the 32.
        ("{images: 8}", 4, [4, 8, 16, 32]),
        ("{images: 32}", 1, list(range(1, 33))),
    ],
)
def test_the_ranks_that_keep_statistics_are_listed(sync: str, groups: int, keeping: list[int]) -> None:
    config = load_config(None, ["train.batch_size=32", f"batchnorm={{sync: {sync}}}"])
    found = ranks_that_keep(config, groups, local_world=32)
    assert found == keeping


def test_another_split_of_the_batch_is_refused_and_the_same_one_is_not() -> None:
    config = load_config(None, ["train.batch_size=64", "train.accumulation=2", "batchnorm.sync=off"])
    refuse_other_statistics(config, 4, 4, Environment(world_size=4, local_world_size=4))
    with pytest.raises(ConfigError, match=r"over about 4 images.*over 8: .*keeps them \(4\).*model\.init") as caught:
        refuse_other_statistics(config, 4, 8, Environment(world_size=8, local_world_size=8))
    assert "\n" not in str(caught.value)


def test_more_ranks_than_a_micro_batch_has_images_are_refused() -> None:
    config = load_config(None, ["train.batch_size=17", "train.accumulation=2"])
    check_ranks(config, 8)
    with pytest.raises(ConfigError, match=r"9 ranks share micro-batches of 8 images .*start at most 8 ranks"):
        check_ranks(config, 9)


def test_the_imagenet_recipe_may_go_on_with_half_or_double_the_ranks() -> None:
    config = load_config(Path(__file__).resolve().parents[2] / "configs" / "imagenet" / "resnet18_reste.yaml")
    assert {2, 4, 8, 16} <= set(ranks_that_keep(config, 2, local_world=8))
    assert not {1, 3} & set(ranks_that_keep(config, 2, local_world=8))
