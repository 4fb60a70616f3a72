"""The science: binary signs, estimators of their gradient, layers and indicators. Tensors in, tensors out."""

from .estimators import Estimator, create_estimator, list_estimators, register_estimator
from .functional import (
    approx_curve,
    approx_sign,
    binary_sign,
    identity_curve,
    identity_sign,
    reste_curve,
    reste_gain,
    reste_sign,
    reste_slope,
    root_curve,
    ste_curve,
    ste_sign,
)
from .indicators import (
    activation_errors,
    activation_sums,
    collect_indicators,
    estimating_error,
    gradient_instability,
)
from .kernels import choose_kernels, chosen_kernels
from .layers import BinaryConv2d, BinaryLinear, binary_layers, get_power, set_power
from .quantizers import weight_scale
from .schedules import POWER_SCHEDULES, constant_power, cosine_power, linear_power, power_schedule

__all__ = [
    "POWER_SCHEDULES",
    "BinaryConv2d",
    "BinaryLinear",
    "Estimator",
    "activation_errors",
    "activation_sums",
    "approx_curve",
    "approx_sign",
    "binary_layers",
    "binary_sign",
    "choose_kernels",
    "chosen_kernels",
    "collect_indicators",
    "constant_power",
    "cosine_power",
    "create_estimator",
    "estimating_error",
    "get_power",
    "gradient_instability",
    "identity_curve",
    "identity_sign",
    "linear_power",
    "list_estimators",
    "power_schedule",
    "register_estimator",
    "reste_curve",
    "reste_gain",
    "reste_sign",
    "reste_slope",
    "root_curve",
    "set_power",
    "ste_curve",
    "ste_sign",
    "weight_scale",
]
