"""DeepSpeed's JSON, derived from the run's configuration, so that nothing is said twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainer.config import Config, flatten
from trainer.errors import ConfigError

SETTINGS = "deepspeed.json"
"""Name of the file in the run's folder."""

BUCKET_ELEMENTS = 2**25
"""Gradients reduced in one message under ZeRO 1; DeepSpeed's own default asks for a buffer of 2 GB."""

_DECIDED_BY = {
    "train_batch_size": "train.batch_size",
    "train_micro_batch_size_per_gpu": "train.batch_size",
    "gradient_accumulation_steps": "train.accumulation",
    "gradient_clipping": "train.clip_norm",
    "optimizer": "optim",
    "scheduler": "optim.schedule",
    "amp": "train.precision",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "data_types": "train.precision",
    "torch_autocast": "train.precision",
    "zero_optimization.stage": "deepspeed.zero",
}
_FIXED = {
    "zero_optimization.round_robin_gradients": "the layout of saved states",
    "zero_optimization.parameter_alignment": "the layout of saved states",
}
_NOT_HERE = {
    "checkpoint": "checkpoints are the trainer's own",
    "compile": "train.compile compiles the network",
    "data_efficiency": "the trainer owns the order of samples",
    "managed_gradient_accumulation": "the trainer says when gradients are exchanged",
    "sparse_gradients": "no layer here has sparse gradients",
    "tensor_parallel": "every rank holds the whole network",
    "zero_optimization.offload_optimizer": "the state stays on the device",
    "zero_optimization.offload_param": "the state stays on the device",
    "zero_optimization.zenflow": "the state stays on the device",
}


def deepspeed_settings(config: Config, world: int) -> dict[str, Any]:
    """Everything that DeepSpeed is told: what follows from the configuration, and what `deepspeed.config` adds.

    Args:
        config: of a run with `engine: deepspeed`.
        world: number of ranks.

    Raises:
        ConfigError: float64 is asked for, or the added file cannot be read or contradicts; names every contradiction.
    """
    if config.train.precision == "fp64":
        raise ConfigError("engine=deepspeed adds up gradients in float32: set engine=ddp or train.precision=fp32")
    derived = _derived(config, world)
    if config.deepspeed.config is None:
        return derived
    path = Path(config.deepspeed.config)
    added = _read(path)
    conflicts = _conflicts(derived, added)
    if conflicts:
        raise ConfigError(f"deepspeed.config={path} contradicts this run: {'; '.join(conflicts)}; remove these keys")
    return _merged(derived, added)


def _derived(config: Config, world: int) -> dict[str, Any]:
    images = config.train.batch_size
    share = config.train.accumulation * world
    zero: dict[str, Any] = {"stage": config.deepspeed.zero}
    if config.deepspeed.zero:
        zero |= {
            "round_robin_gradients": False,
            "reduce_bucket_size": BUCKET_ELEMENTS,
            # The trainer has the norm before the step, which DeepSpeed would compute again and wait for.
            "compute_grad_norm": False,
        }
    return {
        # Slices differ by one image; only DeepSpeed's own reports of speed read this number.
        "train_micro_batch_size_per_gpu": -(-images // share),
        "gradient_accumulation_steps": config.train.accumulation,
        # The trainer clips: DeepSpeed would do it after the norm has been judged.
        "gradient_clipping": 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        added = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"deepspeed.config={path} cannot be read ({error.strerror}): name a JSON file") from None
    except ValueError as error:
        raise ConfigError(f"deepspeed.config={path} is not JSON ({error})") from None
    if not isinstance(added, dict):
        raise ConfigError(f"deepspeed.config={path} holds no JSON object: it starts with {{")
    return added


def _conflicts(derived: dict[str, Any], added: dict[str, Any]) -> list[str]:
    known = flatten(derived)
    found = []
    for key, value in flatten(added).items():
        if key in known:
            if value != known[key]:
                found.append(f"{key}={value} is {known[key]} here{_by(key)}")
        elif _within(key, _DECIDED_BY) and value is not False:
            found.append(f"{key}={value}{_by(key)}")
        elif reason := _within(key, _NOT_HERE):
            found.append(f"{key}: {_NOT_HERE[reason]}")
        elif key in _FIXED and value:
            found.append(f"{key}={value}: it decides {_FIXED[key]}")
    return found


def _by(key: str) -> str:
    owner = _within(key, _DECIDED_BY)
    return f" ({_DECIDED_BY[owner]} decides)" if owner else ""


def _within(key: str, table: dict[str, str]) -> str | None:
    """The entry of a table that is a dotted key or a group around it."""
    return next((entry for entry in table if key == entry or key.startswith(entry + ".")), None)


def _merged(derived: dict[str, Any], added: dict[str, Any]) -> dict[str, Any]:
    both = dict(derived)
    for key, value in added.items():
        mine = both.get(key)
        both[key] = _merged(mine, value) if isinstance(mine, dict) and isinstance(value, dict) else value
    return both
