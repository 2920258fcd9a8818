import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from test_images_decode import gradient

from chexstudy.cohort.images.levels import (
    find_range,
    is_blank,
    loses_levels,
    show_deep_colours,
    show_range,
    stretch_range,
)
from chexstudy.cohort.images.unreadable import UnreadableImage


def test_stretch_and_blank():
    np.testing.assert_allclose(stretch_range(np.array([[10, 20], [30, 20]])), [[0, 127.5], [255, 127.5]])
    assert (stretch_range(np.full((2, 2), 7)) == 0).all()
    assert is_blank(np.full((9, 9), 200, np.uint8))
    assert is_blank(np.full((9, 9), 200, np.uint8) + (np.arange(81) % 2).reshape(9, 9).astype(np.uint8))
    assert not is_blank(gradient())


@pytest.mark.parametrize("share", [0.0005, 0.02, 0.4])
def test_a_marker_far_from_all_values_takes_no_part_in_the_range_whatever_its_size(share):
    values = gradient(100, 100, 4095, np.uint16)
    marked = values.ravel().copy()
    marked[: int(share * marked.size)] = 65535
    rest = marked[marked < 65535]
    assert find_range(marked) == (rest.min(), rest.max())
    shown = stretch_range(marked.reshape(values.shape))
    assert (shown.ravel()[: int(share * marked.size)] == 255).all()
    below = -marked.astype(np.int32)  # as on a negative
    assert find_range(below) == (-int(rest.max()), -int(rest.min()))


def test_a_blurred_edge_of_a_marker_takes_no_part_either():
    rng = np.random.default_rng(0)
    anatomy = rng.integers(0, 1000, (300, 300))
    marker = np.zeros(anatomy.shape)
    marker[50:80, 50:80] = 1
    blurred = gaussian_filter(marker, 4)
    values = np.rint(anatomy * (1 - blurred) + 65535 * blurred).astype(np.uint16)
    assert (np.unique(values) > 1000).mean() > 0.5
    low, high = find_range(values)
    assert low == 0
    assert 999 <= high < 3000


def test_a_range_without_a_gap_or_without_anatomy_is_taken_whole():
    skewed = np.linspace(0, 1, 10_000) ** 8 * 65535
    few_levels = np.array([0, 1, 2, 3] * 50 + [65535])
    near = np.append(np.arange(1000), 3900)  # a quarter of the range is left to the rest: more than 64 levels
    for values in (skewed, few_levels, near, np.array([0, 65535]), np.arange(5000)):
        assert find_range(values) == (values.min(), values.max())


def test_levels_are_lost_where_many_values_share_few_of_them():
    values = gradient(100, 100, 4095, np.uint16)
    assert loses_levels(np.where(values > 2000, 255, 0), values)
    assert not loses_levels(values / 4095 * 255, values)
    assert not loses_levels(np.where(values > 2000, 255, 0), np.where(values > 2000, 700, 0))
    steep = ((values - 2000.0) / 30).clip(0, 1) * 255  # 30 of 4,096 values between black and white
    assert loses_levels(steep, values)
    assert not loses_levels(((values - 2000.0) / 100).clip(0, 1) * 255, values)
    seen = np.zeros(values.shape, bool)
    seen[:5] = True
    assert loses_levels(values / 4095 * 255, values, seen)


def test_an_image_whose_range_leaves_it_hardly_a_level_is_refused():
    # Two halves of 1,000 values each, far apart: 8 levels, and nothing to tell a marker from an anatomy by.
    values = np.random.default_rng(0).integers(0, 1000, (100, 100))
    values[50:] += 60_000
    with pytest.raises(UnreadableImage) as caught:
        show_range(values)
    assert caught.value.reason == "few levels"


def test_deep_colours_become_their_luminance_on_black():
    grey = gradient(40, 50, 4095, np.uint16)
    alpha = np.full_like(grey, 65535)
    alpha[:, 25:] = 0
    for channels in ([grey, alpha], [grey, grey, grey, alpha]):
        expected = np.where(alpha > 0, grey, 0)
        np.testing.assert_allclose(show_deep_colours(np.dstack(channels)), expected / expected.max() * 255, atol=1e-3)
    mixed = np.dstack([grey, grey // 2, grey // 4])
    expected = mixed @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(show_deep_colours(mixed), expected / expected.max() * 255, atol=1e-3)
