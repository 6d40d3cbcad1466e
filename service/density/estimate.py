"""The driver: rows to estimates of log p(x), bitwise equal for a row whatever other rows share its batch.

    search for modes of p(z | x)  ->  fit a mixture of bent normals and the encoder's posterior
      ->  draw a few z, compute their weights  ->  accurate enough?  ->  else double the draws, and so on
      ->  not reliable?  ->  more starts  ->  more draws  ->  annealing

Matrix products round differently for a few shapes: rows go through the networks in multiples of a few (`Tiling`), padded if
they are fewer. Observers see a block once its draws are complete, so that everything else about a row rests on the same
draws as its score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from service.density.block import Block, Draws, Estimates
from service.density.estimator import Estimator
from service.density.starts import starts_of
from service.density.tiling import Tiling, Workers, one_thread
from service.system.cancellation import CheckCancelled, never_cancelled
from service.vae.network import VAE

# Rows with missing cells are compared with rows that have the same cells hidden and are estimated alike: an error that is
# small beside the spread of their scores changes no rank that matters.
MISSING_TOLERANCE, MISSING_SAMPLES = 0.3, 512  # nats; most draws before a wide search


@dataclass(frozen=True)
class Member:
    """A network, and its search starts: latents, shape (K, L), from which to search for a row's modes."""

    vae: VAE
    starts: np.ndarray = field(repr=False)


def uncounted(rows: int) -> None:
    """The default `on_rows`: does nothing."""


@dataclass(frozen=True, slots=True)
class Execution:
    """How a call runs.

    On a CPU, the threads of `pool` share the blocks of rows. `check_cancelled` is called every few milliseconds of work; an
    exception that it raises ends the call. `on_rows` is called with the number of rows of every block that is done, on the
    caller's thread.
    """

    pool: Workers | None = None
    check_cancelled: CheckCancelled = never_cancelled
    on_rows: Callable[[int], None] = uncounted


DIRECT = Execution()


class Observer(Protocol):
    """Computes something for each row of a block whose draws are complete."""

    @property
    def kept_draws(self) -> int:
        """How many of a row's draws it needs."""

    def __call__(self, block: Block, chosen: np.ndarray) -> Sequence[Any]:
        """One result for each row of the block; `chosen` are the rows' indices among all estimated rows."""


@dataclass(frozen=True, slots=True)
class Part:
    """Rows that go through the networks together, by their indices, and the rules by which they stop."""

    estimator: Estimator
    band_ends: tuple[float, ...]
    chosen: np.ndarray


def estimate(
    estimator: Estimator,
    member: Member,
    x: np.ndarray,
    band_ends: tuple[float, ...] = (),
    log_abs_det: np.ndarray | None = None,
    incomplete: np.ndarray | None = None,
    execution: Execution = DIRECT,
) -> Estimates:
    """Estimate log p(x) for rows in the network's units, shape (B, D); for rows with NaN, log p of the observed cells.

    Args:
        band_ends: ends of the band that judges the rows, nats; for an estimator that has `ends`. Incomplete rows are judged
            by bands of their own: they stop once their standard error is at most MISSING_TOLERANCE.
        log_abs_det: log-determinant of the Jacobian that converts log p(x) to the data's units, shape (B,), nats.
        incomplete: which rows have missing cells, shape (B,), for inputs in which NaN can also mean something else; by
            default the rows with any NaN.
    """
    return observe(estimator, member, x, (), band_ends, log_abs_det, incomplete, execution)[0]


def observe(
    estimator: Estimator,
    member: Member,
    x: np.ndarray,
    observers: Sequence[Observer],
    band_ends: tuple[float, ...] = (),
    log_abs_det: np.ndarray | None = None,
    incomplete: np.ndarray | None = None,
    execution: Execution = DIRECT,
) -> tuple[Estimates, list[list[Any]]]:
    """The estimates of `estimate`, bitwise equal, and each observer's result for each row, in order."""
    vae, starts = member.vae, starts_of(member.vae, member.starts)
    missing = np.isnan(x)
    if missing.any():
        x = np.where(missing, np.float32(np.nan), x)  # NaNs have many bit patterns, and a row's seed hashes its bits
    incomplete = missing.any(axis=1) if incomplete is None else incomplete
    kept_draws = max((one.kept_draws for one in observers), default=0)

    def seen(part: Part) -> tuple[Estimates, list[Sequence[Any]]]:
        with one_thread(), torch.inference_mode(False), torch.no_grad():
            block = Block(
                part.estimator,
                vae,
                starts,
                x[part.chosen],
                part.band_ends,
                check_cancelled=execution.check_cancelled,
                log_abs_det=None if log_abs_det is None else log_abs_det[part.chosen],
                kept_draws=kept_draws,
            )
            block.sample(part.estimator.first_samples)
            return block.estimates, [one(block, part.chosen) for one in observers]

    pool = execution.pool if vae.device.type == "cpu" else None
    length = Tiling.of(vae).block_rows(len(x), 1 if pool is None else pool.threads)
    parts, run = parts_of(estimator, band_ends, incomplete, length), map if pool is None else pool.map
    found = []
    for part, answer in zip(parts, run(seen, parts), strict=True):
        found.append(answer)
        execution.on_rows(len(part.chosen))
    if not found:
        return Estimates.unknown(0, np.zeros(0)), [[] for _ in observers]
    order = np.argsort(np.concatenate([part.chosen for part in parts]), kind="stable")
    estimates = Estimates.concatenated([one for one, _ in found]).select(order)
    together = [[one for _, by_observer in found for one in by_observer[at]] for at in range(len(observers))]
    return estimates, [[one[place] for place in order] for one in together]


def parts_of(estimator: Estimator, band_ends: tuple[float, ...], incomplete: np.ndarray, length: int) -> list[Part]:
    """Blocks of at most `length` rows: complete rows first, then incomplete ones, which do not stop at band ends."""
    rough = estimator.endless(MISSING_TOLERANCE, MISSING_SAMPLES)
    kinds = (estimator, band_ends, np.flatnonzero(~incomplete)), (rough, (), np.flatnonzero(incomplete))
    return [
        Part(rules, ends, part)
        for rules, ends, chosen in kinds
        for part in np.split(chosen, range(length, len(chosen), length))
        if len(part)
    ]


def weighted_draws(estimator: Estimator, member: Member, x: np.ndarray, num_samples: int) -> Iterator[Draws]:
    """`num_samples` weighted draws for each of the rows x, shape (B, D), in order, a few rows at a time."""
    length, starts = Tiling.of(member.vae).rows, starts_of(member.vae, member.starts)
    for first in range(0, len(x), length):
        with one_thread(), torch.inference_mode(False), torch.no_grad():
            block = Block(estimator, member.vae, starts, x[first : first + length])
            tiles = list(block.drawn(np.arange(len(block)), 0, num_samples))
        yield from (Draws(z, log_weights) for _, z, log_weights in tiles)
