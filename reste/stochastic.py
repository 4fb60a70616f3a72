"""Stochastic binary networks (Shekhovtsov & Yanush, DAGM-GCPR 2021, arXiv 2006.06880).

A sign with noise z of distribution F before it is a random sign, and the straight-through estimator that belongs to it
has twice the density f of the noise as its slope:

    forward     y = sign(a - z),    P(y = +1) = F(a),    E y = 2 F(a) - 1
    backward    dL/da = dL/dy * 2 f(a)

    noise         2 F(a) - 1            2 f(a)                      the slope of
    uniform       clamp(a, -1, 1)       1 for |a| <= 1, else 0      the clipped identity
    logistic      tanh(a / 2)           (1 - tanh(a / 2)^2) / 2
    triangular    2a - a|a|             2 - 2|a| for |a| < 1        Bi-Real Net's ApproxSign

F(a) > F(z) is a > z, and F(z) is uniform. So the quantiser gives 2 F(a) - 1 - t with t uniform on (-1, 1), whose
derivative is 2 f(a); the estimator `identity` takes its sign and passes the gradient on. In eval mode t is 0: the plain
sign of a. With `scale` s it is a / s that stands for a.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor, nn

from .curves import approx_curve, ste_curve, widen
from .draws import key_of, uniform
from .layers import binary_layers
from .quantizers import Quantizer, register_quantizer

Noise = Literal["uniform", "logistic", "triangular"]


def _logistic_curve(a: Tensor) -> Tensor:
    return (a / 2).tanh()


NOISES: dict[str, Callable[[Tensor], Tensor]] = {
    "uniform": ste_curve,
    "logistic": _logistic_curve,
    "triangular": approx_curve,
}
"""Name -> 2F - 1, whose derivative is 2f."""


class RandomSign(Quantizer):
    """What the quantisers with noise share.

    What is drawn is said by `set_draws`. Without it the key is 0 and rows are called by their position.

    Args:
        channels: not used.
        noise: "uniform", "logistic" or "triangular".
        scale: s > 0, of the noise, in units of what it is added to.

    Attributes:
        sampling: draw in eval mode, too; see `sample_mode`.

    Raises:
        ValueError: an option out of its range.
    """

    keeps_signs = True
    key: Tensor
    rows: Tensor

    def __init__(self, channels: int, *, noise: Noise = "logistic", scale: float = 1.0) -> None:
        super().__init__(channels)
        if noise not in get_args(Noise):
            raise ValueError(f"noise must be one of {', '.join(get_args(Noise))}; got {noise!r}")
        if not 0 < scale < float("inf"):
            raise ValueError(f"scale must be a finite number > 0, got {scale}")
        self.noise, self.scale = noise, scale
        self.sampling = False
        self.rows_of: dict[tuple[int, torch.device], Tensor] = {}
        self.register_buffer("key", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("rows", torch.zeros(0, dtype=torch.int64), persistent=False)

    def noisy(self, x: Tensor) -> Tensor:
        """2 F(x / s) - 1 - t, (N, ...) to the same shape in float32 or better."""
        mean = NOISES[self.noise](widen(x) / self.scale)
        if not (self.training or self.sampling):
            return mean
        return mean - (2 * uniform(self.key, self._rows(x), x.shape) - 1)

    def _rows(self, x: Tensor) -> Tensor:
        if len(self.rows) == 0:
            return torch.arange(x.shape[0], device=x.device)
        if len(self.rows) != x.shape[0]:
            raise ValueError(
                f"noise was set for {len(self.rows)} samples, here are {x.shape[0]}: call reste.set_draws before each "
                "forward pass that draws"
            )
        return self.rows

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"noise={self.noise!r}, scale={self.scale}"


@final
@register_quantizer
class Stochastic(RandomSign):
    """A random sign with the slope 2 f(a): see the first lines of the module; its estimator is `identity`."""

    name = "stochastic"
    sides = frozenset({"weight", "activation"})

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) to the same shape; N samples, or output channels.

        Raises:
            ValueError: `set_draws` was told of another number of rows.
        """
        return self.noisy(x).to(x.dtype)


@final
@register_quantizer
class StochasticMirror(RandomSign):
    """A random sign of a weight, trained by mirror descent: the gradient passes as it is.

    The latent weight is the natural parameter eta of a sign with mean mu = 2 F(eta) - 1. Mirror descent in mu whose
    mirror map is that proxy moves the parameter by the gradient for the mean, without the proxy's derivative:

        eta <- eta - rate * dL/dmu
    """

    name = "stochastic_mirror"
    sides = frozenset({"weight"})

    def forward(self, x: Tensor) -> Tensor:
        """See `Stochastic`."""
        return _Instead.apply(x, self.noisy(x.detach()).to(x.dtype))


class _Instead(torch.autograd.Function):
    """Another tensor in the place of x, whose gradient is that of x."""

    @staticmethod
    def forward(x: Tensor, other: Tensor) -> Tensor:
        return other.view_as(other)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def set_draws(model: nn.Module, *, seed: int, step: int, samples: Tensor) -> None:
    """Say what the random signs of `model` are drawn for; nothing is recompiled while the number of samples stays.

    Inputs are drawn for each sample, so that a sample gets the same noise in whatever batch and on whatever rank it is.
    Weights are drawn for the step, the same for all samples. A model without random signs is left alone.

    Args:
        model: as `binary_layers` takes it; a layer is known by its place in it.
        seed, step: any integers.
        samples: int64 (B,), ids >= 0 of the samples of the coming forward pass, in order.
    """
    for number, (_, layer) in enumerate(binary_layers(model)):
        weight, activation = layer.weight_quantizer, layer.activation_quantizer
        if isinstance(weight, RandomSign):
            _tell(weight, key_of(seed, step, number, 0), torch.arange(len(layer.weight), device=weight.rows.device))
        if isinstance(activation, RandomSign):
            samples = samples.to(activation.rows.device, non_blocking=True)
            _tell(activation, key_of(seed, step, number, 1), samples)


def _tell(quantizer: RandomSign, key: int, rows: Tensor) -> None:
    quantizer.key.fill_(key)
    if quantizer.rows.shape != rows.shape:
        # The same memory again for the same number: what replays a CUDA graph knows addresses.
        quantizer.rows = quantizer.rows_of.setdefault((len(rows), rows.device), torch.empty_like(rows))
    quantizer.rows.copy_(rows)


@contextmanager
def _draws_kept(model: nn.Module) -> Iterator[None]:
    """Within, `set_draws` may say what it wants; afterwards what it said before holds again."""
    found = [module for module in model.modules() if isinstance(module, RandomSign)]
    before = [(int(quantizer.key), quantizer.rows.clone()) for quantizer in found]
    try:
        yield
    finally:
        for quantizer, (key, rows) in zip(found, before, strict=True):
            _tell(quantizer, key, rows)


@contextmanager
def sample_mode(model: nn.Module, on: bool = True) -> Iterator[None]:
    """Within: random signs of `model` are drawn in eval mode too (`on`), or not; as it was afterwards."""
    found = [module for module in model.modules() if isinstance(module, RandomSign)]
    before = [quantizer.sampling for quantizer in found]
    for quantizer in found:
        quantizer.sampling = on
    try:
        yield
    finally:
        for quantizer, was in zip(found, before, strict=True):
            quantizer.sampling = was


@torch.no_grad()
def ensemble(model: nn.Module, images: Tensor, *, members: int, seed: int, samples: Tensor | None = None) -> Tensor:
    """Mean over `members` draws of the softmax of a stochastic network in eval mode.

    Args:
        model: in eval mode, (B, ...) to logits (B, classes).
        images: (B, ...).
        members: draws, >= 1; each has random weights and signs of its own.
        seed: of the draws.
        samples: int64 (B,), ids of the images; their positions by default.

    Returns:
        Probabilities (B, classes) in float32 or better.

    Raises:
        ValueError: `members` < 1.
    """
    if members < 1:
        raise ValueError(f"members must be >= 1, got {members}")
    ids = torch.arange(len(images), device=images.device) if samples is None else samples
    total: Tensor | None = None
    with sample_mode(model), _draws_kept(model):
        for member in range(members):
            set_draws(model, seed=seed, step=member, samples=ids)
            part = widen(model(images)).softmax(-1)
            total = part if total is None else total + part
    assert total is not None
    return total / members
