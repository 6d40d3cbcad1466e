"""Whether a version that was calibrated on rows of a service takes over: never by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from service.cli.console import err
from service.errors import CalibrationError, DataError

if TYPE_CHECKING:
    from service.journal.database import Database
    from service.scoring.scorer import Scorer
    from service.scoring.selftest import SelfTest
    from service.scoring.version import Draft, Published, Reference
    from service.store.store import Store

RATES = (0.01, 0.02, 0.05, 0.1, 0.2)  # of false alarms, of which the first that both versions allow is taken
MOST_ROWS = 200
TOLERATED = 0.05  # how much less of spoilt rows may be caught, in the mean of all ways of spoiling


def check_is_served(models: Store, reference: Reference) -> None:
    """Raise unless a version is what its model's bare name means: only that one is replaced."""
    serving = models.catalog().serving[reference.name]
    if serving != reference.version:
        raise DataError(f"--promote-if: {reference.name} is served as version {serving}: calibrate that one")


def keep_serving(database: Database, models: Store, name: str) -> None:
    """Give what is served the alias production, if there is none: else the newest version would be served."""
    from service.journal.database import Entry
    from service.store.store import PRODUCTION

    catalog = models.catalog()
    if PRODUCTION in catalog.aliases.get(name, {}):
        return
    serving = catalog.serving[name]
    models.set_alias(name, PRODUCTION, serving)
    database.append([Entry("alias", moved(name, serving, None))])
    err.print(
        f"{name}@{PRODUCTION} is {name}@{serving} from now on, as it was served so far: new versions do not move it, "
        "`vouch promote` does"
    )


def moved(name: str, version: str, before: str | None) -> dict[str, str | None]:
    """What the journal says of an alias that a command moved."""
    told = {"model": name, "alias": "production", "version": version, "before": before, "key": None}
    return told | {"by": "vouch calibrate"}


def promote_if_earned(
    database: Database, models: Store, published: Published, reference: Reference, draft: Draft, rows: np.ndarray
) -> None:
    """Move the alias production to a new version, if the old one drifts, and the new one catches no less.

    Args:
        rows: valid ones, shape (N, D + C), to be spoilt.
    """
    from service.journal.database import Entry
    from service.store.store import PRODUCTION

    old = published.reference
    why = why_not(database, published, draft, rows)
    if why is not None:
        err.print(f"{old.name}@{PRODUCTION} stays at {old}: {why}", highlight=False, markup=False)
        return
    models.set_alias(old.name, PRODUCTION, reference.version, old.version)
    database.append([Entry("alias", moved(old.name, reference.version, old.version))])
    err.print(f"{old.name}@{PRODUCTION} is {reference}: {old} drifts, and the self-test catches no less")


def why_not(database: Database, published: Published, draft: Draft, rows: np.ndarray) -> str | None:
    """Why a new version is not to be promoted; None if it is."""
    from service.scoring.scorer import Scorer
    from service.scoring.selftest import difference

    if not drifts(database, published.reference):
        return "its drift monitor has raised no alarm"
    scorers = [Scorer(one) for one in (published, draft.unpublished())]
    tests = selftests(scorers, rows)
    if tests is None:
        return "what both versions catch cannot be compared: too few rows, or no rate that both allow"
    change, worst = difference(*tests)
    if change < -TOLERATED:
        return (
            f"at {100 * tests[0].false_alarm:g} % false alarms, the new version catches {-100 * change:.1f} points less "
            f"of spoilt rows; most: {worst}"
        )
    return None


def drifts(database: Database, reference: Reference) -> bool:
    """Whether the drift monitor of all rows of a version has raised an alarm that was not acknowledged since."""
    import msgspec

    is_alarmed = False
    for record in database.records("drift", "drift_restart"):
        told = msgspec.msgpack.decode(record.content)
        if told.get("model") == str(reference) and "key" not in told:
            is_alarmed = True
        if told.get("model") == str(reference) and record.kind == "drift_restart":
            is_alarmed = False
    return is_alarmed


def selftests(scorers: list[Scorer], rows: np.ndarray) -> list[SelfTest] | None:
    """What each of some versions catches of the same spoilt rows at the same rate; None if that cannot be told."""
    from service.scoring.selftesting import selftested

    some = np.random.default_rng(0).permutation(rows)[:MOST_ROWS]
    for rate in RATES:
        try:
            found = [selftested(scorer, some, rate) for scorer in scorers]
        except CalibrationError:
            continue
        return found if all(one.caught for one in found) else None
    return None
