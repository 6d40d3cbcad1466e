"""What training rows mean: the units of the input, and a network that suits them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from service.data.cells import Reading
from service.data.columns import CategoryColumn, NumberColumn
from service.data.inputs import Binary, Grey, InputSpec, Mixed, Standard, Transform
from service.data.kinds import Schema, infer
from service.data.learn import CONSTANT, learn
from service.data.scales import Straight
from service.data.table import Table
from service.errors import DataError
from service.files.readers import Rows
from service.training.recipe import Recipe
from service.vae.convolution import level_count, level_sizes
from service.vae.mixed import Categorical, Column, Count, Real
from service.vae.network import Architecture, LikelihoodName, NetworkName

WIDE, MANY_ROWS = 256, 2_000  # the hidden layers' width for so many rows of a table; half as wide for fewer
LARGE = 28 * 28  # pixels; larger images have convolutional networks
# Their channels at a level with maps of so many pixels a side: every level costs about the same.
CHANNELS_TIMES_SIDE, NARROWEST, WIDEST = 512, 16, 128
FEW_PIXELS, FEW_LATENTS, MANY_LATENTS = 1024, 32, 64
MIN_STD = 0.05  # smallest standard deviation of a standardised column given z


def input_of(rows: Rows, recipe: Recipe, network: NetworkName = "mlp") -> tuple[InputSpec, LikelihoodName]:
    """The input spec of the rows, and the recipe's likelihood or one that suits them and the network.

    Three-dimensional arrays are grey images, 0..255, four-dimensional ones images with colours. Data with only two values
    make a Bernoulli model; other images are 8-bit levels, other tables continuous columns.
    """
    array = rows.array
    is_image = rows.are_images
    low, high = float(array.min()), float(array.max())
    if is_image and (low < 0 or high > 255):
        raise DataError(f"pixels range from {low:g} to {high:g}, expected 0 to 255")
    two_valued = low < high and bool(((array == low) | (array == high)).all())
    levels: LikelihoodName = "pixel_logistic" if network == "conv" else "discretized_logistic"
    likelihood = recipe.likelihood or ("bernoulli" if two_valued else levels if is_image else "gaussian")
    transform: Transform
    if likelihood == "bernoulli":
        ends = (0.0, 255.0) if is_image else (low, high)
        if not is_image and not two_valued and recipe.threshold is None:
            raise DataError("the columns have more than two values: a bernoulli model needs --threshold")
        transform = Binary(threshold=midpoint(ends, recipe.threshold), low=ends[0], high=ends[1])
    elif recipe.threshold is not None:
        raise DataError("--threshold works only with --likelihood bernoulli")
    elif likelihood == "pixel_logistic" and not is_image:
        raise DataError("--likelihood pixel_logistic is for images; the data are a table")
    elif likelihood in ("discretized_logistic", "pixel_logistic"):
        if low < 0 or high > 255:
            raise DataError(f"values range from {low:g} to {high:g}, expected 8-bit grey levels from 0 to 255")
        transform = Grey()
    else:
        transform = standard(array.reshape(len(array), -1), rows.columns)
    shape = tuple(int(length) for length in array.shape[1:])
    kind = "image" if is_image else "table"
    precision = "float32" if is_image else "float64"
    return InputSpec(kind=kind, shape=shape, columns=rows.columns, transform=transform, precision=precision), likelihood


def plain_input(rows: Rows, recipe: Recipe) -> tuple[InputSpec, Architecture]:
    """The input spec of images or of a table's plain numbers, and a network that suits it."""
    network = network_of(rows, recipe)
    spec, likelihood = input_of(rows, recipe, network)
    return spec, architecture_of(spec, likelihood, network, recipe)


def midpoint(ends: tuple[float, float], threshold: float | None) -> float:
    """The given threshold, or halfway between black and white."""
    return (ends[0] + ends[1]) / 2.0 if threshold is None else threshold


def standard(rows: np.ndarray, columns: tuple[str, ...] | None) -> Standard:
    """Means and standard deviations of the columns of rows, shape (N, D)."""
    values = rows.astype(np.float64)
    scale = values.std(axis=0)
    constant = np.flatnonzero(scale <= CONSTANT * np.maximum(1e-30, np.abs(values).max(axis=0)))
    if constant.size:
        name = constant[0] if columns is None else repr(columns[constant[0]])
        raise DataError(f"column {name} is constant and carries no information: leave it out with --columns")
    return Standard(center=tuple(values.mean(axis=0).tolist()), scale=tuple(scale.tolist()))


def network_columns(column: NumberColumn | CategoryColumn) -> list[Column]:
    """The network's columns for a column of the table, with their likelihoods."""
    if isinstance(column, CategoryColumn):
        return [Categorical(len(column.values), column.unseen)]
    # Which atom the cell is, or none of them.
    gate: list[Column] = [Categorical(len(column.atoms) + 1, 0.0)] if column.atoms else []
    if column.kind == "count":
        return [*gate, Count(column.scale.offset, column.center, column.spread, MIN_STD)]  # type: ignore[union-attr]
    # With a standard deviation below half the column's step, density times step could exceed 1, which no probability can.
    step = column.resolution / column.spread if isinstance(column.scale, Straight) else 0.0
    return [*gate, Real(max(MIN_STD, 0.5 * step))]


def table_architecture(transform: Mixed, recipe: Recipe, rows: int) -> Architecture:
    """The network for a table of mixed columns: wide for its size, which improves densities of tables of many rows most."""
    wide = WIDE if rows >= MANY_ROWS else WIDE // 2
    columns = tuple(one for column in transform.columns for one in network_columns(column))
    sized = replace(
        recipe,
        hidden=recipe.hidden if recipe.hidden is not None else (min(400, max(wide, 4 * len(columns))),) * 2,
        latents=recipe.latents or max(2, min(16, len(columns) // 2)),
    )
    hidden, latents = sized.hidden, sized.latents
    assert hidden is not None
    assert latents is not None
    return Architecture(len(columns), latents, hidden, recipe.activation, "columns", columns=columns)


def network_of(rows: Rows, recipe: Recipe) -> NetworkName:
    """The recipe's kind of network, or one that suits the rows: convolutional for images that are large or have colours.

    Raises:
        DataError: the recipe asks for convolutions, and the rows are no images.
    """
    if recipe.network == "conv" and not rows.are_images:
        raise DataError("--network conv is for images; the data are a table")
    shape = rows.array.shape[1:]
    is_large = rows.are_images and (len(shape) == 3 or shape[0] * shape[1] > LARGE)
    return recipe.network or ("conv" if is_large else "mlp")


def architecture_of(spec: InputSpec, likelihood: LikelihoodName, network: NetworkName, recipe: Recipe) -> Architecture:
    """The network's sizes: those of the recipe, or some that suit the number of columns, or the size of the images."""
    features = spec.features
    image = (*spec.shape, 1)[:3] if spec.kind == "image" else ()
    if network == "conv":
        height, width, _ = image
        if recipe.hidden == ():
            raise DataError("--hidden: a convolutional network needs the channels of at least one level, such as 32,64")
        if recipe.activation != "silu":
            raise DataError("--activation: convolutional networks have silu")
        sides = [max(size) for size in level_sizes(image, range(level_count(height, width)))]
        usual = tuple(max(NARROWEST, min(WIDEST, CHANNELS_TIMES_SIDE // side // 16 * 16)) for side in sides)
        latents = recipe.latents or (FEW_LATENTS if features <= FEW_PIXELS else MANY_LATENTS)
        hidden = usual if recipe.hidden is None else recipe.hidden
        return Architecture(features, latents, hidden, "silu", likelihood, image=image, network="conv")
    hidden = recipe.hidden if recipe.hidden is not None else (min(400, max(64, 4 * features)),) * 2
    latents = recipe.latents or max(2, min(40, features // 2))
    image = image if likelihood == "pixel_logistic" else ()
    return Architecture(features, latents, hidden, recipe.activation, likelihood, image=image)


def mixed_input(
    table: Table,
    fitted: Table,
    recipe: Recipe,
    schema: Schema | None,
    on_schema: Callable[[Schema, Table], None],
    reading: Reading,
) -> tuple[InputSpec, Architecture, Reading]:
    """The input spec of mixed columns, a network that suits it, and how the table's cells were read.

    The kinds of columns are given by `schema` or inferred from the table; their parameters are learnt from its `fitted`
    rows. `reading` is returned with the ignored columns added to it.
    """
    kinds = schema or infer(table)
    transform = Mixed(columns=learn(kinds, fitted))
    on_schema(kinds, table)
    names = tuple(column.name for column in transform.columns)
    spec = InputSpec(kind="table", shape=(len(names),), columns=names, transform=transform, precision="float64")
    others = [name for name in table.names if name not in names]
    ignored = dict.fromkeys((*others, *reading.ignored))
    reading = reading.model_copy(update={"ignored": tuple(ignored)})
    return spec, table_architecture(transform, recipe, len(fitted)), reading


def network_rows(spec: InputSpec, rows: np.ndarray) -> torch.Tensor:
    """Rows in their own units as a tensor in the network's, shape (N, D)."""
    return torch.from_numpy(spec.encode(spec.rows(rows)))
