"""From the arguments of `timm.create_model` to a model with its parts in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from timm.models import build_model_with_cfg

from models.backbone import Backbone
from models.parts import break_ties, conv3x3_maker

M = TypeVar("M", bound=Backbone)


def default_cfg(*, size: int, num_classes: int, first_conv: str, classifier: str) -> dict[str, Any]:
    """timm's description of a model's data and of its first and last layer.

    The official code normalises CIFAR-10 with the ImageNet mean and deviation too; they are timm's defaults.
    """
    return {
        "input_size": (3, size, size),
        "num_classes": num_classes,
        "crop_pct": 0.875 if size == 224 else 1.0,
        "interpolation": "bilinear",
        "first_conv": first_conv,
        "classifier": classifier,
        "origin_url": "https://github.com/DravenALG/ReSTE",
        "paper_ids": "arXiv:2308.06689",
    }


def build(
    family: Callable[..., M],
    variant: str,
    pretrained: bool,
    taps: int,
    *,
    estimator: str | None = None,
    estimator_options: Mapping[str, Any] | None = None,
    weight_bits: int = 1,
    activation_bits: int = 1,
    numerics: str = "default",
    **kwargs: Any,
) -> M:
    """One registered variant.

    The binarization becomes a convolution factory here, so that no model and no layer sees a name.

    Args:
        family: the model class.
        variant: its registered name.
        pretrained: refused by timm, as no weights are published.
        taps: how many feature maps `features_only` offers.
        estimator: this and the next four: see `models.parts.conv3x3_maker`.
        estimator_options: see there.
        weight_bits: see there.
        activation_bits: see there.
        numerics: see there.
        **kwargs: timm's own arguments and those of `family`, which refuses what it does not know.
    """
    conv = conv3x3_maker(
        estimator=estimator,
        estimator_options=estimator_options,
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        numerics=numerics,
    )
    features = {"out_indices": tuple(range(taps))}
    model = build_model_with_cfg(family, variant, pretrained, feature_cfg=features, conv=conv, **kwargs)
    if numerics == "default" and activation_bits == 1:
        break_ties(model)
    return model
