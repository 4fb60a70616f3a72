"""The indicators of one step, equal on every number of ranks, without a trace in the training."""

from __future__ import annotations

import torch

from reste import activation_errors, activation_sums, collect_indicators
from trainer.data.order import Plan, part
from trainer.distributed import collectives
from trainer.run import Run

PROBE_IMAGES = 32
"""Most images that the activations' error is taken over, of all ranks together."""


def probe(run: Run, images: torch.Tensor, plan: Plan) -> dict[str, torch.Tensor]:
    """All indicators (`reste.indicators`, `reste.signs`) by name, 0-d and on the device; a collective.

    Weights and gradients are those between backward pass and update, the gradients averaged over the ranks and
    clipped if they are clipped. Activations come from a forward pass of their own, uncompiled and in eval mode, over
    a few images of the step's last micro-batch: so that no statistic moves, nothing random is drawn, and the compiled
    network is not touched.

    Args:
        run: just before its update.
        images: this rank's last micro-batch, (B, 3, S, S); B may be 0.
        plan: the plan of that micro-batch.
    """
    o_end = run.config.estimator.o_end
    chosen = images[probed_images(plan.global_count, run.environment.rank, run.environment.world_size)]

    def forward() -> None:
        if len(chosen):
            with torch.autocast(run.device.type, dtype=run.autocast, enabled=run.autocast is not None):
                run.model(chosen)

    run.engine.gather_gradients()
    indicators = collect_indicators(run.model, o_end) | run.signs.look(run.model)
    sums = activation_sums(run.model, forward, o_end)
    if sums:
        joint = collectives.all_reduce_(torch.stack(list(sums.values())))
        sums = dict(zip(sums, joint, strict=True))
    return indicators | activation_errors(sums)


def probed_images(micro_batch: int, rank: int, world: int) -> slice:
    """Which images of a rank's share are probed: every k-th of the whole micro-batch, whatever the number of ranks.

    Args:
        micro_batch: images over all ranks.
        rank, world: this process and how many there are.
    """
    stride = max(-(-micro_batch // PROBE_IMAGES), 1)
    start, _ = part(0, micro_batch, rank, world)
    return slice(-start % stride, None, stride)
