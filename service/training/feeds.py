"""Sources of training batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from service.training.process_group import ProcessGroup


class Feed(Protocol):
    """`rows` training rows in the network's units; `some` of them, shape (n, D), initialise the fit."""

    rows: int
    some: Tensor

    def epoch(self, number: int, group: ProcessGroup) -> Iterator[Tensor]:
        """This process's part of each batch in a pass over the rows, in random order.

        All processes get the same number of batches.
        """

    def state(self) -> dict[str, Any]:
        """What the next pass depends on, besides its number."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""


class InMemory:
    """Rows in memory, shape (N, D). A smaller last batch is dropped, unless it is the only one."""

    def __init__(self, rows: Tensor, batch_size: int, generator: torch.Generator) -> None:
        self.some, self.rows = rows, len(rows)
        self.batch_size, self.generator = batch_size, generator

    def epoch(self, number: int, group: ProcessGroup) -> Iterator[Tensor]:
        order = torch.randperm(self.rows, generator=self.generator, device=self.generator.device)
        full = max(self.rows // self.batch_size, 1) * self.batch_size
        for start in range(0, min(full, self.rows), self.batch_size):
            yield self.some[group.share(order[start : start + self.batch_size])].to(group.device)

    def state(self) -> dict[str, Any]:
        return {"order": self.generator.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["order"])
