import numpy as np
import pytest
from PIL import Image

from chexstudy.cohort.images import decode as images
from chexstudy.cohort.images.decode import fit_square
from chexstudy.cohort.images.resampling import resize_bicubic


def resize_with_pillow(image, width, height):
    """First narrower, then shorter, in every version of Pillow."""
    narrowed = Image.fromarray(image).resize((width, len(image)), Image.Resampling.BICUBIC)
    return np.asarray(narrowed.resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(
    ("shape", "width", "height"),
    [
        ((1024, 1024), 378, 378),
        ((1000, 1250), 472, 378),
        ((64, 90), 200, 150),
        ((33, 700), 50, 33),
        ((700, 33), 33, 50),
        ((50, 50), 50, 50),
        ((40, 40), 1, 1),
        ((1, 1), 9, 9),
        ((2, 301), 300, 3),
    ],
)
@pytest.mark.parametrize("content", ["noise", "edges"])
def test_every_grey_level_is_that_of_pillow(shape, width, height, content):
    rng = np.random.default_rng(0)
    # Hard edges overshoot: both ends of the range are clipped.
    image = rng.integers(0, 256, shape, np.uint8) if content == "noise" else 255 * rng.integers(0, 2, shape, np.uint8)
    np.testing.assert_array_equal(resize_bicubic(image, width, height), resize_with_pillow(image, width, height))


def test_many_sizes_are_those_of_pillow():
    rng = np.random.default_rng(1)
    for _ in range(60):
        rows, columns, width, height = (int(length) for length in rng.integers(1, 300, 4))
        image = rng.integers(0, 256, (rows, columns), np.uint8)
        np.testing.assert_array_equal(resize_bicubic(image, width, height), resize_with_pillow(image, width, height))


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_a_large_image_is_fitted_as_a_small_one_is(fit, monkeypatch):
    image = np.random.default_rng(2).integers(0, 256, (700, 611), np.uint8)
    compiled = fit_square(image, 97, fit)
    monkeypatch.setattr(images, "_WORTH_COMPILED", 10**9)
    np.testing.assert_array_equal(compiled, fit_square(image, 97, fit))


def test_a_view_is_resized_as_its_copy():
    image = np.random.default_rng(3).integers(0, 256, (90, 120), np.uint8)
    for view in (image[::2, 1::3], image.T, image[:, ::-1]):
        np.testing.assert_array_equal(resize_bicubic(view, 20, 30), resize_bicubic(view.copy(), 20, 30))
