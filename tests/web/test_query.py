"""Queries: texts to a typed struct, or an error that names the parameter and does not repeat what it was."""

import math

import pytest

from service.errors import CalibrationError, InputError, VouchError
from service.scoring.options import DEFAULT, ScoreOptions
from service.validity.conformal import LEAST_SHARE
from service.web.lean import check_known
from service.web.query import EXPECTED, ScoreQuery, documented, parse_query

SECRET = "s3cr3t"


def test_an_empty_query_asks_for_what_is_usual():
    assert parse_query({}, ScoreQuery) == ScoreQuery()
    assert ScoreQuery().options() == DEFAULT


def test_every_parameter_arrives():
    texts = {"model": "wine@2", "percentiles": "1,99", "tail": "low", "rule": "combined", "fdr": "0.05", "explain": "3"}
    query = parse_query(texts, ScoreQuery)
    assert (query.model, query.fdr, query.explain, query.tail, query.rule) == ("wine@2", 0.05, 3, "low", "combined")
    query = parse_query({"percentiles": "1,99.5", "explain": "2"}, ScoreQuery)
    assert query.options() == ScoreOptions(percentiles=(1.0, 99.5), explain=2)
    query = parse_query({"false_alarm": "1e-2", "tail": "both"}, ScoreQuery)
    assert query.options() == ScoreOptions(false_alarm=0.01, tail="both")


WRONG = {
    "false_alarm": [
        "",
        "0",
        "1",
        "-0.1",
        "1.1",
        "nan",
        "inf",
        "-inf",
        "1e400",
        SECRET,
        "null",
        "NULL",
        "true",
        "[0.1]",
    ],
    "fdr": ["", "0", "1", "-0", "2", "nan", "NaN", "Infinity", "0,1", SECRET, "null", "None"],
    "tail": ["", "high", "LOW", "low,both", SECRET, "null"],
    "rule": ["", "Band", "all", SECRET, "null"],
    "explain": ["", "-1", "1.5", "x", "nan", "99999999999999999999", "null", SECRET, "0x10"],
    "strict": ["", "2", "yes", "null", SECRET],
    "trial": ["", "2", "yes", "null", SECRET],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in WRONG.items() for text in texts])
def test_what_a_parameter_cannot_be_is_refused_by_its_name(name, text):
    with pytest.raises(InputError) as caught:
        parse_query({name: text}, ScoreQuery)
    assert str(caught.value) == f"{name}: expected {EXPECTED[name]}"


def test_every_parameter_that_is_checked_has_words_for_what_was_expected():
    assert set(WRONG) == set(EXPECTED) == set(ScoreQuery.__struct_fields__) - {"model", "percentiles"}


@pytest.mark.parametrize(
    "text",
    ["", ",", "5", "5,", ",95", "5,95,99", "95,5", "5,5", "-1,95", "5,101", "nan,95", "5,inf", "a,b", SECRET, "null"],
)
def test_percentiles_that_cannot_be_are_refused(digit_scorer, text):
    with pytest.raises((InputError, CalibrationError)) as caught:
        digit_scorer.check(ScoreQuery(percentiles=text).options())
    assert SECRET not in str(caught.value)


def test_shares_are_open_at_both_ends():
    for text in ("1e-12", str(math.nextafter(1, 0))):
        assert 0 < parse_query({"fdr": text}, ScoreQuery).fdr < 1
    for text in ("5e-324", "0", "1"):  # a limit divided by so small a share is beyond every number
        with pytest.raises(InputError, match="fdr: expected a number above 0 and below 1"):
            parse_query({"fdr": text}, ScoreQuery)


def test_options_that_contradict_each_other_are_refused():
    for texts in ({"percentiles": "5,95", "false_alarm": "0.1"}, {"percentiles": "5,95", "rule": "combined"}):
        with pytest.raises(VouchError):
            parse_query(texts, ScoreQuery).options()


def test_the_document_has_every_parameter_with_its_bounds_and_a_description():
    parameters = {one["name"]: one for one in documented(ScoreQuery)}
    assert list(parameters) == list(ScoreQuery.__struct_fields__)
    assert all(one["in"] == "query" and not one["required"] and one["description"] for one in parameters.values())
    number, word = parameters["explain"]["schema"]["anyOf"]
    assert (number["minimum"], word["enum"]) == (0, ["map"])
    assert parameters["rule"]["schema"]["default"] is None
    assert {"minimum": LEAST_SHARE, "exclusiveMaximum": 1, "type": "number"}.items() <= parameters["fdr"]["schema"][
        "anyOf"
    ][0].items()


def test_a_misspelt_parameter_is_refused_with_the_ones_that_there_are():
    check_known([], frozenset())
    check_known(["fdr"], frozenset({"fdr", "tail"}))
    with pytest.raises(InputError, match=r"expected some of: fdr, tail$"):
        check_known(["fdr", SECRET], frozenset({"fdr", "tail"}))
    with pytest.raises(InputError, match=r"expected some of: none$"):
        check_known([SECRET], frozenset())
