"""VAEDetector: scikit-learn's own checks, and that it finds outliers."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import estimator_checks_generator

from service.detector import VAEDetector

SMALL = {"hidden": (16,), "steps": 30, "ensemble": 1, "prior": "normal"}


SLOW_CHECKS = {  # those that fit or score many times
    "check_methods_subset_invariance",
    "check_outliers_train",
    "check_outliers_fit_predict",
    "check_estimators_dtypes",
    "check_classifier_data_not_an_array",
}


def checks():
    """scikit-learn's checks, under the names that it gives them."""
    for estimator, check in estimator_checks_generator(VAEDetector(**SMALL)):
        name = check.func.__name__
        options = "".join(f"({key}={value})" for key, value in check.keywords.items() if key == "readonly_memmap")
        yield pytest.param(estimator, check, id=name + options, marks=[pytest.mark.slow] if name in SLOW_CHECKS else [])


@pytest.mark.parametrize(("estimator", "check"), list(checks()))
def test_it_is_a_scikit_learn_estimator(estimator, check):
    """All checks; scikit-learn itself skips that of its array API where SCIPY_ARRAY_API is not set."""
    check(estimator)


def rows(number, seed=0):
    """Three columns that hang together."""
    generator = np.random.default_rng(seed)
    factor = generator.normal(size=(number, 1))
    return np.hstack([factor, -factor, factor]) * [1.0, 50.0, 0.01] + generator.normal(size=(number, 3)) * [
        0.2,
        10,
        2e-3,
    ]


@pytest.fixture(scope="module")
def detector():
    return VAEDetector(hidden=(32,), steps=700, ensemble=2, random_state=0).fit(rows(600))


def test_it_finds_rows_that_break_what_holds_between_columns(detector):
    valid, broken = rows(300, seed=1), rows(300, seed=2)
    broken[:, 1] = np.random.default_rng(3).permutation(broken[:, 1])
    scores = detector.score_samples(np.concatenate([valid, broken]))
    assert roc_auc_score(np.repeat([1, 0], 300), scores) > 0.85
    assert (detector.predict(valid) == -1).mean() == pytest.approx(0.05, abs=0.05)
    assert (detector.predict(valid + np.array([0, 1000, 0])) == -1).all()


def test_scores_are_log_densities_in_the_units_of_the_rows(detector):
    valid = rows(500, seed=4)
    loadings, noise = np.array([1.0, -50.0, 0.01]), np.array([0.2, 10, 2e-3])
    exact = stats.multivariate_normal(np.zeros(3), np.outer(loadings, loadings) + np.diag(noise**2)).logpdf(valid)
    scores = detector.score_samples(valid)
    assert abs(np.mean(scores - exact)) < 0.3
    assert np.corrcoef(scores, exact)[0, 1] > 0.8


def test_missing_cells_are_read(detector):
    holed = rows(50, seed=5)
    holed[::2, 0] = np.nan
    assert np.isfinite(detector.score_samples(holed)).all()
    fitted = VAEDetector(**SMALL, random_state=0).fit(holed)
    assert np.isfinite(fitted.score_samples(holed)).all()


def test_a_column_that_never_changed_is_an_alarm_when_it_does():
    known = np.hstack([rows(200), np.full((200, 1), 7.0)])
    fitted = VAEDetector(**SMALL, random_state=0).fit(known)
    strange = known[:5].copy()
    strange[:, 3] = 9.0
    assert (fitted.score_samples(strange) < fitted.score_samples(known[:5]) - 2).all()


def test_contamination_places_the_threshold_among_the_rows():
    known = rows(200)
    fitted = VAEDetector(**SMALL, contamination=0.1, random_state=0)
    assert (fitted.fit_predict(known) == -1).sum() == 20


@pytest.mark.slow
def test_columns_may_be_inferred_and_text_is_a_category():
    pandas = pytest.importorskip("pandas")
    generator = np.random.default_rng(0)
    kind = generator.choice(["a", "b"], 300)
    frame = pandas.DataFrame({"size": np.where(kind == "a", 1.0, 5.0) + generator.normal(size=300), "kind": kind})
    for columns in ("plain", "inferred"):
        fitted = VAEDetector(columns=columns, hidden=(16,), steps=300, ensemble=1, random_state=0).fit(frame)
        assert fitted.feature_names_in_.tolist() == ["size", "kind"]
        asked = pandas.DataFrame({"size": [1.0, 1.0, 1.0], "kind": ["a", "b", "never"]})
        likely, unlikely, unseen = fitted.score_samples(asked)
        assert likely > unlikely
        assert likely > unseen


@pytest.mark.parametrize(
    "options",
    [
        {"contamination": 0.7}, {"contamination": "some"}, {"estimator": "quick"}, {"prior": "flat"}, {"ensemble": 0},
        {"columns": "all"}, {"hidden": (0,)}, {"latents": 0}, {"validation_fraction": 1.0}, {"steps": 0},
    ],
)  # fmt: skip
def test_parameters_that_cannot_be_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}.*expected"):
        VAEDetector(**options).fit(rows(20))


def test_columns_of_which_nothing_is_there_are_refused():
    with pytest.raises(ValueError, match="no value"):
        VAEDetector(**SMALL).fit(np.full((20, 2), np.nan))


def test_it_drops_into_pipelines_and_grid_searches():
    pipeline = make_pipeline(FunctionTransformer(), VAEDetector(**SMALL, random_state=0))
    search = GridSearchCV(
        pipeline,
        {"vaedetector__latents": [1, 2]},
        scoring=lambda fitted, x, y=None: fitted.score_samples(x).mean(),
        cv=2,
    )
    search.fit(rows(100))
    assert set(search.best_params_) == {"vaedetector__latents"}
