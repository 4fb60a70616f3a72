"""What other papers' networks share: stem, stages of blocks, mean, classifier; blocks hold the binary convolutions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from models.backbone import Backbone
from models.binarization import ConvMaker
from models.parts import he_convolutions
from models.recompute import recompute


class BlockMaker(Protocol):
    """Makes one block, whose convolutions come from `conv`."""

    def __call__(self, in_channels: int, out_channels: int, stride: int, *, conv: ConvMaker) -> nn.Module:
        """A block (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride))."""


class StagedNet(Backbone):
    """A stem (`conv1`, `bn1`, `act1`, `maxpool`), stages `layer1..n`, the mean over pixels, the classifier `fc`.

    A family calls `add_stem`, `add_stage` for each stage, then `add_head`.
    """

    def __init__(self, *, num_classes: int, drop_rate: float) -> None:
        super().__init__(num_classes=num_classes, drop_rate=drop_rate)
        self.entry: tuple[str, ...] = ("conv1", "bn1", "act1", "maxpool")
        self.stages: tuple[str, ...] = ()

    def add_stem(self, in_chans: int, width: int, stem: tuple[int, int], *, pool: bool, act: nn.Module) -> None:
        """Append the full-precision first convolution and what follows it.

        Args:
            in_chans: channels of the images.
            width: its output channels.
            stem: its kernel size and stride.
            pool: whether a 3x3 max pool of stride 2 follows.
            act: what comes between its batch norm and the pool.
        """
        kernel, stride = stem
        self.conv1 = nn.Conv2d(in_chans, width, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = act
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if pool else nn.Identity()
        self.feature_info.append({"num_chs": width, "reduction": stride, "module": "act1"})
        self._reduction = stride * (2 if pool else 1)

    def add_stage(self, blocks: Iterable[nn.Module], channels: int, stride: int) -> None:
        """Append a stage.

        Args:
            blocks: in the order in which they run.
            channels: that the last one puts out.
            stride: of all of them together.
        """
        name = f"layer{len(self.stages) + 1}"
        setattr(self, name, nn.Sequential(*blocks))
        self.stages = (*self.stages, name)
        self._reduction *= stride
        self.feature_info.append({"num_chs": channels, "reduction": self._reduction, "module": name})

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to features (B, num_features, H', W'), H' = ceil(H / last reduction)."""
        for part in self.entry:
            x = getattr(self, part)(x)
        for stage in self.stages:
            for block in getattr(self, stage):
                x = recompute(block, x, owner=block) if self.grad_checkpointing else block(x)
        return x

    def pool(self, x: Tensor) -> Tensor:
        """Mean over pixels: (B, num_features, H', W') to (B, num_features)."""
        return x.mean((2, 3))


class BlockNet(StagedNet):
    """A network of one kind of block; every stage from the second on halves the resolution.

    The defaults are those for ImageNet.

    Args:
        depths: blocks in each stage.
        widths: channels of each stage.
        conv: makes the binary convolutions.
        block: makes the blocks.
        stem: kernel size and stride of the full-precision first convolution.
        stem_width: its output channels; None: those of the first stage.
        stem_pool: whether a 3x3 max pool of stride 2 follows it.
        stem_act: makes what comes between its batch norm and the pool, for a number of channels; None: nothing.
        init: applied to every module once.
        num_classes: 0 for none.
        in_chans: channels of the images.
        drop_rate: dropout before the classifier.
    """

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int] = (64, 128, 256, 512),
        *,
        conv: ConvMaker,
        block: BlockMaker,
        stem: tuple[int, int] = (7, 2),
        stem_width: int | None = None,
        stem_pool: bool = True,
        stem_act: Callable[[int], nn.Module] | None = None,
        init: Callable[[nn.Module], None] = he_convolutions,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(num_classes=num_classes, drop_rate=drop_rate)
        channels = stem_width or widths[0]
        act = nn.Identity() if stem_act is None else stem_act(channels)
        self.add_stem(in_chans, channels, stem, pool=stem_pool, act=act)
        for i, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            stride = 1 if i == 0 else 2
            shapes = [(channels, width, stride)] + [(width, width, 1)] * (depth - 1)
            self.add_stage((block(*shape, conv=conv) for shape in shapes), width, stride)
            channels = width
        self.add_head("fc", num_features=channels, head_hidden_size=channels)
        self.apply(init)


SMALL: dict[str, Any] = {"depths": (6, 6, 6), "widths": (16, 32, 64), "stem": (3, 1), "stem_pool": False}
"""The 20-layer shape for images of 32 pixels: 18 binary 3x3 convolutions, one in a block."""
