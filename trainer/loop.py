"""The training loop. What a step is can be read here; how each part works is behind its name."""

from __future__ import annotations

import time

import torch

from trainer import events, nonfinite
from trainer.cadence import due
from trainer.losses import correct_counts
from trainer.probe import probe
from trainer.run import Run
from trainer.seeding import seed_step


def train(run: Run) -> events.Result:
    """Train from where the run stands to its end, or to an agreed stop.

    Raises:
        DataError: an image could not be read; names file, sample and rank.
        NonFiniteError: loss or gradient is not finite, and `train.nonfinite` has no answer to it.
    """
    started = time.monotonic() - run.state.seconds
    stop = False
    if run.state.evaluation_due:
        # An earlier life was stopped within an evaluation, of the network as its last step had it.
        run.follow_schedules(run.state.step - 1)
        stop = between_steps(run)
    while not stop and run.state.step < run.plan.end_step:
        indicators = train_step(run)
        run.state.step += 1
        run.state.seconds = time.monotonic() - started
        step = run.state.step
        last = step == run.plan.end_step
        run.recorder.tick(step)
        run.pulse.step_done(step)
        if run.ema is not None:
            run.ema.update(run.model, step)
        if due(step, run.plan.log_every) or last:
            events.log_training(run)
        if indicators:
            events.log_indicators(run, indicators)
        run.state.evaluation_due = due(step, run.plan.eval_every) or last
        stop = between_steps(run)
    return events.stopped(run) if stop else events.finished(run)


def between_steps(run: Run) -> bool:
    """Evaluate, agree on stopping and save, each where it is due; whether to stop."""
    step = run.state.step
    last = step == run.plan.end_step
    improved = run.state.evaluation_due and events.evaluate_and_log(run)
    finished = last and not run.state.evaluation_due
    stop = not finished and run.stopper.agreed(step)
    if improved or stop or last or due(step, run.plan.checkpoint_every):
        events.save(run, best=improved)
    return stop


def train_step(run: Run) -> dict[str, torch.Tensor]:
    """One optimizer step over one global batch; returns the indicators if they are due, on the device."""
    step, micro_batches = run.state.step, run.plan.accumulation
    run.follow_schedules(step)
    seed_step(run.config.seed, step, run.environment.rank)
    run.guard.begin()
    run.statistics.begin(step)
    for micro in range(micro_batches):
        batch = run.feed.take()
        run.follow_batch(batch.plan)
        whole = run.order.is_whole(batch.plan)
        images, labels = run.pixels(batch, whole=whole)
        with run.engine.accumulate(last=micro == micro_batches - 1):
            outputs = run.engine.forward(images, whole=whole)
            run.feed.forwarded()
            loss = run.criterion(outputs, images, labels, whole=whole)
            # Gradients are averaged over ranks; this weight makes that the mean over the global batch, even if uneven.
            run.engine.backward(loss.total * (run.environment.world_size / batch.plan.global_batch_count))
        run.meters.add(loss.total, correct_counts(loss.logits.detach(), labels), len(labels), loss.parts)
    run.statistics.end(step)
    global_loss = run.meters.agree()
    gradient_norm = run.engine.finish_gradients()
    blocked = run.guard.check(global_loss, gradient_norm, step)
    probed = probe(run, images, batch.plan) if due(step + 1, run.plan.indicators_every) else {}
    run.engine.step(lr=run.learning_rate(step), blocked=blocked)
    if due(step + 1, run.plan.read_every):
        nonfinite.answer(run, done=step + 1)
    run.state.samples_seen += batch.plan.global_batch_count
    return probed
