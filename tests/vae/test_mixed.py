"""The likelihood of mixed columns: known masses and densities, derivatives against autograd, and holes."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from service.vae.mixed import Categorical, Columns, Count, Real

REAL, OTHER = Real(), Real(min_std=0.5)
COUNT = Count(offset=0.5, center=1.0, scale=0.8)
COLOUR, FLAG = Categorical(cells=4, unseen=0.01), Categorical(cells=2, unseen=0.002)
COLUMNS = (COLOUR, REAL, COUNT, OTHER, FLAG)


def outputs(number, likelihood, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((number, likelihood.outputs), generator=generator, dtype=dtype)


def count_x(value, column=COUNT):
    return (math.log(value + column.offset) - column.center) / column.scale


def rows_of(number, seed=0):
    rng = np.random.default_rng(seed)
    rows = np.stack(
        [
            rng.integers(0, 5, number),  # 4 is a colour never seen
            2.0 * rng.standard_normal(number),
            [count_x(value) for value in rng.integers(0, 30, number)],
            rng.standard_normal(number),
            rng.integers(0, 2, number),
        ],
        axis=1,
    )
    rows[rng.random(rows.shape) < 0.25] = np.nan
    return torch.from_numpy(rows).float()


def test_a_real_column_is_a_normal_with_a_floor():
    likelihood = Columns([OTHER])
    output = torch.tensor([[0.3, -1.0]])
    std = math.sqrt(0.25 + math.exp(-2.0))
    expected = Normal(0.3, std).log_prob(torch.tensor([1.7]))
    torch.testing.assert_close(likelihood.log_prob(output, torch.tensor([[1.7]]))[0], expected)


def test_the_masses_of_a_count_sum_to_one():
    likelihood = Columns([COUNT]).double()
    x = torch.tensor([[count_x(value)] for value in range(200_000)], dtype=torch.float64)
    for output in ([[0.0, -1.0]], [[1.5, -2.0]], [[-1.0, -0.5]]):
        masses = likelihood.log_prob(torch.tensor(output, dtype=torch.float64), x).exp()
        assert float(masses.sum()) == pytest.approx(1.0, abs=1e-3)


def test_the_masses_of_a_category_sum_to_one_with_the_unseen():
    likelihood = Columns([COLOUR])
    x = torch.arange(5.0)[:, None]
    masses = likelihood.log_prob(outputs(1, likelihood), x).exp()
    assert float(masses.sum()) == pytest.approx(1.0, abs=1e-6)
    assert float(masses[4]) == pytest.approx(0.01, rel=1e-5)


def test_the_order_of_columns_is_that_of_the_rows():
    likelihood = Columns(COLUMNS)
    output, x = outputs(20, likelihood), rows_of(20)
    together = likelihood.log_prob(output, x)
    parts = {0: slice(6, 10), 1: slice(0, 4, 2), 3: slice(1, 4, 2), 2: slice(4, 6), 4: slice(10, 12)}
    for at, part in parts.items():
        alone = Columns([COLUMNS[at]]).log_prob(output[:, part], x[:, at : at + 1])
        torch.testing.assert_close(together[:, at : at + 1], alone)


def test_a_hole_has_no_term_and_no_gradient():
    likelihood = Columns(COLUMNS)
    output = outputs(1, likelihood).requires_grad_()
    total = likelihood.log_prob(output, torch.full((1, 5), torch.nan))
    assert total.tolist() == [[0.0] * 5]
    (gradient,) = torch.autograd.grad(total.sum(), output)
    assert not gradient.any()


def test_the_score_is_the_gradient():
    likelihood = Columns(COLUMNS).double()
    output, x = outputs(50, likelihood, dtype=torch.float64).requires_grad_(), rows_of(50).double()
    (gradient,) = torch.autograd.grad(likelihood.log_prob(output, x).sum(), output)
    torch.testing.assert_close(likelihood.grad_log_prob(output.detach(), x), gradient, atol=1e-9, rtol=1e-7)


def test_the_information_is_that_of_autograd():
    columns = (COLOUR, REAL, OTHER, FLAG)
    likelihood = Columns(columns).double()
    output, x = outputs(10, likelihood, dtype=torch.float64), rows_of(10).double()[:, [0, 1, 3, 4]]
    tangents = torch.randn((10, 3, likelihood.outputs), dtype=torch.float64)
    excess = likelihood.excess_gram(tangents, output, x)
    observed = likelihood.fisher_gram(tangents, output, x) + excess
    for at in range(10):
        hessian = torch.autograd.functional.hessian(lambda o, at=at: likelihood.log_prob(o, x[at]).sum(), output[at])
        torch.testing.assert_close(observed[at], -tangents[at] @ hessian @ tangents[at].T, atol=1e-8, rtol=1e-6)


def test_the_fisher_information_of_real_columns_is_the_mean_square_of_the_score():
    likelihood = Columns([REAL, COLOUR]).double()
    output = outputs(1, likelihood, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    x = likelihood.sample(output.expand(400_000, -1), generator)
    score = likelihood.grad_log_prob(output.expand(len(x), -1), x)
    eye = torch.eye(likelihood.outputs, dtype=torch.float64)[None]
    fisher = likelihood.fisher_gram(eye, output, x[:1])[0]
    torch.testing.assert_close(score.T @ score / len(x), fisher, atol=0.02, rtol=0.02)


def test_the_information_of_a_count_is_never_negative():
    likelihood = Columns([COUNT]).double()
    output = 3.0 * outputs(200, likelihood, dtype=torch.float64)
    x = torch.tensor([[count_x(value)] for value in range(200)], dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64).expand(200, -1, -1)
    assert (torch.linalg.eigvalsh(likelihood.fisher_gram(eye, output, x)) >= -1e-12).all()


def test_far_and_impossible_values_stay_finite():
    likelihood = Columns(COLUMNS)
    rows = torch.tensor([[9.0, 1e30, 60.0, -1e30, -3.0], [0.0, 1e15, -60.0, 1e15, 7.0]])
    output = 10.0 * outputs(2, likelihood)
    assert likelihood.log_prob(output, rows).isfinite().all()
    assert likelihood.grad_log_prob(output, rows).isfinite().all()
    assert likelihood.encoder_input(rows).isfinite().all()


def test_samples_have_the_probabilities_of_their_values():
    likelihood = Columns([COLOUR, COUNT])
    output = outputs(1, likelihood, seed=3)
    x = likelihood.sample(output.expand(100_000, -1), torch.Generator().manual_seed(0))
    for at, values in ((0, torch.arange(4.0)), (1, torch.tensor([count_x(value) for value in range(6)]))):
        for value in values:
            row = torch.full((1, 2), torch.nan)
            row[0, at] = value
            mass = float(likelihood.log_prob(output, row)[0, at].exp())
            share = float(((x[:, at] - value).abs() < 1e-3).float().mean())
            assert share == pytest.approx(mass, abs=4 * math.sqrt(mass / len(x)) + 0.01 * mass + 1e-4)


def test_the_search_starts_see_the_log_probability_of_real_columns_and_categories():
    likelihood = Columns((COLOUR, REAL, OTHER, FLAG)).double()
    output, x = outputs(7, likelihood, dtype=torch.float64), rows_of(5).double()[:, [0, 1, 3, 4]]
    seen = likelihood.sufficient_statistics(x) @ likelihood.linear_in_statistics(output)[0].T  # (B, K)
    exact = torch.stack([likelihood.log_prob(output, row).sum(dim=-1) for row in x])
    difference = exact - seen
    torch.testing.assert_close(difference, difference[:, :1].expand_as(difference), atol=1e-8, rtol=0.0)
