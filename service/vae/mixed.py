"""The likelihood of a table's row: real numbers, counts and categories, any of which may be missing.

Each column uses its own part of the decoder's output and is independent of the others given z. A missing cell (NaN)
contributes no term: what remains is exactly the likelihood of the observed cells. Columns of one family are computed
together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from service.vae.determinism import gram, product
from service.vae.likelihoods import LOG_2PI, Likelihood, sigmoid, softplus, uniform_like

MAX_LOGIT = 40.0  # e^40 and sums of its inverse stay inside float32
MAX_LOG_STD = 3.0
FAR = 1e15  # in the network's units; its square still fits into float32
FIRST = 0.25  # a count below this is 0
LINEAR = 5.0  # much larger numbers are compressed to a logarithm for the encoder
INNER = (1e-6, 1 - 1e-6)  # range of probabilities at which quantiles are taken
LOG_SCALE_INFORMATION = (math.pi**2 + 3.0) / 9.0  # Fisher information of a logistic density's log scale
KINDS = ("real", "count", "categorical")


@dataclass(frozen=True, slots=True)
class Real:
    """A real number: a normal whose mean and standard deviation depend on z; the deviation has a floor."""

    min_std: float = 0.05
    kind: Literal["real"] = "real"


@dataclass(frozen=True, slots=True)
class Count:
    """A whole number v >= 0, as x = (log(v + offset) - center) / scale.

    Its mass is that of a logistic density of x, whose location and scale depend on z, over v's interval; the interval of 0
    has no lower end.
    """

    offset: float
    center: float
    scale: float
    min_std: float = 0.05
    kind: Literal["count"] = "count"


@dataclass(frozen=True, slots=True)
class Categorical:
    """One of `cells` values, as 0, 1, ...; x = cells is any other value, of fixed probability `unseen`."""

    cells: int
    unseen: float
    kind: Literal["categorical"] = "categorical"


Column = Real | Count | Categorical


class Columns(Likelihood):
    """Independent columns of several families, given z.

    The decoder's output, shape (..., P), holds the means of the real columns, then the logs of their standard deviations,
    the locations and the log scales of the counts, and the logits of the categories, column after column.
    """

    real_at: Tensor
    count_at: Tensor
    categorical_at: Tensor
    order: Tensor
    real_floor: Tensor
    count_min_std: Tensor
    count_offset: Tensor
    count_center: Tensor
    count_scale: Tensor
    cell_counts: Tensor
    owner: Tensor
    first_cell: Tensor
    members: Tensor
    log_unseen: Tensor
    log_seen: Tensor

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__()
        self.columns = tuple(columns)
        real, count, categorical = ([at for at, c in enumerate(columns) if c.kind == kind] for kind in KINDS)
        self.reals, self.counts, self.categories = len(real), len(count), len(categorical)
        cells = [columns[at].cells for at in categorical]  # type: ignore[union-attr]  # by its kind
        self.cells = sum(cells)
        self.outputs = 2 * (self.reals + self.counts) + self.cells
        self.keep("real_at", torch.tensor(real, dtype=torch.long))
        self.keep("count_at", torch.tensor(count, dtype=torch.long))
        self.keep("categorical_at", torch.tensor(categorical, dtype=torch.long))
        self.keep("order", torch.tensor([*real, *count, *categorical], dtype=torch.long).argsort())
        self.keep("real_floor", torch.tensor([columns[at].min_std for at in real]))  # type: ignore[union-attr]
        for name in ("min_std", "offset", "center", "scale"):
            self.keep(f"count_{name}", torch.tensor([getattr(columns[at], name) for at in count]))
        self.keep("cell_counts", torch.tensor(cells, dtype=torch.long))
        owner = torch.repeat_interleave(torch.arange(len(cells)), self.cell_counts, output_size=self.cells)
        self.keep("owner", owner)  # the categorical column of each cell
        self.keep("first_cell", self.cell_counts.cumsum(0) - self.cell_counts)
        members = torch.nn.functional.one_hot(owner, len(cells)).float() if cells else torch.zeros(0, 0)
        self.keep("members", members.mT.contiguous())  # (C, K)
        unseen = torch.tensor([columns[at].unseen for at in categorical], dtype=torch.float64)  # type: ignore[union-attr]
        self.keep("log_unseen", unseen.log().float())
        self.keep("log_seen", torch.log1p(-unseen).float())

    def keep(self, name: str, tensor: Tensor) -> None:
        """Register a tensor that is derived from the columns and not stored with the weights."""
        self.register_buffer(name, tensor, persistent=False)

    # The output in parts

    def real_output(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log standard deviations before the floor is applied, shape (..., R) each."""
        return output[..., : self.reals], output[..., self.reals : 2 * self.reals].clamp(max=MAX_LOG_STD)

    def count_output(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Locations and log scales, shape (..., C) each."""
        start, middle = 2 * self.reals, 2 * self.reals + self.counts
        return output[..., start:middle], output[..., middle : middle + self.counts].clamp(max=MAX_LOG_STD)

    def logits(self, output: Tensor) -> Tensor:
        """Logits of the cells, shape (..., K)."""
        return output[..., 2 * (self.reals + self.counts) :].clamp(-MAX_LOGIT, MAX_LOGIT)

    # log p(x | z)

    def log_prob(self, output: Tensor, x: Tensor | Cells) -> Tensor:
        return torch.cat(self.log_probs(output, self.read(x)), dim=-1)[..., self.order]

    def total(self, output: Tensor, x: Tensor | Cells) -> Tensor:
        return sum(part.sum(dim=-1, dtype=torch.float64) for part in self.log_probs(output, self.read(x)))  # type: ignore[return-value]

    def log_probs(self, output: Tensor, cells: Cells) -> list[Tensor]:
        """`log_prob` by family, without families that have no columns."""
        parts = [self.real_log_prob(output, cells)] if self.reals else []
        parts += [self.count_log_prob(output, cells)] if self.counts else []
        return parts + ([self.cell_log_prob(output, cells)] if self.categories else [])

    def read(self, x: Tensor | Cells) -> Cells:
        """Split rows, shape (..., D), by family, unless that is done already."""
        if isinstance(x, Cells):
            return x
        present = ~x.isnan()
        filled = x.nan_to_num(0.0, FAR, -FAR).clamp(-FAR, FAR)
        code, there = filled[..., self.categorical_at].long(), present[..., self.categorical_at]
        is_seen = (code >= 0) & (code < self.cell_counts)
        cell = self.first_cell + torch.where(is_seen, code, 0)
        informative = (there & is_seen).to(x.dtype)
        hot = torch.zeros((*x.shape[:-1], self.cells), dtype=x.dtype, device=x.device)
        count = filled[..., self.count_at]
        logarithm = count * self.count_scale + self.count_center  # log(v + offset)
        inverse = torch.exp(-logarithm.clamp(-30.0, 30.0))  # 1 / (v + offset)
        below = torch.log1p(-(0.5 * inverse).clamp(max=0.9)) / self.count_scale
        above = torch.log1p(0.5 * inverse) / self.count_scale
        return Cells(
            real=filled[..., self.real_at],
            real_present=present[..., self.real_at].to(x.dtype),
            count=count,
            count_low=count + below,
            count_high=count + above,
            count_width=above - below,
            is_zero=(1.0 / inverse - self.count_offset).abs() < FIRST,
            count_present=present[..., self.count_at].to(x.dtype),
            cell=cell,
            informative=informative,
            constant=torch.where(is_seen, self.log_seen, self.log_unseen) * there,
            hot=hot.scatter(-1, cell, informative) if self.categories else hot,
        )

    def real_log_prob(self, output: Tensor, cells: Cells) -> Tensor:
        """Normal log densities, shape (..., R)."""
        mean, variance, _ = self.real_moments(output)
        residual = cells.real - mean
        return cells.real_present * (-0.5 * (residual * residual / variance + torch.log(variance) + LOG_2PI))

    def real_moments(self, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance, and the share of the variance above its floor, shape (..., R) each."""
        mean, log_std = self.real_output(output)
        free = torch.exp(2.0 * log_std)
        variance = free + self.real_floor.square()
        return mean, variance, free / variance

    def count_log_prob(self, output: Tensor, cells: Cells) -> Tensor:
        """Log masses of the counts' intervals, shape (..., C), without cancellation far from the location."""
        lower, upper, width, _, _ = self.count_ends(output, cells)
        inner = torch.log(-torch.expm1(-width)) - softplus(lower)
        return cells.count_present * (torch.where(cells.is_zero, 0.0, inner) - softplus(-upper))

    def count_ends(self, output: Tensor, cells: Cells) -> tuple[Tensor, ...]:
        """Ends of the counts' intervals relative to the location, and their width, in units of the scale; then the scale.

        Last comes the share of its square above the floor.
        """
        location, log_scale = self.count_output(output)
        free = torch.exp(2.0 * log_scale)
        square = free + self.count_min_std.square()
        scale = square.sqrt()
        return (
            (cells.count_low - location) / scale,
            (cells.count_high - location) / scale,
            cells.count_width / scale,
            scale,
            free / square,
        )

    def cell_log_prob(self, output: Tensor, cells: Cells) -> Tensor:
        """Log masses of the categories, shape (..., C)."""
        logits = self.logits(output)
        shape = torch.broadcast_shapes(logits.shape[:-1], cells.cell.shape[:-1])
        chosen = logits.expand(*shape, -1).gather(-1, cells.cell.expand(*shape, -1))
        return cells.informative * (chosen - self.log_normalizers(logits)) + cells.constant

    def log_normalizers(self, logits: Tensor) -> Tensor:
        """Log-sum-exp of each categorical column's logits, shape (..., C)."""
        return torch.log(product(torch.exp(logits), self.members))

    def probabilities(self, output: Tensor) -> Tensor:
        """Probabilities of the cells within their column, shape (..., K)."""
        logits = self.logits(output)
        return torch.exp(logits - self.log_normalizers(logits)[..., self.owner])

    def probabilities_of(self, output: Tensor, at: int) -> Tensor:
        """Probabilities of the cells of column `at`, a category: shape (..., cells), float64."""
        place = self.categorical_at.tolist().index(at)
        start = int(self.first_cell[place])
        logits = self.logits(output)[..., start : start + int(self.cell_counts[place])]
        return logits.double().softmax(dim=-1)

    # Its derivatives in the output

    def grad_log_prob(self, output: Tensor, x: Tensor | Cells) -> Tensor:
        cells, parts = self.read(x), []
        if self.reals:
            mean, variance, share = self.real_moments(output)
            residual = cells.real - mean
            parts.append(cells.real_present * residual / variance)
            parts.append(cells.real_present * (residual * residual / variance - 1.0) * share)
        if self.counts:
            parts += self.count_score(output, cells)
        if self.categories:
            parts.append(cells.hot - self.probabilities(output) * cells.informative[..., self.owner])
        return torch.cat(parts, dim=-1)

    def count_score(self, output: Tensor, cells: Cells) -> tuple[Tensor, Tensor]:
        """Derivatives of the counts' log masses in their locations and log scales."""
        lower, upper, width, scale, share = self.count_ends(output, cells)
        from_lower = sigmoid(lower).masked_fill(cells.is_zero, 0.0)
        from_upper = sigmoid(-upper)
        by_location = (from_lower - from_upper) / scale
        narrowing = (width / torch.expm1(width.clamp(1e-6, 80.0))).masked_fill(cells.is_zero, 0.0)
        ends = (from_lower * lower).masked_fill(cells.is_zero, 0.0) - from_upper * upper
        return cells.count_present * by_location, cells.count_present * (ends - narrowing) * share

    def fisher_gram(self, tangents: Tensor, output: Tensor, x: Tensor | Cells) -> Tensor:
        """Fisher information of the observed cells along tangents of the output, (N, L, P): shape (N, L, L).

        Counts use the information of the observed interval instead of its expectation. It is never negative either, and
        small for an interval that holds nearly all of the mass, which says little about the location.
        """
        cells, parts = self.read(x), []
        if self.reals:
            _, variance, share = self.real_moments(output)
            parts += [cells.real_present / variance, cells.real_present * 2.0 * share.square()]
        if self.counts:
            lower, upper, _, scale, share = self.count_ends(output, cells)
            bend = slope(lower).masked_fill(cells.is_zero, 0.0) + slope(upper)
            parts.append(cells.count_present * bend / scale.square())
            by_log_scale = LOG_SCALE_INFORMATION * (3.0 * bend).clamp(max=1.0) * share.square()
            parts.append(cells.count_present * by_log_scale)
        if not self.categories:
            scaled = tangents * torch.cat(parts, dim=-1).sqrt()[:, None]
            return gram(scaled, scaled)
        weight = self.probabilities(output) * cells.informative[..., self.owner]
        scaled = tangents * torch.cat([*parts, weight], dim=-1).sqrt()[:, None]
        start = 2 * (self.reals + self.counts)
        means = product(tangents[..., start:] * weight[:, None], self.members)  # (N, L, C)
        return gram(scaled, scaled) - gram(means, means)

    def excess_gram(self, tangents: Tensor, output: Tensor, x: Tensor | Cells) -> Tensor | None:
        """Observed minus Fisher information of the real columns along tangents, (N, L, P): shape (N, L, L)."""
        if not self.reals:
            return None
        cells = self.read(x)
        mean, variance, share = self.real_moments(output)
        residual = cells.real_present * (cells.real - mean)
        square = residual.square() / variance
        by_mean, by_log_std = tangents[..., : self.reals], tangents[..., self.reals : 2 * self.reals]
        mixed = gram(by_mean * (2.0 * residual * share / variance)[:, None], by_log_std)
        observed = 2.0 * square * share.square() - 2.0 * (square - 1.0) * share * (1.0 - share)
        curved = cells.real_present * (observed - 2.0 * share.square())
        return mixed + mixed.mT + gram(by_log_std * curved[:, None], by_log_std)

    # Draws, means and quantiles

    def mean(self, output: Tensor) -> Tensor:
        """The centre of each column: a real's mean, a count's median, the most likely category; shape (..., D)."""
        half = torch.full_like(output[..., : self.reals + self.counts], 0.5)
        return torch.cat([self.quantile(output, half), self.likeliest(self.logits(output))], dim=-1)[..., self.order]

    def sample(self, output: Tensor, generator: torch.Generator) -> Tensor:
        numbers = self.quantile(output, uniform_like(output[..., : self.reals + self.counts], generator))
        exponential = -uniform_like(self.logits(output), generator).clamp(1e-12).log()
        races = self.logits(output) - exponential.clamp(min=1e-30).log()
        return torch.cat([numbers, self.likeliest(races)], dim=-1)[..., self.order]

    def quantile(self, output: Tensor, u: Tensor) -> Tensor:
        """Quantiles of the numeric columns, shape (..., R + C), real columns first; a count's is a whole count."""
        real, count = self.real_output(output), self.count_output(output)
        reals = [self.real_quantile(*real, u[..., : self.reals], slice(None))]
        return torch.cat([*reals, self.count_quantile(*count, u[..., self.reals :], slice(None))], dim=-1)

    def quantile_of(self, output: Tensor, u: Tensor, at: int) -> Tensor:
        """Quantiles of column `at`, a number, at probabilities u, shape (Q,): shape (..., Q)."""
        if at in (places := self.real_at.tolist()):
            one = slice(place := places.index(at), place + 1)
            mean, log_std = self.real_output(output)
            return self.real_quantile(mean[..., one], log_std[..., one], u, one)
        one = slice(place := self.count_at.tolist().index(at), place + 1)
        location, log_scale = self.count_output(output)
        return self.count_quantile(location[..., one], log_scale[..., one], u, one)

    def real_quantile(self, mean: Tensor, log_std: Tensor, u: Tensor, chosen: slice) -> Tensor:
        """Quantiles of some real columns, from their part of the output."""
        std = (torch.exp(2.0 * log_std) + self.real_floor[chosen].square()).sqrt()
        return mean + std * torch.special.ndtri(u.clamp(*INNER))

    def count_quantile(self, location: Tensor, log_scale: Tensor, u: Tensor, chosen: slice) -> Tensor:
        """Quantiles of some counts, rounded to whole counts, from their part of the output."""
        scale = (torch.exp(2.0 * log_scale) + self.count_min_std[chosen].square()).sqrt()
        x = location + scale * torch.logit(u.clamp(*INNER))
        spread, center, offset = self.count_scale[chosen], self.count_center[chosen], self.count_offset[chosen]
        value = ((x * spread + center).clamp(-30.0, 30.0).exp() - offset).round().clamp(min=0)
        return ((value + offset).log() - center) / spread

    def likeliest(self, weights: Tensor) -> Tensor:
        """The cell of each category with the largest weight, shape (..., K) to (..., C)."""
        parts = weights.split(self.cell_counts.tolist(), dim=-1) if self.categories else ()
        cells = [part.argmax(dim=-1, keepdim=True).to(weights.dtype) for part in parts]
        return torch.cat(cells, dim=-1) if cells else weights[..., :0]

    def initial_bias(self, x: Tensor) -> Tensor:
        """The output, shape (P,), that fits each column of rows x, shape (N, D), by itself: initialises training."""
        cells = self.read(x)
        shares = (cells.hot.sum(dim=0) + 0.5) / (
            cells.informative[:, self.owner].sum(dim=0) + 0.5 * self.cell_counts[self.owner]
        )
        return torch.cat(
            [
                *location_and_log_scale(cells.real, cells.real_present, 1.0),
                *location_and_log_scale(cells.count, cells.count_present, math.sqrt(3.0) / math.pi),
                shares.log(),
            ]
        )

    # Rows as the encoder and the search starts see them

    def sizes(self, features: int) -> tuple[int, int]:
        return self.reals + self.counts + self.cells + len(self.columns), self.outputs

    def encoder_input(self, x: Tensor) -> Tensor:
        """Rows, shape (B, D), as numbers, one-hot categories, and a mask of the observed cells: (B, inputs)."""
        cells = self.read(x)
        numbers = torch.cat([cells.real * cells.real_present, cells.count * cells.count_present], dim=-1)
        tamed = LINEAR * torch.asinh(numbers / LINEAR)
        return torch.cat([tamed, cells.hot, (~x.isnan()).to(x.dtype)], dim=-1)

    def sufficient_statistics(self, x: Tensor) -> Tensor:
        """Statistics in which log p(x | z) is linear (counts approximated by normals), shape (B, T)."""
        cells = self.read(x)
        parts = []
        for value, present in ((cells.real, cells.real_present), (cells.count, cells.count_present)):
            bounded = value.clamp(-1e4, 1e4) * present
            parts += [bounded, bounded.square(), present]
        return torch.cat([*parts, cells.hot, cells.informative], dim=-1)

    def linear_in_statistics(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Exact, except for counts."""
        mean, variance, _ = self.real_moments(output)
        location, log_scale = self.count_output(output)
        spread = (torch.exp(2.0 * log_scale) + self.count_min_std.square()) * (math.pi**2 / 3.0)
        parts = []
        for middle, square in ((mean, variance), (location, spread)):
            parts += [middle / square, -0.5 / square, -0.5 * (middle.square() / square + square.log())]
        logits = self.logits(output)
        normalizers = [-self.log_normalizers(logits)] if self.categories else []
        slopes = torch.cat([*parts, logits, *normalizers], dim=-1)
        return slopes, slopes.new_zeros(len(slopes), dtype=torch.float64)


@dataclass(frozen=True, slots=True)
class Cells:
    """Rows by family: numbers with 0 for missing cells, masks of the cells present, and each category's cell.

    A count stands for the interval from `count_low` to `count_high`; that of 0 (`is_zero`) has no lower end. `cell` counts
    across all categorical columns. `informative` is 1 where a category is a known value. `constant` is the
    part of a category's log p(x | z) that does not depend on z.
    """

    real: Tensor
    real_present: Tensor
    count: Tensor
    count_low: Tensor
    count_high: Tensor
    count_width: Tensor
    is_zero: Tensor
    count_present: Tensor
    cell: Tensor
    informative: Tensor
    constant: Tensor
    hot: Tensor

    def __getitem__(self, rows: Any) -> Cells:
        """Some of the rows, as a tensor's index selects them; families without columns stay as they are."""
        return Cells(*(part[rows] if part.shape[-1] else part for part in self.parts()))

    def parts(self) -> list[Tensor]:
        return [getattr(self, entry.name) for entry in fields(self)]


def slope(x: Tensor) -> Tensor:
    """The derivative of the sigmoid."""
    value = sigmoid(x)
    return value * (1.0 - value)


def location_and_log_scale(value: Tensor, present: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """Means of the columns' observed cells, and logs of their standard deviations times a factor."""
    number = present.sum(dim=0).clamp(min=1.0)
    mean = (value * present).sum(dim=0) / number
    variance = ((value - mean).square() * present).sum(dim=0) / number
    return mean, 0.5 * (variance.clamp(min=1e-4)).log() + math.log(factor)
