"""Draws quantisers, noise, blocks, the controller of the power and the loss of a teacher, as the code computes them.

python docs/draw_methods.py

Writes figures/quantizers.svg, stochastic.svg, blocks.svg, control.svg, distillation.svg and mismatch.svg.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from models.reactnet import RPReLU
from reste import (
    BinaryConv2d,
    create_estimator,
    create_quantizer,
    create_scaling,
    gradient_mismatch,
    set_draws,
    set_power,
    set_progress,
    steer_power,
)
from trainer.distill.losses import distribution_loss_sum

FIGURES = Path(__file__).resolve().parent / "figures"
BLUE, ORANGE, GREEN, GREY, BLACK = "#2171b5", "#d55e00", "#238b45", "#888888", "#000000"


def slope_of(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What a gradient of 1 becomes on its way back through a function, (N,)."""
    x = x.clone().requires_grad_()
    return torch.autograd.grad(function(x).sum(), x)[0]


def draw_quantizers(figure: Figure) -> None:
    """Weights before their sign, and the scales after it."""
    before, scales = figure.subplots(1, 2)
    torch.manual_seed(0)
    weight = torch.randn(1, 4000) * 0.05 + 0.02
    order = weight[0].argsort()
    for label, name, progress, colour, style in (
        ("none", "none", 0.0, GREY, ":"),
        ("standardize", "standardize", 0.0, BLACK, "--"),
        ("recu, begin (tau 0.85)", "recu", 0.0, "#fdae6b", "-"),
        ("recu, end (tau 0.99)", "recu", 1.0, "#7f2704", "-"),
    ):
        values = weight
        if name != "none":
            quantizer = create_quantizer(name, 1)
            set_progress(quantizer, progress)
            values = quantizer(weight).detach()
        before.plot(weight[0, order], values[0, order], label=label, color=colour, linestyle=style)
    before.set(title="weight q(W) before its sign, mean 0.02, deviation 0.05", xlabel="latent weight W", ylim=(-8, 8))
    weight = torch.randn(12, 16, 3, 3) * torch.linspace(0.3, 1.5, 12)[:, None, None, None] * 0.05
    for name, colour, mark in (("layer", GREY, "-"), ("channel", BLUE, "o"), ("power_of_two", ORANGE, "s")):
        scale = create_scaling(name, 12)(weight).detach().flatten().expand(12)
        scales.plot(range(12), scale, mark, label=name, color=colour)
    scales.set(title="scale s of a weight whose channels differ in size", xlabel="output channel", ylim=(0, None))
    for axes in (before, scales):
        axes.legend(fontsize=8)


def draw_stochastic(figure: Figure) -> None:
    """The mean of random signs over many draws beside 2F - 1, and the slope of each noise."""
    means, slopes = figure.subplots(1, 2)
    x = torch.linspace(-3, 3, 601)
    marks = x[::50]
    draws = marks.expand(4000, -1).contiguous()
    for noise, colour in (("uniform", BLACK), ("triangular", ORANGE), ("logistic", BLUE)):
        quantizer, sign = create_quantizer("stochastic", 1, noise=noise), create_estimator("identity")
        set_draws(quantizer, seed=0, step=0, samples=torch.arange(len(draws)))
        means.plot(marks, sign(quantizer(draws)).mean(0), "o", color=colour, markersize=4)
        quantizer.eval()
        means.plot(x, quantizer(x[None])[0], color=colour, label=f"{noise}: 2F(a) - 1")
        slopes.plot(x, slope_of(lambda a, q=quantizer, s=sign: s(q(a[None])), x), color=colour, label=noise)
    means.set(title="mean of 4,000 random signs (dots), and their expectation", xlabel="a")
    slopes.set(title="slope 2f(a)", xlabel="a")
    means.legend(fontsize=8)
    slopes.legend(fontsize=8)


def draw_blocks(figure: Figure) -> None:
    """BinaryDuo's activations, the slopes of its kind, and RPReLU."""
    values, slopes, rprelu = figure.subplots(1, 3)
    x = torch.linspace(-0.5, 1.5, 2001)
    binary, ternary = create_estimator("heaviside"), create_estimator("ternary_duo")
    values.plot(x, ternary(x), color=BLUE, linewidth=4, alpha=0.4, label="ternary_duo")
    values.plot(
        x, (binary(x - 0.25) + binary(x + 0.25)) / 2, color=BLACK, linewidth=1, label="two heaviside, moved by 1/4"
    )
    values.plot(x, binary(x), color=GREY, linestyle=":", label="heaviside")
    values.set(title="BinaryDuo: one ternary activation is two binary ones", xlabel="x", ylim=(-0.1, 1.5))
    x = torch.linspace(-1.5, 2.5, 2001)
    for name, colour, style in (
        ("relu_ste", BLACK, "-"),
        ("clipped_relu_ste", ORANGE, "-"),
        ("heaviside", BLUE, "--"),
        ("ternary_duo", GREEN, ":"),
    ):
        slopes.plot(x, slope_of(create_estimator(name), x), color=colour, linestyle=style, label=name)
    slopes.set(title="slopes of ReLU's kind", xlabel="x", ylim=(-0.1, 1.6))
    block, x = RPReLU(1), torch.linspace(-2, 2, 401)
    for label, before, slope, after, colour in (
        ("to begin with", 0.0, 0.25, 0.0, GREY),
        ("b1 0.5", 0.5, 0.25, 0.0, BLUE),
        ("b2 -0.5", 0.0, 0.25, -0.5, ORANGE),
        ("a 0.7", 0.0, 0.7, 0.0, GREEN),
    ):
        with torch.no_grad():
            for parameter, value in ((block.before, before), (block.slope, slope), (block.after, after)):
                parameter.fill_(value)
            rprelu.plot(x, block(x[None, None, None])[0, 0, 0], color=colour, label=label)
    rprelu.set(title="RPReLU", xlabel="x")
    for axes in (values, slopes, rprelu):
        axes.legend(fontsize=7)


def draw_control(figure: Figure) -> None:
    """`estimator.hold_instability` on an instability that grows a hundredfold from o = 1 to 3, and drifts."""
    powers, measured = figure.subplots(1, 2)
    for wanted, colour in ((1e-5, BLUE), (3e-5, ORANGE), (1e-3, GREEN)):
        power, history = 1.0, []
        for probe in range(40):
            found = 3e-6 * 10 ** (power - 1) * (1 + probe / 20)
            history.append((power, found))
            power = steer_power(power, found, wanted, 3.0)
        powers.plot([each for each, _ in history], color=colour, label=f"held at {wanted:g}")
        measured.semilogy([each for _, each in history], color=colour)
        measured.axhline(wanted, color=colour, linestyle=":", linewidth=0.8)
    powers.set(title="power o, from 1 to o_end = 3", xlabel="probe")
    measured.set(title="instability that a probe finds (a made-up one)", xlabel="probe")
    powers.legend(fontsize=8)


def draw_distillation(figure: Figure) -> None:
    """T^2 KL of a student whose first logit moves, and its slope, for a teacher of logits (2, 0, -1)."""
    losses, slopes = figure.subplots(1, 2)
    x, teacher = torch.linspace(-4, 8, 601), torch.tensor([[2.0, 0.0, -1.0]])

    def loss(first: Tensor, temperature: float) -> Tensor:
        student = torch.stack((first, torch.zeros_like(first), torch.full_like(first, -1.0)), 1)
        each = [distribution_loss_sum(row[None], teacher, temperature=temperature) for row in student]
        return torch.stack(each)

    for temperature, colour in ((1.0, BLACK), (2.0, BLUE), (4.0, ORANGE)):
        losses.plot(x, loss(x, temperature), color=colour, label=f"T = {temperature:g}")
        slopes.plot(x, slope_of(lambda a, t=temperature: loss(a, t), x), color=colour)
    losses.set(title="T^2 KL(teacher || student)", xlabel="first logit of the student; the teacher's is 2")
    slopes.set(title="its gradient, of the same size at every T", xlabel="first logit of the student")
    losses.legend(fontsize=8)


def batch_loss(net: nn.Module, images: Tensor) -> Tensor:
    """Cross-entropy with made-up labels."""
    return nn.functional.cross_entropy(net(images), torch.arange(len(images)) % 4)


def draw_mismatch(figure: Figure) -> None:
    """Cosines between an estimator's gradient and the discrete and the smoothed one, for a small network."""
    axes = figure.subplots()
    shown = [("identity", 1.0), ("ste", 1.0), ("approx_sign", 1.0), ("reste", 1.5), ("reste", 2.0), ("reste", 3.0)]
    found = []
    for name, power in shown:
        torch.manual_seed(0)
        sides = {f"{side}_estimator": create_estimator(name) for side in ("weight", "activation")}
        net = nn.Sequential(nn.BatchNorm2d(8), BinaryConv2d(8, 8, 3, **sides), nn.Flatten(), nn.Linear(8 * 36, 4))
        set_power(net, power)
        found.append(gradient_mismatch(net, partial(batch_loss, net, torch.randn(64, 8, 8, 8)), directions=256))
    for offset, key, colour in ((-0.2, "discrete_cosine/1", BLUE), (0.2, "smoothed_cosine/1", ORANGE)):
        places = [place + offset for place in range(len(shown))]
        axes.bar(places, [float(each[key]) for each in found], 0.38, color=colour, label=key.removesuffix("/1"))
    axes.set_xticks(range(len(shown)), [name if name != "reste" else f"reste, {power:g}" for name, power in shown])
    axes.set(title="how far an estimator's gradient of a weight agrees with a true one; one layer, random images")
    axes.legend(fontsize=8)


def main() -> None:
    """Write the figures; the same code and matplotlib give the same bytes."""
    FIGURES.mkdir(exist_ok=True)
    for draw in (draw_quantizers, draw_stochastic, draw_blocks, draw_control, draw_distillation, draw_mismatch):
        name = draw.__name__.removeprefix("draw_")
        with mpl.rc_context({"svg.hashsalt": name, "font.size": 9, "axes.titlesize": 9, "axes.axisbelow": True}):
            figure = Figure(figsize=(10, 3.6), layout="constrained")
            with torch.no_grad() if draw is draw_quantizers else torch.enable_grad():
                draw(figure)
            for axes in figure.axes:
                axes.grid(color="#eeeeee")
            figure.savefig(FIGURES / f"{name}.svg", metadata={"Date": None, "Creator": None})
        print(FIGURES / f"{name}.svg")


if __name__ == "__main__":
    main()
