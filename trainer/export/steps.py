"""A network in eval mode as a list of steps and a table of tensors: all that a reader must know, and no more.

A step is a mapping of plain values. `op` says what it does, `inputs` names values made before (the images are
"images"), `output` the value it makes; the last step makes the logits. `OPERATIONS` in `trainer.export.packed` computes
each, and docs/export.md describes them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from models.parts import SubsampleAndPad
from reste import BinaryConv2d, BinaryLinear, Estimator, Quantizer, binary_weight
from trainer.errors import ConfigError
from trainer.export.bits import pack_signs
from trainer.export.frozen import is_sign

Step = dict[str, Any]
Tensors = dict[str, Tensor]


def trace_steps(model: nn.Module) -> tuple[list[Step], Tensors]:
    """The steps of a network in eval mode, one for each operator, and the tensors they use, by `LAYER.part`.

    Raises:
        ConfigError: it holds an operator or arithmetic that has no exact step.
    """
    graph = _Tracer().trace(model)
    # Questions about shapes are answered while tracing; what they were computed from is left over.
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    steps: list[Step] = []
    tensors: Tensors = {}
    values: dict[fx.Node, str] = {}
    modules = dict(model.named_modules())
    for node in graph.nodes:
        if node.op == "placeholder":
            values[node] = "images"
            continue
        inputs = [values[given] for given in node.all_input_nodes]
        if node.op == "output":
            break
        module = modules[str(node.target)] if node.op == "call_module" else None
        if isinstance(module, nn.Identity | nn.Dropout) or node.target is F.dropout:
            values[node] = inputs[0]
            continue
        step, own = _of_module(module, str(node.target)) if module is not None else (_of_call(node), {})
        values[node] = node.name
        steps.append({**step, "inputs": inputs, "output": node.name})
        tensors |= {f"{step['layer']}.{part}": tensor.detach().clone() for part, tensor in own.items()}
    return steps, tensors


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, qualified_name: str) -> bool:
        return isinstance(m, (*_MODULES, nn.Identity, nn.Dropout))

    def to_bool(self, obj: fx.Proxy) -> bool:
        # The networks ask one thing of an image's shape: whether to average it to the size of their classifier, which
        # leaves an image of that size as it is.
        return True


def _of_module(module: nn.Module, name: str) -> tuple[Step, Tensors]:
    for kind, make in _MODULES.items():
        if isinstance(module, kind):
            step, tensors = make(module, name)
            return {**step, "layer": name}, tensors
    raise ConfigError(f"{name} ({type(module).__name__}) has no packed form: use --to onnx or --to pt2")


def _binary_conv2d(conv: BinaryConv2d, name: str) -> tuple[Step, Tensors]:
    if conv.weight_estimator is None and conv.activation_estimator is None:
        return _conv2d(conv, name)
    if conv.groups != 1 or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        raise ConfigError(f"{name}: groups and paddings other than zeros have no packed form: use --to onnx or pt2")
    step = {"stride": list(conv.stride), "padding": list(conv.padding), "dilation": list(conv.dilation)}
    return _binary(conv, name, {"op": "binary_conv2d", **step})


def _binary_linear(linear: BinaryLinear, name: str) -> tuple[Step, Tensors]:
    if linear.weight_estimator is None and linear.activation_estimator is None:
        return {"op": "linear"}, _parts(linear)
    return _binary(linear, name, {"op": "binary_linear"})


def _binary(layer: BinaryConv2d | BinaryLinear, name: str, step: Step) -> tuple[Step, Tensors]:
    _require_two_values(layer.weight_estimator, name)
    _require_two_values(layer.activation_estimator, name)
    if layer.weight_estimator is None:
        raise ConfigError(f"{name}: a full-precision weight has nothing to pack: use --to onnx or --to pt2")
    if layer.activation_estimator is not None and not _leaves_signs(layer.activation_quantizer):
        raise ConfigError(f"{name}: what is done to its input before the sign has no packed form: use --to onnx or pt2")
    if layer.scale == "before":
        raise ConfigError(
            f"{name}: numerics=reference rounds each product, which whole numbers cannot repeat: use --to onnx or pt2"
        )
    signs, scale = binary_weight(layer)
    step |= {"sign_input": layer.activation_estimator is not None, "weight_shape": list(layer.weight.shape)}
    own = {"bits": pack_signs(signs.detach()), "scale": torch.ones(()) if scale is None else scale}
    return {**step, "relu": False}, own | ({} if layer.bias is None else {"bias": layer.bias})


def _leaves_signs(quantizer: Quantizer | None) -> bool:
    return quantizer is None or quantizer.keeps_signs


def _require_two_values(estimator: Estimator | None, name: str) -> None:
    if estimator is not None and not is_sign(estimator):
        values = ", ".join(f"{value:.3g}" for value in estimator.values[:4]) + (" ..." * (len(estimator.values) > 4))
        raise ConfigError(f"{name}: {estimator.name} gives {values}, not the -1 and 1 of a bit: use --to onnx or pt2")
    if getattr(estimator, "zero", "one") != "one":
        raise ConfigError(f"{name}: a sign(0) of 0 (numerics=reference) has no room in one bit: use --to onnx or pt2")


def _conv2d(conv: nn.Conv2d, name: str) -> tuple[Step, Tensors]:
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        raise ConfigError(f"{name}: paddings other than zeros have no packed form: use --to onnx or --to pt2")
    step = {"stride": list(conv.stride), "padding": list(conv.padding), "dilation": list(conv.dilation)}
    return {"op": "conv2d", **step, "groups": conv.groups}, _parts(conv)


def _affine(norm: nn.BatchNorm2d | nn.BatchNorm1d, _name: str) -> tuple[Step, Tensors]:
    """What torch's own batch norm makes of 1 without a shift, and of 0 with it: its factor and its term, rounded so."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    zeros = torch.zeros_like(norm.running_mean)
    one = torch.ones((1, norm.num_features), dtype=zeros.dtype)
    multiplier = F.batch_norm(one, zeros, norm.running_var, norm.weight, zeros, eps=norm.eps)
    bias = F.batch_norm(one * 0, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    return {"op": "affine", "relu": False}, {"multiplier": multiplier[0], "bias": bias[0]}


def _max_pool2d(pool: nn.MaxPool2d, _name: str) -> tuple[Step, Tensors]:
    sides = {"kernel": pool.kernel_size, "stride": pool.stride, "padding": pool.padding}
    return {"op": "max_pool2d", **{side: list(_pair(value)) for side, value in sides.items()}}, {}


def _mean_pool2d(pool: nn.AvgPool2d, name: str) -> tuple[Step, Tensors]:
    if _pair(pool.kernel_size) != _pair(pool.stride) or _pair(pool.padding) != (0, 0) or not pool.ceil_mode:
        raise ConfigError(f"{name}: means of windows that overlap or leave out an edge: use --to onnx or --to pt2")
    return {"op": "mean_pool2d", "stride": list(_pair(pool.stride))}, {}


def _subsample_and_pad(shortcut: SubsampleAndPad, _name: str) -> tuple[Step, Tensors]:
    step = {"stride": shortcut.stride, "front": shortcut.front, "behind": shortcut.behind}
    return {"op": "subsample_and_pad", **step}, {}


_MODULES: dict[Any, Callable[[Any, str], tuple[Step, Tensors]]] = {
    BinaryConv2d: _binary_conv2d,
    BinaryLinear: _binary_linear,
    nn.Conv2d: _conv2d,
    nn.Linear: lambda linear, _: ({"op": "linear"}, _parts(linear)),
    nn.BatchNorm2d: _affine,
    nn.BatchNorm1d: _affine,
    nn.ReLU: lambda *_: ({"op": "relu"}, {}),
    nn.MaxPool2d: _max_pool2d,
    nn.AvgPool2d: _mean_pool2d,
    SubsampleAndPad: _subsample_and_pad,
}


def _of_call(node: fx.Node) -> Step:
    if node.target is operator.add and len(node.all_input_nodes) == 2:
        return {"op": "add"}
    if node.target is F.adaptive_avg_pool2d:
        return {"op": "adaptive_mean", "size": list(_pair(node.args[1]))}
    if node.target == "mean" and node.args[1:] == ((2, 3),):
        return {"op": "mean"}
    if node.target == "flatten" and node.args[1:] == (1,):
        return {"op": "flatten"}
    called = getattr(node.target, "__name__", node.target)
    raise ConfigError(f"{node.name} ({called}) has no packed form: use --to onnx or --to pt2")


def parts_of(step: Step, tensors: Mapping[str, Tensor]) -> Tensors:
    """The tensors of a step's layer, by part."""
    layer = step.get("layer")
    return {name.rpartition(".")[2]: t for name, t in tensors.items() if name.rpartition(".")[0] == layer}


def _parts(layer: nn.Conv2d | nn.Linear) -> Tensors:
    return {"weight": layer.weight} | ({} if layer.bias is None else {"bias": layer.bias})


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)
