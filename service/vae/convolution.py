"""Residual convolutional networks for images (He et al., 2016), with their derivatives.

Inside, images have shape (N, H, W, C). Each level has half the height and width of the one before it, rounded up. Every
convolution is three by three and comes after a SiLU, so that derivatives take one rule for all of them. Images in numbers
that are multiples of `determinism.ALIGNED` have the same bits whatever others are among them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.vae.determinism import in_vectors
from service.vae.layers import Linear

KERNEL = 3
SMALLEST = 7  # no level is added below a map of so many pixels a side
CENTRED = 2.0  # pixels from 0 to 1 become -1 to 1

Through = Callable[[Tensor], Tensor]  # tangents before an activation, (N * L, H, W, C), to those after it
Seen = list[tuple[Tensor, Tensor]]  # what came before and after each activation, in order


class Convolution(nn.Module):
    """A convolution of images, shape (N, H, W, C); with a stride of 2 it halves them."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, has_bias: bool = True) -> None:
        super().__init__()
        like = nn.Conv2d(inputs, outputs, KERNEL, bias=has_bias)
        self.weight, self.bias, self.stride = like.weight, like.bias, stride

    def forward(self, x: Tensor) -> Tensor:
        return self.convolved(x, self.bias)

    def linear(self, x: Tensor) -> Tensor:
        """Without the bias: what it does to tangents."""
        return self.convolved(x, None)

    def convolved(self, x: Tensor, bias: Tensor | None) -> Tensor:
        channels_first = x.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        return F.conv2d(channels_first, self.weight, bias, self.stride, KERNEL // 2).permute(0, 2, 3, 1).contiguous()


class Residual(nn.Module):
    """x + convolution(SiLU(convolution(SiLU(x)))); the identity before training."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = Convolution(channels, channels), Convolution(channels, channels)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor, seen: Seen | None = None) -> Tensor:
        inner: Tensor = self.first(activated(x, seen))
        return x + self.second(activated(inner, seen))

    def tangents(self, along: Tensor, through: Through) -> Tensor:
        inner = self.first.linear(through(along))
        return along + self.second.linear(through(inner))


class Enlarging(nn.Module):
    """A convolution of SiLU(x) to images of twice the height and width, cut to a size."""

    def __init__(self, inputs: int, outputs: int, size: tuple[int, int], has_bias: bool = True) -> None:
        super().__init__()
        self.convolution = Convolution(inputs, 4 * outputs, has_bias=has_bias)
        self.size = size

    def forward(self, x: Tensor, seen: Seen | None = None) -> Tensor:
        return self.spread(self.convolution(activated(x, seen)))

    def tangents(self, along: Tensor, through: Through) -> Tensor:
        return self.spread(self.convolution.linear(through(along)))

    def spread(self, x: Tensor) -> Tensor:
        """Four pixels of each one's channels, (N, H, W, 4 * C): (N, 2 * H, 2 * W, C), cut to the size."""
        number, height, width, channels = x.shape
        apart = x.view(number, height, width, 2, 2, channels // 4).transpose(2, 3)
        whole = apart.reshape(number, 2 * height, 2 * width, channels // 4)
        return whole[:, : self.size[0], : self.size[1]].contiguous()


def activated(x: Tensor, seen: Seen | None = None) -> Tensor:
    """SiLU(x); what comes before and after it is added to `seen`."""
    after = in_vectors(F.silu, x)
    if seen is not None:
        seen.append((x, after))
    return after


class ConvolutionalEncoder(nn.Module):
    """Images, shape (N, H * W * C), from 0 to 1, to `outputs` numbers each; `widths` are the channels of the levels."""

    def __init__(self, image: tuple[int, int, int], widths: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.image = image
        *_, (height, width) = sizes = level_sizes(image, widths)
        steps: list[nn.Module] = [Convolution(4 * image[2], widths[0])]
        for level, channels in enumerate(widths):
            if level:
                steps.append(Convolution(widths[level - 1], channels, stride=2))
            steps.append(Residual(channels))
        self.steps = nn.ModuleList(steps)
        self.odd = tuple(2 * half - whole for half, whole in zip(sizes[0], image[:2], strict=True))
        self.output = Linear(height * width * widths[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = CENTRED * x.reshape(-1, *self.image) - 1.0
        h = F.pad(h, (0, 0, 0, self.odd[1], 0, self.odd[0]))
        number, height, width, channels = h.shape
        quarters = h.view(number, height // 2, 2, width // 2, 2, channels).transpose(2, 3)
        h = self.steps[0](quarters.reshape(number, height // 2, width // 2, 4 * channels))
        for step in self.steps[1:]:
            h = step(activated(h) if isinstance(step, Convolution) else h)
        output: Tensor = self.output(activated(h).flatten(1))
        return output.view(*x.shape[:-1], -1)


class ConvolutionalDecoder(nn.Module):
    """Latents, shape (..., L), to the likelihood's numbers, `numbers` for each of an image's pixels and channels.

    The output, shape (..., numbers * H * W * C), has one number of all pixels after the other. In each, a pixel's channels
    are together, or, for a likelihood that is `planar`, one channel of all pixels comes after the other.
    """

    def __init__(
        self, latents: int, image: tuple[int, int, int], widths: Sequence[int], numbers: int, is_planar: bool
    ) -> None:
        super().__init__()
        *_, self.top = sizes = level_sizes(image, widths)
        self.image, self.numbers, self.is_planar, self.sizes = image, numbers, is_planar, sizes
        self.input = Linear(latents, math.prod(self.top) * widths[-1])
        steps: list[nn.Module] = [Residual(widths[-1])]
        for level in range(len(widths) - 1, 0, -1):
            steps += [Enlarging(widths[level], widths[level - 1], sizes[level - 1]), Residual(widths[level - 1])]
        self.steps = nn.ModuleList(steps)
        self.output = Enlarging(widths[0], numbers * image[2], image[:2], has_bias=False)
        self.bias = nn.Parameter(torch.zeros(numbers * math.prod(image)))
        self.widths = tuple(widths)

    def forward(self, z: Tensor, seen: Seen | None = None) -> Tensor:
        h = self.input(z.reshape(-1, z.shape[-1])).view(-1, *self.top, self.widths[-1])
        for step in self.steps:
            h = step(h, seen)
        return (self.flat(self.output(h, seen)) + self.bias).view(*z.shape[:-1], -1)

    def tangents(self, pairs: int, through: Through) -> Tensor:
        """Derivatives of the output in each latent, at N latents: shape (N, L, P).

        Args:
            through: called for each activation in order.
        """
        h = self.input.weight.mT.expand(pairs, -1, -1).reshape(-1, *self.top, self.widths[-1])
        for step in self.steps:
            h = step.tangents(h, through)  # type: ignore[operator]  # a Residual or an Enlarging
        return self.flat(self.output.tangents(h, through)).view(pairs, self.input.weight.shape[1], -1)

    def flat(self, x: Tensor) -> Tensor:
        """Images of numbers, shape (N, H, W, numbers * C), in the order of the output: (N, P)."""
        apart = x.unflatten(-1, (self.numbers, self.image[2]))  # (N, H, W, numbers, C)
        return apart.permute((0, 3, 4, 1, 2) if self.is_planar else (0, 3, 1, 2, 4)).flatten(1)

    def start_at(self, output: Tensor) -> None:
        """Make an output, shape (P,), the one before training."""
        self.bias.copy_(output)

    @property
    def weight(self) -> Tensor:
        """Some weight: it tells the dtype and the device of all."""
        return self.bias

    @property
    def largest(self) -> int:
        """The most numbers of one image at any layer."""
        maps = [height * width * 4 * self.widths[level] for level, (height, width) in enumerate(self.sizes)]
        return max(len(self.bias), *maps)

    @property
    def products(self) -> int:
        """Multiplications in an evaluation."""
        total = self.input.weight.numel()
        for level, (height, width) in enumerate(self.sizes):
            channels = self.widths[level]
            finer = self.widths[level - 1] if level else self.numbers * self.image[2]
            total += height * width * KERNEL**2 * channels * (2 * channels + 4 * finer)
        return total


def level_sizes(image: tuple[int, ...], widths: Sequence[int]) -> list[tuple[int, int]]:
    """Heights and widths of the levels, from the finest, which has half the image's."""
    sizes = [(image[0], image[1])]
    for _ in widths:
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return sizes[1:]


def level_count(height: int, width: int) -> int:
    """How many levels suit an image: until the map is at most SMALLEST pixels a side."""
    return next(n for n in itertools.count(1) if max(height, width) <= SMALLEST << n)
