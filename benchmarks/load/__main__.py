"""All of it, in one run: `make loadtest`.

    python -m load --store ../model_store            # from this folder's parent; or only some parts: --only floor

Every load is bounded in clients, requests and time, and stays on loopback. The tables go to benchmarks/RESULTS.md.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from load.against import against
from load.attack import attack, fair
from load.changes import alias_swaps, end_under_load, killed_publishers
from load.compare import compare
from load.floor import floor
from load.journal import journal_cost, journal_kills
from load.overload import overload
from load.servers import HERE
from load.strangers import hang_up_with_work, strangers
from load.stream import liveness, stream
from service.density.estimator import Estimator
from service.files.readers import Rows
from service.store.store import Store
from service.system.cpus import cpu_quota
from service.training.fit import FitOptions
from service.training.recipe import Recipe
from service.training.train import train

RESULTS = HERE / "RESULTS.md"
SMALL = "small"


def main(
    store: Annotated[Path, typer.Option(help="a store with the model")] = HERE.parent / "model_store",
    model: Annotated[str, typer.Option(help="of images")] = "mnist",
    only: Annotated[list[str] | None, typer.Option(help="parts to run; default: all")] = None,
    venvs: Annotated[Path, typer.Option(help="folder of the peers' virtual environments")] = HERE / ".peers",
    rounds: Annotated[int, typer.Option(min=1, help="of the comparison and the floor")] = 2,
    seconds: Annotated[float, typer.Option(min=1, help="of a load in the comparison")] = 5.0,
    overload_seconds: Annotated[float, typer.Option(max=600)] = 120.0,
    lines: Annotated[int, typer.Option(help="of the stream")] = 1_000_000,
    attack_rounds: Annotated[int, typer.Option(min=1, max=9, help="of the attack")] = 3,
    other: Annotated[Path | None, typer.Option("--against", help="another checkout, for the part `against`")] = None,
) -> None:
    """Run the load tests, and write their results down."""
    torch.set_num_threads(1)
    threads = cpu_quota()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        small = small_store(work / "small-store")
        parts: dict[str, tuple[str, Callable[[], list[str]]]] = {
            "floor": (
                "The floor: over HTTP, of the Scorer in a loop",
                lambda: [
                    *floor(store, model, work, 3 * rounds, seconds, threads), "",
                    *floor(small, SMALL, work, 3 * rounds, seconds, threads),
                ],
            ),
            "against": (
                "Rows per second beside another checkout",
                lambda: [
                    *against(store, model, work, other, 3 * rounds, seconds, threads), "",
                    *against(small, SMALL, work, other, 3 * rounds, seconds, threads),
                ],
            ),
            "journal": (
                "What a journal costs",
                lambda: [
                    *journal_cost(small, SMALL, work / "small", 3 * rounds, seconds, threads), "",
                    *journal_cost(store, model, work, rounds, seconds, threads),
                ],
            ),
            "journal-kills": (
                "A journal whose service is killed", lambda: journal_kills(small, SMALL, work, threads)
            ),
            "liveness": ("The probe beside a long batch", lambda: liveness(store, model, work, threads)),
            "hangup": (
                "Ten thousand rows whose sender hangs up", lambda: hang_up_with_work(store, model, work, threads)
            ),
            "strangers": (
                "A well-behaved client beside others", lambda: strangers(store, model, work, 4 * seconds, threads)
            ),
            "attack": ("Bodies that are made to cost much", lambda: attack(store, work, attack_rounds, threads)),
            "fair": ("One row beside a hostile key", lambda: fair(store, model, work, 4 * seconds, threads)),
            "changes": (
                "Changes under load",
                lambda: [
                    *alias_swaps(store, model, work, threads),
                    *end_under_load(store, model, work, threads),
                    *killed_publishers(store, model, work),
                ],
            ),
            "overload": (
                f"Twice the capacity for {overload_seconds:g} s",
                lambda: overload(store, model, work, overload_seconds, threads),
            ),
            "stream": ("A long stream of lines", lambda: stream(small, SMALL, work, lines, threads)),
            "compare": (
                f"Beside other servers: `{model}`",
                lambda: compare(store, model, work, venvs, rounds, seconds, threads),
            ),
            "compare-small": (
                "Beside other servers: a small table model",
                lambda: compare(small, SMALL, work / "small", venvs, rounds, seconds, threads),
            ),
        }  # fmt: skip
        (work / "small").mkdir()
        run(
            {name: parts[name] for name in only or [name for name in parts if name not in ("against", "journal-kills")]}
        )


def run(parts: dict[str, tuple[str, Callable[[], list[str]]]]) -> None:
    """Print each part's lines as it ends, and keep them below its heading in the results."""
    for name, (title, part) in parts.items():
        start = time.monotonic()
        lines = part()
        when = f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, Python {platform.python_version()}"
        text = "\n".join(
            [f"## {title}", "", f"`--only {name}`, {when}, {time.monotonic() - start:.0f} s.", "", *lines, ""]
        )
        print(text, flush=True)
        keep(title, text)


def keep(title: str, text: str) -> None:
    """Put a part into the results, in place of what it said before."""
    before = RESULTS.read_text() if RESULTS.exists() else "# What the benchmarks printed\n\n"
    head, *sections = before.split("\n## ")
    others = [section for section in sections if not section.startswith(f"{title}\n")]
    RESULTS.write_text("\n## ".join([head, *(section.rstrip() + "\n" for section in [*others, text[3:]])]))


def small_store(root: Path) -> Path:
    """A store with a small model of a table of 10 columns, trained for some seconds."""
    generator = np.random.default_rng(0)
    factors = generator.standard_normal((4000, 3))
    rows = factors @ generator.standard_normal((3, 10)) + 0.5 * generator.standard_normal((4000, 10))
    columns = tuple(f"c{number}" for number in range(10))
    recipe = Recipe(latents=4, hidden=(32,), fit=FitOptions(epochs=10), estimator=Estimator.of("fast"))
    Store(root).publish(SMALL, train(Rows(rows, columns), recipe).draft)
    return root


if __name__ == "__main__":
    typer.run(main)
