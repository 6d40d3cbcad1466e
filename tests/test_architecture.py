"""The floors of the house: a module imports only from floors below its own, or from its own room."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "service"

FLOORS = [
    ["errors", "__init__"],
    ["settings", "vae", "data", "client", "processes"],
    ["density", "validity"],
    ["evidence", "shelf", "expectation"],
    ["model", "files", "checkpoints", "parallel"],
    ["store", "folds", "streaming"],
    ["scorer", "trainer"],
    ["tabular", "detector", "evaluation", "watch"],
    ["web", "datasets"],
    ["cli"],
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# The package's `load` is the program's shortest use; it imports the scorer when it is called.
ALLOWED = {("__init__", "scorer"), ("__init__", "store")}
NUMERICAL = {"vae": {"torch"}, "density": {"torch", "numpy"}, "validity": {"numpy"}}
STANDARD = {
    "abc",
    "collections",
    "concurrent",
    "contextlib",
    "copy",
    "functools",
    "dataclasses",
    "fractions",
    "hashlib",
    "math",
    "time",
    "typing",
    "itertools",
    "weakref",
}


def modules():
    return sorted(ROOT.rglob("*.py"))


def room(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0]


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module != "__future__":
            yield node.module
            if node.module == "service":
                yield from (f"service.{alias.name}" for alias in node.names)


def rooms_imported(path):
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "service" and len(parts) > 1 and parts[1] in FLOOR:
            yield parts[1]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_from_floors_below(path):
    own = room(path)
    assert own in FLOOR, f"{own} has no floor: put it into the list"
    for other in rooms_imported(path):
        if other != own and (own, other) not in ALLOWED:
            assert FLOOR[other] < FLOOR[own], f"{own} imports {other}, which is not below it"


@pytest.mark.parametrize("name", NUMERICAL)
def test_the_numerical_core_knows_nothing_of_files_json_or_http(name):
    for path in (ROOT / name).rglob("*.py"):
        foreign = {module.split(".")[0] for module in imported(path)} - {"service"} - STANDARD
        assert foreign <= NUMERICAL[name], f"{path} imports {foreign}"


def test_the_service_imports_nothing_that_only_training_needs():
    import subprocess
    import sys

    code = (
        "import sys, service.web.server; "
        "unwanted = {'service.vae.training', 'service.trainer', 'matplotlib', 'pyarrow', 'sklearn', 'scipy'}; "
        "bad = unwanted & set(sys.modules); "
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
