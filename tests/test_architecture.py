"""The layers of the program: a module imports only from layers below its own, or from its own package."""

import ast
import importlib
import importlib.metadata
import inspect
import subprocess
import sys
import tomllib
from collections import Counter

import pytest
from packaging.requirements import Requirement

from tests.tools import REPOSITORY

ROOT = REPOSITORY / "service"

# Each layer's packages and modules, and what they know. CONTRIBUTING.md has the same table.
LAYERS = [
    {"errors": "the tree of what a caller can do wrong", "_version": "the version"},
    {"system": "files written whole, CPUs, processes"},
    {
        "settings": "`VOUCH_*`",
        "data": "tables, what their columns are, and what a model reads",
        "vae": "networks and likelihoods",
    },
    {
        "client": "asking a service, from another program",
        "console": "the console's files, and reports made of the same parts",
        "files": "files of rows, of every format",
        "density": "estimates of log p(x)",
        "validity": "bands, p-values, conformal tests; without torch",
    },
    {"scoring": "a model with its calibration, and what it says of rows"},
    {
        "journal": "who got which verdict, and what people say of it: a chain of records in SQLite",
        "store": "versions and aliases, in a folder or at a URL",
        "training": "from rows to a model that is calibrated",
    },
    {
        "__init__": "`load()`",
        "detector": "scikit-learn's interface",
        "serving": "what a running service holds: the queue, loaded models, drift monitors; no HTTP",
    },
    {"web": "HTTP", "datasets": "`vouch filter`: whole data sets"},
    {"cli": "the command line"},
]
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
NUMERICAL = {"vae": {"torch"}, "density": {"torch", "numpy"}, "validity": {"numpy"}}
STANDARD = sys.stdlib_module_names - {"json", "pathlib", "os", "socket", "csv", "pickle", "sqlite3"}


def modules(root=ROOT):
    return sorted(root.rglob("*.py"))


def package(path):
    return path.relative_to(ROOT).with_suffix("").parts[0]


def name_of(path):
    return ".".join(["service", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")


def imported(path):
    """What a module imports, in functions and for type checkers, too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            if node.module != "__future__":
                yield node.module
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def packages_imported(path):
    """The packages and modules of the program that a module imports; `service` itself is its `__init__`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "service":
            for alias in node.names:
                yield alias.name if alias.name in LAYER else "__init__"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("service."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "service":
                    yield [*alias.name.split("."), "__init__"][1]


def test_every_package_and_module_has_one_layer():
    there = {path.stem if path.is_file() else path.name for path in ROOT.iterdir() if path.name != "__pycache__"}
    assert there == set(LAYER)
    assert len(LAYERS) <= 9
    assert max(Counter(name for names in LAYERS for name in names).values()) == 1


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_from_layers_below(path):
    own = package(path)
    for other in packages_imported(path):
        assert other in LAYER, f"{other} has no layer: add it to the list"
        if other != own:
            assert LAYER[other] < LAYER[own], f"{own} imports {other}, which is not below it"


def test_no_modules_import_each_other_in_a_circle():
    """As they are read: what a function imports when it is called, or only for type checkers, makes no circle."""
    names = {name_of(path): path for path in modules()}
    edges = {}
    for name, path in names.items():
        tree = ast.parse(path.read_text())
        found = set()
        for node in tree.body:
            if isinstance(node, ast.ImportFrom):
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)} & names.keys()
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names} & names.keys()
        edges[name] = found - {name}
    ended = set()

    def walk(name, way):
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name not in ended:
            for other in edges[name]:
                walk(other, [*way, name])
            ended.add(name)

    for name in edges:
        walk(name, [])


@pytest.mark.parametrize("name", NUMERICAL)
def test_the_numerical_core_knows_nothing_of_files_json_or_http(name):
    for path in modules(ROOT / name):
        foreign = {module.split(".")[0] for module in imported(path)} - {"service"} - STANDARD
        assert foreign <= NUMERICAL[name], f"{path} imports {foreign}"


def loaded_by(module):
    """The modules in memory once one is imported, in a process of its own."""
    code = f"import sys, {module}; print('\\n'.join(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


def test_the_service_imports_nothing_that_only_training_needs():
    loaded = loaded_by("service.web.server")
    assert not {"service.training", "matplotlib", "pyarrow", "sklearn", "scipy"} & loaded


def test_serving_knows_nothing_of_http():
    for path in modules(ROOT / "serving"):
        assert not {"fastapi", "starlette", "uvicorn", "httpx"} & {name.split(".")[0] for name in imported(path)}, path
    code = "import " + ", ".join(name_of(path) for path in modules(ROOT / "serving"))
    code += "; import sys; found = {'fastapi', 'starlette', 'uvicorn'} & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_contributing_shows_the_same_layers():
    page = (REPOSITORY / "CONTRIBUTING.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ") and line[2].isdigit()]
    expected = [
        [
            str(number),
            f"`{name}`" if name in ("__init__", "_version") or (ROOT / f"{name}.py").exists() else f"`{name}/`",
            what,
        ]
        for number, names in enumerate(LAYERS)
        for name, what in names.items()
    ]
    assert rows == expected


def public_objects():
    """What `make docs` shows, and what their users call of it."""
    tree = ast.parse((REPOSITORY / "scripts" / "docs_reference.py").read_text())
    shown = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}
    for names in ast.literal_eval(shown["PYTHON"]).values():
        for name in names:
            module, _, attribute = name.rpartition(".")
            shown = getattr(importlib.import_module(module), attribute, None) or importlib.import_module(name)
            yield name, shown
            if inspect.isclass(shown):
                for member, value in vars(shown).items():
                    if not member.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
                        yield f"{name}.{member}", value


def test_the_public_api_is_documented():
    shown = dict(public_objects())
    assert len(shown) > 40
    for name, value in shown.items():
        assert inspect.getdoc(value), name


def test_the_uvicorn_that_is_installed_is_the_one_that_the_connection_limits_are_made_for():
    """They ride on its protocol class, whose inner names are nobody's promise."""
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    dependencies = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    (pinned,) = (Requirement(one) for one in dependencies if one.startswith("uvicorn"))
    assert any(one.operator == "<" for one in pinned.specifier)
    assert pinned.specifier.contains(importlib.metadata.version("uvicorn"))
    names = (
        "connection_made",
        "connection_lost",
        "data_received",
        "on_body",
        "on_headers_complete",
        "on_message_complete",
    )
    for name in (*names, "on_response_complete"):
        assert inspect.isfunction(getattr(HttpToolsProtocol, name))
    source = inspect.getsource(HttpToolsProtocol)
    for name in ("self.loop", "self.transport", "self.pipeline", "self.cycle"):
        assert name in source


# Sizes

MOST_LINES, MOST_FUNCTION_LINES, MOST_PARAMETERS = 450, 60, 10
EXCEPTIONS = {  # module or module.function: why
    "service.detector.__init__": "scikit-learn takes an estimator's parameters from its constructor",
}


def functions(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_functions_and_signatures_are_short(path):
    name = name_of(path)
    assert name in EXCEPTIONS or len(path.read_text().splitlines()) <= MOST_LINES
    for node in functions(path):
        one = f"{name}.{node.name}"
        if one in EXCEPTIONS:
            continue
        assert node.end_lineno - node.lineno + 1 <= MOST_FUNCTION_LINES, f"{one} is too long"
        arguments = node.args
        parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        named = [one for one in parameters if one.arg not in ("self", "cls")]
        assert len(named) <= MOST_PARAMETERS, f"{one} has {len(named)} parameters"


def test_exceptions_are_needed():
    known = {name_of(path) for path in modules()}
    known |= {f"{name_of(path)}.{node.name}" for path in modules() for node in functions(path)}
    assert set(EXCEPTIONS) <= known
    assert all(EXCEPTIONS.values())


def test_no_ten_lines_stand_twice():
    """The same ten lines to the letter, imports and blank lines apart, are one function's."""
    places = {}
    for path in modules():
        tree = ast.parse(path.read_text())
        skipped = {
            number
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for number in range(node.lineno, node.end_lineno + 1)
        }
        lines = [
            (number, line.strip())
            for number, line in enumerate(path.read_text().splitlines(), start=1)
            if line.strip() and number not in skipped
        ]
        for start in range(len(lines) - 9):
            block = tuple(text for _, text in lines[start : start + 10])
            places.setdefault(block, []).append((path, lines[start][0]))
    twice = {block: found for block, found in places.items() if len(found) > 1}
    shown = [" and ".join(f"{path.relative_to(ROOT)}:{line}" for path, line in found) for found in twice.values()]
    assert not twice, "\n".join(shown)
