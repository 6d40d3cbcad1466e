"""Query parameters of lean routes: parsed into a typed struct, which also documents them in the OpenAPI document."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import parse_qsl

import msgspec

from service.errors import InputError, ScopeError
from service.scoring.options import RuleName, ScoreOptions, parse_percentiles
from service.settings import SettingsError
from service.validity.conformal import LEAST_SHARE, Tail

Q = TypeVar("Q", bound=msgspec.Struct)
FIELD = re.compile(r"`\$\.(\w+)`")
Share = Annotated[float, msgspec.Meta(ge=LEAST_SHARE, lt=1)]
Count = Annotated[int, msgspec.Meta(ge=0, le=999_999_999)]


def described(text: str) -> msgspec.Meta:
    """A parameter's description in the OpenAPI document."""
    return msgspec.Meta(description=text)


class ScoreQuery(msgspec.Struct):
    """The query of POST /score."""

    model: Annotated[str | None, described("NAME, NAME@VERSION or NAME@ALIAS; default: the store's default")] = None
    percentiles: Annotated[
        str | None,
        described("percentiles of another band for this request, from the same validation scores, such as 1,99"),
    ] = None
    false_alarm: Annotated[
        Share | None,
        described("instead of percentiles: the share of valid rows that may be called invalid, such as 0.01"),
    ] = None
    tail: Annotated[
        Tail | None, described("low: only unlikely rows are invalid; both: also rows that are too likely")
    ] = None
    rule: Annotated[
        RuleName | None,
        described(
            "band: judge by log p(x); combined: judge by several test statistics, at a false-alarm rate; default: what the "
            "version was published with, usually band"
        ),
    ] = None
    fdr: Annotated[Share | None, described("mark discoveries: in expectation, at most this share of them is valid")] = (
        None
    )
    explain: Annotated[
        Count | Literal["map"],
        described("number of most suspicious columns to report for each row; map: the log-likelihood of each pixel"),
    ] = 0
    strict: Annotated[
        bool, described("1: a cell that cannot be read is an error; by default it makes its row invalid")
    ] = False
    trial: Annotated[
        bool,
        described(
            "1: trial rows, which drift monitors and the shadow leave out; a journal records them as such, and keeps none"
        ),
    ] = False

    def options(self) -> ScoreOptions:
        """The query as options of the scorer."""
        percentiles = None if self.percentiles is None else parse_percentiles(self.percentiles)
        explain, maps = (0, True) if self.explain == "map" else (int(self.explain), False)
        return ScoreOptions(self.rule, percentiles, self.false_alarm, self.tail, self.fdr, explain, self.strict, maps)


JUDGING = ("rule", "percentiles", "false_alarm", "tail")  # how a row is judged
TOLD = ("explain", "fdr", "strict", "maps")  # what is told of it


def policy_of(text: str | None) -> ScoreOptions | None:
    """The rule that a deployment sets for all callers, from VOUCH_POLICY.

    Raises:
        SettingsError: says what was expected.
    """
    if text is None:
        return None
    try:
        given = dict(parse_qsl(text, keep_blank_values=True, strict_parsing=True))
        if not given.keys() <= set(JUDGING):
            raise InputError(f"expected some of {', '.join(JUDGING)}")
        return parse_query(given, ScoreQuery).options().or_default("band", None)  # whatever a version's own rule is
    except (ValueError, InputError) as error:
        detail = f": {error}" if isinstance(error, InputError) else ""
        raise SettingsError(f"VOUCH_POLICY: expected a rule such as false_alarm=0.01&tail=low{detail}") from None


def under_policy(query: ScoreQuery, policy: ScoreOptions | None) -> ScoreOptions:
    """The options of a request, by the deployment's rule if it has one.

    Raises:
        ScopeError: the request asks for another rule.
    """
    asked = query.options()
    if policy is None:
        return asked
    told = {name: getattr(asked, name) for name in TOLD}
    ruled = replace(policy, **told)
    silent = ScoreOptions(**told)
    if asked != silent and asked.or_default("band", None) != ruled:
        raise ScopeError(f"this deployment sets the rule for all callers: leave out {', '.join(JUDGING)}")
    return ruled


# What each parameter should be; errors say this instead of repeating the value.
EXPECTED = {
    "false_alarm": "a number above 0 and below 1, such as 0.01",
    "fdr": "a number above 0 and below 1, such as 0.05",
    "tail": "low or both",
    "rule": "band or combined",
    "explain": "an integer of at least 0, or map",
    "strict": "0 or 1",
    "trial": "0 or 1",
}


def parse_query(parameters: Mapping[str, str], kind: type[Q]) -> Q:
    """Parse query parameters into a typed struct; the route has checked that all names are known.

    Raises:
        InputError: names the parameter and what was expected.
    """
    wrong = [name for name in EXPECTED if parameters.get(name, "").lower() == "null"]  # msgspec would read it as None
    try:
        if not wrong:
            return msgspec.convert(dict(parameters), kind, strict=False)
    except msgspec.ValidationError as error:
        wrong = FIELD.findall(str(error))
    raise InputError(f"{wrong[0]}: expected {EXPECTED[wrong[0]]}")


def documented(kind: type[msgspec.Struct]) -> list[dict[str, Any]]:
    """A struct's fields as query parameters of the OpenAPI document."""
    properties = msgspec.json.schema(kind)["$defs"][kind.__name__]["properties"]
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": entry.get("description", ""),
            "schema": {key: value for key, value in entry.items() if key != "description"},
        }
        for name, entry in properties.items()
    ]
