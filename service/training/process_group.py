"""Processes that fit one network together: each has its share of every batch, and all take the same steps.

Gradients are averaged by torch's DistributedDataParallel (Li et al., 2020). Whatever else a step depends on, such as
the time left, comes from the first process: otherwise the processes' weights would diverge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """Process `rank` of `size`, on its device. A single process has nothing to agree on."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    def share(self, rows: Tensor) -> Tensor:
        """This process's part of a batch, in equal parts: shape (B / size, D)."""
        part = len(rows) // self.size
        return rows[self.rank * part : (self.rank + 1) * part]

    def together(self, loss: nn.Module) -> nn.Module:
        """A loss whose gradients are averaged over all processes."""
        if self.size == 1:
            return loss
        devices = None if self.device.type == "cpu" else [self.device]
        return DistributedDataParallel(loss, device_ids=devices)

    def mean(self, value: float) -> float:
        """The mean of a number over all processes."""
        if self.size == 1:
            return value
        total = torch.tensor([value], dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return total.item() / self.size

    def first(self, numbers: Callable[[], Sequence[float]]) -> list[float]:
        """The numbers that the first process has."""
        told = torch.tensor(numbers(), dtype=torch.float64, device=self.device)
        if self.size > 1:
            distributed.broadcast(told, 0)
        found: list[float] = told.tolist()
        return found

    def each(self, value: T) -> list[T]:
        """Every process's value, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values


ALONE = ProcessGroup()
