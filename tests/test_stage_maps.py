"""Maps of stages: what each holds, that shared pairs stay near their places, and where prototypes lie on them."""

import numpy as np
import pandas as pd
import pytest

from chexstudy.curation.records.stage_maps import (
    Stage,
    fit_stage_maps,
    join_stage_maps,
    measure_movement,
    measure_stage_maps,
    plan_stages,
    read_or_fit_stage_maps,
    trace_over_stages,
)
from chexstudy.errors import StudyError
from chexstudy.runs import Run
from chexstudy.vectors.umap import fit_map, lay_over


def one_epoch(sizes):
    step = np.repeat(100 + np.arange(len(sizes)), sizes)
    return pd.DataFrame({"image_id": [f"t/{row}" for row in range(len(step))], "epoch": 1, "step": step})


def test_an_epoch_is_cut_into_stretches_of_about_equally_many_pairs(monkeypatch):
    monkeypatch.setattr("chexstudy.curation.records.stage_maps._MOST_STAGES", 3)
    stages = plan_stages(one_epoch([40, 40, 40, 40, 40, 5]))
    assert [(stage.first_step, stage.last_step) for stage in stages] == [(100, 101), (102, 102), (103, 105)]
    # The first maps its own pairs, the others also those of the stretch before.
    assert [(stage.rows.min(), stage.rows.max(), len(stage.rows)) for stage in stages] == [
        (0, 79, 80),
        (0, 119, 120),
        (80, 204, 125),
    ]


def test_every_epoch_is_a_stage_where_there_are_several():
    ledger = pd.concat([one_epoch([10, 10]), one_epoch([10, 10]).assign(epoch=2, step=200)], ignore_index=True)
    stages = plan_stages(ledger)
    assert [stage.rows.tolist() for stage in stages] == [list(range(20)), list(range(20, 40))]
    assert [(stage.first_step, stage.last_step) for stage in stages] == [(100, 101), (200, 200)]


def test_one_step_is_one_stage_and_nothing_is_none():
    assert len(plan_stages(one_epoch([7]))) == 1
    with pytest.raises(StudyError, match="no decisions"):
        plan_stages(one_epoch([7])[:0])


@pytest.fixture(scope="module")
def drifting():
    """Six clusters of 40 pairs at two stages, each cluster drifted a little; 40 pairs are new in the second."""
    generator = np.random.default_rng(0)
    centres = 3 * generator.normal(size=(6, 16))
    cluster = np.repeat(np.arange(6), 40)
    first = centres[cluster] + generator.normal(size=(240, 16))
    second = first + 0.5 * generator.normal(size=(6, 16))[cluster] + 0.3 * generator.normal(size=first.shape)
    names = np.arange(240)
    shown = [names[:200], names[40:]]
    return [first[shown[0]].astype(np.float32), second[shown[1]].astype(np.float32)], shown, cluster


def test_shared_pairs_move_less_than_between_maps_fitted_apart(drifting):
    features, names, cluster = drifting
    chained = fit_stage_maps(features, names, seed=0)
    old, new = np.arange(40, 200), np.arange(160)
    apart = fit_map(features[1], seed=0)
    both = np.zeros((200, 2), np.float32)
    both[new] = chained[0][old]
    apart = lay_over(apart, both, new)
    moved = measure_movement(chained[0], chained[1], old, new)
    assert moved < 0.25
    assert moved < 0.5 * measure_movement(chained[0], apart, old, new)
    # New pairs land among their own: those of the sixth cluster are on the second map only.
    centres = np.stack([chained[1][cluster[names[1]] == k].mean(axis=0) for k in range(1, 6)])
    nearest = np.linalg.norm(chained[1][:, None] - centres, axis=2).argmin(axis=1) + 1
    assert (nearest == cluster[names[1]]).mean() > 0.95
    assert all(np.array_equal(a, b) for a, b in zip(chained, fit_stage_maps(features, names, seed=0), strict=True))


def test_stages_of_other_pairs_go_on_among_their_neighbours():
    features = [np.eye(4)[:2], np.eye(4)[:3] + 0.01]
    start = np.array([[0, 0], [10, 0]], dtype=np.float32)
    first, second = fit_stage_maps(features, [np.array(["a", "b"]), np.array(["c", "d", "e"])], 0, start)
    assert np.array_equal(first, start)
    assert np.allclose(second[:2], start, atol=1.5)
    assert 0 <= second[2, 0] <= 10


def test_movement_is_a_share_of_the_radius():
    before = np.array([[3.0, 0], [-3, 0], [0, 3], [0, -3]])
    after = before[:3] + np.array([0, 1.5])
    assert measure_movement(before, after, np.arange(3), np.arange(3)) == pytest.approx(0.5)


def test_maps_are_read_until_what_they_show_changes_and_tell_of_every_pair(home, monkeypatch):
    run = Run("stages")
    ledger = one_epoch([6, 6, 6]).assign(kept=True)
    generator = np.random.default_rng(0)
    features = generator.normal(size=(18, 5)).astype(np.float32)
    run.write_array("features.npy", features)
    stages = plan_stages(ledger)
    fitted = []
    fit = fit_stage_maps
    monkeypatch.setattr(
        "chexstudy.curation.records.stage_maps.fit_stage_maps", lambda *given: fitted.append(1) or fit(*given)
    )

    def draw(seed=0):
        return read_or_fit_stage_maps(run, "maps.parquet", ledger, features, stages, seed, ("features.npy",))

    maps = draw()
    assert draw().equals(maps)
    assert len(fitted) == 1
    draw(seed=1)
    assert len(fitted) == 2
    assert maps.groupby("stage").size().tolist() == [6, 12, 12]
    pairs = join_stage_maps(ledger, maps)
    assert pairs.image_id.tolist() == maps.image_id.tolist()
    assert pairs.step[pairs.stage == 1].unique().tolist() == [100, 101]
    quality = measure_stage_maps(maps, features)
    assert quality.shared.tolist() == [0, 6, 6]
    assert np.isnan(quality.moved[0])
    assert quality.trustworthiness.between(0, 1).all()


def test_a_prototype_lies_on_the_map_of_its_own_stage():
    features = np.array([[0.0, 0], [1, 0], [0, 1], [0, 0], [1, 0], [0, 1]])
    maps = pd.DataFrame({"stage": np.repeat([0, 1], 3), "row": range(6), "x": [0, 5, 0, 100, 105, 100]})
    maps = maps.assign(y=0.0, image_id="i")
    stages = [Stage(0, 10, 11, np.arange(3)), Stage(1, 12, 12, np.arange(3, 6))]
    steps = pd.DataFrame({"snapshot": range(4), "step": [10, 11, 12, 13], "phase": "curate"})
    snapshots = np.tile(np.array([[1.0, 0], [0, 0]]), (4, 1, 1))
    path = trace_over_stages(snapshots, steps, stages, features, maps)
    # The start and the snapshots after steps 10 and 11 are of the first stage, the one after step 12 of the second.
    assert path[path.prototype == 0].stage.tolist() == [0, 0, 0, 1]
    assert (path[path.stage == 0].x < 50).all()
    assert (path[path.stage == 1].x > 50).all()
    with pytest.raises(StudyError, match="3 rows describe"):
        trace_over_stages(snapshots, steps[:3], stages, features, maps)
