"""The course of a whole training run: its stages, the time that they still take, and when it has to end."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from service.data.inputs import InputSpec
from service.density.estimate import Execution
from service.density.estimator import TYPICAL_SAMPLES, Estimator
from service.density.tiling import Tiling, worker_pool
from service.scoring.calibration import fixed, ready
from service.scoring.pace import COSTS, LEAST_PILOT, Pace
from service.system.cpus import cpu_quota
from service.training.fit import FitOptions, Fitting
from service.training.process_group import ALONE
from service.vae.network import VAE

TELL_EVERY_S = 0.2
CALIBRATION_TIME = 0.4  # share of the time left before the fits that a long calibration gets,
MOST_CALIBRATION_TIME = 0.8  # and of any time left that the least calibration gets
PUBLISHING_S, PUBLISHING_SHARE = 1.5, 0.05  # kept for publication; of short runs, a share
LEAST_FIT_S = 0.2
TIMED_STEPS, LEAST_TIMED, TIMED_S = 6, 3, 0.5


@dataclass(frozen=True, slots=True)
class TrainingProgress:
    """Where a training run stands.

    `stage` and `detail` are words; `fraction` is the share of the run's time that has passed, from 0 to 1, and never
    falls; `seconds_left` is None until something is known.
    """

    stage: str
    detail: str
    fraction: float
    seconds_left: float | None


@dataclass
class Course:
    """Tells how a training run gets on, and shares out its minutes.

    Attributes:
        tell: is called at each change of stage, and a few times a second.
        minutes: for everything from the first look at the rows to the publication; None: without limit.
        reserved: seconds kept for the calibration and the publication, if minutes limit the run.
        calibration: seconds that the calibration is expected to take.
        seconds_a_row: as measured; None: not yet.
        notes: what the user should know about how the minutes were used.
    """

    tell: Callable[[TrainingProgress], None] | None = None
    minutes: float | None = None
    reserved: float = 0.0
    calibration: float = 0.0
    seconds_a_row: float | None = None
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.started = time.monotonic()
        self.until = math.inf if self.minutes is None else self.started + 60.0 * self.minutes
        self.stage, self.detail, self.fraction, self.told_at = "", "", 0.0, -math.inf
        self.most = 0.0  # seconds for a calibration that could take more

    # Progress

    @property
    def is_followed(self) -> bool:
        """Whether the time that stages take matters to anyone."""
        return self.tell is not None or self.minutes is not None

    def enter(self, stage: str, seconds_left: float | None = None) -> None:
        """A stage begins; `seconds_left` is for the whole run."""
        if stage != self.stage:
            self.stage, self.detail, self.told_at = stage, "", -math.inf
        self.move(seconds_left)

    def move(self, seconds_left: float | None) -> None:
        """The run gets on; it will take so many seconds more."""
        now = time.monotonic()
        if self.tell is None or now - self.told_at < TELL_EVERY_S:
            return
        if seconds_left is not None:
            self.told_at = now
            self.fraction = max(self.fraction, (now - self.started) / max(1e-9, now - self.started + seconds_left))
        self.tell(TrainingProgress(self.stage, self.detail, self.fraction, seconds_left))

    def end(self) -> None:
        """The model is ready to publish."""
        self.stage, self.fraction = "publishing", 1.0
        if self.tell is not None:
            self.tell(TrainingProgress(self.stage, "", 1.0, 0.0))

    # Time

    @property
    def publishing(self) -> float:
        """Seconds kept for the publication."""
        return min(PUBLISHING_S, PUBLISHING_SHARE * 60.0 * (self.minutes or 0.0))

    def left(self) -> float:
        """Seconds left."""
        return self.until - time.monotonic()

    def pace(self, vae: VAE, least: int) -> Pace:
        """The pace of a calibration of networks like this one, to tell and, if minutes limit the run, to keep to."""
        until = self.until - self.publishing
        return Pace(self.enter, until, least, rows_at_a_time(vae), self.seconds_a_row)

    def expect(self, pace: Pace, pilot: int, rows: int, networks: int) -> None:
        """Expect a calibration on so many rows, and keep time for it."""
        pace.plan(pilot, rows, networks)
        self.calibration = pace.seconds_left() or 0.0
        if self.minutes is None:
            return
        seconds, left = pace.seconds or 0.0, self.left() - self.publishing
        least = seconds * (
            pace.pilot_cost(min(pilot, LEAST_PILOT), networks)
            + networks * pace.in_rounds(min(rows, pace.least)) * COSTS["calibration"]
        )
        self.most = self.most or CALIBRATION_TIME * left
        self.calibration = min(self.calibration, max(self.most, least), MOST_CALIBRATION_TIME * left)
        self.reserved = self.calibration + self.publishing

    def fit_minutes(self, fits: int) -> float | None:
        """Minutes for the next of so many fits."""
        if self.minutes is None:
            return None
        return max(LEAST_FIT_S, (self.left() - self.reserved) / fits) / 60.0


def rows_at_a_time(vae: VAE) -> int:
    """How many rows are scored at a time, a block by each CPU."""
    return Tiling.of(vae).least_rows * cpu_quota()


def seconds_a_row(vae: VAE, spec: InputSpec, estimator: Estimator, pilot: np.ndarray) -> float:
    """How long an estimate of a row and its columns takes, with all CPUs busy, by some pilot rows, shape (n, ...)."""
    # A copy, because what is computed of a network once is kept, and this one may not be fitted yet.
    own = copy.deepcopy(vae).eval().requires_grad_(False)
    some = spec.rows(np.resize(pilot, (rows_at_a_time(vae), *pilot.shape[1:])))
    model, execution = ready([own], spec, estimator, [some]), Execution(worker_pool(cpu_quota()))
    fixed(model, estimator.first_samples).estimates(some[:1], execution=execution)  # the first one takes longer
    start = time.monotonic()
    fixed(model, TYPICAL_SAMPLES).assess(some, suspect=np.full(spec.features, -np.inf), execution=execution)
    return (time.monotonic() - start) / len(some)


def seconds_a_step(vae: VAE, rows: torch.Tensor, options: FitOptions) -> float:
    """How long an optimizer step takes, by some steps of a copy."""
    trial = Fitting(copy.deepcopy(vae), options, torch.Generator().manual_seed(0), None, None, ALONE)
    batch, taken = rows[: options.batch_size], list[float]()
    while len(taken) < LEAST_TIMED or (len(taken) < TIMED_STEPS and sum(taken) < TIMED_S):
        start = time.monotonic()
        trial.step(batch, 1.0, 0.0, 1)
        taken.append(time.monotonic() - start)
    return min(taken)  # the first one takes longer
