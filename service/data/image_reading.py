"""What a model reads of an image: a setting that its card keeps, so that training and serving decode alike."""

from __future__ import annotations

from typing import Literal

from service.system.frozen import Frozen

Fit = Literal["exact", "crop", "pad", "stretch"]
Mode = Literal["grey", "colour"]


class ImageReading(Frozen):
    """How an image becomes the pixels that a model reads.

    Attributes:
        mode: grey levels, or red, green and blue.
        fit: how another size becomes the model's: `exact` refuses it, `crop` fills the size and cuts off the rest, `pad`
            fits the whole image in and fills up with the background, `stretch` changes its proportions. All resample by
            Lanczos' filter.
        background: the colour behind transparent pixels, and around padded images.
        floats: the least and the greatest value of images of floats, which become black and white; None: there were none in
            training, and there are to be none.
    """

    mode: Mode = "grey"
    fit: Fit = "exact"
    background: tuple[int, int, int] = (0, 0, 0)
    floats: tuple[float, float] | None = None


USUAL_IMAGES = ImageReading()


def usual_images(shape: tuple[int, ...]) -> ImageReading:
    """How images are read for a model that was trained on arrays of them, shape (H, W) or (H, W, 3)."""
    return ImageReading(mode="colour") if len(shape) == 3 else USUAL_IMAGES
