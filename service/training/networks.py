"""The networks of a training run: which fits it takes, one after the other, and how its minutes are shared among them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from service.data.inputs import InputSpec, Mixed
from service.errors import DataError
from service.training.augmentation import Augmentation, hidden_cells, random_affine
from service.training.checkpoints import Checkpoints
from service.training.course import Course, seconds_a_row, seconds_a_step
from service.training.distributed import FitTask, fit_by
from service.training.feeds import Feed
from service.training.fit import NO_CHECKPOINT, FitReport, Progress
from service.training.inputs import network_rows
from service.training.recipe import Recipe, Split, least_calibration
from service.vae.network import VAE, Architecture

MIXTURE_COMPONENTS = 10
ENOUGH_STEPS = 1_000  # in less time than for these, one network is fitted well rather than two badly
LEAST_STEPS, FIT_SHARE, NARROWEST = 2_000, 0.6, 16  # for convolutions: steps in that share of the time, and channels
ONE_PRIOR = "--minutes leaves time for one fit only: with the normal prior, without trying the mixture"


def sized(
    architecture: Architecture, recipe: Recipe, rows: Tensor, course: Course, checkpoints: Checkpoints | None = None
) -> Architecture:
    """Convolutions that are narrow enough for LEAST_STEPS optimizer steps of each fit, if the minutes are limited.

    Args:
        rows: some training rows in the network's units, shape (n, D).
    """
    if architecture.network != "conv" or recipe.hidden is not None or recipe.fit.minutes is None:
        return architecture
    weights = None if checkpoints is None else checkpoints.weights()
    if weights is not None:  # a run that is resumed goes on with the same network
        widths = (len(weights[f"encoder.steps.{2 * level}.weight"]) for level in range(len(architecture.hidden)))
        return replace(architecture, hidden=tuple(widths))
    narrowed, fits = architecture, max(recipe.folds, recipe.ensemble) + (recipe.prior == "auto")
    while max(narrowed.hidden) > NARROWEST:
        a_step = seconds_a_step(VAE(narrowed), rows, recipe.fit) / recipe.processes
        if FIT_SHARE * course.left() / fits >= LEAST_STEPS * a_step:
            break
        narrowed = replace(narrowed, hidden=tuple(max(NARROWEST, width // 2) for width in narrowed.hidden))
    if narrowed != architecture:
        channels = ",".join(map(str, narrowed.hidden))
        course.notes.append(f"--minutes leaves time for convolutions of {channels} channels only")
    return narrowed


def fitted(
    spec: InputSpec,
    splits: Sequence[Split],
    architecture: Architecture,
    recipe: Recipe,
    course: Course | None = None,
    checkpoints: Checkpoints | None = None,
    feed: Feed | None = None,
) -> tuple[list[VAE], FitReport, dict[str, float]]:
    """Networks with the better prior, the first one's fit report, and its validation bound with each prior tried.

    Each network is fitted to its own split, or all to the only one, or to a feed of rows that do not fit into memory.
    """
    course = course or Course(minutes=recipe.fit.minutes)
    fits = Fits(spec, splits, architecture, recipe, course, checkpoints, feed)
    tried: dict[str, tuple[VAE, FitReport]] = {}
    for prior in fits.priors():
        tried[prior] = fits.fitted(prior, 0)
        if tried[prior][1].stopped == "interrupted":
            break
    bounds = {prior: report.validation.bound for prior, (_, report) in tried.items()}
    best = max(bounds, key=lambda prior: bounds[prior])
    vae, report = tried[best]
    others = [fits.fitted(best, member)[0] for member in range(1, len(fits.members))]
    return [vae, *others], report, bounds


class Fits:
    """Fits networks one after the other; each gets its share of the minutes that are left."""

    def __init__(
        self,
        spec: InputSpec,
        splits: Sequence[Split],
        architecture: Architecture,
        recipe: Recipe,
        course: Course,
        checkpoints: Checkpoints | None,
        feed: Feed | None,
    ) -> None:
        self.spec, self.splits, self.architecture, self.recipe = spec, splits, architecture, recipe
        self.course, self.checkpoints, self.feed = course, checkpoints, feed
        self.members = splits if len(splits) > 1 else [*splits] * recipe.ensemble
        self.augment = augmentation_of(spec, splits[0].train, recipe)
        self.hide = hidden_cells(spec.transform.widths, recipe.hide) if isinstance(spec.transform, Mixed) else None
        self.spent = {} if checkpoints is None else checkpoints.seconds()
        self.done, self.number = 0, len(self.members)  # of fits

    def priors(self) -> tuple[str, ...]:
        """The priors to try: both if the recipe leaves it open and the minutes allow it."""
        recipe, course = self.recipe, self.course
        vae = self.new("normal", 0)
        self.expect_calibration(vae)
        if recipe.prior != "auto":
            return (recipe.prior,)
        self.number += 1
        minutes = course.fit_minutes(self.number)
        if minutes is not None and "mixture-0" not in self.spent:
            some = self.feed.some if self.feed is not None else self.network_rows(self.members[0].train[:1000])
            a_step = seconds_a_step(vae, some, recipe.fit) / recipe.processes
            if 60.0 * minutes + sum(self.spent.values()) / self.number < ENOUGH_STEPS * a_step:
                self.number -= 1
                course.notes.append(ONE_PRIOR)
                return ("normal",)
        return ("normal", "mixture")

    def new(self, prior: str, member: int) -> VAE:
        """A network before its fit."""
        torch.manual_seed(self.recipe.fit.seed + member)  # the layers' initial weights have no generator of their own
        return VAE(replace(self.architecture, prior_components=MIXTURE_COMPONENTS if prior == "mixture" else 0))

    def fitted(self, prior: str, member: int) -> tuple[VAE, FitReport]:
        """A network of the prior, fitted to a member's rows."""
        name, split, recipe = f"{prior}-{member}", self.members[member], self.recipe
        rows, judged = self.network_rows(split.train), self.network_rows(split.validation)
        vae = self.new(prior, member)
        self.course.enter("fitting" if self.number == 1 else f"fitting {self.done + 1} of {self.number}")
        minutes = self.course.fit_minutes(self.number - self.done)
        if minutes is not None:
            minutes += self.spent.get(name, 0.0) / 60.0
        options = replace(recipe.fit, minutes=minutes, seed=recipe.fit.seed + member)
        kept = NO_CHECKPOINT if self.checkpoints is None else self.checkpoints.of(name)
        task = FitTask(vae, self.feed or rows, judged, options, self.augment, self.hide, kept)
        report = fit_by(recipe.processes, task, self.on_epoch, self.on_step())
        self.done += 1
        vae.eval().requires_grad_(False)
        if self.done == 1 < self.number:
            self.expect_calibration(vae)
        return vae, report

    def network_rows(self, rows: np.ndarray) -> torch.Tensor:
        return network_rows(self.spec, rows)

    # Progress

    def expect_calibration(self, vae: VAE) -> None:
        """Look how long the calibration will take, by a network that is like those to calibrate."""
        rows, pilot = sum(len(one.calibration) for one in self.splits), pilot_of(self.splits[0])
        if not rows or not self.course.is_followed:
            return
        if not self.done:
            self.course.enter("timing how long the calibration will take")
        if len(pilot):
            self.course.seconds_a_row = seconds_a_row(vae, self.spec, self.recipe.estimator, pilot)
        pace = self.course.pace(vae, least_calibration(self.recipe))
        self.course.expect(pace, len(pilot), rows, len(self.members) if len(self.splits) == 1 else 1)

    def on_epoch(self, progress: Progress) -> None:
        bound = progress.validation.bound
        self.course.detail = f"epoch {progress.epoch}, validation bound {bound:.2f} (best {progress.best:.2f})"

    def on_step(self) -> Callable[[float], None]:
        """What to do after every step of the next fit: tell how long all of the run still takes."""
        begun, later = time.monotonic(), self.number - self.done - 1

        def told(seconds_left: float) -> None:
            whole = time.monotonic() - begun + seconds_left
            self.course.move(seconds_left + later * whole + self.course.calibration)

        return told


def pilot_of(split: Split) -> np.ndarray:
    """The rows that tell the estimator when to stop: the validation rows, if there are no others."""
    return split.validation if split.pilot is None else split.pilot


def augmentation_of(spec: InputSpec, rows: np.ndarray, recipe: Recipe) -> Augmentation | None:
    """Random image distortions, if the recipe asks for them."""
    if not recipe.augment:
        return None
    if spec.kind != "image":
        raise DataError("--augment distorts images; the data are a table")
    height, width, *channels = spec.shape
    if spec.transform.kind != "binary":
        return random_affine(height, width, "keep", recipe.augment, *channels)
    # Images that were black and white to begin with may have noisy edges; grey ones get theirs from the threshold.
    came_binary = bool(((rows == rows.min()) | (rows == rows.max())).all())
    return random_affine(height, width, "draw" if came_binary else "threshold", recipe.augment)
