import numpy as np
import pytest

from chexstudy.cohort.pixels.shards import ShardedImages
from chexstudy.cohort.pixels.turning import KINDS, mend_pixels, turn_back


def lay(picture, kind):
    """An upright picture as it lies after what ``kind`` names, in the order of its words."""
    for word in kind.split(", "):
        if word == "negative":
            picture = 255 - picture
        elif word == "mirrored":
            picture = np.fliplr(picture)
        elif word.startswith("rotated"):
            picture = np.rot90(picture, -int(word.split()[1]) // 90)
    return picture


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_done_to_a_picture_is_undone_pixel_by_pixel(kind):
    picture = np.random.default_rng(0).integers(1, 255, (5, 5), dtype=np.uint8)
    np.testing.assert_array_equal(mend_pixels(lay(picture, kind), kind), picture)
    mask = np.arange(12).reshape(3, 4) % 5 < 2
    np.testing.assert_array_equal(turn_back(lay(mask, kind.replace("negative", "upright")), kind), mask)


def test_all_sixteen_ways_to_lie_differ():
    picture = np.arange(9, dtype=np.uint8).reshape(3, 3)
    assert len({lay(picture, kind).tobytes() for kind in KINDS}) == len(set(KINDS)) == 16


def test_a_quarter_turn_to_the_right_puts_the_top_on_the_right():
    np.testing.assert_array_equal(turn_back(np.array([[0, 7], [0, 7]]), "rotated 90"), [[7, 7], [0, 0]])


def test_padding_stays_black_in_a_negative():
    pixels = np.zeros((4, 4), np.uint8)
    pixels[:, 1:3] = [[0, 55], [255, 55], [1, 2], [3, 0]]
    expected = np.zeros((4, 4), np.uint8)
    expected[:, 1:3] = [[255, 200], [0, 200], [254, 253], [252, 255]]
    np.testing.assert_array_equal(mend_pixels(pixels, "negative"), expected)


def test_images_of_a_store_are_given_upright_in_any_order():
    images = np.random.default_rng(1).integers(1, 255, (5, 6, 6), dtype=np.uint8)
    filed = images.copy()
    filed[1], filed[4] = lay(images[1], "rotated 90"), lay(images[4], "negative, mirrored")
    store = ShardedImages([filed[:3], filed[3:]], {1: "rotated 90", 4: "negative, mirrored"})
    np.testing.assert_array_equal(store[:], images)
    np.testing.assert_array_equal(store.take(np.array([4, 1, 0, 1])), images[[4, 1, 0, 1]])
    np.testing.assert_array_equal(store[4], images[4])
