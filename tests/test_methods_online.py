"""The online curator's bands as offline methods: what is kept at the published share, below and above it."""

import numpy as np
import pytest
import torch

from chexstudy.curation.methods import METHODS
from chexstudy.curation.online.configuration import CuratorConfig
from chexstudy.curation.online.streaming import curate_stream

PAIRS = 960


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    rng = np.random.default_rng(0)
    points = np.eye(6, 32)[rng.integers(0, 6, PAIRS)] + 0.15 * rng.normal(size=(PAIRS, 32))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def published(features):
    """What the published rule decides on the same stream, row by row."""
    return curate_stream(features, CuratorConfig(), draw(), 480).set_index("row").sort_index()


def test_at_its_own_share_the_published_rule_comes_out_unchanged(features, published):
    budget = published.kept.sum()
    assert budget == pytest.approx(0.225 * PAIRS, abs=8)
    choice = METHODS["bands"].choose(features, budget, draw())
    assert choice.rows.tolist() == published.index[published.kept].tolist()


def test_near_its_share_the_farthest_point_order_decides(features, published):
    kept = published.index[published.kept]
    lost = kept.difference(METHODS["bands"].choose(features, len(kept) - 5, draw()).rows)
    assert published.loc[lost, "order"].tolist() == [9] * 5
    more = METHODS["bands"].choose(features, len(kept) + 5, draw()).rows
    gained = published.loc[np.setdiff1d(more, kept)]
    assert gained.band.tolist() == ["central"] * 5


def test_below_the_support_band_only_support_is_kept_and_outliers_come_last(features):
    config = CuratorConfig(central_cap=1)
    support = curate_stream(features, config, draw(), 480).query("band == 'support'")["row"]
    assert set(METHODS["bands"].choose(features, 50, draw()).rows) <= set(support)

    budget = PAIRS - 20
    cap = round((budget - 0.1 * PAIRS) / 12)
    decisions = curate_stream(features, CuratorConfig(central_cap=cap), draw(), 480)
    left_out = np.setdiff1d(np.arange(PAIRS), METHODS["bands"].choose(features, budget, draw()).rows)
    outliers = decisions.query("band == 'outlier'").sort_values("distance")["row"]
    assert set(left_out) == set(outliers.tail(20))


@pytest.mark.parametrize("super_batch", [96, 480, 2048])
def test_bands_meet_a_budget_whatever_the_batch(features, super_batch):
    assert len(METHODS["bands"].choose(features, 218, draw(), super_batch=super_batch).rows) == 218


def test_budgeted_keeps_what_the_stream_keeps(features):
    config = CuratorConfig(rule="budgeted", budget=218, warm_up_order="random", warm_up_features="normalised")
    decisions = curate_stream(features, config, draw(3), 480).set_index("row").sort_index()
    choice = METHODS["budgeted"].choose(features, 218, draw(3))
    assert choice.rows.tolist() == decisions.index[decisions.kept].tolist()
    # Among the kept, and among the dropped, scores follow the priority.
    for kept in (True, False):
        rows = np.flatnonzero(decisions.kept == kept)
        by_score = rows[np.argsort(-choice.scores[rows])]
        assert (np.diff(decisions.priority.to_numpy()[by_score]) <= 0).all()


def test_budgeted_takes_outliers_where_they_are_wanted(features):
    kept = {
        policy: set(METHODS["budgeted"].choose(features, 218, draw(), outlier_policy=policy).rows)
        for policy in ("drop", "keep")
    }
    centre = np.eye(6, 32)[(features @ np.eye(6, 32).T).argmax(axis=1)]
    distance = np.linalg.norm(features - centre, axis=1)
    farthest = set(np.argsort(-distance)[:20])
    assert len(kept["keep"] & farthest) > len(kept["drop"] & farthest)
