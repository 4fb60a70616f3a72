"""What happens between two steps: log, evaluate, save, finish."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import partial

import torch

from reste import steer_power
from trainer import checkpoint, nonfinite
from trainer.distributed import collectives
from trainer.distributed.batchnorm import average_statistics
from trainer.errors import EXIT_FINISHED, EXIT_STOPPED
from trainer.evaluation import evaluate
from trainer.hardware import peak_memory_mib
from trainer.run import Run
from trainer.stopping import EvaluationCut


@dataclass(frozen=True)
class Result:
    """How a run ended; `result.json`.

    Attributes:
        exit_code: 0 finished, 85 stopped on request with a checkpoint saved.
        final, best: `val/` metrics (top-1 and top-5 in percent) of the last and of the best evaluation.
        best_step: step of the best evaluation.
        samples: training samples seen by all ranks.
        steps: optimizer steps.
        steps_per_epoch: optimizer steps of one epoch.
        seconds: training time over all attempts.
        images_per_s: samples / seconds.
    """

    exit_code: int
    final: dict[str, float]
    best: dict[str, float]
    best_step: int | None
    samples: int
    steps: int
    steps_per_epoch: int
    seconds: float
    images_per_s: float


def log_training(run: Run) -> None:
    """Write the window since the last entry to the journal and show it."""
    reading = run.meters.read()
    step = run.state.step
    metrics = {
        "train/loss": reading.loss,
        "train/top1": reading.top1,
        "train/top5": reading.top5,
        **{f"train/{name}": mean for name, mean in reading.parts.items()},
        "optim/lr": run.learning_rate(step - 1),
    }
    if run.power_layers:
        metrics["estimator/power"] = run.power_at(step - 1)
    if run.config.data.image_size_schedule:
        metrics["data/image_size"] = run.order.image_sizes.at((step - 1) // run.plan.steps_per_epoch)
    pace = run.feed.read()
    metrics["perf/peak_memory_mib"] = peak_memory_mib(run.device)
    told = run.saver.metrics() | run.stragglers.observe(pace) | run.quarantine.share(step)
    run.recorder.metrics(step, metrics | pace.metrics() | told)
    report_saves(run)


def log_indicators(run: Run, indicators: dict[str, torch.Tensor]) -> None:
    """Write the indicators of the step just made, in one host read, and steer the power by them if it is steered."""
    values = torch.stack([value.double() for value in indicators.values()]).tolist()
    metrics = {f"indicator/{name}": value for name, value in zip(indicators, values, strict=True)}
    run.recorder.metrics(run.state.step, metrics)
    asked, measured = run.config.estimator, metrics.get("indicator/gradient_instability")
    if asked.hold_instability is not None and measured is not None:
        now = run.power_at(run.state.step)
        run.state.steered_power = steer_power(now, measured, asked.hold_instability, asked.o_end)


def evaluate_and_log(run: Run) -> bool:
    """Evaluate on the whole validation split; whether top-1 is the best so far.

    A request to stop cuts it short: it stays due then, and the next life makes it again from its beginning.
    """
    samples = len(run.eval_order.index)
    batches = run.stopper.until_asked(run.eval_loader.load(run.eval_order.plans()))
    with run.feed.paused():
        average_statistics(run.evaluated_model)
        try:
            evaluation = evaluate(
                run.evaluated_model,
                run.recorder.evaluating(batches, samples),
                run.pixels,
                samples=samples,
                autocast=run.autocast,
            )
        except EvaluationCut:
            return False
    run.state.evaluation_due = False
    metrics = evaluation.metrics()
    run.recorder.metrics(run.state.step, metrics)
    run.state.last = metrics
    if evaluation.top1 <= run.state.best.get("val/top1", -math.inf):
        return False
    run.state.best, run.state.best_step = metrics, run.state.step
    return True


def save(run: Run, *, best: bool) -> None:
    """Have rank 0 save a checkpoint, unless it is not finite; training goes on while it is written.

    Raises:
        ConfigError: on rank 0, an earlier save failed, for another reason than a full disk.
        NonFiniteError: a bad step that the host has not yet heard of.
    """
    nonfinite.answer(run, done=run.state.step)
    run.quarantine.share(run.state.step)
    run.pulse.beat("saving")
    with run.feed.paused(), run.saver.stalling():
        models = [run.model] if run.ema is None else [run.model, run.ema.module]
        for model in models:
            average_statistics(model)
        nonfinite.refuse_bad_state(run)
        engine_state = run.engine.state()
        if collectives.is_main():
            _save(run, engine_state, best=best)
    report_saves(run)


def _save(run: Run, engine_state: dict[str, object], *, best: bool) -> None:
    payloads: dict[str, object] = {"model": run.model.state_dict(), "engine": engine_state}
    if run.ema is not None:
        payloads["ema"] = run.ema.module.state_dict()
    if signs := run.signs.state():
        payloads["signs"] = signs
    offset = run.recorder.offset()
    run.saver.save(
        payloads,
        progress=checkpoint.Progress(**asdict(run.state), journal_offset=offset, meters=run.meters.state()),
        config_yaml=run.config.to_yaml(),
        about=run.about,
        best=best,
        # Else a power cut could leave a checkpoint of which the journal knows nothing.
        first=partial(run.recorder.wait, offset),
    )


def report_saves(run: Run) -> None:
    """Say in status.json what has become of the saves; every log step asks.

    Raises:
        ConfigError: on rank 0, a save failed, for another reason than a full disk.
    """
    news = run.saver.news()
    if news is not None:
        run.recorder.saved(news.saved, news.trouble)


def _see_saved(run: Run) -> None:
    """Wait, on all ranks, until the last save is on the disk.

    Raises:
        ConfigError: on every rank: it cannot be.
    """
    run.pulse.beat("waiting for the last save")
    with collectives.agreed_errors():
        run.saver.finish()
    report_saves(run)


def result(run: Run, exit_code: int) -> Result:
    """What there is to say about the run now."""
    state = run.state
    return Result(
        exit_code=exit_code,
        final={name.removeprefix("val/"): value for name, value in state.last.items()},
        best={name.removeprefix("val/"): value for name, value in state.best.items()},
        best_step=state.best_step,
        samples=state.samples_seen,
        steps=state.step,
        steps_per_epoch=run.plan.steps_per_epoch,
        seconds=state.seconds,
        images_per_s=state.samples_seen / state.seconds if state.seconds else 0.0,
    )


def stopped(run: Run) -> Result:
    """Leave together, with a checkpoint saved: a rank that exits first would take its peers down while they save.

    Raises:
        ConfigError: on every rank: it could not be saved.
    """
    _see_saved(run)
    ended = result(run, EXIT_STOPPED)
    reason = f"stopped on request ({run.stopper.reason or 'of another rank'}); start again to go on"
    run.pulse.beat("closing the run")
    run.recorder.close("stopped", exit_code=EXIT_STOPPED, reason=reason)
    collectives.barrier()
    return ended


def finished(run: Run) -> Result:
    """Write `result.json` and close the run.

    Raises:
        ConfigError: on every rank: the last checkpoint could not be saved.
    """
    _see_saved(run)
    ended = result(run, EXIT_FINISHED)
    run.pulse.beat("closing the run")
    run.recorder.close("finished", exit_code=EXIT_FINISHED, result=asdict(ended))
    collectives.barrier()
    return ended
