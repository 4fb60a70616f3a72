"""The cheap checks, before every training: a sure failure refuses the start, a doubtful one is a warning."""

from __future__ import annotations

import logging

from torch import nn

from trainer.config import Config
from trainer.distributed import collectives
from trainer.distributed.environment import Environment
from trainer.doctor.check import Context, Problem
from trainer.doctor.examine import look, verdict
from trainer.doctor.files import DISK, PLACE
from trainer.doctor.machine import LIMITS, SOFTWARE
from trainer.errors import ConfigError

log = logging.getLogger(__name__)
CHEAP = (SOFTWARE, LIMITS, PLACE, DISK)


def preflight(config: Config, environment: Environment, model: nn.Module) -> None:
    """Look at software, limits, the run's folder and its disk on all ranks; one gather, nothing written.

    Args:
        config: of the run.
        environment: this rank's place.
        model: the network, whose size says how large a checkpoint is.

    Raises:
        ConfigError: on every rank, naming the first sure problem, its ranks and its fix.
    """
    context = Context(config, environment)
    context.model = model
    everyone = collectives.gather_objects({check.name: look(check, context) for check in CHEAP})
    for check in CHEAP:
        answers = {rank: found[check.name] for rank, found in enumerate(everyone)}
        for problem in verdict(check, answers, config)[1]:
            _tell(problem, environment)


def _tell(problem: Problem, environment: Environment) -> None:
    alone = environment.world_size == 1
    where = "" if alone else f"rank {', '.join(map(str, problem.ranks))}: "
    line = f"{where}{problem.what}: {problem.fix}"
    if problem.sure:
        error = ConfigError(line)
        error.everywhere = True
        raise error
    if environment.rank == 0:
        log.warning("%s", line)
