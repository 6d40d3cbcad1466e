"""Where a fit gets its batches from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from service.training.process_group import ProcessGroup


class Feed(Protocol):
    """Rows to fit to, in the network's units: `rows` of them, of which `some`, shape (n, D), say where a fit starts."""

    rows: int
    some: Tensor

    def epoch(self, number: int, group: ProcessGroup) -> Iterator[Tensor]:
        """This process's part of each batch of a pass over the rows, in random order; all have as many batches."""

    def state(self) -> dict[str, Any]:
        """What the next pass depends on, beside its number."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from there."""


class InMemory:
    """Rows that are all in memory, shape (N, D). A last smaller batch is there only where there is no other."""

    def __init__(self, rows: Tensor, batch_size: int, generator: torch.Generator) -> None:
        self.some, self.rows = rows, len(rows)
        self.batch_size, self.generator = batch_size, generator

    def epoch(self, number: int, group: ProcessGroup) -> Iterator[Tensor]:
        """This process's part of each batch."""
        order = torch.randperm(self.rows, generator=self.generator, device=self.generator.device)
        full = max(self.rows // self.batch_size, 1) * self.batch_size
        for start in range(0, min(full, self.rows), self.batch_size):
            yield self.some[group.share(order[start : start + self.batch_size])].to(group.device)

    def state(self) -> dict[str, Any]:
        """The generator's."""
        return {"order": self.generator.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """And back."""
        self.generator.set_state(state["order"])
