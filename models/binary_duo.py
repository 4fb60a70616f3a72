"""BinaryDuo (Kim et al., ICLR 2020): train ternary activations, then decouple each into two binary ones.

The coupled network has activations {0, 1/2, 1} and fewer channels; its gradients are better than a binary network's.
Its ternary step is the mean of two binary ones, with thresholds 1/4 and 3/4:

    t(x) = (h(x - 1/4) + h(x + 1/4)) / 2,    h(x) = 1 for x >= 1/2, else 0

so the decoupled network carries x - 1/4 and x + 1/4, `copies = 2` of every channel, and convolves them with half of
each weight twice. It starts as the coupled network's equal (`decouple` in `models.transfer`) and is trained on, copies
and halves being free of each other from then on. A convolution of w output channels sees 2 w input channels, so that
widths of W / sqrt(2) cost what the plain network's W do: 90, 180, 360 for 128, 256, 512.

A block is sign -> 3x3 convolution -> batch norm, plus its shortcut. Convolution and shortcut compute one copy; batch
norm belongs to each copy. Where the shape changes, the shortcut starts from the mean of both copies (2x2 mean,
full-precision 1x1 convolution, batch norm). The last block widens to what the plain network puts out, and its shortcut
adds zeros. The stem ends in a second batch norm, and ReLU comes before the last mean. Stem, shortcuts and classifier
are in full precision. Structure and widths for ImageNet: `resnet_sc` of github.com/Hyungjun-K1m/BinaryDuo; there, the
zeros of the last shortcut are all behind, here half of them in front, which is another order of the same channels. The
small networks have widths of the same rule, in the shape of the other small networks here.

The family's own choices: `ternary_duo` and `heaviside` for activations, `identity` for weights, times the layer's mean
magnitude.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from models.binarization import ConvMaker
from models.entry import build, default_cfg
from models.parts import averaging_shortcut, he_convolutions, padding_shortcut
from models.staged import StagedNet


class Copies(nn.Module):
    """The channels beside themselves: (B, C, H, W) -> (B, copies * C, H, W)."""

    def __init__(self, copies: int) -> None:
        super().__init__()
        self.copies = copies

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return x if self.copies == 1 else torch.cat((x,) * self.copies, 1)


class DuoShortcut(nn.Module):
    """From the mean of the copies through `path` to copies again.

    Shape: (B, given * in_channels, H, W) -> (B, made * out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, path: nn.Module, in_channels: int, *, given: int, made: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.given = given
        self.path = path
        self.copy = Copies(made)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        if self.given > 1:
            starts = range(0, self.given * self.in_channels, self.in_channels)
            x = sum(x[:, start : start + self.in_channels] for start in starts) / self.given
        return self.copy(self.path(x))


class DuoUnit(nn.Module):
    """One binary 3x3 convolution over all copies, batch norm of each copy, and the shortcut around both.

    Args:
        in_channels, out_channels, stride: of one copy.
        conv: makes the convolution.
        copies: of every channel that comes in.
        last: whether this is the network's last block, which puts out one copy and widens by zeros.

    Shape: (B, copies * in_channels, H, W) -> (B, copies * out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, *, conv: ConvMaker, copies: int, last: bool = False
    ) -> None:
        super().__init__()
        made = 1 if last else copies
        self.binary_conv = conv(copies * in_channels, out_channels, stride)
        self.copy = Copies(made)
        self.bn1 = nn.BatchNorm2d(made * out_channels)
        path = (padding_shortcut if last else averaging_shortcut)(in_channels, out_channels, stride)
        plain = isinstance(path, nn.Identity) and made == copies
        self.downsample = path if plain else DuoShortcut(path, in_channels, given=copies, made=made)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.bn1(self.copy(self.binary_conv(x))) + self.downsample(x)


class BinaryDuo(StagedNet):
    """The coupled network (`copies=1`) or the decoupled one (`copies=2`); the defaults are those for ImageNet.

    Args:
        depths: blocks in each stage; every stage from the second on halves the resolution.
        widths: channels of one copy in each stage.
        last_width: channels that the last block puts out.
        copies: 1 or 2.
        conv: makes the binary convolutions.
        stem: kernel size and stride of the full-precision first convolution.
        stem_pool: whether a 3x3 max pool of stride 2 follows it.
        num_classes: 0 for none.
        in_chans: channels of the images.
        drop_rate: dropout before the classifier.
    """

    def __init__(
        self,
        depths: Sequence[int] = (4, 4, 4, 4),
        widths: Sequence[int] = (64, 90, 180, 360),
        last_width: int = 512,
        *,
        copies: int,
        conv: ConvMaker,
        stem: tuple[int, int] = (7, 2),
        stem_pool: bool = True,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(num_classes=num_classes, drop_rate=drop_rate)
        self.copies = copies
        channels = widths[0]
        self.add_stem(in_chans, channels, stem, pool=stem_pool, act=nn.ReLU())
        self.copy = Copies(copies)
        self.bn2 = nn.BatchNorm2d(copies * channels)
        self.entry = (*self.entry, "copy", "bn2")
        for i, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            last = i == len(depths) - 1
            stride = 1 if i == 0 else 2
            shapes = [(channels, width, stride)] + [(width, width, 1)] * (depth - 1 - last)
            blocks = [DuoUnit(*shape, conv=conv, copies=copies) for shape in shapes]
            if last:
                blocks.append(DuoUnit(width, last_width, 1, conv=conv, copies=copies, last=True))
            self.add_stage(blocks, last_width if last else copies * width, stride)
            channels = width
        self.add_head("fc", num_features=last_width, head_hidden_size=last_width)
        self.apply(he_convolutions)

    @property
    def shifted(self) -> tuple[str, ...]:
        """Batch norms that move the copies apart by their biases: one for each stage, as shortcuts carry it on."""
        return ("bn2", *(f"{stage}.0.bn1" for stage in self.stages[1:]))

    def pool(self, x: Tensor) -> Tensor:
        """ReLU, then the mean over pixels: (B, num_features, H', W') to (B, num_features)."""
        return F.relu(x).mean((2, 3))


OWN = {"estimator": "heaviside", "weight_estimator": "identity"}
"""The decoupled network's choices where the caller makes none."""
OWN_COUPLED = OWN | {"estimator": "ternary_duo"}
"""The coupled network's."""

SMALL: dict[str, Any] = {
    "depths": (6, 6, 6),
    "widths": (16, 23, 45),
    "last_width": 64,
    "stem": (3, 1),
    "stem_pool": False,
}

_facts = {
    "first_conv": "conv1",
    "classifier": "fc",
    "origin_url": "https://github.com/Hyungjun-K1m/BinaryDuo",
    "paper_ids": "arXiv:2002.06517",
}
_imagenet_cfg = default_cfg(size=224, num_classes=1000, **_facts)
_cifar_cfg = default_cfg(size=32, num_classes=10, **_facts)
default_cfgs = generate_default_cfgs(
    {
        "binary_duo18_1w1a": _imagenet_cfg,
        "binary_duo18_coupled_1w2a": _imagenet_cfg,
        "binary_duo20_1w1a": _cifar_cfg,
        "binary_duo20_coupled_1w2a": _cifar_cfg,
    }
)


@register_model
def binary_duo18_1w1a(pretrained: bool = False, **kwargs: Any) -> BinaryDuo:
    """Decoupled BinaryDuo with the shape of ResNet-18, for ImageNet: 16 binary convolutions."""
    return build(BinaryDuo, "binary_duo18_1w1a", pretrained, 5, own=OWN, copies=2, **kwargs)


@register_model
def binary_duo18_coupled_1w2a(pretrained: bool = False, **kwargs: Any) -> BinaryDuo:
    """Coupled BinaryDuo with the shape of ResNet-18: ternary activations, from which `binary_duo18_1w1a` starts."""
    return build(BinaryDuo, "binary_duo18_coupled_1w2a", pretrained, 5, own=OWN_COUPLED, copies=1, **kwargs)


@register_model
def binary_duo20_1w1a(pretrained: bool = False, **kwargs: Any) -> BinaryDuo:
    """Decoupled BinaryDuo of 20 layers for images of 32 pixels: 18 binary convolutions."""
    return build(BinaryDuo, "binary_duo20_1w1a", pretrained, 4, own=OWN, copies=2, **SMALL, **kwargs)


@register_model
def binary_duo20_coupled_1w2a(pretrained: bool = False, **kwargs: Any) -> BinaryDuo:
    """Coupled BinaryDuo of 20 layers: ternary activations, from which `binary_duo20_1w1a` starts."""
    return build(BinaryDuo, "binary_duo20_coupled_1w2a", pretrained, 4, own=OWN_COUPLED, copies=1, **SMALL, **kwargs)
