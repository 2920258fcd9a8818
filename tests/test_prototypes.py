"""Prototypes: where they start, whom they are assigned, how they move."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from chexstudy.curation.online.configuration import CuratorConfig
from chexstudy.curation.online.prototypes import (
    balanced_assignment,
    initial_prototypes,
    join_features,
    prototype_spread,
    update_prototypes,
)
from chexstudy.vectors import kmeans as clustering


def _unit(rows, dim, seed):
    return normalize(torch.randn(rows, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_joint_features_have_unit_norm():
    joint = join_features(_unit(5, 3, 0), _unit(5, 3, 1))
    assert joint.shape == (5, 6)
    assert torch.allclose(joint.norm(dim=1), torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize("with_faiss", [True, False])
def test_first_prototypes_find_separate_groups(with_faiss, monkeypatch):
    if not with_faiss:
        monkeypatch.setattr(clustering, "load_faiss", lambda: None)
    centres = torch.eye(8, dtype=torch.float32)[:4]
    rows = normalize(
        centres.repeat(50, 1) + 0.02 * torch.randn(200, 8, generator=torch.Generator().manual_seed(0)), dim=1
    )
    prototypes = initial_prototypes(rows, CuratorConfig(prototypes=4))
    assert torch.allclose(prototypes.norm(dim=1), torch.ones(4), atol=1e-5)
    expected = centres
    if with_faiss:
        assert (expected @ prototypes.T).max(dim=1).values.min() > 0.99
    else:
        # A Lloyd from random rows may leave a group without a centre; each centre must still lie on a group.
        assert (expected @ prototypes.T).max(dim=0).values.min() > 0.69
    assert torch.equal(prototypes, initial_prototypes(rows, CuratorConfig(prototypes=4)))


def test_too_few_rows_or_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="at least as many rows"):
        clustering.cluster_features(torch.randn(3, 2), 4, 5, 0)
    with pytest.raises(ValueError, match="NaN"):
        clustering.cluster_features(torch.tensor([[1.0, torch.nan]] * 9), 2, 5, 0)


def test_assignment_agrees_with_a_plain_sinkhorn():
    features, prototypes = _unit(40, 6, 1), _unit(5, 6, 2)
    q = np.exp(features.numpy() @ prototypes.numpy().T / 0.05)
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(axis=0, keepdims=True) * 5
        q /= q.sum(axis=1, keepdims=True) * 40
    probability = balanced_assignment(features, prototypes, 0.05, 3)
    assert probability.argmax(dim=0).tolist() == q.argmax(axis=1).tolist()
    assert torch.allclose(probability.sum(dim=0), torch.ones(40, dtype=torch.float64))


def test_update_moves_a_tenth_of_the_way_and_leaves_unused_prototypes():
    prototypes = torch.eye(3, dtype=torch.float64)
    features = normalize(torch.tensor([[1.0, 0.2, 0.0], [0.1, 1.0, 0.0]], dtype=torch.float64), dim=1)
    after, usage = update_prototypes(prototypes, features, CuratorConfig())
    assert usage.tolist() == [1, 1, 0]
    for k in range(2):
        assert torch.allclose(after[k], normalize(0.9 * prototypes[k] + 0.1 * features[k], dim=0))
    assert torch.equal(after[2], prototypes[2])


def test_spread_is_the_mean_distance():
    assert float(prototype_spread(torch.eye(3))) == pytest.approx(2**0.5)
    assert float(prototype_spread(torch.eye(1))) == 0.0


def test_balancing_moves_features_to_unpopular_prototypes_and_nearest_assignment_does_not():
    prototypes = torch.eye(2, dtype=torch.float64)
    features = normalize(torch.tensor([[1.0, 0.1], [1.0, 0.3], [1.0, 0.5], [1.0, 0.9]], dtype=torch.float64), dim=1)
    for assignment, usage in (("nearest", [4, 0]), ("balanced", [3, 1])):
        config = CuratorConfig(sinkhorn_epsilon=0.05, assignment=assignment)
        assert update_prototypes(prototypes, features, config)[1].tolist() == usage
