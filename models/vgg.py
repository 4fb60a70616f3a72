"""VGG-small for CIFAR, the six-layer net that binary-network papers share, in the ReSTE paper's version.

The first convolution and the classifier stay in full precision. A unit computes sign -> convolution -> ReLU
-> batch norm, and every second one ends in a max pool. Structure, initialisation and state-dict names are
those of github.com/DravenALG/ReSTE.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch.nn.functional as F
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from models.backbone import Backbone
from models.binarization import ConvMaker
from models.entry import build, default_cfg
from models.parts import vgg_normal
from models.recompute import recompute

_POOLED = 4  # the classifier sees 4 x 4 pixels of every channel: a 32 x 32 image after three poolings


class BinaryVGG(Backbone):
    """A column of 3x3 convolutions with a classifier on its flattened 4 x 4 output.

    Args:
        widths: output channels of the convolutions; the first one is in full precision.
        conv: makes the others.
        num_classes: 0 for none.
        in_chans: channels of the images.
        drop_rate: dropout before the classifier.
        norm_first: batch norm before the ReLU, as in the official full-precision net.
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        conv: ConvMaker,
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        norm_first: bool = False,
    ) -> None:
        super().__init__(num_classes=num_classes, drop_rate=drop_rate)
        self.depth = len(widths)
        self.parts = ("conv", "bn", "act", "pool") if norm_first else ("conv", "act", "bn", "pool")
        self.conv0 = nn.Conv2d(in_chans, widths[0], 3, padding=1, bias=False)
        self._finish_unit(0, widths[0])
        for i in range(1, self.depth):
            setattr(self, f"conv{i}", conv(widths[i - 1], widths[i], 1))
            self._finish_unit(i, widths[i])
        self.add_head("fc", num_features=widths[-1], head_hidden_size=widths[-1] * _POOLED**2)
        self.apply(vgg_normal)

    def _finish_unit(self, i: int, width: int) -> None:
        pools = i % 2 == 1
        made = {
            "act": nn.ReLU(inplace=True),
            "bn": nn.BatchNorm2d(width),
            "pool": nn.MaxPool2d(2) if pools else nn.Identity(),
        }
        for part in self.parts[1:]:
            setattr(self, f"{part}{i}", made[part])
        if i == 0 or pools:
            reduction = 2 ** ((i + 1) // 2)
            self.feature_info.append({"num_chs": width, "reduction": reduction, "module": f"pool{i}"})

    def _unit(self, x: Tensor, *, i: int) -> Tensor:
        for part in self.parts:
            x = getattr(self, f"{part}{i}")(x)
        return x

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to features (B, num_features, H // 8, W // 8)."""
        x = self._unit(x, i=0)
        for i in range(1, self.depth):
            unit = partial(self._unit, i=i)
            x = recompute(unit, x, owner=getattr(self, f"bn{i}")) if self.grad_checkpointing else unit(x)
        return x

    def pool(self, x: Tensor) -> Tensor:
        """Features (B, num_features, H', W') to (B, 16 * num_features); other sizes average to 4 x 4."""
        # Skipped where it does nothing, as its CUDA backward is not deterministic.
        if x.shape[2:] != (_POOLED, _POOLED):
            x = F.adaptive_avg_pool2d(x, _POOLED)
        return x.flatten(1)


VGG_SMALL: dict[str, Any] = {"widths": (128, 128, 256, 256, 512, 512)}

default_cfgs = generate_default_cfgs(
    {"vgg_small_1w1a": default_cfg(size=32, num_classes=10, first_conv="conv0", classifier="fc")}
)


@register_model
def vgg_small_1w1a(pretrained: bool = False, **kwargs: Any) -> BinaryVGG:
    """VGG-small for CIFAR: 5 binary convolutions."""
    return build(BinaryVGG, "vgg_small_1w1a", pretrained, 4, **VGG_SMALL, **kwargs)
