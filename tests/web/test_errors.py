"""Every error that a caller can get says what to send instead: all messages in the source are read, and some answers."""

import ast
import re

import pytest

from service import errors
from service.web import problems
from service.web.openapi import EXAMPLES
from tests.models import ROWS, digits
from tests.tools import REPOSITORY, npy

# What is raised, or stands in `errors`, where a caller of the service may read it.
PACKAGES = ("data", "files", "journal", "scoring", "serving", "validity", "web")
KINDS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.InputError)} | {
    "CalibrationError", "AccessError", "ScopeError", "ModelNotFoundError", "ModelConflictError", "OverloadedError",
    "UnavailableError", "DeadlineError", "NoRecordError", "AmbiguousRecordError", "Fault",
}  # fmt: skip
# How a message says what to do: what was expected, what there is, or which limit there is.
GUIDANCE = re.compile(
    r"\b(expected|send|save|ask|use|run|take|leave|try|read it again|correct|must|needs?|takes|at most|at least|limit|lists"
    r"|it has|one of|instead|is for|may not|too few|the model has|the model reads|training makes|names|accepted"
    r"|belong to)\b|: \{\}$|^\{\}$"
)
# Messages that no request can cause.
INTERNAL = {
    "first_samples is above max_samples",
    "probed_axes is below 1",
    "device 'cuda' requested, but torch sees no GPU",
}


def text_of(node):
    """The text of a literal, with {} for what is filled in; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    if isinstance(node, ast.BinOp):
        return f"{text_of(node.left) or '{}'}{text_of(node.right) or '{}'}"
    return None


def messages():
    """Each message in the source: its place, its kind and its text."""
    for package in PACKAGES:
        for path in sorted((REPOSITORY / "service" / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                name = getattr(getattr(node, "func", None), "id", None)
                if name not in KINDS or not node.args or (text := text_of(node.args[0])) is None:
                    continue
                expects = name == "Fault" and (
                    len(node.args) > 3 or any(one.arg == "expected" for one in node.keywords)
                )
                if not expects and text not in INTERNAL:
                    yield f"{path.relative_to(REPOSITORY)}:{node.lineno}", text


def test_every_message_says_what_to_send_instead():
    found = list(messages())
    assert len(found) > 100
    silent = [f"{place}: {text}" for place, text in found if not GUIDANCE.search(text)]
    assert not silent, "\n".join(silent)


def test_every_status_has_an_example_that_says_what_to_send_instead():
    documented = {status for _, status, _ in problems.STATUSES} | {421}
    assert set(EXAMPLES) == documented
    for slug, detail, _ in EXAMPLES.values():
        assert slug in problems.TITLES
        assert GUIDANCE.search(detail), detail


BAD = {
    "no body": ("POST", "/score", {}),
    "no JSON": ("POST", "/score", {"content": "{", "headers": {"content-type": "application/json"}}),
    "no rows": ("POST", "/score", {"json": {"instances": []}}),
    "another field": ("POST", "/score", {"json": {"rows": ROWS}}),
    "a short row": ("POST", "/score", {"json": {"instances": [[1]]}}),
    "a pixel out of range": ("POST", "/score", {"json": {"instances": [[300] * 64]}}),
    "text": ("POST", "/score", {"json": {"instances": [["x"] * 64]}}),
    "a cut array": (
        "POST",
        "/score",
        {"content": npy(digits()[:2])[:-1], "headers": {"content-type": "application/x-npy"}},
    ),
    "a cut image": ("POST", "/score", {"content": b"\x89PNG\r\n\x1a\nxx", "headers": {"content-type": "image/png"}}),
    "a form without files": ("POST", "/score", {"data": {"a": "b"}, "files": {}}),
    "another type": ("POST", "/score", {"content": "a", "headers": {"content-type": "text/plain"}}),
    "another charset": (
        "POST",
        "/score",
        {"content": "{}", "headers": {"content-type": "application/json; charset=x"}},
    ),
    "another coding": ("POST", "/score", {"json": {}, "headers": {"content-encoding": "br"}}),
    "no gzip": ("POST", "/score", {"json": {}, "headers": {"content-encoding": "gzip"}}),
    "another answer": ("POST", "/score", {"json": {"instances": ROWS}, "headers": {"accept": "text/html"}}),
    "another ending": ("GET", "/sample.exe", {}),
    "another parameter": ("GET", "/sample?number=3", {}),
    "a parameter out of range": ("GET", "/sample?num=0", {}),
    "too many": ("GET", "/sample?num=100000", {}),
    "a rate of 0": ("POST", "/score?false_alarm=0", {"json": {"instances": ROWS}}),
    "a rate too low": ("POST", "/score?false_alarm=1e-9", {"json": {"instances": ROWS}}),
    "no such model": ("GET", "/sample?model=nobody", {}),
    "no such version": ("GET", "/sample?model=digits@9", {}),
    "no such card": ("GET", "/models/nobody", {}),
    "no such path": ("GET", "/nowhere", {}),
    "another method": ("DELETE", "/score", {}),
    "latents": ("POST", "/decode", {"json": {"latents": [[1]]}}),
    "axes": ("GET", "/manifold?axes=0,99", {}),
    "a deadline": ("POST", "/score", {"json": {"instances": ROWS}, "headers": {"x-request-timeout": "soon"}}),
    "an alias": ("POST", "/models/digits/aliases", {"json": {"alias": "X", "version": "1"}}),
    "a tensor": ("POST", "/v2/models/digits/infer", {"json": {"inputs": []}}),
}


@pytest.mark.parametrize("name", BAD)
def test_an_answer_says_what_to_send_instead(in_process, name):
    method, path, options = BAD[name]
    answer = in_process.request(method, path, **options)
    assert 400 <= answer.status_code < 500, answer.text
    document = answer.json()
    said = [document.get("detail", document.get("error"))]
    said += [
        part
        for fault in document.get("errors", [])
        for part in (fault["message"], fault.get("expected") and "expected")
    ]
    assert any(text and (GUIDANCE.search(text) or "should" in text) for text in said), said
