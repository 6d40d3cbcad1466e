"""The fit: gradient ascent on a lower bound on log p(x). Never imported by the running service."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from service.errors import TrainingError
from service.training.augmentation import Augmentation
from service.training.bounds import Bound, Loss, evaluate, objective
from service.training.feeds import Feed, InMemory
from service.training.process_group import ALONE, ProcessGroup
from service.vae.network import VAE

LOOK_STEPS = 20  # minimum number of optimizer steps between validations, each of which costs as much as a few steps
Stopped = Literal["epochs", "minutes", "patience", "interrupted"]
NOISE_STRIDE = 1_000_003  # between the seeds of two processes


@dataclass(frozen=True, slots=True)
class FitOptions:
    """Options of a fit.

    `epochs` and `minutes` bound the fit, and the learning rate decays over whichever ends first. Without `epochs` there
    are `least_epochs` or, on small data sets, as many as it takes for `steps` optimizer steps. If there are fewer rows than
    that, one step a row is enough, but no fewer than `least_steps`, if that is given. The fit stops after `patience` epochs
    without a better bound; the default is a tenth of the epochs, at least 20. `averaging` is the share that the moving
    average of the weights keeps at each step. `augment_share` is the first part of the budget, in which rows are augmented
    if an augmentation is given.
    """

    epochs: int | None = None
    steps: int = 5_000
    least_epochs: int = 100
    least_steps: int | None = None
    minutes: float | None = None
    batch_size: int = 128
    learning_rate: float = 1e-3
    beta: float = 1.0
    warmup_epochs: int = 10
    importance_samples: int = 1
    patience: int | None = None
    clip_norm: float = 50.0
    averaging: float = 0.999
    augment_share: float = 0.6
    seed: int = 0

    def __post_init__(self) -> None:
        if self.importance_samples > 1 and self.beta != 1.0:
            raise TrainingError("--beta cannot be combined with --importance-samples, whose bound has no KL term")
        positive = (
            "epochs", "steps", "minutes", "batch_size", "learning_rate", "importance_samples", "patience", "clip_norm"
        )  # fmt: skip
        for name in positive:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise TrainingError(f"{name} is {value}, expected a number above 0")
        if self.beta < 0 or not 0 <= self.averaging < 1:
            raise TrainingError("expected beta >= 0 and averaging in [0, 1)")

    def for_rows(self, rows: int) -> FitOptions:
        """These options with epochs and patience set for this number of training rows."""
        steps = self.steps if self.least_steps is None else max(self.least_steps, min(self.steps, rows))
        epochs = self.epochs or max(self.least_epochs, math.ceil(steps / max(1, rows // self.batch_size)))
        return replace(self, epochs=epochs, patience=self.patience or max(20, epochs // 10))


@dataclass(frozen=True, slots=True)
class Progress:
    """The state of a fit after an epoch."""

    epoch: int
    train_bound: float
    validation: Bound
    best: float
    fraction: float
    seconds_left: float


@dataclass(frozen=True, slots=True)
class FitReport:
    """How a fit went; `validation` is the bound of the weights that were kept."""

    validation: Bound
    epochs: int
    best_epoch: int
    seconds: float
    stopped: Stopped


class Checkpoint(Protocol):
    """Where a fit's state is saved, so that another process can resume it."""

    def load(self) -> dict[str, Any] | None:
        """The last saved state to resume from, if there is one."""

    def save(self, state: Callable[[], dict[str, Any]], is_last: bool) -> None:
        """Save the state, if it is time to."""


class NoCheckpoint:
    """A checkpoint that saves nothing."""

    def load(self) -> dict[str, Any] | None:
        return None

    def save(self, state: Callable[[], dict[str, Any]], is_last: bool) -> None: ...


NO_CHECKPOINT = NoCheckpoint()


@dataclass
class Best:
    """The weights that are best on the validation rows so far."""

    bound: Bound
    epoch: int
    weights: dict[str, Tensor]


def fit(
    vae: VAE,
    train: Tensor | Feed,
    validation: Tensor,
    options: FitOptions,
    on_epoch: Callable[[Progress], None] = lambda progress: None,
    augment: Augmentation | None = None,
    hide: Augmentation | None = None,
    group: ProcessGroup = ALONE,
    checkpoint: Checkpoint = NO_CHECKPOINT,
    on_step: Callable[[float], None] = lambda seconds_left: None,
) -> FitReport:
    """Fit `vae` in place to rows `train`, shape (N, D); keep the weights that are best on `validation`, shape (M, D).

    `augment` applies to rows in the first part of the fit, `hide` throughout. In a group every process calls this with
    the same arguments, and each ends with the same weights. `on_step` hears after every step how many seconds are left.

    The exponential moving average of the weights is what is validated and kept. Interrupting (Ctrl-C) keeps the best so
    far.

    Raises:
        TrainingError: the loss is no longer finite.
    """
    # Each process draws its own noise; the order of the rows is the same for all.
    noise = torch.Generator(validation.device).manual_seed(options.seed + NOISE_STRIDE * group.rank)
    if isinstance(train, Tensor):
        own = noise if group.size == 1 else torch.Generator().manual_seed(options.seed)
        train = InMemory(train, options.batch_size, own)
    options = options.for_rows(train.rows)
    assert options.epochs is not None
    with torch.no_grad():
        vae.decoder.start_at(vae.likelihood.initial_bias(train.some))
    run = Fitting(vae, options, noise, augment, hide, group)
    stopped: Stopped | None = None
    epochs_a_look = math.ceil(LOOK_STEPS / max(1, train.rows // options.batch_size))
    kept = checkpoint.load()
    if kept is not None:
        stopped = run.resume(kept, train)
    epoch = run.epochs
    try:
        while stopped is None:
            epoch = run.epochs + 1
            train_bound = run.epoch(train, epoch, on_step)
            is_over = run.is_over()
            if epoch % epochs_a_look and epoch < options.epochs and not is_over:
                continue
            judged = run.judged(validation)
            best, clock = run.keep(judged), run.clock
            on_epoch(
                Progress(epoch, train_bound, judged, best.bound.bound, clock.fraction(epoch), clock.seconds_left(epoch))
            )
            stopped = run.ended(epoch, is_over)
            run.save(checkpoint, train, stopped)
    except KeyboardInterrupt:
        if run.best is None:
            raise TrainingError("interrupted before the first epoch ended: nothing was saved") from None
        stopped = "interrupted"
    assert run.best is not None
    vae.load_state_dict(run.best.weights)
    return FitReport(run.best.bound, epoch, run.best.epoch, run.clock.seconds(), stopped)


class Fitting:
    """The state of a fit: the optimizer, the averaged weights, the best so far and the clock."""

    def __init__(
        self,
        vae: VAE,
        options: FitOptions,
        generator: torch.Generator,
        augment: Augmentation | None,
        hide: Augmentation | None,
        group: ProcessGroup,
    ) -> None:
        self.vae = vae
        self.average = copy.deepcopy(vae)
        self.options = options
        self.generator = generator
        self.augment = augment
        self.hide = hide
        self.group = group
        self.loss = group.together(Loss(vae, options.importance_samples, generator))
        self.optimizer = torch.optim.Adam(vae.parameters(), lr=options.learning_rate, foreach=True)
        self.clock = Clock(options)
        self.steps = 0
        self.epochs = 0
        self.best: Best | None = None

    def epoch(self, train: Feed, epoch: int, on_step: Callable[[float], None]) -> float:
        """Run one pass over the rows, or as much as the minutes allow; return the mean training bound."""
        bounds: list[float] = []
        steps = max(1, train.rows // self.options.batch_size)
        for x in train.epoch(epoch, self.group):
            fraction = self.fraction(epoch)
            if self.augment is not None and fraction < self.options.augment_share:
                x = self.augment(x, self.generator)  # noqa: PLW2901  # the row as this step sees it
            if self.hide is not None:
                x = self.hide(x, self.generator)  # noqa: PLW2901
            bounds.append(self.step(x, kl_weight(self.options, epoch), fraction, epoch))
            on_step(self.clock.seconds_left(epoch - 1 + min(1.0, len(bounds) / steps)))
            if self.is_over():
                break
        self.epochs = epoch
        return sum(bounds) / len(bounds)

    def fraction(self, epoch: int) -> float:
        """Share of the budget spent, in an epoch; if minutes limit it, by the first process's clock."""
        if self.options.minutes is None:
            return self.clock.fraction(epoch - 1)
        return self.group.first(lambda: [self.clock.fraction(epoch - 1)])[0]

    def is_over(self) -> bool:
        """Whether the minutes are spent, by the first process's clock."""
        return self.options.minutes is not None and self.group.first(lambda: [self.clock.is_over()])[0] > 0

    def ended(self, epoch: int, is_over: bool) -> Stopped | None:
        """Why the fit ends after this epoch, or None; `is_over` says that its minutes are spent."""
        assert self.best is not None
        assert self.options.patience is not None
        if is_over:
            return "minutes"
        if self.is_plain(epoch) and epoch - self.best.epoch >= self.options.patience:
            return "patience"
        return "epochs" if epoch == self.options.epochs else None

    def judged(self, validation: Tensor) -> Bound:
        """The averaged weights' bound on the validation rows, computed by the first process."""
        options = self.options

        def looked() -> list[float]:
            if self.group.rank:
                return [0.0] * 4
            bound = evaluate(self.average, validation, options.importance_samples, options.seed)
            return [float(value) for value in asdict(bound).values()]

        bound, reconstruction, kl, active = self.group.first(looked)
        return Bound(bound, reconstruction, kl, int(active))

    def keep(self, judged: Bound) -> Best:
        """Keep the averaged weights if they are the best so far; return the best."""
        beta = self.options.beta
        if self.best is None or objective(judged, beta) > objective(self.best.bound, beta):
            self.best = Best(judged, self.epochs, copy.deepcopy(self.average.state_dict()))
        return self.best

    def save(self, checkpoint: Checkpoint, train: Feed, stopped: Stopped | None) -> None:
        """Save the whole state, so that a new process continues as if this one had never stopped."""
        best, noise = self.best, self.group.each(self.generator.get_state())
        assert best is not None
        if self.group.rank:
            return

        def state() -> dict[str, Any]:
            return {
                "epochs": self.epochs,
                "steps": self.steps,
                "seconds": self.clock.seconds(),
                "stopped": stopped,
                "weights": self.vae.state_dict(),
                "average": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "best": asdict(best.bound) | {"epoch": best.epoch},
                "best_weights": best.weights,
                "noise": noise,
                "feed": train.state(),
            }

        checkpoint.save(state, stopped is not None)

    def resume(self, state: dict[str, Any], train: Feed) -> Stopped | None:
        """Continue from a saved state; return why that fit had ended, if it had."""
        self.vae.load_state_dict(state["weights"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epochs, self.steps = state["epochs"], state["steps"]
        self.clock.start -= state["seconds"]
        bound = dict(state["best"])
        self.best = Best(epoch=bound.pop("epoch"), bound=Bound(**bound), weights=state["best_weights"])
        self.generator.set_state(state["noise"][self.group.rank])
        train.set_state(state["feed"])
        stopped: Stopped | None = state["stopped"]
        return stopped

    def is_plain(self, epoch: int) -> bool:
        """Whether the objective itself is being fitted: no augmentation, and the KL term at full weight."""
        augmented = self.augment is not None and self.fraction(epoch + 1) < self.options.augment_share
        return not augmented and epoch >= self.options.warmup_epochs

    def step(self, x: Tensor, kl_weight: float, fraction: float, epoch: int) -> float:
        """One optimizer step on rows x, shape (B, D); return their bound before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.learning_rate * min(1.0, (self.steps + 1) / 200) * decay(fraction)
        loss = self.loss(x, kl_weight)
        value = self.group.mean(loss.item())
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} at epoch {epoch}, step {self.steps}: lower --learning-rate "
                f"(now {self.options.learning_rate:g}) or look for extreme values in the data"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.vae.parameters(), self.options.clip_norm)
        self.optimizer.step()
        self.steps += 1
        follow(self.average, self.vae, min(self.options.averaging, self.steps / (self.steps + 10)))
        return -value


def kl_weight(options: FitOptions, epoch: int) -> float:
    """beta, reached linearly over the first `warmup_epochs` epochs."""
    return options.beta * min(1.0, epoch / max(1, options.warmup_epochs))


def decay(fraction: float) -> float:
    """The learning rate's factor: 1 for the first half of the budget, then half a cosine down to 1 %."""
    return 1.0 if fraction < 0.5 else 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * (2.0 * min(fraction, 1.0) - 1.0)))


@torch.no_grad()
def follow(average: VAE, vae: VAE, share: float) -> None:
    """Move `average` towards `vae`, keeping `share` of itself."""
    torch._foreach_lerp_(list(average.parameters()), list(vae.parameters()), 1.0 - share)


class Clock:
    """How much of the budget, epochs or minutes, is spent."""

    def __init__(self, options: FitOptions) -> None:
        self.options = options
        self.start = time.monotonic()

    def seconds(self) -> float:
        return time.monotonic() - self.start

    def is_over(self) -> bool:
        return self.options.minutes is not None and self.seconds() >= 60.0 * self.options.minutes

    def fraction(self, epochs: float) -> float:
        """Share spent, after this many epochs, of the budget that ends first; 0 to 1."""
        by_epochs = epochs / (self.options.epochs or 1)
        by_time = 0.0 if self.options.minutes is None else self.seconds() / (60.0 * self.options.minutes)
        return min(1.0, max(by_epochs, by_time))

    def seconds_left(self, epochs: float) -> float:
        """Estimated from the pace so far."""
        fraction = self.fraction(epochs)
        return math.inf if fraction == 0 else self.seconds() * (1.0 - fraction) / fraction
