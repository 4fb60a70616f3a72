"""What a check is: facts gathered on every rank, judged in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from trainer.config import Config
from trainer.data import datasets
from trainer.distributed.board import Board, lone_board
from trainer.distributed.environment import Environment
from trainer.errors import ConfigError
from trainer.hardware import choose_device
from trainer.network import create_network

Facts = dict[str, Any]
"""What a rank found, as JSON types."""
ByRank = Mapping[int, Facts]


@dataclass(frozen=True)
class Problem:
    """Something that does not hold.

    Attributes:
        ranks: where.
        what: what is wrong, one line.
        fix: what to do about it, one line.
        sure: it surely ends a run or spoils its numbers; otherwise it may.
        exit_code: 2, or 3 if it is about the data.
    """

    ranks: list[int]
    what: str
    fix: str
    sure: bool = True
    exit_code: int = ConfigError.exit_code


@dataclass
class Context:
    """What the checks of one rank may ask about. Expensive things are made when first asked for."""

    config: Config
    environment: Environment
    board: Board = field(default_factory=lone_board)

    @property
    def rank(self) -> int:
        """This rank's number."""
        return self.environment.rank

    @cached_property
    def device(self) -> torch.device:
        """This rank's device."""
        return choose_device(self.environment)

    @cached_property
    def data(self) -> datasets.Datasets:
        """The indices of both splits."""
        return datasets.open_datasets(self.config)

    @cached_property
    def model(self) -> nn.Module:
        """The network, on the CPU."""
        return create_network(self.config, self.data.classes, torch.device("cpu"))


@dataclass(frozen=True)
class Check:
    """One question.

    Attributes:
        name: as the table shows it.
        look: gathers this rank's facts; a `UserError` is a finding, any other exception too.
        judge: compares the facts of all ranks that found some: the result in a few words, and problems.
        stuck: what to look at if `look` does not end or fails unexpectedly.
        limit_s: seconds after which `look` is given up.
        together: all ranks must take part at once.
        needs: names of checks without which this one says nothing.
    """

    name: str
    look: Callable[[Context], Facts]
    judge: Callable[[ByRank, Config], tuple[str, list[Problem]]]
    stuck: str
    limit_s: float = 20.0
    together: bool = False
    needs: tuple[str, ...] = ()


def unlike_the_first(facts: ByRank, key: str) -> list[int]:
    """The ranks whose fact differs from that of the lowest one."""
    reference = facts[min(facts)].get(key)
    return [rank for rank in sorted(facts) if facts[rank].get(key) != reference]
