"""Annealed importance sampling: from a distribution that can be sampled to the posterior in many small steps.

The path is pi_b(z) ~ start(z)^(1 - b) p(x, z)^b. A particle's weight is the product over steps of
(p(x, z) / start(z))^(b' - b). Its mean is p(x) for any intermediate steps (Neal, 2001), and it varies far less than
p(x, z) / start(z) itself. Run backwards from an exact posterior draw, the weights have mean 1 / p(x): an upper bound on
p(x) for rows whose posterior can be sampled, that is rows drawn from the model (Grosse, Ghahramani and Adams, 2015).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from service.vae.determinism import mapped

LogDensity = Callable[[Tensor], Tensor]  # z of shape (B, S, L) to (B, S), float64

TARGET_ACCEPTANCE = 0.65  # of Hamiltonian Monte Carlo (Beskos et al., 2013)


def annealed_log_weights(
    log_start: LogDensity,
    log_joint: LogDensity,
    z: Tensor,
    inverse_temperatures: Tensor,
    noise: Iterator[tuple[Tensor, Tensor]],
    axes: Tensor,
    step: float,
    leapfrogs: int,
    adapt: bool = False,
) -> Tensor:
    """Log weights of particles, shape (B, S), float64, nats.

    Args:
        log_start, log_joint: log densities of the two ends of the path; differentiable.
        z: particles at the first temperature, shape (B, S, L).
        inverse_temperatures: b from 0 to 1, with z drawn from the start; or from 1 to 0, with z drawn from the posterior.
        noise: for each transition, standard-normal momenta, shape (B, S, L), and uniforms, (B, S).
        axes: a linear map that makes the posterior roughly isotropic, shape (B, L, L): momenta live in its coordinates.
        step, leapfrogs: step size and number of leapfrog steps of Hamiltonian Monte Carlo.
        adapt: adapt each row's step size to its acceptance rate; the weights are then only approximately unbiased, which is
            enough for reference values.
    """
    state = State.at(log_start, log_joint, z.double())
    steps = torch.full((len(z), 1, 1), step, dtype=torch.float64, device=z.device)
    log_weights = torch.zeros(z.shape[:2], dtype=torch.float64, device=z.device)
    last = len(inverse_temperatures) - 1
    for number in range(1, last + 1):
        before, now = inverse_temperatures[number - 1], inverse_temperatures[number]
        log_weights = log_weights + (now - before) * (state.log_joint - state.log_start)
        if number < last:
            momentum, uniform = next(noise)
            state, accepted = transition(
                log_start, log_joint, state, now, momentum.double(), uniform, axes, steps, leapfrogs
            )
            if adapt:
                steps = steps * (1.0 + 0.1 * (accepted.double().mean(dim=1)[:, None, None] - TARGET_ACCEPTANCE))
    return log_weights


class State:
    """Particles with both log densities and their gradients."""

    def __init__(
        self, z: Tensor, log_start: Tensor, log_joint: Tensor, slope_start: Tensor, slope_joint: Tensor
    ) -> None:
        self.z = z
        self.log_start, self.log_joint = log_start, log_joint
        self.slope_start, self.slope_joint = slope_start, slope_joint

    @staticmethod
    def at(log_start: LogDensity, log_joint: LogDensity, z: Tensor) -> State:
        (start, slope_start), (joint, slope_joint) = with_slope(log_start, z), with_slope(log_joint, z)
        return State(z, start, joint, slope_start, slope_joint)

    def log_prob(self, b: Tensor) -> Tensor:
        """log pi_b up to a constant, shape (B, S)."""
        return (1 - b) * self.log_start + b * self.log_joint

    def slope(self, b: Tensor) -> Tensor:
        """The gradient of log pi_b, shape (B, S, L)."""
        return (1 - b) * self.slope_start + b * self.slope_joint

    def where(self, chosen: Tensor, other: State) -> State:
        wide = chosen[..., None]
        return State(
            torch.where(wide, self.z, other.z),
            torch.where(chosen, self.log_start, other.log_start),
            torch.where(chosen, self.log_joint, other.log_joint),
            torch.where(wide, self.slope_start, other.slope_start),
            torch.where(wide, self.slope_joint, other.slope_joint),
        )


def with_slope(log_density: LogDensity, z: Tensor) -> tuple[Tensor, Tensor]:
    """A log density and its gradient, both made finite."""
    with torch.enable_grad():
        leaf = z.clone().requires_grad_()
        value = log_density(leaf)
        (slope,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach().nan_to_num(-1e300, -1e300, -1e300), slope.nan_to_num(0.0, 0.0, 0.0)


def transition(
    log_start: LogDensity,
    log_joint: LogDensity,
    state: State,
    b: Tensor,
    momentum: Tensor,
    uniform: Tensor,
    axes: Tensor,
    steps: Tensor,
    leapfrogs: int,
) -> tuple[State, Tensor]:
    """One Hamiltonian Monte Carlo transition that leaves pi_b invariant, and a mask of accepted moves, shape (B, S)."""

    def push(p: Tensor, at: State, size: float) -> Tensor:
        return p + size * steps * mapped(axes.mT, at.slope(b))

    moved, p = state, push(momentum, state, 0.5)
    for number in range(leapfrogs):
        moved = State.at(log_start, log_joint, moved.z + mapped(axes, steps * p))
        p = push(p, moved, 0.5 if number == leapfrogs - 1 else 1.0)
    gain = moved.log_prob(b) - state.log_prob(b) + 0.5 * (momentum.square() - p.square()).sum(dim=-1)
    accepted = uniform.log() < gain.nan_to_num(-1e300)
    return moved.where(accepted, state), accepted
