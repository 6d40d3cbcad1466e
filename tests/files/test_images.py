"""Encoded images: sizes before pixels, and grey levels that a person would expect."""

import io

import numpy as np
import pytest
from PIL import Image

from service.errors import InputError, MalformedError, TooLargeError
from service.files.images import grid, png, read_image
from tests.tools import png_bomb

PIXELS = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


def test_pixels_go_there_and_back():
    np.testing.assert_array_equal(read_image(png(PIXELS)).pixels, PIXELS)


def test_colours_and_transparency_become_grey_and_are_told():
    assert not read_image(encoded(Image.fromarray(PIXELS))).converted
    colour = read_image(encoded(Image.new("RGB", (4, 3), (255, 0, 0))))
    assert colour.converted
    assert colour.pixels[0, 0] == 76
    clear = read_image(encoded(Image.new("RGBA", (4, 3), (255, 255, 255, 0))))
    assert clear.pixels.max() == 0
    deep = Image.fromarray(np.full((3, 4), 65535, dtype=np.uint16))
    assert read_image(encoded(deep)).pixels.min() == 255


@pytest.mark.parametrize("content", [b"", b"hello", png(PIXELS)[:40], b"\x89PNG\r\n\x1a\n" + b"\0" * 50])
def test_what_is_no_image_is_refused(content):
    with pytest.raises(MalformedError):
        read_image(content)


def test_a_bomb_is_refused_by_its_header():
    with pytest.raises(TooLargeError, match="exceed the limit"):
        read_image(png_bomb(30_000, 30_000))
    with pytest.raises(TooLargeError, match="8000 x 8000 pixels"):
        read_image(png_bomb(8_000, 8_000))
    with pytest.raises(InputError, match="the image is 8000 x 8000, the model reads 4 x 3"):
        read_image(png_bomb(8_000, 8_000), (3, 4), max_pixels=10**10)


def test_a_grid_shows_every_image_once():
    images = np.stack([np.full((2, 2), value) for value in (10, 20, 30)])
    picture = grid(images, columns=2)
    assert picture.shape == (5, 5)
    assert [picture[0, 0], picture[0, 3], picture[3, 0], picture[3, 3]] == [10, 20, 30, 0]
