"""From the arguments of `timm.create_model` to a model with its parts in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from timm.models import build_model_with_cfg

from models.backbone import Backbone
from models.binarization import Binarization
from models.parts import break_ties

M = TypeVar("M", bound=Backbone)
CHOICES = tuple(field.name for field in fields(Binarization))
"""Arguments of `timm.create_model` that say how a network is binarised."""


def default_cfg(
    *,
    size: int,
    num_classes: int,
    first_conv: str,
    classifier: str,
    origin_url: str = "https://github.com/DravenALG/ReSTE",
    paper_ids: str = "arXiv:2308.06689",
) -> dict[str, Any]:
    """timm's description of a model's data, of its first and last layer, and of where it is from.

    The official code normalises CIFAR-10 with the ImageNet mean and deviation too; they are timm's defaults.
    """
    return {
        "input_size": (3, size, size),
        "num_classes": num_classes,
        "crop_pct": 0.875 if size == 224 else 1.0,
        "interpolation": "bilinear",
        "first_conv": first_conv,
        "classifier": classifier,
        "origin_url": origin_url,
        "paper_ids": paper_ids,
    }


def build(
    family: Callable[..., M],
    variant: str,
    pretrained: bool,
    taps: int,
    *,
    own: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> M:
    """One registered variant.

    Args:
        family: the model class.
        variant: its registered name.
        pretrained: whether timm loads weights, from a folder or the hub; none are published under these names.
        taps: how many feature maps `features_only` offers.
        own: the family's own choices among those of `Binarization`, used where the caller makes none.
        **kwargs: fields of `Binarization`, timm's own arguments and those of `family`, which refuses what it does not
            know.
    """
    given = {name: kwargs.pop(name) for name in CHOICES if name in kwargs}
    conv = Binarization(**choose(own or {}, given))
    features = {"out_indices": tuple(range(taps))}

    def initialised(**options: Any) -> M:
        # Here and not at the end: timm loads saved weights in between, which are to stay as they are.
        model = family(**options)
        model.numerics = conv.numerics
        if conv.numerics == "default" and conv.activation_bits == 1:
            break_ties(model)
        return model

    return build_model_with_cfg(initialised, variant, pretrained, feature_cfg=features, conv=conv, **kwargs)


def choose(own: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The caller's choices, and the family's own where the caller makes none (None is none).

    What belongs together goes together: whoever names an estimator gets it on both sides, as anywhere else, and
    options are those of whoever chose what they are for.

    Args:
        own: the family's, by field of `Binarization`.
        given: the caller's.
    """
    made = {name: value for name, value in given.items() if value is not None}
    family = dict(own)
    if "estimator" in made:
        for name in ("estimator_options", "weight_estimator", "weight_estimator_options"):
            family.pop(name, None)
    if "weight_estimator" in made:
        family.pop("weight_estimator_options", None)
    if "scaling" in made:
        family.pop("scaling_options", None)
    return {**family, **made}
