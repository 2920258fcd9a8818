import numpy as np
from test_images import gradient

from chexstudy.cohort.levels import is_blank, stretch_range


def test_stretch_and_blank():
    np.testing.assert_allclose(stretch_range(np.array([[10, 20], [30, 20]])), [[0, 127.5], [255, 127.5]])
    assert (stretch_range(np.full((2, 2), 7)) == 0).all()
    assert is_blank(np.full((9, 9), 200, np.uint8))
    assert is_blank(np.full((9, 9), 200, np.uint8) + (np.arange(81) % 2).reshape(9, 9).astype(np.uint8))
    assert not is_blank(gradient())
