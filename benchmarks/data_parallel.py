"""Training by two processes beside one, and killed and resumed: the validation bounds that they reach on MNIST.

    python benchmarks/data_parallel.py --data FOLDER [--epochs 20]

A bound is of one draw of z for each of 6,000 rows, the same rows for all.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def training(data: Path, store: Path, epochs: int, *options: str) -> list[str]:
    """The command."""
    program = [sys.executable, "-m", "service.cli", "train", str(data / "mnist.npz"), "--key", "x_train"]
    model = ["--name", "mnist", "--likelihood", "bernoulli", "--threshold", "127.5", "--epochs", str(epochs)]
    return [*program, *model, "--calibration-share", "0.02", "--estimator", "fast", "--store", str(store), *options]


def report_of(store: Path) -> dict[str, float]:
    """How the fit went."""
    card = json.loads((store / "mnist" / "1" / "card.json").read_text())
    bound: dict[str, float] = card["training"]["report"]["validation"]
    return bound | {"seconds": card["training"]["report"]["seconds"]}


def killed(command: list[str], store: Path, after_s: float) -> None:
    """End a training some seconds after its first checkpoint."""
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not list((store / ".training").rglob("*.pt")):
        time.sleep(0.05)
    time.sleep(after_s)
    process.send_signal(signal.SIGKILL)
    process.wait()


def main() -> None:
    """Train four times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=20)
    arguments = parser.parse_args()
    two = ("--data-parallel", "2")
    with tempfile.TemporaryDirectory() as folder:
        for name, options, is_killed in (
            ("one process", (), False),
            ("two processes", two, False),
            ("two, killed and resumed", two, True),
            ("one, another seed", ("--seed", "1"), False),
        ):
            store = Path(folder) / name.replace(" ", "-")
            command = training(arguments.data, store, arguments.epochs, *options)
            if is_killed:
                killed(command, store, 12.0)
                command.append("--resume")
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
            found = report_of(store)
            print(
                f"{name}: validation bound {found['bound']:.3f} nats (reconstruction {found['reconstruction']:.3f}, "
                f"KL {found['kl']:.3f}) in {found['seconds']:.0f} s of training",
                flush=True,
            )


if __name__ == "__main__":
    main()
