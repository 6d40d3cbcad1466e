"""Rows as Python programs have them: trained on a CSV file, scored from frames, dicts, files and HTTP to the same bits."""

import json

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.client import Client
from service.data.frames import array_of
from service.data.survey import surveyed
from service.detector import VAEDetector
from service.errors import InputError
from service.files.tables import read_raw
from service.scoring.options import ScoreOptions
from service.store.loading import load_scorer
from service.store.store import Store
from service.training.train import train_table
from tests.models import PEOPLE
from tests.tools import running_service
from tests.ugly.files import KINDS, columns, frame, text

ROWS = 12
RULE = ScoreOptions("combined", false_alarm=0.05)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frames")
    path = folder / "people.csv"
    path.write_text(text(columns()))
    survey = surveyed(read_raw(path))
    Store(folder / "store").publish(
        "people", train_table(survey.table, PEOPLE, survey.schema, reading=survey.reading).draft
    )
    Store(folder / "store").set_default("people")
    return folder / "store"


@pytest.fixture(scope="module")
def scorer(store):
    return load_scorer(Store(store), "people", "cpu", threads=1)


@pytest.fixture(scope="module")
def some():
    """A few rows, some with missing cells, as pandas has them."""
    data = frame(columns())
    complete = data.dropna()[: ROWS - 1]
    return pd.concat([complete, data[data.city.isna()][:1]])[[*KINDS]].reset_index(drop=True)


def nullable(data):
    """With pandas' own types, pd.NA for missing cells, and columns in another order."""
    kinds = {"visits": "Int64", "grade": "Int8", "member": "boolean", "city": "category", "zip": "string[pyarrow]"}
    return data.convert_dtypes().astype(kinds)[[*KINDS][::-1]]


def lists_of(data):
    rows = data.astype(object).where(data.notna(), None)
    return [dict(row) for row in rows.to_dict("records")]


DOORS = {
    "pandas": lambda data: data,
    "pandas, columns in another order": lambda data: data[[*KINDS][::-1]],
    "pandas with its own types": nullable,
    "pandas with Arrow's types": lambda data: data.convert_dtypes(dtype_backend="pyarrow"),
    "polars": pl.from_pandas,
    "polars with categories": lambda data: pl.from_pandas(data).with_columns(pl.col("city").cast(pl.Categorical)),
    "Arrow": lambda data: pa.Table.from_pandas(data, preserve_index=False),
    "dicts": lists_of,
    "dicts of numpy's scalars": lambda data: [
        {name: np.float64(cell) if isinstance(cell, float) else cell for name, cell in row.items()}
        for row in lists_of(data)
    ],
    "lists": lambda data: [[row[name] for name in KINDS] for row in lists_of(data)],
}


@pytest.mark.parametrize("door", DOORS)
def test_rows_score_alike_in_every_form(door, some, scorer):
    expected = scorer.score_read(array_of(some, scorer.reader), RULE)
    found = scorer.score(DOORS[door](some), RULE)
    np.testing.assert_array_equal(found.log_likelihood, expected.log_likelihood)
    np.testing.assert_array_equal(found.combined_p_value, expected.combined_p_value)


def test_files_and_http_score_as_frames_do(some, scorer, store, tmp_path):
    expected = scorer.score(some, RULE)
    some[[*KINDS][::-1]].to_csv(tmp_path / "rows.csv")  # with its index, columns in another order
    pq.write_table(pa.Table.from_pandas(some), tmp_path / "rows.parquet")
    for name in ("rows.csv", "rows.parquet"):
        raw = read_raw(tmp_path / name, known=scorer.reader.names)
        rows = scorer.model.input.read(scorer.reader.table(raw), scorer.reader)
        np.testing.assert_array_equal(scorer.score_read(rows, RULE).log_likelihood, expected.log_likelihood)
    with running_service(store, tmp_path / "log") as http:
        for content, kind in (
            (json.dumps({"instances": lists_of(some)}).encode(), "application/json"),
            ((tmp_path / "rows.csv").read_bytes(), "text/csv"),
        ):
            answer = http.post("/score?rule=combined&false_alarm=0.05", content=content, headers={"content-type": kind})
            scores = answer.json()["scores"]
            assert [one["log_likelihood"] for one in scores] == expected.log_likelihood.tolist()
        with Client(str(http.base_url), model="people") as client:
            for door in ("pandas", "pandas with its own types", "polars", "dicts of numpy's scalars"):
                verdicts = client.score(DOORS[door](some), rule="combined", false_alarm=0.05)
                np.testing.assert_array_equal(verdicts.log_likelihood, expected.log_likelihood)
            one = client.score(lists_of(some)[0], rule="combined", false_alarm=0.05)
            assert one.log_likelihood[0] == expected.log_likelihood[0]


def test_columns_that_are_missing_unknown_or_nested_are_named(some, scorer):
    for data, message in (
        (some.drop(columns="city"), "missing column 'city'"),
        (some.assign(shoes=43), "unknown column 'shoes'"),
        (some.assign(shoes=[[1]] * ROWS), "unknown column 'shoes'"),
        (some.assign(height="tall"), "row 0, column height: text; expected a number"),
        (lists_of(some.drop(columns="city")), "column city: missing column"),
        ([{**lists_of(some)[0], "height": "tall"}], "row 0, column height: text"),
        ([1, 2], r"the array has shape \(2,\)"),
        (pl.from_pandas(some).lazy(), "expected an array, a data frame in memory"),
    ):
        with pytest.raises(InputError, match=message):
            scorer.score(data, ScoreOptions(strict=True))


def test_what_training_ignored_may_be_there(scorer, some):
    data = some.assign(id="P-1", day="2024-01-01", note="x", same=7)
    np.testing.assert_array_equal(scorer.score(data).log_likelihood, scorer.score(some).log_likelihood)


def test_every_call_takes_frames(scorer, some):
    np.testing.assert_array_equal(scorer.encode(some).mean, scorer.encode(scorer.rows(some)).mean)
    assert scorer.reconstruct(some[:2]).mean.shape == (2, len(KINDS))


def test_wide_numbers_keep_their_digits(tmp_path):
    """A column at 1e8 with unit spread, and whole numbers beyond float32."""
    random = np.random.default_rng(0)
    data = pd.DataFrame({"far": 1e8 + random.normal(size=600).round(3), "wide": 10**12 + random.integers(0, 900, 600)})
    data["near"] = (data.far - 1e8 + 0.1 * random.normal(size=600)).round(3)
    data.to_csv(tmp_path / "far.csv", index=False)
    survey = surveyed(read_raw(tmp_path / "far.csv"))
    Store(tmp_path).publish("far", train_table(survey.table, PEOPLE, survey.schema, reading=survey.reading).draft)
    scorer = load_scorer(Store(tmp_path), "far", "cpu", threads=1)
    assert scorer.model.input.dtype == np.float64
    rows = data[:50]
    moved = rows.assign(far=rows.far + 3)  # float32 has steps of 8 there
    drop = scorer.score(rows).log_likelihood - scorer.score(moved).log_likelihood
    assert np.median(drop) > 3
    assert scorer.reader.table(read_raw(tmp_path / "far.csv"))[:, 1].tolist() == data.wide.tolist()


def test_the_detector_takes_pandas_own_types():
    data = frame(columns())[["height", "income", "visits", "member", "city"]][:300]
    detector = VAEDetector(ensemble=1, steps=60, random_state=0).fit(nullable_detector(data))
    scores = detector.score_samples(nullable_detector(data)[:20])
    assert np.isfinite(scores).all()
    plain = detector.score_samples(data[:20])
    np.testing.assert_array_equal(scores, plain)


def nullable_detector(data):
    return data.convert_dtypes().astype({"city": "category", "member": "boolean"})
