"""ZeRO 1 as the trainer sees it: every rank updates one equal part of each parameter group.

A group's parameters lie one after the other in one flat tensor, zeros at its end so that the ranks' parts have one
size. The basic optimizer has one parameter per group, this rank's part, and keeps state for that alone. States are
saved as an optimizer over whole parameters would save them, so that they fit any engine and any number of ranks.
"""

from __future__ import annotations

from typing import Any

import torch

from trainer.distributed import collectives
from trainer.distributed.update import load_optimizer

ELEMENTWISE = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.RMSprop,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adamax,
    torch.optim.Adadelta,
)
"""Optimizers that treat each number by itself, so that a flat part of many parameters is updated as they would be."""


class Partitions:
    """The parts of an optimizer that DeepSpeed's ZeRO 1 has split.

    Args:
        zero: DeepSpeed's wrapper of the optimizer; must lay parameters out in their order.
        optimizer: the optimizer inside.
        groups: the whole parameters of each of its groups, as they were before the split.
        strides: of every whole parameter then, in the same order.
    """

    def __init__(
        self,
        zero: Any,
        optimizer: torch.optim.Optimizer,
        groups: list[list[torch.nn.Parameter]],
        strides: list[list[tuple[int, ...]]],
    ) -> None:
        self._zero = zero
        self._optimizer = optimizer
        self._groups = groups
        self._strides = strides

    @property
    def parts(self) -> list[torch.nn.Parameter]:
        """This rank's part of every group, (N / W,)."""
        return [group["params"][0] for group in self._optimizer.param_groups]

    def take_gradients(self) -> None:
        """Put the averaged gradient of every part into its `grad`, where scaler and clipping can change it."""
        for index, part in enumerate(self.parts):
            part.grad = torch.cat([piece.reshape(-1) for piece in self._zero.averaged_gradients[index]])
            self._zero.averaged_gradients[index] = [part.grad]

    def norm(self) -> torch.Tensor:
        """The norm of the whole gradient (0-d), from that of the parts; a collective."""
        gradients = [part.grad for part in self.parts if part.grad is not None]
        return collectives.all_reduce_(torch.nn.utils.get_total_norm(gradients).square()).sqrt()

    def gather_gradients(self) -> None:
        """Give every whole parameter its gradient; a collective."""
        for part, members in zip(self.parts, self._groups, strict=True):
            assert part.grad is not None, "gradients are taken first"
            whole = collectives.gather_parts(part.grad)
            for parameter, piece in zip(members, self._cut(whole, members), strict=True):
                parameter.grad = piece

    def discard_gradients(self) -> None:
        """Forget the gradients of a step that does not happen."""
        for index, part in enumerate(self.parts):
            part.grad = None
            self._zero.averaged_gradients[index] = None
        self._zero.zero_grad()

    def refresh(self) -> None:
        """Take over weights that were loaded into the model."""
        self._zero.refresh_fp32_params()

    def state_dict(self) -> dict[str, Any]:
        """The state of an optimizer over whole parameters, on every rank; a collective."""
        saved = self._optimizer.state_dict()
        state: dict[int, dict[str, Any]] = {}
        first = 0
        for index, members in enumerate(self._groups):
            numbers = list(range(first, first + len(members)))
            first += len(members)
            saved["param_groups"][index]["params"] = numbers
            if index in saved["state"]:
                size = self.parts[index].numel()
                state |= self._whole(saved["state"][index], size, numbers, index)
        return {**saved, "state": state}

    def _whole(self, part: dict[str, Any], size: int, numbers: list[int], index: int) -> dict[int, dict[str, Any]]:
        members, strides = self._groups[index], self._strides[index]
        whole: dict[int, dict[str, Any]] = {number: {} for number in numbers}
        for key, value in part.items():
            if not _is_part(value, size):
                for number in numbers:
                    whole[number][key] = value.clone() if isinstance(value, torch.Tensor) else value
                continue
            pieces = self._cut(collectives.gather_parts(value), members)
            for number, piece, stride in zip(numbers, pieces, strides, strict=True):
                # torch's fused kernels take a state to lie in memory as its parameter does.
                laid = torch.empty_strided(piece.shape, stride, dtype=piece.dtype, device=piece.device)
                whole[number][key] = laid.copy_(piece)
        return whole

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take this rank's part of the state of an optimizer over whole parameters."""
        own = self._optimizer.state_dict()
        state = {}
        groups = []
        first = 0
        for index, members in enumerate(self._groups):
            states = [saved["state"].get(first + offset) for offset in range(len(members))]
            first += len(members)
            groups.append({**saved["param_groups"][index], "params": own["param_groups"][index]["params"]})
            if all(states):
                state[index] = {key: self._part(states, key, members, index) for key in states[0]}
        load_optimizer(self._optimizer, {**saved, "state": state, "param_groups": groups})

    def _part(self, states: list[dict[str, Any]], key: str, members: list[torch.nn.Parameter], index: int) -> Any:
        value = states[0][key]
        if not isinstance(value, torch.Tensor) or value.shape != members[0].shape:
            return value
        pieces = [state[key].reshape(-1) for state in states]
        part = self.parts[index]
        size = part.numel()
        missing = size * collectives.world_size() - sum(len(piece) for piece in pieces)
        flat = torch.cat([*pieces, pieces[0].new_zeros(missing)])
        return flat[size * collectives.rank() :][:size].clone()

    @staticmethod
    def _cut(flat: torch.Tensor, members: list[torch.nn.Parameter]) -> list[torch.Tensor]:
        pieces = flat[: sum(p.numel() for p in members)].split([p.numel() for p in members])
        return [piece.view(parameter.shape) for piece, parameter in zip(pieces, members, strict=True)]


def _is_part(value: Any, size: int) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim == 1 and value.numel() == size
