"""Pictures with colours from a folder to verdicts: the same bits by every door, with names, and with what is wrong said."""

import base64
import csv
import io
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from scripts.draw_parts import FAULTS
from scripts.draw_parts import pictures as pictures_of
from service.data.inputs import Binary, Grey, InputSpec
from service.density.estimator import Estimator
from service.errors import InputError
from service.files.images import decode
from service.files.readers import Rows
from service.scoring.image_statistics import discarded_apart
from service.scoring.options import ScoreOptions
from service.scoring.spoils import spoils_of
from service.store.loading import load_scorer
from service.store.plausible import architecture_problem
from service.store.store import Store
from service.training.augmentation import random_affine
from service.training.fit import FitOptions
from service.training.recipe import Recipe
from service.training.train import train
from service.vae.network import Architecture
from tests.tools import REPOSITORY, running_service, vouch

SIDE = 8


def parts(number, seed=0):
    """Red discs on grey belts under changing light, shape (N, 16, 16, 3)."""
    random = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(np.arange(16), np.arange(16), indexing="ij"), axis=-1)
    disc = (np.linalg.norm(grid - random.normal(7.5, 0.7, (number, 1, 1, 2)), axis=-1) < 4.5)[..., None]
    light = random.uniform(0.8, 1.1, (number, 1, 1, 1))
    image = np.where(disc, [200.0, 40.0, 40.0], [110.0, 110.0, 110.0]) * light
    return np.clip(image + random.normal(0, 4, image.shape), 0, 255).astype(np.uint8)


def small(pictures):
    """Pictures as a model of 8 x 8 reads them, resized by Pillow itself."""
    resized = [Image.fromarray(one).resize((SIDE, SIDE), Image.Resampling.LANCZOS) for one in pictures]
    return np.stack([np.asarray(one) for one in resized])


def encoded(pixels, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A store with a model that the command line trained on a folder, new pictures, and a service."""
    root = tmp_path_factory.mktemp("pictures")
    folder, fresh = root / "belt", root / "fresh"
    folder.mkdir()
    fresh.mkdir()
    for number, pixels in enumerate(parts(400)):
        (folder / f"{number:03d}.png").write_bytes(encoded(pixels))
    (folder / "readme.txt").write_text("from the left camera")
    options = ("--size", SIDE, "--latents", 2, "--hidden", 32, "--epochs", 20, "--estimator", "fast")
    named = ("--name", "belt", "--store", root / "store")
    done = vouch("train", folder, *named, *options, "--calibration-share", 0.5)
    assert done.returncode == 0, done.stderr
    for number, pixels in enumerate(parts(12, seed=1)):
        kind = ("PNG", "WEBP", "BMP", "TIFF")[number % 4]
        (fresh / f"{number:02d}.{kind.lower()}").write_bytes(encoded(pixels, kind))
    store = Store(root / "store")
    scorer = load_scorer(store, "belt", "cpu")
    with running_service(store.root, root / "log", model="belt") as client:
        yield SimpleNamespace(root=root, fresh=fresh, store=store, scorer=scorer, client=client, said=done.stderr)


def files_of(pictures):
    return sorted(pictures.fresh.iterdir())


def expected(pictures):
    """The scores of the new pictures."""
    return pictures.scorer.score(small([np.asarray(Image.open(file).convert("RGB")) for file in files_of(pictures)]))


def test_the_card_says_what_is_read_and_training_says_what_was_left_out(pictures):
    card = pictures.scorer.published.card
    assert card.input.shape == (SIDE, SIDE, 3)
    assert card.images.model_dump() == {"mode": "colour", "fit": "crop", "background": (0, 0, 0), "floats": None}
    assert "400 images: resized" in pictures.said
    assert "skipped, no images: 1 files with .txt" in pictures.said


def test_every_door_gives_the_same_bits(pictures):
    wanted = expected(pictures).log_likelihood.tolist()
    contents = [file.read_bytes() for file in files_of(pictures)]
    ask = pictures.client.post
    alone = [ask("/score", content=one, headers={"content-type": "image/png"}).json() for one in contents]
    assert [one["scores"][0]["log_likelihood"] for one in alone] == wanted
    form = ask("/score", files=[("file", (file.name, file.read_bytes())) for file in files_of(pictures)]).json()
    assert [one["log_likelihood"] for one in form["scores"]] == wanted
    assert [one["id"] for one in form["scores"]] == [file.name for file in files_of(pictures)]
    texts = [base64.b64encode(one).decode() for one in contents]
    texts[1::2] = [f"data:image/png;base64,{text}" for text in texts[1::2]]
    as_text = ask("/score", json={"instances": texts}).json()
    assert [one["log_likelihood"] for one in as_text["scores"]] == wanted
    assert as_text["warnings"][0] == "image 0: resized from 16 x 16"
    lines = ask("/score", content="\n".join(map(json.dumps, texts)), headers={"content-type": "application/x-ndjson"})
    assert [json.loads(line)["log_likelihood"] for line in lines.text.splitlines()] == wanted
    listed = list(csv.DictReader(io.StringIO(score(pictures, pictures.fresh).stdout)))
    assert [float(one["log_likelihood"]) for one in listed] == wanted
    assert [one["file"] for one in listed] == [file.name for file in files_of(pictures)]
    (single,) = csv.DictReader(io.StringIO(score(pictures, files_of(pictures)[3]).stdout))
    assert float(single["log_likelihood"]) == wanted[3]


def score(pictures, path, *more):
    return vouch("score", path, "--model", "belt", "--store", pictures.store.root, *more)


def test_arrays_with_colours_are_read_as_lists_and_as_npy(pictures):
    pixels = small(parts(2, seed=2))
    wanted = pictures.scorer.score(pixels).log_likelihood.tolist()
    for rows in (pixels.tolist(), pixels.reshape(2, -1).tolist()):
        answer = pictures.client.post("/score", json={"instances": rows})
        assert [one["log_likelihood"] for one in answer.json()["scores"]] == wanted
    buffer = io.BytesIO()
    np.save(buffer, pixels)
    answer = pictures.client.post("/score", content=buffer.getvalue(), headers={"content-type": "application/x-npy"})
    assert [one["log_likelihood"] for one in answer.json()["scores"]] == wanted
    wrong = pictures.client.post("/score", json={"instances": pixels[:, :4].tolist()})
    assert (wrong.status_code, wrong.json()["errors"][0]["message"]) == (422, "has 4 x 8 x 3 values")


def test_what_cannot_be_read_is_named_and_a_folder_may_go_on_without(pictures, tmp_path):
    good = files_of(pictures)[0].read_bytes()
    ask = pictures.client.post
    answer = ask("/score", files=[("file", ("a.png", good)), ("file", ("b.png", b"no image"))])
    assert (answer.status_code, answer.json()["errors"][0]["row"]) == (400, 1)
    answer = ask("/score", json={"instances": [base64.b64encode(good).decode(), "not base64!"]})
    assert (answer.status_code, answer.json()["errors"][0]["row"]) == (422, 1)
    image, table = ("file", ("a.png", good)), ("file", ("b.csv", b"a\n1\n"))
    assert ask("/score", files=[image], data={"note": "hello"}).status_code == 422
    assert ask("/score", files=[image, table]).status_code == 422
    assert ask("/score", content=b"--x", headers={"content-type": "multipart/form-data"}).status_code == 400
    whole = pictures.client.build_request("POST", "/score", files=[image, ("file", ("b.png", good))])
    cut = ask("/score", content=whole.read()[:-8], headers={"content-type": whole.headers["content-type"]})
    assert (cut.status_code, "the form has no end" in cut.json()["detail"]) == (400, True)
    assert ask("/score", content=good, headers={"content-type": "image/avif"}).status_code == 415
    (tmp_path / "a.png").write_bytes(good)
    (tmp_path / "b.png").write_bytes(b"no image")
    refused = score(pictures, tmp_path)
    assert (refused.returncode, "1 of 2 images cannot be read" in refused.stderr) == (2, True)
    passed = score(pictures, tmp_path, "--skip-bad")
    assert [one["file"] for one in csv.DictReader(io.StringIO(passed.stdout))] == ["a.png"]
    assert "skipped, cannot be read: b.png: unknown image format" in passed.stderr


def test_a_form_may_hold_one_file_of_rows(pictures):
    pixels = small(parts(2, seed=2))
    body = json.dumps({"instances": pixels.tolist()}).encode()
    answer = pictures.client.post("/score", files={"file": ("rows.json", body)})
    wanted = pictures.scorer.score(pixels).log_likelihood.tolist()
    assert [one["log_likelihood"] for one in answer.json()["scores"]] == wanted


def test_the_same_brightness_in_another_colour_is_another_score(pictures):
    red = small(parts(40, seed=3))
    blue = red[..., ::-1]
    assert np.array_equal(red.sum(axis=-1), blue.sum(axis=-1))
    ours, other = (pictures.scorer.score(one, ScoreOptions(false_alarm=0.05, tail="low")) for one in (red, blue))
    assert ours.valid.mean() > 0.8
    assert other.valid.mean() < 0.1


def test_samples_and_reconstructions_are_pictures_with_colours(pictures):
    shown = pictures.client.get("/sample?num=4&seed=1", headers={"accept": "image/png"})
    assert Image.open(io.BytesIO(shown.content)).mode == "RGB"
    content, headers = files_of(pictures)[0].read_bytes(), {"content-type": "image/png"}
    answer = pictures.client.post("/reconstruct?draws=1", content=content, headers=headers)
    assert np.array(answer.json()["reconstructions"][0]["mean"]).shape == (SIDE, SIDE, 3)


def test_a_suspicious_cell_names_its_pixel_and_channel(pictures):
    pixels = small(parts(1, seed=4))
    pixels[0, 2, 5] = [0, 255, 0]
    answer = pictures.client.post("/score?explain=3", json={"instances": pixels.tolist()}).json()
    worst = answer["scores"][0]["columns"][0]
    assert (worst["pixel"], worst["channel"] in {"red", "green", "blue"}) == ([2, 5], True)


def test_spoils_of_pictures_with_colours_keep_their_shape(pictures):
    names = [one.name for one in spoils_of(pictures.scorer.model.input)]
    assert {"channels exchanged", "a colour cast of 40 levels"} <= set(names)
    rows = small(parts(20, seed=5)).reshape(20, -1).astype(np.float64)
    for spoil in spoils_of(pictures.scorer.model.input):
        assert spoil.change(rows, np.full(20, -1), np.random.default_rng(0)).shape == rows.shape


def test_distortions_move_all_channels_alike():
    import torch

    grey = torch.rand(3, 6 * 5)
    colour = torch.stack([grey, 0.5 * grey, 0 * grey], dim=-1).reshape(3, -1)
    moved = random_affine(6, 5, "keep", 1.0, 3)(colour, torch.Generator().manual_seed(0)).reshape(3, 30, 3)
    torch.testing.assert_close(moved[..., 0], random_affine(6, 5, "keep")(grey, torch.Generator().manual_seed(0)))
    torch.testing.assert_close(moved[..., 1], 0.5 * moved[..., 0])


def test_a_folder_is_divided_into_valid_and_invalid_pictures(pictures, tmp_path):
    mixed = tmp_path / "mixed"
    (mixed / "late").mkdir(parents=True)
    for number, pixels in enumerate(parts(10, seed=6)):
        (mixed / f"{number}.png").write_bytes(encoded(pixels))
        (mixed / "late" / f"{number}.png").write_bytes(encoded(pixels[..., ::-1]))
    options = ("--model", "belt", "--store", pictures.store.root, "--false-alarm", 0.05, "--tail", "low")
    done = vouch("filter", mixed, "--out", tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    lines = csv.DictReader(io.StringIO((tmp_path / "out" / "scores.csv").read_text()))
    listed = {one["file"]: one["verdict"] for one in lines}
    assert len(listed) == 20
    for file in mixed.rglob("*.png"):
        name = file.relative_to(mixed).as_posix()
        placed = tmp_path / "out" / listed[name] / name
        assert placed.samefile(file)  # a link
    assert sum(verdict == "invalid" for name, verdict in listed.items() if name.startswith("late")) == 10
    assert Image.open(io.BytesIO((tmp_path / "out" / "strangest.png").read_bytes())).mode == "RGB"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["mixed", "out"]
    links = tmp_path / "links"
    links.mkdir()
    for number in range(10):
        (links / f"{number}.png").symlink_to(mixed / f"{number}.png")
    assert vouch("filter", links, "--out", tmp_path / "linked", *options).returncode == 0
    placed = [file for file in (tmp_path / "linked").rglob("*.png") if file.name != "strangest.png"]
    assert all(file.samefile(mixed / file.name) and not file.is_symlink() for file in placed)
    assert len(placed) == 10
    copied = vouch("filter", mixed, "--out", tmp_path / "copies", "--images", "copy", *options)
    assert copied.returncode == 0
    assert (tmp_path / "copies" / "scores.csv").read_text() == (tmp_path / "out" / "scores.csv").read_text()
    assert not any((tmp_path / "copies" / listed[name] / name).samefile(mixed / name) for name in listed)
    for out, why in ((tmp_path / "out", "is there already"), (mixed / "results", "lies in the folder of the images")):
        refused = vouch("filter", mixed, "--out", out, *options)
        assert (refused.returncode, why in refused.stderr) == (2, True)
    (mixed / "broken.png").write_bytes(b"no image")
    assert "1 of 21 images cannot be read" in vouch("filter", mixed, "--out", tmp_path / "more", *options).stderr
    assert not (tmp_path / "more").exists()


def test_equal_pictures_are_kept_together():
    images = np.concatenate([parts(30), parts(30)])
    recipe = Recipe(
        latents=1, hidden=(8,), fit=FitOptions(epochs=1), estimator=Estimator.of("fast"), calibration_share=0.5
    )
    trained = train(Rows(images), recipe)
    assert trained.draft.calibration_data["repeats"] == "copies"
    assert trained.draft.model.input.shape == (16, 16, 3)


def test_a_map_shows_where_a_picture_does_not_belong(pictures):
    pixels = small(parts(3, seed=7))
    pixels[1, 5:7, 1:3] = [0, 255, 0]
    ask, body = pictures.client.post, {"instances": pixels.tolist()}
    answer = ask("/score?explain=map", json=body).json()
    plain = ask("/score", json=body).json()
    first = answer["scores"][0]
    assert {name: value for name, value in first.items() if name != "map"} == plain["scores"][0]
    strangeness = np.array([one["map"]["strangeness"] for one in answer["scores"]])
    log_likelihood = np.array([one["map"]["log_likelihood"] for one in answer["scores"]])
    assert strangeness.shape == (3, SIDE, SIDE)
    assert strangeness[1, 5:7, 1:3].min() > 5
    assert np.median(strangeness[1]) < 1.5
    median, spread = (np.array(answer["map"][name]) for name in ("median", "spread"))
    assert strangeness == pytest.approx(np.maximum(0, (median - log_likelihood) / spread), abs=0.002)
    as_npy = ask("/score?explain=map", json=body, headers={"accept": "application/x-npy"})
    assert np.load(io.BytesIO(as_npy.content))[:, 1] == pytest.approx(strangeness, abs=0.001)
    drawn = Image.open(io.BytesIO(ask("/score?explain=map", json=body, headers={"accept": "image/png"}).content))
    assert drawn.mode == "RGB"
    lines = ask(
        "/score?explain=map",
        content="\n".join(json.dumps(one) for one in pixels.tolist()),
        headers={"content-type": "application/x-ndjson"},
    )
    assert [json.loads(line)["map"]["strangeness"] for line in lines.text.splitlines()] == strangeness.tolist()
    assert ask("/score?explain=map", json=body, headers={"accept": "text/csv"}).status_code == 406
    wrong = ask("/score?explain=maps", json=body)
    assert (wrong.status_code, wrong.json()["detail"]) == (422, "explain: expected an integer of at least 0, or map")


def test_tables_have_no_maps():
    adult = load_scorer(Store(REPOSITORY / "model_store"), "adult", "cpu")
    with pytest.raises(InputError, match="explain=map: is for images"):
        adult.check(ScoreOptions(maps=True))


def test_pictures_are_known_by_their_thumbnails_their_shades_and_their_look(pictures):
    scorer, found = pictures.scorer, parts(40, seed=8)
    usual = scorer.score(small(found), ScoreOptions("combined", false_alarm=0.1))
    names = usual.rule.statistics
    mains = {name: names.index(name) for name in ("thumbnail", "shades", "look")}

    def p_values(images, name):
        return scorer.score(small(images), ScoreOptions("combined", false_alarm=0.1)).evidence[:, mains[name]]

    moved = np.roll(found, 5, axis=2)
    assert np.median(p_values(moved, "thumbnail")) < 0.05 < 0.2 < np.median(p_values(moved, "shades"))
    darker = (0.4 * found).astype(np.uint8)
    assert np.median(p_values(darker, "shades")) < 0.05
    noisy = np.clip(found + np.random.default_rng(0).normal(0, 40, found.shape), 0, 255).astype(np.uint8)
    assert np.median(p_values(noisy, "look")) < 0.05


def test_several_pictures_are_scored_at_once_by_their_paths(pictures):
    wanted, files = expected(pictures).log_likelihood.tolist(), files_of(pictures)
    done = vouch("score", files[4], files[0], pictures.fresh, "--model", "belt", "--store", pictures.store.root)
    listed = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [one["file"] for one in listed] == [str(one) for one in (files[4], files[0], *files)]
    assert [float(one["log_likelihood"]) for one in listed] == [wanted[4], wanted[0], *wanted]
    table = REPOSITORY / "examples" / "adult.csv"
    refused = vouch("score", files[0], table, "--model", "belt", "--store", pictures.store.root)
    assert (refused.returncode, len(refused.stderr.strip().splitlines())) == (2, 1)


def test_the_bundled_parts_refuse_every_fault_and_no_sound_example():
    scorer = load_scorer(Store(REPOSITORY / "model_store"), "parts", "cpu")
    height, width, _ = shape = scorer.model.input.shape
    verdicts = {}
    for folder in ("valid", "faults"):
        files = sorted((REPOSITORY / "examples" / "parts" / folder).iterdir())
        reading = scorer.published.card.images
        images = np.stack([decode(file.read_bytes(), reading, shape).pixels for file in files])
        scores = scorer.score(images, ScoreOptions("combined", false_alarm=0.01, maps=True))
        verdicts[folder] = dict(zip([file.stem for file in files], scores.valid.tolist(), strict=True))
        maps = scorer.pixel_maps(scores, images.reshape(len(files), -1))
        if folder == "faults":
            black = maps.strangeness[[file.stem for file in files].index("black-square")]
            top, left = np.argwhere(images[0].sum(axis=-1) == 0).min(axis=0)
            square = black[top : top + height // 4, left : left + width // 4]
            assert square.mean() > 4 * black.mean()
    assert set(verdicts["faults"]) == set(FAULTS)
    assert not any(verdicts["faults"].values())
    assert sum(verdicts["valid"].values()) >= 5


def test_the_examples_are_what_the_script_draws():
    drawn = pictures_of(6, seed=7)
    for number, picture in enumerate(drawn):
        kept = np.asarray(Image.open(REPOSITORY / "examples" / "parts" / "valid" / f"part-{number}.png"))
        assert np.abs(kept.astype(int) - picture.astype(int)).max() <= 2  # another Pillow may resample otherwise


def test_calibrating_again_keeps_what_training_images_were_like(pictures, tmp_path):
    shutil.copytree(pictures.store.root, tmp_path / "store")
    for number, pixels in enumerate(parts(120, seed=9)):
        (tmp_path / f"{number:03d}.png").write_bytes(encoded(pixels))
    (folder := tmp_path / "new").mkdir()
    for path in tmp_path.glob("*.png"):
        path.rename(folder / path.name)
    done = vouch("calibrate", "belt", folder, "--store", tmp_path / "store")
    assert done.returncode == 0, done.stderr
    again = load_scorer(Store(tmp_path / "store"), "belt", "cpu")
    before, after = (one.reference_statistics().known.appearances for one in (pictures.scorer, again))
    assert again.published.reference.version != pictures.scorer.published.reference.version
    for name, known in before.items():
        assert np.array_equal(after[name], known)


def test_what_a_threshold_discards_of_colours_is_told_apart_from_edges():
    spec = InputSpec(kind="image", shape=(4, 4, 3), transform=Binary(threshold=127.5, low=0.0, high=255.0))
    rows = np.zeros((2, 4, 4, 3))
    rows[1] = 100.0
    assert discarded_apart(spec, rows.reshape(2, -1)) == pytest.approx([0.0, 100 / 255])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--hidden", ""), "channels of at least one level"),
        (("--activation", "tanh"), "convolutional networks have silu"),
    ],
)
def test_options_that_convolutions_cannot_have_are_refused(pictures, tmp_path, options, why):
    done = vouch("train", pictures.fresh.parent / "belt", "--size", SIDE, "--name", "x", "--store", tmp_path, *options)
    assert (done.returncode, why in done.stderr) == (2, True)
    table = REPOSITORY / "examples" / "adult.csv"
    refused = vouch("train", table, "--name", "x", "--store", tmp_path, "--network", "conv")
    assert (refused.returncode, "--network conv is for images" in refused.stderr) == (2, True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"image": (48, 48)},
        {"image": (0, 48, 3)},
        {"image": (-48, -48, 3)},
        {"image": (1, 1, 10**7)},
        {"image": ()},
        {"hidden": (16,) * 100_000},
        {"hidden": ()},
        {"latents": 0},
        {"features": 3},
    ],
    ids=str,
)
def test_a_card_of_an_impossible_convolution_is_refused_before_it_is_built(wrong):
    spec = InputSpec(kind="image", shape=(48, 48, 3), transform=Grey())
    architecture = Architecture(6912, 12, (16, 32, 48), likelihood="pixel_logistic", image=(48, 48, 3), network="conv")
    assert architecture_problem(architecture, spec) is None
    assert architecture_problem(replace(architecture, **wrong), spec) is not None
