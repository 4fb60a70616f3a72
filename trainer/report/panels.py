"""Which metrics a report draws over the steps, and how: names, words and lines."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """How one metric is drawn: `style` and `width` tell it from the others of its panel."""

    metric: str
    style: str = "-"
    width: float = 1.6
    alpha: float = 1.0
    scale: float = 1.0


@dataclass(frozen=True)
class Panel:
    """Courses of metrics over the steps, all runs together."""

    name: str
    title: str
    caption: str
    unit: str
    lines: tuple[Line, ...]
    from_zero: bool = False
    log: bool = False


def training(metric: str) -> Line:
    """A pale line, beside the strong one of validation."""
    return Line(metric, width=1.0, alpha=0.4)


COURSES = (
    Panel(
        "accuracy",
        "Top-1 accuracy",
        "Strong: validation. Pale: training, on augmented images.",
        "%",
        (training("train/top1"), Line("val/top1")),
    ),
    Panel(
        "accuracy_top5",
        "Top-5 accuracy",
        "Strong: validation. Pale: training.",
        "%",
        (training("train/top5"), Line("val/top5")),
    ),
    Panel(
        "loss",
        "Loss",
        "Strong: validation. Pale: training.",
        "cross-entropy",
        (training("train/loss"), Line("val/loss")),
        log=True,
    ),
)
SCHEDULES = (
    Panel("learning_rate", "Learning rate", "Of full-precision weights.", "", (Line("optim/lr"),), from_zero=True),
    Panel("power", "Power", "The estimator's exponent o; 1 is a straight line.", "", (Line("estimator/power"),)),
)
INDICATORS = (
    Panel(
        "estimating_error",
        "Estimating error",
        "Sum over layers of the distance between curve and sign. Strong: the published curve, at the last power. "
        "Dashed: the curve of the moment.",
        "",
        (
            Line("indicator/estimating_error_current", "--", 1.1, 0.7),
            Line("indicator/estimating_error"),
        ),
    ),
    Panel(
        "gradient_instability",
        "Gradient instability",
        "Sum over layers of the variance of |gradient|.",
        "",
        (Line("indicator/gradient_instability"),),
        log=True,
    ),
    Panel(
        "activation_error",
        "Activation error",
        "Sum over layers of the root mean square distance between curve and sign of their inputs. Dashed: the curve of "
        "the moment.",
        "",
        (Line("indicator/activation_error_current", "--", 1.1, 0.7), Line("indicator/activation_error")),
    ),
)
SPEED = (
    Panel(
        "images_per_s", "Throughput", "All ranks together.", "images/s", (Line("perf/images_per_s"),), from_zero=True
    ),
    Panel(
        "data_wait",
        "Waiting for data",
        "Share of the time in which the training waited for its loader.",
        "%",
        (Line("perf/data_wait", scale=100.0),),
        from_zero=True,
    ),
    Panel(
        "save_stall", "Pause for a save", "Time a checkpoint took off the training.", "s", (Line("perf/save_stall_s"),)
    ),
)
ERROR_NOW, INSTABILITY = "indicator/estimating_error_current", "indicator/gradient_instability"
BY_LAYER = (
    ("estimating_error", "Estimating error by layer", "The published curve."),
    ("gradient_instability", "Gradient instability by layer", "The variance of |gradient|."),
    ("activation_error", "Activation error by layer", "The published curve, over each layer's input."),
)
