"""What a run does about a step whose loss or gradient is not finite (`train.nonfinite`).

    abort      stop with exit code 4; no weight has moved since the step before
    skip N     leave the step out, weights, optimizer and batch statistics being as before it; more than N are too many
    rollback   go back to the last checkpoint, and leave out every step since then, up to and with the bad one

Whichever it is, `nonfinite/step_N.json` in the run's folder says which images it was, and how to see it happen again.
"""

from __future__ import annotations

import logging
import math
import os
import shlex
import shutil
from pathlib import Path

import torch

from trainer import checkpoint
from trainer.config import Config
from trainer.distributed import collectives
from trainer.errors import NonFiniteError
from trainer.finite import BadStep
from trainer.resume import load_tensors
from trainer.run import Run
from trainer.tracking.files import write_json

log = logging.getLogger(__name__)
SAME_CHECKPOINT = 3
"""How often a run may return to one checkpoint."""
ADVICE = "lower optim.lr, lengthen optim.warmup or set train.clip_norm"


def most_skipped(policy: str) -> int:
    """The N of `skip N`, 0 for the other policies."""
    return int(policy.removeprefix("skip ")) if policy.startswith("skip ") else 0


def answer(run: Run, done: int) -> None:
    """Ask the guard, and deal with what it found as the configuration says; on every rank alike.

    Args:
        run: its weights have not moved since a bad step.
        done: steps that count as completed once this returns.

    Raises:
        NonFiniteError: the policy is to abort, or has reached its end.
    """
    found = run.guard.take()
    if not found:
        return
    policy = run.config.train.nonfinite
    for bad in found:
        log_bad_step(run, bad, policy)
    if policy == "rollback":
        roll_back(run, found[0].number, done)
    elif policy == "abort":
        raise too_bad(
            f"{found[0].what} is not finite at step {found[0].number}; no weight has moved since the step before",
            f"start a new run.name and {ADVICE}, from the last good weights by model.init=RUN/checkpoints/step_N",
        )
    else:
        run.state.skipped += len(found)
        if run.state.skipped > most_skipped(policy):
            raise too_bad(f"{run.state.skipped} steps were not finite, the last at {found[-1].number}", ADVICE)


def log_bad_step(run: Run, bad: BadStep, policy: str) -> None:
    """Tell of a bad step: a warning, an event in the journal, a file that says how to reproduce it."""
    if not collectives.is_main():
        return
    name = f"nonfinite/step_{bad.number:08d}.json"
    log.warning("%s is not finite at step %d (%s): see %s", bad.what, bad.number, policy, run.directory / name)
    run.recorder.event("nonfinite", bad.number, policy=policy, loss=bad.loss, gradient_norm=bad.gradient_norm)
    (run.directory / "nonfinite").mkdir(exist_ok=True)
    write_json(run.directory / name, report(run, bad))


def report(run: Run, bad: BadStep) -> dict[str, object]:
    """What there is to know of a bad step. Everything random in it follows from seed, step and sample ids."""
    ids = run.order.batch_ids(bad.step)
    before = _checkpoint_before(run, bad)
    return {
        "step": bad.number,
        "epoch": bad.step // run.plan.steps_per_epoch + 1,
        "loss": bad.loss,
        "gradient_norm": bad.gradient_norm,
        "seed": run.config.seed,
        "learning_rate": run.learning_rate(bad.step),
        "power": run.power_at(bad.step),
        "world_size": run.environment.world_size,
        "samples": ids.tolist(),
        "files": [run.order.index.paths[int(sample)] for sample in ids],
        "reproduce": reproduce(run.config, bad, "never" if before is None else str(before)),
    }


def _checkpoint_before(run: Run, bad: BadStep) -> Path | None:
    """The last checkpoint before a bad step; where training goes on, a copy of it that is not pruned."""
    before = run.saver.newest()
    if before is None or run.config.train.nonfinite == "abort":
        return before
    kept = run.directory / "nonfinite" / before.name
    if not kept.is_dir():
        shutil.copytree(before, kept, copy_function=_link_or_copy)
    return kept


def _link_or_copy(source: str, target: str) -> None:
    """A second name for a file, which takes no room; a copy on a file system that has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def reproduce(config: Config, bad: BadStep, resume: str) -> str:
    """The command that trains from the checkpoint before a bad step up to it, and stops there."""
    overrides = [
        f"run.name={config.run.name}-step-{bad.number}",
        f"resume={resume}",
        f"train.max_steps={bad.number}",
        "train.nonfinite=abort",
        "tracking.enabled=false",
    ]
    return shlex.join(["reste", "train", str(config.run_dir / "config.yaml"), *overrides])


def refuse_bad_state(run: Run) -> None:
    """Make sure that what is about to be saved is finite, on every rank.

    A network without shortcuts hides a NaN from the loss, because its signs are finite; batch statistics keep it.

    Raises:
        NonFiniteError: some weight or statistic is not finite, and there is no going back.
    """
    floats = [tensor for tensor in run.model.state_dict().values() if tensor.is_floating_point()]
    if not collectives.agree_any(not all(torch.stack(torch._foreach_norm(floats, math.inf)).isfinite().tolist())):
        return
    done = run.state.step
    if run.config.train.nonfinite != "rollback":
        raise too_bad(f"weights or batch statistics are not finite after step {done}; they are not saved", ADVICE)
    roll_back(run, done, done)


def roll_back(run: Run, bad: int, done: int) -> None:
    """Put the last checkpoint's tensors in place; the step count and the stream of data stay where they are.

    Args:
        run: what is in its model and optimizer is given up.
        bad: number of the step that is not finite.
        done: steps that count as completed; all after the checkpoint's are left out.

    Raises:
        NonFiniteError: there is no checkpoint, or this one has been returned to too often.
    """
    path = None
    with collectives.agreed_errors():
        if collectives.is_main():
            path = run.saver.newest()
    path = collectives.broadcast_object(path)
    if path is None:
        raise too_bad(f"step {bad} is not finite, and there is no checkpoint to go back to", ADVICE)
    step = checkpoint.step_of(path)
    run.state.returned[str(step)] = run.state.returned.get(str(step), 0) + 1
    if run.state.returned[str(step)] > SAME_CHECKPOINT:
        raise too_bad(f"{path} has been returned to {SAME_CHECKPOINT} times, and step {bad} is bad again", ADVICE)
    load_tensors(path, run.model, run.ema, run.engine, run.signs)
    run.guard.forget()
    run.recorder.event("rolled_back", done, checkpoint=step, left_out=[step + 1, done])
    log.warning("back to the weights of step %d; steps %d to %d are left out", step, step + 1, done)


def too_bad(what: str, fix: str) -> NonFiniteError:
    """The error that ends the run, alike on all ranks."""
    error = NonFiniteError(f"{what}: {fix}")
    error.everywhere = True
    return error
