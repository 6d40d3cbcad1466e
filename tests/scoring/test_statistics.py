"""The combined rule: from calibration through the store to verdicts, for images and tables, with holes and without."""

from dataclasses import replace

import numpy as np
import pytest

from service.data.inputs import Binary, InputSpec, Mixed, Standard
from service.data.kinds import infer
from service.data.learn import learn
from service.data.table import Table
from service.density.estimator import Estimator
from service.density.neighbours import Neighbours
from service.errors import CalibrationError
from service.scoring.generator import Generator
from service.scoring.image_statistics import compressed_sizes, discarded, discarded_apart, extremes, hues, textures
from service.scoring.options import Detail, ScoreOptions
from service.scoring.statistic_kinds import GENERATION, LAST_CURVED, generation_of, names_of, weights_of
from service.scoring.statistics import categories, coordinates
from service.store.loading import load_scorer
from service.store.store import Store
from service.training.fit import FitOptions
from service.training.recalibrate import recalibrate_on
from service.training.recipe import Recipe
from service.training.train import train_table
from tests.models import digits
from tests.tools import REPOSITORY, detected_cells


@pytest.fixture(scope="module")
def mixed_store(tmp_path_factory):
    """A model of a table with holes."""
    generator = np.random.default_rng(0)
    state = generator.integers(3, size=1200)
    speed = 2.0 * state + 0.3 * generator.normal(size=1200)
    load = np.where(generator.random(1200) < 0.1, np.nan, state + generator.poisson(3, size=1200))
    names = ("speed", "load", "state")
    cells = (speed, load, detected_cells([("idle", "run", "boost")[at] for at in state]))
    root = tmp_path_factory.mktemp("mixed")
    recipe = Recipe(latents=2, hidden=(32,), fit=FitOptions(epochs=15), estimator=Estimator.of("fast"))
    Store(root).publish("mixed", train_table(Table(names, cells), recipe).draft)
    return root


def test_every_calibration_brings_evidence_and_the_store_keeps_it(any_scorer):
    scorer, rows = any_scorer
    evidence = scorer.reference_statistics()
    sides = len(weights_of(scorer.model.input)[0])
    assert evidence.combination.parts.shape[1] == sides
    assert len(evidence.combination.parts) + evidence.rows == len(scorer.calibration.scores)
    assert np.isin(evidence.known.rows[:3], rows.reshape(len(rows), -1)).all()
    scores = scorer.score(rows[:40], ScoreOptions("combined"))
    assert scores.evidence.shape == (40, len(names_of(scorer.model.input)))
    assert ((scores.evidence > 0) & (scores.evidence <= 1)).all()
    assert (scores.valid == (scores.combined_p_value > scores.rule.false_alarm)).all()
    plain = scorer.score(rows[:40])
    assert (plain.log_likelihood == scores.log_likelihood).all()
    assert (plain.side, plain.p_value.tolist()) == (scores.side, scores.p_value.tolist())
    assert np.isnan(plain.combined_p_value).all()


def test_likely_rows_that_do_not_belong_are_caught(digit_scorer):
    blank = np.zeros((1, 8, 8), dtype=np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (5, 8, 8), dtype=np.uint8)
    strange = digit_scorer.score(np.concatenate([blank, noise]), ScoreOptions("combined", false_alarm=0.05))
    assert not strange.valid.any()
    names = dict(zip(strange.rule.statistics, strange.evidence[0], strict=True))
    assert names["compressed_size"] < 0.05
    valid = digit_scorer.score(digits()[:200], ScoreOptions("combined", false_alarm=0.05))
    assert valid.valid.mean() > 0.85


def test_a_row_is_judged_the_same_in_any_company_and_with_columns_explained(any_scorer):
    scorer, rows = any_scorer
    together = scorer.score(rows[:70], ScoreOptions("combined"))
    for at in (0, 31, 69):
        alone = scorer.score(rows[at : at + 1], ScoreOptions("combined"))
        assert alone.combined_p_value[0] == together.combined_p_value[at]
        assert (alone.evidence[0] == together.evidence[at]).all()
    explained = scorer.score(rows[:70], ScoreOptions("combined", explain=2))
    assert (explained.combined_p_value == together.combined_p_value).all()
    assert (explained.evidence == together.evidence).all()


def test_a_rate_that_the_rows_cannot_give_is_refused_with_the_number_they_would_have_to_be(any_scorer):
    scorer, rows = any_scorer
    with pytest.raises(CalibrationError, match="at least 9,999 validation rows in the calibrating half"):
        scorer.score(rows[:1], ScoreOptions("combined", false_alarm=0.0001))
    for rate in (0.0, 1.0, float("nan")):
        with pytest.raises(CalibrationError, match="above 0 and below 1"):
            scorer.combined_rule(rate)
    rule = scorer.combined_rule()
    assert rule.false_alarm == max(0.01, 1 / (rule.rows + 1))
    low, high = rule.accepted.interval
    assert low < rule.accepted.expected < high


def test_rows_with_holes_are_judged_beside_rows_with_the_same_holes(mixed_store):
    scorer = load_scorer(Store(mixed_store), "mixed", "cpu")
    states = detected_cells(["run", "run", "boost", "run"])
    cells = np.array([2.0, np.nan, 2.0, 2.0]), np.array([np.nan, 4.0, np.nan, 4.0]), states
    holed = scorer.rows(scorer.model.input.array(Table(("speed", "load", "state"), cells)))
    scorer.patterns.known.clear()
    scores = scorer.score(holed, ScoreOptions("combined", false_alarm=0.05))
    assert np.isfinite(scores.combined_p_value).all()
    pattern = np.isnan(holed[0])
    known = scorer.patterns.known[pattern.tobytes()]
    assert known.has(Detail(statistics=True))
    alone = scorer.score(holed[2:3], ScoreOptions("combined", false_alarm=0.05, explain=1))
    assert alone.combined_p_value[0] == scores.combined_p_value[2]
    assert not scores.valid[2]  # a speed of 2 belongs to another state
    assert scores.valid[0]


def test_rows_that_are_known_stay_known_when_calibrated_again(mixed_store):
    store = Store(mixed_store)
    published = store.load(store.resolve("mixed"))
    rows = Generator(published.model).sample(400, seed=1).samples
    again = store.load(store.publish("mixed", recalibrate_on(published, rows[:50], rows[50:], "digest")))
    known = [one.calibration.statistics.known.rows for one in (again, published)]
    assert np.array_equal(*known, equal_nan=True)
    few = store.publish("mixed", recalibrate_on(published, rows[:4], rows[4:11], "digest"))
    assert store.load(few).calibration.statistics is None
    with pytest.raises(CalibrationError, match="without the combined rule"):
        load_scorer(store, str(few), "cpu").score(rows[:1], ScoreOptions("combined"))


@pytest.mark.slow
def test_false_alarms_are_as_promised_on_resplit_rows(mixed_store):
    """Valid rows are the model's own, so that there are as many as one likes."""
    store = Store(mixed_store)
    published = store.load(store.resolve("mixed@1"))
    rows = Generator(published.model).sample(3000, seed=2).samples
    scorer = load_scorer(
        store, str(store.publish("mixed", recalibrate_on(published, rows[:100], rows[100:700], "digest"))), "cpu"
    )
    alarms = ~scorer.score(rows[700:], ScoreOptions("combined", false_alarm=0.1)).valid
    low, high = scorer.combined_rule(0.1).accepted.interval
    error = 3 * np.sqrt(0.1 * 0.9 / len(alarms))
    assert 1 - high - error < alarms.mean() < 1 - low + error


def test_sizes_tell_simple_images_from_noise():
    images = np.stack([np.zeros((28, 28)), np.full((28, 28), 77), np.random.default_rng(0).integers(0, 256, (28, 28))])
    sizes = compressed_sizes(images)
    assert sizes[0] <= sizes[1] < 60 < 700 < sizes[2]


def test_a_rate_of_the_band_can_be_asked_for_in_process(digit_scorer):
    rows = digits()[:30]
    low = digit_scorer.score(rows, ScoreOptions(false_alarm=0.1, tail="low"))
    assert low.band.percentiles == (10.0, 100.0)
    assert digit_scorer.score(rows, ScoreOptions(false_alarm=0.1)).band.percentiles == (5.0, 95.0)
    assert (low.valid == (low.low_p_value > 0.1 * (1 + 1e-12))).all()


# What a threshold discards

INK = InputSpec(kind="image", shape=(8, 8), transform=Binary(threshold=127.5, high=255.0))


def test_grey_on_a_plain_ground_is_told_from_the_grey_of_an_edge():
    image = np.zeros((8, 8))
    image[1:4, 1:4] = 255
    image[0, 1:4] = 120  # an edge
    assert discarded_apart(INK, image.reshape(1, -1)) == 0
    image[6, 6] = 51  # too faint for the threshold, and far from all ink
    assert discarded_apart(INK, image.reshape(1, -1)) == pytest.approx(51 / 255 / 64)
    inverted = 255 - image
    assert discarded_apart(INK, inverted.reshape(1, -1)) == pytest.approx(51 / 255 / 64)
    np.testing.assert_allclose(discarded(INK, image.reshape(1, -1)).sum(), (3 * 120 + 51) / 255)


def test_older_versions_have_the_statistics_that_they_were_calibrated_for(digit_scorer):
    for generation in (1, 2):
        assert generation_of(INK, len(weights_of(INK, generation)[0])) == generation
    assert set(names_of(INK, 2)) - set(names_of(INK, 1)) == {"discarded_apart"}
    table = InputSpec(kind="table", shape=(3,), transform=Standard(center=(0.0,) * 3, scale=(1.0,) * 3))
    assert names_of(table, 1) == names_of(table, 2)
    with pytest.raises(ValueError, match="no version has 99 statistics"):
        generation_of(INK, 99)
    spec, known = digit_scorer.model.input, digit_scorer.calibration.statistics.known
    rows = digit_scorer.rows(digits()[:5])
    for generation in (1, 2):
        statistics = digit_scorer.model.row_statistics(replace(known, generation=generation))
        found = digit_scorer.model.assess(rows, statistics=statistics).statistics
        assert found.shape == (5, len(weights_of(spec, generation)[0]))


def test_a_letter_that_is_too_faint_for_the_threshold_is_seen_beside_a_digit():
    """Under the bundled model, which reads black and white, and for which both images are the same."""
    scorer = load_scorer(Store(REPOSITORY / "model_store"), "mnist", "cpu")
    plain = np.load(REPOSITORY / "examples" / "digits.npy")[:10].reshape(-1, 28, 28).astype(float)
    marked = plain.copy()
    for image in marked:
        letter = image[1:11, 1:9]
        letter[:, :2] = letter[:2] = letter[4:6, :6] = 100.0
    marked = np.maximum(plain, marked)
    options = ScoreOptions("combined", false_alarm=0.02)
    digits_alone, with_letters = scorer.score(plain, options), scorer.score(marked, options)
    assert np.array_equal(digits_alone.log_likelihood, with_letters.log_likelihood)
    assert digits_alone.valid.sum() >= 9
    assert with_letters.valid.sum() <= 1


def test_distances_are_in_the_columns_own_units():
    """A curved scale puts a number that is far too large near the largest ones that are known."""
    generator = np.random.default_rng(0)
    sizes, places = np.exp(2.0 * generator.normal(size=400)).round(3), generator.normal(size=400).round(3)
    table = Table(("size", "place"), (sizes, places))
    spec = InputSpec(
        kind="table",
        shape=(2,),
        columns=("size", "place"),
        transform=Mixed(columns=learn(infer(table), table)),
        precision="float64",
    )
    rows = spec.rows(np.stack([sizes, places], axis=1))
    strange = np.array([[3.0 * sizes.max(), 0.0]])
    assert np.array_equal(coordinates(spec, rows), rows)
    assert not categories(spec).any()
    distances = {}
    for generation in (LAST_CURVED, GENERATION):
        near = Neighbours(coordinates(spec, rows, generation), categories(spec, generation))
        own = near.nearest(coordinates(spec, rows, generation), 2)[0][:, 1]
        distances[generation] = near.nearest(coordinates(spec, strange, generation), 1)[0][0, 0] / own.max()
    assert distances[GENERATION] > 2.0
    assert distances[LAST_CURVED] < 1.0


def test_what_is_told_of_shades_texture_and_colours():
    generator = np.random.default_rng(0)
    plain = np.full((1, 12, 10, 3), 120.0)
    spotted = plain.copy()
    spotted[0, 4:7, 2:5] = 10.0
    spotted[0, 8:11, 6:9] = 250.0
    assert [one[0] for one in extremes(spotted)] == pytest.approx([10.0, 250.0])
    assert [one[0] for one in extremes(plain)] == pytest.approx([120.0, 120.0])
    noise = plain + generator.normal(0, 20, plain.shape[:3])[..., None]
    smooth = plain + 6.0 * np.arange(12)[:, None, None]
    (rough, ramp), (sharp, blurred) = textures(np.concatenate([noise, smooth]))
    assert rough > ramp
    assert sharp == pytest.approx(0.0, abs=0.2)  # of noise, neighbours differ as much as others
    assert blurred == pytest.approx(-np.log(4.0), abs=0.05)  # of a ramp, twice as far is twice as much
    naive = np.concatenate([np.diff(noise[0, ..., 0], axis=axis).ravel() for axis in (0, 1)])
    assert textures(noise)[0][0] == pytest.approx(np.log(np.square(naive).mean()))
    red, blue = plain.copy(), plain.copy()
    red[..., 0], blue[..., 2] = 200.0, 200.0
    assert [one.tolist() for one in hues(np.concatenate([red, blue]))] == [[80.0, 0.0], [40.0, -80.0]]
    assert textures(np.zeros((2, 1, 1)))[1].tolist() == [0.0, 0.0]  # of a single pixel nothing is told
