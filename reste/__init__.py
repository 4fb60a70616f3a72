"""The science: binary signs, estimators of their gradient, layers and indicators. Tensors in, tensors out."""

from . import estimators_field as estimators_field, estimators_levels as estimators_levels
from .curves_field import rational_curve, rational_slope
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
from .layers import (
    BinaryConv2d,
    BinaryLinear,
    binary_layers,
    binary_weight,
    get_power,
    quantized_weight,
    set_power,
    set_powers,
    set_progress,
)
from .levels import levels_curve, levels_gain, levels_slope, reste_levels
from .mismatch import gradient_mismatch
from .quantizers import Quantizer, create_quantizer, list_quantizers, register_quantizer
from .scalings import Scaling, channel_scale, create_scaling, list_scalings, register_scaling, weight_scale
from .schedules import (
    POWER_SCHEDULES,
    constant_power,
    cosine_power,
    layer_progress,
    linear_power,
    power_schedule,
    steer_power,
)
from .signs import SignMemory, dead_share, sign_entropy
from .stochastic import ensemble, sample_mode, set_draws

__all__ = [
    "POWER_SCHEDULES",
    "BinaryConv2d",
    "BinaryLinear",
    "Estimator",
    "Quantizer",
    "Scaling",
    "SignMemory",
    "activation_errors",
    "activation_sums",
    "approx_curve",
    "approx_sign",
    "binary_layers",
    "binary_sign",
    "binary_weight",
    "channel_scale",
    "choose_kernels",
    "chosen_kernels",
    "collect_indicators",
    "constant_power",
    "cosine_power",
    "create_estimator",
    "create_quantizer",
    "create_scaling",
    "dead_share",
    "ensemble",
    "estimating_error",
    "get_power",
    "gradient_instability",
    "gradient_mismatch",
    "identity_curve",
    "identity_sign",
    "layer_progress",
    "levels_curve",
    "levels_gain",
    "levels_slope",
    "linear_power",
    "list_estimators",
    "list_quantizers",
    "list_scalings",
    "power_schedule",
    "quantized_weight",
    "rational_curve",
    "rational_slope",
    "register_estimator",
    "register_quantizer",
    "register_scaling",
    "reste_curve",
    "reste_gain",
    "reste_levels",
    "reste_sign",
    "reste_slope",
    "root_curve",
    "sample_mode",
    "set_draws",
    "set_power",
    "set_powers",
    "set_progress",
    "sign_entropy",
    "ste_curve",
    "ste_sign",
    "steer_power",
    "weight_scale",
]
