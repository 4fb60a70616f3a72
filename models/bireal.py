"""Bi-Real Net (Liu et al., ECCV 2018): a residual network with a shortcut around every binary convolution.

A block is sign -> 3x3 convolution -> batch norm, plus its shortcut, and nothing else: no activation function anywhere,
the signs are the only non-linear step. Where the shape changes, the shortcut is a 2x2 mean, a full-precision 1x1
convolution and batch norm. Stem (convolution, batch norm, max pool) and classifier are in full precision.

The family's own choices: signs of activations by `approx_sign`, of weights by `ste` with clip 1, times their mean
magnitude per output channel, through which no gradient passes. Structure and names of tensors are those of
github.com/liuzechun/Bi-Real-net, but that weights have the shape of a convolution. There latent weights start in
[0, 0.001), all positive; here they start as in the other networks, N(0, 2 / fan_in).
"""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from models.binarization import ConvMaker
from models.entry import build, default_cfg
from models.parts import averaging_shortcut
from models.staged import SMALL, BlockNet


class BiRealUnit(nn.Module):
    """One binary 3x3 convolution, batch norm, and the shortcut around both.

    Shape: (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, conv: ConvMaker) -> None:
        super().__init__()
        self.binary_conv = conv(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.downsample = averaging_shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.bn1(self.binary_conv(x)) + self.downsample(x)


OWN = {"estimator": "approx_sign", "weight_estimator": "ste", "scaling": "channel_detached"}
"""The family's choices where the caller makes none."""

_facts = {
    "first_conv": "conv1",
    "classifier": "fc",
    "origin_url": "https://github.com/liuzechun/Bi-Real-net",
    "paper_ids": "arXiv:1808.00278",
}
_imagenet_cfg = default_cfg(size=224, num_classes=1000, **_facts)
default_cfgs = generate_default_cfgs(
    {
        "bireal18_1w1a": _imagenet_cfg,
        "bireal34_1w1a": _imagenet_cfg,
        "bireal20_1w1a": default_cfg(size=32, num_classes=10, **_facts),
    }
)


def _build(variant: str, pretrained: bool, taps: int, **kwargs: Any) -> BlockNet:
    return build(BlockNet, variant, pretrained, taps, own=OWN, block=BiRealUnit, **kwargs)


@register_model
def bireal18_1w1a(pretrained: bool = False, **kwargs: Any) -> BlockNet:
    """Bi-Real Net of 18 layers for ImageNet: 16 binary convolutions."""
    return _build("bireal18_1w1a", pretrained, 5, depths=(4, 4, 4, 4), **kwargs)


@register_model
def bireal34_1w1a(pretrained: bool = False, **kwargs: Any) -> BlockNet:
    """Bi-Real Net of 34 layers for ImageNet: 32 binary convolutions."""
    return _build("bireal34_1w1a", pretrained, 5, depths=(6, 8, 12, 6), **kwargs)


@register_model
def bireal20_1w1a(pretrained: bool = False, **kwargs: Any) -> BlockNet:
    """Bi-Real Net of 20 layers for images of 32 pixels: 18 binary convolutions."""
    return _build("bireal20_1w1a", pretrained, 4, **SMALL, **kwargs)
