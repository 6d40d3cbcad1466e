"""The search for the modes of rows: found, told apart, and paid for."""

import numpy as np
import pytest
import torch

from service.density import laplace
from service.density.search import Effort, find
from service.density.tiling import Tiling
from service.vae.conditional import conditional
from tests.models import bent, squared


def found(vae, x, starts, effort):
    """What `find` finds for rows, shape (B, D), from starts, shape (K, B, L)."""
    rows = torch.from_numpy(np.asarray(x, dtype=np.float32))
    every = torch.as_tensor(np.asarray(starts), dtype=torch.float32).movedim(0, 1).contiguous()
    with torch.no_grad():
        return find(vae, conditional(vae, rows), vae.posterior(rows), every, effort, Tiling(rows=16, evaluations=16))


def test_two_modes_are_two_components_and_two_starts_of_one_mode_are_one():
    vae = squared(0.3, 0.0)  # x_1 = z^2: modes at 1.5 and -1.5
    x = [[2.25, 0.0], [2.25, 0.0]]
    starts = [[[1.2], [1.2]], [[-1.2], [1.7]]]
    proposal = found(vae, x, starts, Effort(((2, 10),), 1)).proposal
    shares = proposal.shares
    assert (shares[0, :2] > 0.2).all()
    assert shares[1, 0] > 0.85
    assert shares[1, 1] == 0
    means = sorted(float(part.mean[0, 0]) for part in proposal.components[:2])
    np.testing.assert_allclose(means, [-1.5, 1.5], atol=0.1)
    torch.testing.assert_close(shares.sum(dim=-1), torch.ones(2, dtype=torch.float64))


def test_a_mode_far_below_another_is_dropped():
    vae = squared(0.05, 0.5)  # x_2 = z / 2 tells the two apart
    x = [[2.25, 0.75]]
    proposal = found(vae, x, [[[1.4]], [[-1.4]]], Effort(((2, 10),), 1)).proposal
    assert proposal.shares[0, 1] == 0
    assert float(proposal.components[0].mean[0, 0]) > 1


def test_every_stage_is_charged():
    vae = bent(4)
    x = (np.random.default_rng(0).random((3, 20)) < 0.5).astype(np.float32)
    starts = np.random.default_rng(1).standard_normal((5, 3, 4))
    effort = Effort(((5, 2), (2, 3), (1, 30)), probed_axes=2)
    result = found(vae, x, starts, effort)
    climbs = 5 * (2 * 2 + 1) + 2 * (2 * 3 + 1) + (2 * 30 + 1)
    least = 5 + climbs + laplace.derivatives_evaluations(vae) + laplace.fit_evaluations(4, 2)
    assert all(cost >= least - 1e-9 for cost in result.evaluations)
    assert min(result.evaluations) == pytest.approx(least)
    assert effort.evaluations(vae) == pytest.approx(least)
    assert max(result.remaining) < 0.3


def test_a_wider_search_climbs_higher():
    vae = bent(6, "gaussian", strength=8.0)
    vae.likelihood.log_std.fill_(-2.0)
    x = 3 * np.random.default_rng(0).standard_normal((16, 20)).astype(np.float32)
    starts = np.random.default_rng(1).standard_normal((20, 16, 6))

    def height(effort):
        parts = found(vae, x, starts, effort).proposal.components[0]
        rows = torch.from_numpy(x)
        with torch.no_grad():
            return laplace.log_joint(vae, conditional(vae, rows), parts.mean[:, None].float())[:, 0].mean()

    assert height(Effort(((20, 9), (5, 18), (1, 20)))) > height(Effort(((1, 9),))) + 2.0
