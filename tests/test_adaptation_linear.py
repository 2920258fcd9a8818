"""The published linear probe: what it reads and how it starts."""

import numpy as np
import pytest
import torch

from chexstudy.encoders.frozen_features import FrozenFeatures
from chexstudy.evaluation.adaptation.linear import LinearHead, count_channels, read_vectors


@pytest.fixture(scope="module")
def features():
    """Of three blocks with 2, 3 and 4 channels."""
    rng = np.random.default_rng(3)
    cls, mean, pooled = (rng.normal(size=(160, width)).astype(np.float32) for width in (9, 9, 5))
    ids = [f"made/{row:03d}" for row in range(160)]
    return FrozenFeatures(ids, pooled, cls, mean, None, (2, 3, 4), 2, {"name": "made up", "weights": "0123"})


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_weights_start_as_published():
    head = LinearHead(40, cls=4096, generator=seeded())
    weights = head.weight.detach().numpy()
    assert weights.shape == (40, 4096)
    # The standard error of a spread over 163,840 weights is 0.17 % of it.
    assert weights.std() == pytest.approx(0.01, rel=0.01)
    assert abs(weights.mean()) < 1e-4
    # A normal distribution and no uniform one: 4.6 % lie beyond two spreads.
    assert (np.abs(weights) > 0.02).mean() == pytest.approx(0.0455, abs=0.003)
    assert not head.bias.any()
    assert torch.equal(head.weight, LinearHead(40, cls=4096, generator=seeded()).weight)
    assert not torch.equal(head.weight, LinearHead(40, cls=4096, generator=seeded(1)).weight)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ("cls", lambda f: f.cls),
        ("mean", lambda f: f.mean[:, 5:]),
        ("cls+mean", lambda f: np.concatenate([f.cls, f.mean[:, 5:]], axis=1)),
        ("pooled", lambda f: f.pooled),
    ],
)
def test_a_head_reads_cls_of_all_blocks_and_the_mean_patch_of_the_last(features, parts, expected):
    rows = np.array([4, 9, 150])
    values = expected(features)[rows]
    np.testing.assert_array_equal(read_vectors(features, [features.image_ids[r] for r in rows], parts), values)
    head = LinearHead(2, **count_channels(features, parts), generator=seeded())
    assert not head.needs_patches
    with torch.no_grad():
        head.bias.copy_(torch.tensor([1.0, -2.0]))
        logits = head(features.read_batch(rows, needs_patches=False)).numpy()
    np.testing.assert_allclose(logits, values @ head.weight.detach().numpy().T + [1.0, -2.0], atol=1e-6)
