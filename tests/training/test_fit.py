"""The fit: what is in its loss, what it keeps, and how it ends."""

import math

import pytest
import torch

from service.errors import TrainingError
from service.training.augmentation import random_affine
from service.training.bounds import elbo_terms, evaluate, iwae_bound, negative_bound
from service.training.fit import FitOptions, decay, fit, kl_weight
from service.vae.network import VAE, Architecture
from service.vae.prior import StandardNormal


@pytest.fixture
def rows():
    """Rows with structure that two latents can carry."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(600, 2, generator=generator)
    weights = torch.randn(2, 12, generator=generator) * 3
    return (torch.rand(600, 12, generator=generator) < torch.sigmoid(z @ weights)).float()


def fresh(seed=0):
    torch.manual_seed(seed)
    return VAE(Architecture(12, 2, (16,), "silu"))


def test_the_kl_term_is_in_the_loss_with_its_weight(rows):
    vae = fresh()
    x = rows[:50]
    with torch.no_grad():
        losses = [
            negative_bound(vae, x, 1, weight, torch.Generator().manual_seed(3)).item() for weight in (0.0, 1.0, 2.5)
        ]
        _, kl = elbo_terms(vae, x, vae.posterior(x), torch.Generator().manual_seed(3))
    assert kl.mean() > 0.01
    assert losses[1] - losses[0] == pytest.approx(kl.mean().item(), rel=1e-4)
    assert losses[2] - losses[0] == pytest.approx(2.5 * kl.mean().item(), rel=1e-4)


def test_the_kl_in_closed_form_is_that_of_draws(rows):
    posterior = fresh().posterior(rows[:5])
    noise = torch.randn(200_000, 5, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        z = posterior.sample(noise)
        log_ratio = posterior.log_prob(z) + 0.5 * z.double().square().sum(-1) + math.log(2 * math.pi)
        error = log_ratio.std(0) / math.sqrt(len(noise))
        closed = StandardNormal(2).kl(posterior.mean, posterior.std, z[0])
        assert ((log_ratio.mean(0) - closed).abs() < 4.5 * error).all()


def test_the_iwae_bound_of_one_sample_is_the_elbo_in_expectation_and_more_samples_tighten_it(rows):
    vae = fresh()
    fit(vae, rows[:500], rows[500:], FitOptions(epochs=5))
    x = rows[:1].expand(4000, -1)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        reconstruction, kl = elbo_terms(vae, x, vae.posterior(x), generator)
        one = iwae_bound(vae, x, vae.posterior(x), 1, generator)
        ten = iwae_bound(vae, x, vae.posterior(x), 10, generator)
    elbo = reconstruction - kl
    error = math.sqrt((elbo.var() + one.var()).item() / len(x))
    assert abs((elbo.mean() - one.mean()).item()) < 4.5 * error
    assert ten.mean() > one.mean()


@pytest.mark.parametrize("importance_samples", [1, 5])
def test_a_fit_raises_the_bound_and_uses_its_latents(rows, importance_samples):
    vae = fresh()
    before = evaluate(vae, rows[500:])
    report = fit(
        vae,
        rows[:500],
        rows[500:],
        FitOptions(epochs=100, patience=100, learning_rate=0.01, importance_samples=importance_samples),
    )
    after = evaluate(vae, rows[500:])
    assert after.bound > before.bound + 0.5
    assert after.active_latents == 2
    assert report.validation.kl > 0.5
    assert report.stopped == "epochs"


def test_a_large_beta_collapses_the_posterior_and_the_report_says_so(rows):
    report = fit(fresh(), rows[:500], rows[500:], FitOptions(epochs=60, learning_rate=0.01, beta=50.0, warmup_epochs=1))
    assert report.validation.active_latents == 0
    assert report.validation.kl < 0.01


def test_the_same_seed_gives_the_same_weights(rows):
    fits = []
    for _ in range(2):
        vae = fresh(4)
        fit(vae, rows[:500], rows[500:], FitOptions(epochs=3, seed=4))
        fits.append(vae.state_dict())
    assert all(torch.equal(fits[0][name], fits[1][name]) for name in fits[0])


def test_the_best_weights_are_kept_and_patience_ends_the_fit(rows):
    bounds = []
    vae = fresh()
    options = FitOptions(epochs=3000, patience=3, learning_rate=0.01, averaging=0.0, batch_size=3)
    report = fit(vae, rows[:60], rows[500:], options, lambda progress: bounds.append(progress.validation.bound))
    assert report.stopped == "patience"
    assert report.epochs == report.best_epoch + 3
    assert report.validation.bound == max(bounds)
    assert evaluate(vae, rows[500:]).bound == pytest.approx(max(bounds), abs=1e-5)


def test_interrupting_keeps_the_best_so_far(rows):
    def interrupt(progress):
        if progress.epoch >= 4:
            raise KeyboardInterrupt

    vae = fresh()
    report = fit(vae, rows[:500], rows[500:], FitOptions(epochs=100), interrupt)
    assert report.stopped == "interrupted"
    assert evaluate(vae, rows[500:]).bound == pytest.approx(report.validation.bound, abs=1e-5)


def test_a_loss_that_is_not_finite_stops_the_fit_in_words(rows):
    vae = fresh()
    with torch.no_grad():
        vae.encoder.output.weight.fill_(math.nan)
    with pytest.raises(TrainingError, match="epoch 1, step 0: lower --learning-rate"):
        fit(vae, rows[:500], rows[500:], FitOptions(epochs=3))


def test_minutes_bound_the_fit(rows):
    report = fit(fresh(), rows[:500], rows[500:], FitOptions(epochs=10**6, minutes=0.01, patience=10**6))
    assert report.stopped == "minutes"
    assert report.seconds < 5


def test_options_that_contradict_each_other_are_refused():
    with pytest.raises(TrainingError, match="--beta"):
        FitOptions(beta=2.0, importance_samples=5)
    with pytest.raises(TrainingError, match="learning_rate"):
        FitOptions(learning_rate=0.0)


def test_schedules_start_and_end_where_they_say():
    assert [decay(0.0), decay(0.5), decay(1.0)] == [1.0, 1.0, pytest.approx(0.01)]
    assert [kl_weight(FitOptions(beta=2.0, warmup_epochs=4), epoch) for epoch in (1, 2, 4, 9)] == [0.5, 1.0, 2.0, 2.0]


def test_few_rows_get_many_epochs():
    assert FitOptions().for_rows(100).epochs == 5000
    assert FitOptions().for_rows(1_000_000).epochs == 100


@pytest.mark.parametrize("interpolated", ["keep", "threshold", "draw"])
def test_a_distorted_image_is_still_the_image_and_stays_in_its_values(interpolated):
    image = torch.zeros(64, 20, 20)
    image[:, 6:14, 8:12] = 1.0
    moved = random_affine(20, 20, interpolated)(image.view(64, 400), torch.Generator().manual_seed(0))
    assert moved.shape == (64, 400)
    assert 0 <= moved.min() <= moved.max() <= 1
    if interpolated != "keep":
        assert set(moved.unique().tolist()) == {0.0, 1.0}
    overlap = (moved * image.view(64, 400)).sum(-1) / 32
    assert overlap.mean() > 0.7
    assert not torch.equal(moved[0], moved[1])
