"""Encoded images: sizes before pixels, and grey levels that a person would expect."""

import contextlib
import io
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from service.data.image_reading import ImageReading
from service.errors import DataError, InputError, MalformedError, TooLargeError
from service.files.image_folders import ImageOptions, read_folder
from service.files.images import FORMATS, check_tiles, decode, grid, png
from tests.tools import png_bomb

PIXELS = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def test_pixels_go_there_and_back():
    np.testing.assert_array_equal(decode(png(PIXELS)).pixels, PIXELS)


def test_colours_and_transparency_become_grey_and_are_told():
    assert decode(encoded(Image.fromarray(PIXELS))).notes == ()
    colour = decode(encoded(Image.new("RGB", (4, 3), (255, 0, 0))))
    assert colour.is_colour
    assert colour.notes == ("colours were ignored: grey levels were read",)
    assert colour.pixels[0, 0] == 76
    grey = decode(encoded(Image.fromarray(PIXELS).convert("RGB")))
    assert not grey.is_colour
    assert grey.notes == ()
    clear = decode(encoded(Image.new("RGBA", (4, 3), (255, 255, 255, 0))))
    assert clear.pixels.max() == 0
    deep = Image.fromarray(np.full((3, 4), 65535, dtype=np.uint16))
    assert decode(encoded(deep)).pixels.min() == 255


@pytest.mark.parametrize("content", [b"", b"hello", png(PIXELS)[:40], b"\x89PNG\r\n\x1a\n" + b"\0" * 50])
def test_what_is_no_image_is_refused(content):
    with pytest.raises(MalformedError):
        decode(content)


def test_a_bomb_is_refused_by_its_header():
    with pytest.raises(TooLargeError, match="exceed the limit"):
        decode(png_bomb(30_000, 30_000))
    with pytest.raises(TooLargeError, match="8000 x 8000 pixels"):
        decode(png_bomb(8_000, 8_000))
    with pytest.raises(InputError, match="the image is 8000 x 8000, the model reads 4 x 3"):
        decode(png_bomb(8_000, 8_000), shape=(3, 4), max_pixels=10**10)


def test_a_grid_shows_every_image_once():
    images = np.stack([np.full((2, 2), value) for value in (10, 20, 30)])
    picture = grid(images, columns=2)
    assert picture.shape == (5, 5)
    assert [picture[0, 0], picture[0, 3], picture[3, 0], picture[3, 3]] == [10, 20, 30, 0]


# What a file of each kind becomes

RED = Image.new("RGB", (6, 4), (250, 10, 20))
SCENE = Image.merge(
    "RGB", [Image.linear_gradient("L").resize((6, 4)), Image.new("L", (6, 4), 90), Image.new("L", (6, 4), 10)]
)
COLOUR = ImageReading(mode="colour")
LOSSLESS = ("PNG", "WEBP", "BMP", "TIFF", "PPM")


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "GIF"])
def test_every_format_of_the_list_gives_its_colours(kind):
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95}
    found = decode(encoded(SCENE, kind, **options), COLOUR)
    assert found.pixels.shape == (4, 6, 3)
    assert np.abs(found.pixels.astype(int) - np.asarray(SCENE)).max() <= (0 if kind in LOSSLESS else 30)
    assert found.is_colour


def test_a_gif_has_the_colours_of_its_palette():
    assert decode(encoded(RED, "GIF"), COLOUR).pixels[0, 0].tolist() == [250, 10, 20]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "HSV", "RGBX"])
def test_every_mode_is_read_as_a_person_sees_it(mode):
    image = SCENE.convert("RGB") if mode == "RGBX" else SCENE.convert(mode) if mode != "LAB" else in_lab(SCENE)
    kind = {"CMYK": "TIFF", "YCbCr": "TIFF", "LAB": "TIFF", "HSV": None}.get(mode, "PNG")
    if kind is None:
        pytest.skip("no file holds it")
    found = decode(encoded(image, kind), COLOUR).pixels.astype(int)
    expected = np.asarray(SCENE.convert("1" if mode == "1" else "L" if mode == "L" else "RGB").convert("RGB")).astype(
        int
    )
    assert np.abs(found - expected).max() <= {"P": 60, "CMYK": 3, "YCbCr": 4, "LAB": 12}.get(mode, 0)


def in_lab(image):
    from PIL import ImageCms

    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.applyTransform(image, ImageCms.buildTransform(srgb, lab, "RGB", "LAB"))


def test_sixteen_bits_are_scaled_by_their_range():
    deep = Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16))
    for kind in ("PNG", "TIFF"):
        assert decode(encoded(deep, kind)).pixels.tolist() == [[0, 100, 255]]


def test_floats_are_scaled_by_the_range_of_training():
    image = encoded(Image.fromarray(np.array([[-1.0, 0.0, 1.0, 9.0]], dtype=np.float32)), "TIFF")
    assert decode(image, ImageReading(floats=(-1.0, 1.0))).pixels.tolist() == [[0, 128, 255, 255]]
    with pytest.raises(InputError, match="floats for pixels, and the model was trained on none"):
        decode(image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_stands_as_its_camera_held_it(orientation):
    upright = Image.fromarray(np.arange(6 * 4, dtype=np.uint8).reshape(4, 6) * 10)
    flips = Image.Transpose
    lay = {  # how the sensor lay when it saw what stands upright
        2: flips.FLIP_LEFT_RIGHT,
        3: flips.ROTATE_180,
        4: flips.FLIP_TOP_BOTTOM,
        5: flips.TRANSPOSE,
        6: flips.ROTATE_90,
        7: flips.TRANSVERSE,
        8: flips.ROTATE_270,
    }
    stored = upright if orientation == 1 else upright.transpose(lay[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(stored, "PNG", exif=exif.tobytes())
    assert np.array_equal(decode(content).pixels, np.asarray(upright))
    assert decode(content, shape=(4, 6)).pixels.shape == (4, 6)
    with pytest.raises(InputError, match="the image is 6 x 4, the model reads 4 x 6"):
        decode(content, shape=(6, 4))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_show_the_background(mode):
    clear = Image.new("LA" if mode == "LA" else "RGBA", (2, 1), (200, 0) if mode == "LA" else (200, 200, 200, 0))
    options = {}
    if mode == "P":
        clear, options = Image.new("P", (2, 1), 0), {"transparency": 0}
        clear.putpalette([200, 200, 200])
    found = decode(encoded(clear, "PNG", **options), ImageReading(mode="colour", background=(10, 20, 30)))
    assert found.pixels.tolist() == [[[10, 20, 30]] * 2]
    assert found.notes == ("transparent pixels were put on a ground of 10,20,30",)
    assert decode(encoded(Image.new("RGBA", (2, 1), (9, 9, 9, 255)))).notes == ()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_of_an_animation_the_first_frame_is_read_and_that_is_said(kind):
    frames = [Image.new("RGB", (3, 2), (shade, shade, shade)) for shade in (40, 80, 120)]
    content = encoded(
        frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
    )
    found = decode(content)
    assert found.pixels.tolist() == [[40] * 3] * 2
    assert found.notes == ("the first of several frames was read",)


def test_other_sizes_become_the_models_by_the_way_that_is_named():
    image = Image.new("RGB", (8, 4), (200, 100, 50))
    image.paste((0, 0, 0), (0, 0, 2, 4))  # a black bar on the left, which a crop to a square cuts off
    content = encoded(image)
    with pytest.raises(InputError, match="the image is 8 x 4, the model reads 4 x 4; with --size and --fit"):
        decode(content, COLOUR, (4, 4))
    crop, pad, stretch = (
        decode(content, ImageReading(mode="colour", fit=fit, background=(1, 2, 3)), (4, 4))
        for fit in ("crop", "pad", "stretch")
    )
    assert (crop.pixels == [200, 100, 50]).all()
    assert pad.pixels[0, 0].tolist() == pad.pixels[3, 3].tolist() == [1, 2, 3]
    assert stretch.pixels[2, 0].sum() < 120
    assert stretch.pixels[2, 3].tolist() == pytest.approx([200, 100, 50], abs=12)
    assert {one.notes for one in (crop, pad, stretch)} == {("resized from 8 x 4",)}


@pytest.mark.filterwarnings("ignore")  # Pillow's, of damaged files
@pytest.mark.parametrize("kind", FORMATS)
def test_a_damaged_file_of_each_format_is_refused_in_one_line(kind):
    whole = encoded(SCENE.resize((60, 40)), kind)
    for content in (whole[:12], whole[:8] + bytes(len(whole) - 8)):
        with pytest.raises((MalformedError, TooLargeError)) as raised:
            decode(content)
        assert "\n" not in str(raised.value)


def test_a_webp_that_claims_to_be_huge_is_refused_before_its_decoder_reserves_memory():
    whole = bytearray(encoded(SCENE, "WEBP", lossless=True))
    assert whole[12:16] == b"VP8L"
    whole[21:25] = (16_000 | 16_000 << 14).to_bytes(4, "little")
    with pytest.raises(TooLargeError, match="16001 x 16001 pixels"):
        decode(whole)


def test_no_other_program_is_started_for_formats_that_are_not_listed():
    with pytest.raises(MalformedError, match="unknown image format; expected one of PNG, JPEG"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    assert "EPS" not in FORMATS


# Folders


def test_a_folder_says_what_it_leaves_out_and_hidden_files_never_count(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".ipynb_checkpoints").mkdir()
    SCENE.save(tmp_path / "b" / "scene.png")
    RED.save(tmp_path / "red.webp", lossless=True)
    SCENE.save(tmp_path / ".ipynb_checkpoints" / "scene.png")
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "Thumbs.db").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("hello")
    found = read_folder(tmp_path)
    assert found.names == ("b/scene.png", "red.webp")
    assert found.notes == ("skipped, no images: 1 files with .txt",)
    assert found.reading.mode == "colour"
    assert np.array_equal(found.pixels, np.stack([np.asarray(SCENE), np.asarray(RED)]))


def test_all_files_that_cannot_be_read_are_listed_at_once_and_may_be_passed_over(tmp_path):
    for number in range(3):
        SCENE.save(tmp_path / f"{number}.png")
    (tmp_path / "a.png").write_bytes(b"no image")
    (tmp_path / "b.jpg").write_bytes(encoded(SCENE, "JPEG")[:80])
    with pytest.raises(
        DataError, match=r"2 of 5 images cannot be read .*a\.png: unknown image format.*; b\.jpg: the image is damaged"
    ):
        read_folder(tmp_path)
    found = read_folder(tmp_path, ImageOptions(skip_bad=True))
    assert found.names == ("0.png", "1.png", "2.png")
    assert [note.partition(":")[0] for note in found.notes] == ["skipped, cannot be read"] * 2


def test_grey_files_are_read_as_grey_levels_and_a_mixture_is_said(tmp_path):
    grey = SCENE.convert("L")
    grey.save(tmp_path / "a.png")
    grey.convert("RGB").save(tmp_path / "b.png")
    found = read_folder(tmp_path)
    assert found.reading.mode == "grey"
    assert np.array_equal(found.pixels, np.stack([np.asarray(grey)] * 2))
    SCENE.save(tmp_path / "c.png")
    found = read_folder(tmp_path)
    assert found.reading.mode == "colour"
    assert found.notes == ("1 of 3 images have colours: all are read as colours (--grey: none)",)
    found = read_folder(tmp_path, ImageOptions(mode="grey"))
    assert found.pixels.shape == (3, 4, 6)
    assert found.notes == ("1 images: colours were ignored: grey levels were read",)


def test_one_size_is_asked_for_or_made(tmp_path):
    SCENE.save(tmp_path / "a.png")
    SCENE.resize((12, 8)).save(tmp_path / "b.png")
    with pytest.raises(
        DataError, match=r"images of 2 sizes; choose one by --size, such as --size 64: 6 x 4: 1 images, such as a\.png"
    ):
        read_folder(tmp_path)
    found = read_folder(tmp_path, ImageOptions((4, 4), reading=ImageReading(fit="crop")))
    assert found.pixels.shape == (2, 4, 4, 3)
    assert found.reading.fit == "crop"
    assert found.notes == ("2 images: resized",)


def test_the_range_of_floats_is_learnt_from_all_files(tmp_path):
    for number, values in enumerate(([0.0, 2.0], [-2.0, 1.0])):
        Image.fromarray(np.array([values], dtype=np.float32)).save(tmp_path / f"{number}.tif")
    found = read_folder(tmp_path)
    assert found.reading.floats == (-2.0, 2.0)
    assert found.pixels.tolist() == [[[128, 255]], [[0, 191]]]
    with pytest.raises(DataError, match="trained on none"):  # a version does not learn from what it scores
        read_folder(tmp_path, ImageOptions(learns_range=False))


# What somebody may send to do harm


def test_odd_metadata_cost_no_image(monkeypatch):
    def broken(image):
        raise TypeError("a float where text was expected")

    assert decode(encoded(SCENE, "PNG", exif=b"Exif\0\0nonsense"), COLOUR).pixels.shape == (4, 6, 3)
    monkeypatch.setattr(Image.Image, "getexif", broken)
    assert decode(encoded(SCENE), COLOUR).pixels.shape == (4, 6, 3)


def test_a_tile_that_claims_to_be_huge_is_refused():
    with pytest.raises(TooLargeError, match="tiles of 16384 x 16384 pixels"):
        check_tiles(SimpleNamespace(tag_v2={322: 16_384, 323: 16_384}), 4_000_000)
    check_tiles(SimpleNamespace(tag_v2={}), 4_000_000)


def test_a_jpeg_of_many_scans_is_refused_before_they_are_decoded():
    whole = encoded(SCENE, "JPEG", progressive=True)
    assert decode(whole, COLOUR).is_colour
    with pytest.raises(TooLargeError, match="more than 100 scans"):
        decode(whole + 200 * b"\xff\xda")


def test_whatever_a_decoder_raises_is_a_damaged_image():
    generator = np.random.default_rng(0)
    for kind in FORMATS:
        whole = bytearray(encoded(SCENE.resize((30, 20)), kind))
        for _ in range(40):
            broken = whole.copy()
            for at in generator.integers(4, len(whole), 6):
                broken[at] = generator.integers(256)
            with warnings.catch_warnings(), contextlib.suppress(InputError):
                warnings.simplefilter("ignore")
                decode(broken, COLOUR)


def test_names_that_cannot_be_printed_and_links_to_nothing_are_told_of(tmp_path):
    SCENE.save(tmp_path / "a.png")
    (tmp_path / "b\n.png").write_bytes(encoded(SCENE))
    (tmp_path / "c.png").symlink_to(tmp_path / "nowhere.png")
    found = read_folder(tmp_path, ImageOptions(skip_bad=True))
    assert found.names == ("a.png",)
    assert found.notes == (
        "skipped, cannot be read: b?.png: its name has characters that cannot be printed",
        "skipped, no images: 1 links to folders, or to nothing",
    )
