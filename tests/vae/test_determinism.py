"""Every primitive of a score gives a row the same bits, however many rows share the array and wherever it stands."""

import os
import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from service.density.diagnostics import diagnose
from service.density.pareto import khat
from service.vae.determinism import (
    ALIGNED,
    gram,
    in_vectors,
    inverted,
    mapped,
    principal_axes,
    product,
    pulled_back,
    solved,
)
from service.vae.layers import Linear

ROWS = 256
SIZES = (ALIGNED, 2 * ALIGNED, 16, 36, 128)
PLACES = (0, 1, 2, 3, 64)
SHAPES = [
    (9, 200),
    (200, 151),
    (40, 400),
    (400, 784),
    (5, 64),
    (64, 20),
    (15, 100),
    (2, 400),
    (5, 10),
    (10, 5),
    (17, 33),
]


def normal(*shape, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(len(shape) + shape[-1]))


def positive(latents):
    """Positive definite matrices, shape (ROWS, L, L)."""
    half = normal(ROWS, latents, latents, dtype=torch.float64)
    return half @ half.mT + torch.eye(latents, dtype=torch.float64)


def products():
    for inputs, outputs in SHAPES:
        linear = Linear(inputs, outputs).requires_grad_(False)
        yield f"linear {inputs} {outputs}", linear, (normal(ROWS, inputs),)
        weight = normal(outputs, inputs)
        yield f"product {inputs} {outputs}", lambda x, weight=weight: product(x, weight), (normal(ROWS, inputs),)
        wide = weight.double()
        yield f"float64 {inputs} {outputs}", partial(product, weight=wide), (normal(ROWS, inputs, dtype=torch.float64),)
        back = normal(ROWS, outputs)
        yield f"pulled back {inputs} {outputs}", lambda x, weight=weight: pulled_back(x, weight), (back,)


def matrices():
    for latents in (2, 3, 5, 9, 15, 20, 21, 40):
        spd, vector = positive(latents), normal(ROWS, latents, dtype=torch.float64)
        factor = torch.linalg.cholesky(spd)
        yield f"cholesky {latents}", lambda a: torch.linalg.cholesky_ex(a)[0], (spd,)
        yield f"solve {latents}", solved, (factor, vector)
        yield f"inverse {latents}", inverted, (factor,)
        yield f"axes {latents}", principal_axes, (spd,)
        for draws in (1, 5, 9, 14, 16, 128):
            yield f"mapped {latents} {draws}", mapped, (spd, normal(ROWS, draws, latents, dtype=torch.float64))
        for features in (14, 151, 784):
            some = normal(ROWS, latents, features)
            yield f"gram {latents} {features}", gram, (some, some)


def sums_over_draws():
    for draws in (16, 32, 512, 4096):
        log_weights = 3.0 * normal(ROWS, draws, dtype=torch.float64)
        for name in ("logsumexp", "softmax", "sum"):
            yield f"{name} {draws}", lambda x, name=name: getattr(x, name)(dim=-1), (log_weights,)
        yield f"khat {draws}", khat, (log_weights,)
        yield f"diagnosis {draws}", lambda x: torch.from_numpy(diagnose(x, 0.01).std_error), (log_weights,)


def functions():
    for width in (5, 9, 14, 15, 64):
        x, wide = normal(ROWS, width), normal(ROWS, 2 * width)
        for name in ("sigmoid", "silu", "softplus"):
            function = partial(in_vectors, getattr(F, name))
            yield f"{name} {width}", function, (x,)
            yield f"{name} of half {width}", of_half(function), (wide,)
        for name in ("exp", "expm1", "log", "log1p", "tanh", "asinh"):
            function = getattr(torch, name)
            yield f"{name} {width}", function, (x.abs(),)
            yield f"{name} of half {width}", of_half(function), (wide.abs(),)
        yield f"erfinv {width}", torch.erfinv, (torch.tanh(x.double()),)
        yield f"row sum {width}", lambda x: x.sum(dim=-1, dtype=torch.float64), (x,)


def of_half(function):
    """Of the right half of x, which is a view with gaps."""
    return lambda x: function(x.chunk(2, dim=-1)[1])


@pytest.mark.parametrize("family", [products, matrices, sums_over_draws, functions], ids=lambda one: one.__name__)
def test_a_row_has_the_same_bits_in_arrays_of_every_size(family):
    different = []
    for name, function, arrays in family():
        whole = outputs(function(*arrays))
        for size in SIZES:
            for start in PLACES:
                part = outputs(function(*(array[start : start + size].clone() for array in arrays)))
                if not all(same(p, w[start : start + size]) for p, w in zip(part, whole, strict=True)):
                    different.append((name, size, start))
    assert not different


def outputs(found):
    return found if isinstance(found, tuple) else (found,)


def same(one, other):
    return torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0)) and torch.equal(one.isnan(), other.isnan())


def test_enlarging_a_matrix_changes_nothing_but_rounding():
    for latents in (1, 3, 4, 9):
        spd, right = positive(latents), normal(ROWS, latents, dtype=torch.float64)
        factor = torch.linalg.cholesky(spd)
        torch.testing.assert_close(solved(factor, right), torch.linalg.solve(spd, right))
        torch.testing.assert_close(inverted(factor), torch.linalg.inv(spd))
        values, vectors = principal_axes(spd)
        torch.testing.assert_close(values, torch.linalg.eigvalsh(spd))
        torch.testing.assert_close(vectors * values[:, None] @ vectors.mT, spd)


@pytest.mark.slow
def test_so_do_older_instructions():
    """With AVX2 alone, as on most machines."""
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
