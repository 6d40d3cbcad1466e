"""What `vouch train` says at its end: what was made of which rows, what it promises, and what to do next."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from service.cli.console import accepted, duration, err, interval
from service.errors import CalibrationError

if TYPE_CHECKING:
    from service.scoring.scores import CombinedRule
    from service.scoring.selftest import SelfTest
    from service.scoring.version import Draft, Reference
    from service.training.train import Trained
    from service.validity.band import Band
    from service.validity.conformal import Acceptance

USUAL_STORE = "model_store"
FALSE_ALARM = 0.02  # of the rule that is recommended
MOST_NAMES = 10
CHOOSING, NOT_CHOOSING = "mean of ways that may choose weights", "mean of ways that never do"


def print_report(reference: Reference, trained: Trained, seconds: float, store: str = USUAL_STORE) -> None:
    """Print what was published, in the words of whoever trained it; how the fit went is the last line."""
    for line in report_lines(reference, trained, seconds, store):
        err.print(line, highlight=False, markup=False)


def report_lines(reference: Reference, trained: Trained, seconds: float, store: str) -> Iterator[str]:
    """The report, line by line."""
    draft = trained.draft
    yield f"published {reference}, in {duration(seconds)}"
    yield from rows_lines(draft)
    yield from (f"note: {note}" for note in trained.notes)
    if trained.report.stopped == "interrupted":
        yield "note: the fit was interrupted; the best network until then was calibrated and published"
    rule = recommended_rule(draft)
    yield from accepted_lines(draft, rule)
    yield from weighting_lines(draft)
    if draft.selftest is not None:
        yield from selftest_lines(draft.selftest)
    if trained.left_out:
        yield f"columns left out: {some_of(trained.left_out)}"
    if trained.report.validation.active_latents == 0:
        yield unconnected("pixels" if draft.model.input.kind == "image" else "columns")
    options = ""
    if rule is not None and draft.rule == "band":
        options = f" --rule combined --false-alarm {rule.false_alarm:g}"
    place = "" if store == USUAL_STORE else f" --store {shlex.quote(store)}"
    yield f"next: vouch score FILE --model {reference.name}{options}{place}"
    yield fit_line(trained)


def rows_lines(draft: Draft) -> Iterator[str]:
    """What the rows were used for."""
    data, networks = draft.training["data"], draft.calibration.num_folds
    calibrating = f"calibrated on {len(draft.calibration.scores):,} rows"
    if networks == 1:
        yield f"trained on {data['rows']:,} rows, {data['validation_rows']:,} held back for early stopping; {calibrating}"
        return
    yield (
        f"{networks} networks, each trained on {data['rows']:,} rows, {data['validation_rows']:,} held back for early "
        f"stopping; {calibrating}, each by the network that has not seen it"
    )
    yield f"the {networks} networks serve together, so a score costs {networks} times as much"


def recommended_rule(draft: Draft) -> CombinedRule | None:
    """The combined rule at FALSE_ALARM or, with few rows, at the smallest whole percentage that they allow."""
    calibration, spec = draft.calibration, draft.model.input
    if draft.rule == "combined":
        return calibration.combined_rule(spec, draft.false_alarm)
    for percent in range(round(100 * FALSE_ALARM), 100):
        try:
            return calibration.combined_rule(spec, percent / 100.0)
        except CalibrationError:
            continue
    return None


def accepted_lines(draft: Draft, rule: CombinedRule | None) -> Iterator[str]:
    """The shares of valid rows that verdicts will accept, and how well they are known."""
    band, rows = draft.calibration.band(), len(draft.calibration.scores)
    low, high = band.percentiles
    ends = f"above {low:g} %" if math.isinf(band.high) else f"from {low:g} to {high:g} %"
    is_default = " (the default)" if draft.rule == "band" else ""
    yield f"the band {ends}{is_default} accepts {known(share_of(draft, band, None), rows)}"
    if rule is None:
        why = "networks by folds do not have it" if draft.calibration.folds is not None else "it needs more rows"
        yield f"the rule combined is not available: {why}"
    else:
        is_default = " (the default)" if draft.rule == "combined" else ""
        name = f"the rule combined at a false-alarm rate of {rule.false_alarm:g}{is_default}"
        yield f"{name} accepts {known(share_of(draft, band, rule), rows)}"
        if rule.false_alarm > FALSE_ALARM:
            yield f"a lower rate, such as {FALSE_ALARM:g}, needs more rows to calibrate on"
    yield from group_lines(draft, rule)


def share_of(draft: Draft, band: Band, rule: CombinedRule | None) -> Acceptance:
    """The share of valid rows that a band or, if given, a rule accepts; by groups, if there are any."""
    grouping = draft.calibration.grouping(draft.model.input, band, rule)
    if grouping is not None:
        return grouping.together
    return band.accepted if rule is None else rule.accepted


def group_lines(draft: Draft, rule: CombinedRule | None) -> Iterator[str]:
    """The shares of each group's valid rows that the default rule will accept, if there are groups."""
    band = draft.calibration.band()
    grouping = draft.calibration.grouping(draft.model.input, band, rule if draft.rule == "combined" else None)
    if grouping is not None:
        yield f"each group of {grouping.column} is compared with its own rows; by the default rule"
        of_each = zip(grouping.names, grouping.accepted, grouping.rows, strict=True)
        yield from (f"  {name}: accepts {known(share, rows)}" for name, share, rows in of_each if rows)


def calibrated_lines(reference: Reference, draft: Draft, total: int, note: str | None) -> Iterator[str]:
    """What `vouch calibrate` has made of so many rows, line by line."""
    fitted, data = draft.calibration.band(), draft.calibration_data
    used, pilot, tested = fitted.rows, data["pilot_rows"], data.get("test_rows", 0)
    weighing = data.get("weighing_rows", 0)
    low, high = fitted.percentiles
    yield (
        f"published {reference}: band {interval(fitted.ends_or_none)} nats, percentiles {low:g} to {high:g} of {used:,} "
        f"rows, accepts {accepted(share_of(draft, fitted, None))}"
    )
    if note:
        yield f"note: {note}"
    others = total - used - pilot - tested - weighing
    yield (
        f"{used:,} of {total:,} rows calibrate; {pilot:,} were used to set the estimator (the pilot)"
        + (f"; {tested:,} are kept to test the model" if tested else "")
        + (f"; {weighing:,} choose the weights of its statistics" if weighing else "")
        + (f"; the other {others:,} would tell no more" if others > 0 else "")
    )
    yield from group_lines(draft, recommended_rule(draft))
    yield from weighting_lines(draft)
    if draft.selftest is not None:
        yield from selftest_lines(draft.selftest)


def weighting_lines(draft: Draft) -> Iterator[str]:
    """How the statistics of the rule combined are weighed, and why."""
    from service.scoring.weighing import LEAST_HELD_BACK, USUAL

    chosen = draft.calibration.weighting
    if draft.calibration.statistics is None:
        return
    if chosen is None:
        yield f"the rule combined has the usual weights: choosing takes {LEAST_HELD_BACK} rows held back, and time"
        return
    by = f"of {chosen.rows:,} valid rows, spoilt in {chosen.ways} ways"
    if chosen.name == USUAL:
        yield f"the rule combined has the usual weights: no others catch clearly more {by} ({100 * chosen.usual:.0f} %)"
    else:
        yield (
            f"the rule combined weighs {chosen.name}: it catches {100 * chosen.caught:.0f} % {by}, and "
            f"{100 * chosen.usual:.0f} % with the usual weights"
        )


def selftest_lines(selftest: SelfTest, is_whole: bool = False) -> Iterator[str]:
    """What is caught of spoilt rows by the last of the rules, the most first; the whole of it has a line for each spoil."""
    from service.scoring.spoils import APART

    rate, rule = 100 * selftest.false_alarm, selftest.rules[-1]
    ranked = sorted(selftest.caught, key=lambda one: -one.shares[-1])
    if is_whole:
        yield f"rows that each rule calls invalid at a false-alarm rate of {rate:.3g} %, in per cent"
        width = max(len(NOT_CHOOSING) - 8, *(len(one.spoil) for one in ranked))
        yield f"{'':{width}}  {'rows':>6}" + "".join(f"  {name:>16}" for name in selftest.rules)
        valid = ("valid, as they are", selftest.rows, selftest.alarms)
        for name, rows, shares in (valid, *((one.spoil, one.rows, one.shares) for one in ranked)):
            yield f"{name:{width}}  {rows:6,}" + "".join(f"  {100 * share:16.1f}" for share in shares)
        apart = [one for one in ranked if one.spoil in APART]
        others = [one for one in ranked if one.spoil not in APART]
        for name, some in ((CHOOSING, others), (NOT_CHOOSING, apart)):
            means = np.mean([one.shares for one in some], axis=0).tolist() if some else []
            yield f"{name:{width + 8}}" + "".join(f"  {100 * share:16.1f}" for share in means)
        return
    rows = max(one.rows for one in ranked)
    yield f"at {rate:.3g} % false alarms the rule {rule} catches, of up to {rows:,} valid rows spoilt in each way:"
    for least, most, name in ((0.95, 2.0, "nearly all"), (0.5, 0.95, "most"), (0.1, 0.5, "some"), (-1.0, 0.1, "few")):
        some = [one for one in ranked if least <= one.shares[-1] < most]
        if some:
            yield f"  {name}: " + ", ".join(f"{one.spoil} ({100 * one.shares[-1]:.0f} %)" for one in some)


def known(share: Acceptance, rows: int) -> str:
    """The share of valid rows that a rule accepts, and how well so many rows tell it."""
    if share.interval is None:
        return accepted(share)
    low, high = share.interval
    likely, least = f"{100 * low:.3g} to {100 * high:.3g} %", "at least " if share.is_bound else ""
    return f"{least}{100 * share.expected:.3g} % of valid rows; as far as {rows:,} rows tell, {likely}"


def some_of(left_out: Sequence[tuple[str, str]]) -> str:
    """The first columns that were left out, each with the reason, and the number of the others."""
    shown = ", ".join(f"{name} ({why})" for name, why in left_out[:MOST_NAMES])
    return shown if len(left_out) <= MOST_NAMES else f"{shown} and {len(left_out) - MOST_NAMES:,} more"


def unconnected(columns: str) -> str:
    """What a posterior that collapsed means to the user."""
    return (
        f"note: the network found no connection between the {columns}, so it judges each by itself. That is right if they "
        "have nothing to do with each other, and usual with few rows. If they do belong together, try more rows, more "
        "--minutes or --epochs, or a lower --beta"
    )


def fit_line(trained: Trained) -> str:
    """How the fit went, in numbers; of 8-bit images also in bits for each pixel and channel."""
    report, kept = trained.report, trained.report.validation
    bits = trained.draft.model.input.bits_per_dimension(kept.bound)
    in_bits = "" if bits is None else f" = {bits:.2f} bits per pixel and channel"
    return (
        f"fit: validation bound {kept.bound:.2f} nats{in_bits} "
        f"(reconstruction {kept.reconstruction:.2f}, KL {kept.kl:.2f}), "
        f"{kept.active_latents} active latents, best epoch {report.best_epoch} of {report.epochs}, {report.seconds:.0f} s, "
        f"stopped by {report.stopped}"
    )
