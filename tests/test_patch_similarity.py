"""Patches of an encoder: their components as colours, the most similar ones, and how often these hold the finding."""

import numpy as np
import pandas as pd
import pytest

from chexstudy.cohort.annotations import LUNGS, Regions
from chexstudy.encoders.build import build_image_encoder
from chexstudy.encoders.spec import EncoderSpec
from chexstudy.errors import StudyError
from chexstudy.experiments.patch_similarity import (
    PatchFeatures,
    choose_queries,
    colour_patches,
    cover_patches,
    find_similar_patches,
    measure_retrieval,
    see_patches,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def _unit(values):
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def test_components_are_those_of_the_covariance_of_all_patches():
    values = _unit(np.random.default_rng(0).normal(size=(5, 3, 3, 6)) * [5, 3, 2, 0.1, 0.1, 0.1]).astype(np.float32)
    colours, shares = colour_patches(PatchFeatures(list("abcde"), values, 24))
    flat = values.reshape(-1, 6).astype(float)
    variances, directions = np.linalg.eigh(np.cov(flat.T))
    assert shares == pytest.approx(variances[::-1][:3] / variances.sum(), rel=1e-6)
    for number in range(3):
        expected = flat @ directions[:, ::-1][:, number]
        inner = (colours[..., number].ravel() > 0) & (colours[..., number].ravel() < 1)
        assert abs(np.corrcoef(expected[inner], colours[..., number].ravel()[inner])[0, 1]) == pytest.approx(1)
    # The same features turned give the same colours: signs do not depend on how a direction was found.
    again, _ = colour_patches(PatchFeatures(list("abcde"), values.copy(), 24))
    assert np.array_equal(again, colours)


def test_the_most_similar_patch_of_each_other_image_is_found():
    values = np.zeros((4, 2, 2, 3), dtype=np.float32)
    values[..., 2] = 1
    values[0, 0, 1] = [1, 0, 0]
    values[2, 1, 0] = [1, 0, 0]
    values[3, 1, 1] = _unit(np.array([1, 1, 0], dtype=np.float32))
    seen = PatchFeatures(list("abcd"), values, 16)
    near = find_similar_patches(seen, 0, (0, 1), 2)
    assert [(image, place) for image, place, _ in near] == [(2, (1, 0)), (3, (1, 1))]
    assert [cosine for *_, cosine in near] == pytest.approx([1, 2**-0.5], rel=1e-6)

    def mask(*place):
        region = np.zeros((8, 8), dtype=bool)
        row, column = place
        region[4 * row : 4 * row + 2, 4 * column : 4 * column + 3] = True
        return region

    rows = [("a", "Mass", mask(0, 1)), ("c", "Mass", mask(1, 0)), ("d", "Mass", mask(0, 0))]
    regions = Regions(pd.DataFrame(rows, columns=["image_id", "finding", "mask"]))
    queries = choose_queries(regions, seen.image_ids, 2)
    assert [(query.image, query.place) for query in queries] == [(0, (0, 1)), (2, (1, 0)), (3, (0, 0))]
    found = measure_retrieval(seen, regions, queries[:1], 2)
    # Of two neighbours one lies on the mass; of twelve patches of the other images two do.
    assert found[["hits", "chance"]].iloc[0].tolist() == pytest.approx([0.5, 2 / 12])
    assert choose_queries(Regions(regions.table, LUNGS), seen.image_ids, 2) == []


def test_pixels_of_a_region_are_counted_in_the_patch_they_lie_in():
    region = np.zeros((9, 9), dtype=bool)
    region[2:4, 8] = True
    assert cover_patches(region, 3).tolist() == [[0, 0, 1], [0, 0, 1], [0, 0, 0]]


class _Noise:
    def read(self, image_ids):
        return np.random.default_rng(1).integers(0, 255, (len(image_ids), 48, 48), dtype=np.uint8)


def test_an_encoder_looks_at_another_size_and_stays_as_it_was():
    encoder = build_image_encoder(EncoderSpec("tiny-dinov2", image_size=32))
    seen = see_patches(encoder, _Noise(), list("abc"), 48)
    assert (seen.values.shape[:3], encoder.image_size) == ((3, 6, 6), 32)
    assert np.allclose(np.linalg.norm(seen.values, axis=3), 1, atol=1e-5)
    assert see_patches(encoder, _Noise(), list("abc")).grid == 4
    with pytest.raises(StudyError, match="no multiple"):
        see_patches(encoder, _Noise(), list("abc"), 50)
    with pytest.raises(StudyError, match="no images"):
        see_patches(encoder, _Noise(), [])
