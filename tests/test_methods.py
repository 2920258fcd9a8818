"""Methods of curation: what all of them promise, and what each chooses on sets one can work out by hand."""

import functools
import inspect
import itertools

import numpy as np
import pytest
import torch

from chexstudy.curation.methods import METHODS, choose_subset, clusters, duplicates
from chexstudy.curation.methods.clusters import Clusters, cluster_rows
from chexstudy.curation.methods.coverage import inclusion_chances
from chexstudy.curation.methods.hierarchical import balanced_sequence, plan_levels
from chexstudy.curation.online.configuration import CuratorConfig
from chexstudy.curation.online.streaming import curate_stream
from chexstudy.errors import StudyError
from chexstudy.vectors.farthest import farthest_points


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def on_circle(degrees: list[float]) -> np.ndarray:
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


PAIRS = 300
NAMES = (
    *("bands", "budgeted", "filtered", "random", "k_centre", "facility_location", "density", "semdedup", "d4"),
    *("prototypicality_easy", "prototypicality_hard", "hierarchical", "agreement", "loss", "el2n", "learnability"),
    "infobatch",
)
# Methods whose subset of a smaller budget lies within that of a larger one.
NESTED = [name for name in NAMES if name not in ("bands", "budgeted", "filtered", "density", "infobatch", "d4")]
# Methods that do not depend on the order of rows where values differ, with the options that make it so.
ORDERLESS = {
    **{name: {} for name in ("agreement", "loss", "learnability")},
    **{name: {"clusters": 1} for name in ("semdedup", "d4", "prototypicality_easy", "prototypicality_hard")},
}


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


@functools.cache
def make_pairs(pairs: int = PAIRS) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Features of seven clouds of different size, and all signals."""
    rng = np.random.default_rng(7)
    centres = rng.normal(size=(7, 24))
    cloud = rng.choice(7, size=pairs, p=[0.5, 0.2, 0.1, 0.1, 0.05, 0.03, 0.02])
    features = unit(centres[cloud] + 0.4 * rng.normal(size=(pairs, 24)))
    signals = {
        "image": unit(features[:, :12]),
        "text": unit(features[:, 12:] + 0.1 * rng.normal(size=(pairs, 12))),
        "loss": rng.exponential(size=pairs),
        "reference_loss": rng.exponential(size=pairs),
    }
    return features, signals


def check_contract(choice, budget: int, pairs: int) -> None:
    assert choice.rows.dtype == np.int64
    assert choice.rows.shape == choice.weights.shape == (budget,)
    assert (np.diff(choice.rows) > 0).all()
    assert choice.rows[0] >= 0
    assert choice.rows[-1] < pairs
    assert choice.scores.shape == (pairs,)
    assert choice.scores.dtype == np.float64
    assert np.isfinite(choice.scores).all()
    assert np.isfinite(choice.weights).all()
    assert (choice.weights > 0).all()
    dropped = np.delete(choice.scores, choice.rows)
    if len(dropped):
        assert choice.scores[choice.rows].min() >= dropped.max()


def test_every_method_is_there_with_its_source_and_one_signature():
    assert tuple(METHODS) == NAMES
    for name, method in METHODS.items():
        assert method.name == name
        assert method.paper
        assert method.summary
        assert "Source" in method.function.__doc__ or name in ("random", "loss")
        assert list(inspect.signature(method.choose).parameters)[:3] == ["features", "budget", "generator"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("budget", [1, 37, 68, 211, PAIRS])
def test_the_budget_is_met_exactly_and_scores_agree_with_the_choice(name, budget):
    features, signals = make_pairs()
    check_contract(choose_subset(name, features, budget, draw(0), **signals), budget, PAIRS)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_bytes_from_memory_and_from_a_read_only_map(name, tmp_path, recwarn):
    features, signals = make_pairs()
    np.save(tmp_path / "features.npy", features)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    first = choose_subset(name, features, 68, draw(3), **signals)
    second = choose_subset(name, mapped, 68, draw(3), **signals)
    for field in ("rows", "scores", "weights"):
        assert getattr(first, field).tobytes() == getattr(second, field).tobytes()
    assert not [warning for warning in recwarn if "writable" in str(warning.message)]


@pytest.mark.parametrize("name", ["bands", "random", "k_centre", "density", "hierarchical", "infobatch"])
def test_another_seed_gives_another_choice_where_chance_plays_a_part(name):
    features, signals = make_pairs()
    first, second = (choose_subset(name, features, 68, draw(seed), **signals).rows for seed in (1, 2))
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize("name", [*NESTED, "d4"])
def test_smaller_subsets_lie_within_larger_ones(name):
    features, signals = make_pairs()
    # D4 is nested up to what SemDeDup leaves.
    budgets = (1, 68, 200, 225) if name == "d4" else (1, 20, 68, 200)
    subsets = [set(choose_subset(name, features, budget, draw(5), **signals).rows) for budget in budgets]
    assert all(small < large for small, large in itertools.pairwise(subsets))


@pytest.mark.parametrize("name", ORDERLESS)
def test_the_order_of_rows_does_not_matter_where_chance_plays_no_part(name):
    features, signals = make_pairs()
    shuffle = np.random.default_rng(0).permutation(PAIRS)
    straight = choose_subset(name, features, 68, draw(0), **signals, **ORDERLESS[name])
    shuffled = choose_subset(
        name,
        features[shuffle],
        68,
        draw(0),
        **{key: values[shuffle] for key, values in signals.items()},
        **ORDERLESS[name],
    )
    assert sorted(shuffle[shuffled.rows]) == straight.rows.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_copies_few_pairs_and_half_precision_are_chosen_from_as_the_budget_asks(name):
    features, signals = make_pairs()
    sets = [(np.repeat(features[:20], 10, axis=0), 45), (np.repeat(features[:1], 50, axis=0), 11)]
    sets.append((features.astype(np.float16), 68))
    # The online curators need a pair for each prototype.
    few = ((1, 1), (2, 1), (2, 2)) if name not in ("bands", "budgeted", "filtered") else ()
    for rows, budget in [*sets, *((features[:pairs], budget) for pairs, budget in few)]:
        given = {key: values[: len(rows)] for key, values in signals.items()}
        check_contract(choose_subset(name, rows, budget, draw(1), **given), budget, len(rows))


@pytest.mark.parametrize(
    ("name", "option"),
    [
        *[(name, "clusters") for name in ("semdedup", "d4", "prototypicality_easy", "prototypicality_hard")],
        *[("hierarchical", "clusters"), ("bands", "prototypes"), ("budgeted", "prototypes")],
    ],
)
def test_more_clusters_than_rows_are_refused(name, option):
    features, _ = make_pairs()
    with pytest.raises(StudyError, match=r"41\b.*\b40\b"):
        choose_subset(name, features[:40], 10, draw(0), **{option: 41})


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        *[("bands", "super_batch", 0), ("bands", "prototypes", 0), ("budgeted", "super_batch", 3)],
        *[("budgeted", "outlier_policy", "burn"), ("facility_location", "part_rows", 0), ("density", "neighbours", 0)],
        *[("semdedup", "clusters", 0), ("d4", "deduplicated_share", 1.5), ("prototypicality_easy", "iterations", 0)],
        *[("hierarchical", "levels", 0), ("el2n", "temperature", 0.0), ("el2n", "batch", 0)],
        ("infobatch", "highest_ratio", 1.0),
    ],
)
def test_an_option_out_of_range_is_named(name, option, value):
    features, signals = make_pairs()
    with pytest.raises(StudyError, match=option.removesuffix("_rows")):
        choose_subset(name, features, 10, draw(0), **signals, **{option: value})


@pytest.mark.parametrize("name", [name for name in NAMES if METHODS[name].needs])
def test_a_signal_that_is_missing_is_named_with_where_to_give_it(name):
    features, signals = make_pairs()
    for need in METHODS[name].needs:
        given = {key: values for key, values in signals.items() if key != need}
        with pytest.raises(StudyError, match=rf"method {name} needs .*\(.*--.*\): give {need}\.$"):
            choose_subset(name, features, 10, draw(0), **given)


def test_bad_methods_budgets_features_options_and_signals_are_refused():
    features, signals = make_pairs()
    with pytest.raises(StudyError, match=r"no method 'semdedupe'; the methods are bands, .*: did you mean 'semdedup'"):
        choose_subset("semdedupe", features, 10, draw(0))
    for budget in (0, -1, PAIRS + 1, 0.5, 12.0):
        with pytest.raises(StudyError, match="from 1 to 300"):
            choose_subset("random", features, budget, draw(0))
    for value in (np.nan, np.inf, 0.0):
        bad = features.copy()
        bad[17] = value
        with pytest.raises(StudyError, match="row 17 of the features is not of unit norm"):
            choose_subset("random", bad, 10, draw(0))
    with pytest.raises(StudyError, match="int64"):
        choose_subset("random", np.ones((4, 1), dtype=np.int64), 1, draw(0))
    with pytest.raises(StudyError, match=r"no parameter 'cluster'; it takes clusters, iterations: did you mean"):
        choose_subset("semdedup", features, 10, draw(0), cluster=3)
    with pytest.raises(StudyError, match=r"text must hold one embedding for each of the 300 pairs"):
        choose_subset("agreement", features, 10, draw(0), image=signals["image"], text=signals["text"][:-1])
    with pytest.raises(StudyError, match=r"loss must hold one number"):
        choose_subset("loss", features, 10, draw(0), loss=signals["image"])
    with pytest.raises(StudyError, match=r"loss holds values that are not finite"):
        choose_subset("loss", features, 10, draw(0), loss=np.full(PAIRS, np.nan))


# --- coverage of the set ----------------------------------------------------------------------------------------------


def test_k_centre_goes_from_a_drawn_start_to_the_farther_end_and_on():
    points = on_circle([0, 20, 40, 41, 60, 83])
    starts = set()
    for seed in range(12):
        choice = METHODS["k_centre"].choose(points, 3, torch.Generator().manual_seed(seed))
        order = np.argsort(-choice.scores)[:3].tolist()
        assert order == farthest_points(torch.from_numpy(points), 3, start=order[0]).tolist()
        assert order[1] == (5 if order[0] <= 3 else 0)
        assert choice.scores[order].tolist() == [3, 2, 1]
        starts.add(order[0])
    assert len(starts) > 2


def test_k_centre_finds_every_distant_group_before_a_second_of_any():
    points = on_circle([*range(30), 90, 91, 180, 181, 270])
    choice = METHODS["k_centre"].choose(points, 4, torch.Generator().manual_seed(0))
    assert sorted(np.searchsorted([30, 32, 34], choice.rows, side="right")) == [0, 1, 2, 3]


def test_facility_location_takes_the_middle_of_the_largest_group_first():
    # Within a group the middle represents the others best; groups this far apart represent nothing of each other.
    points = on_circle([150, 155, 160, 0, 1, 2, 3, 4])
    choice = METHODS["facility_location"].choose(points, 2, torch.Generator().manual_seed(0))
    assert np.argsort(-choice.scores)[:2].tolist() == [5, 1]
    assert choice.rows.tolist() == [1, 5]


def test_facility_location_in_random_parts_differs_by_seed_and_meets_the_budget():
    points = torch.nn.functional.normalize(
        torch.randn(200, 5, generator=torch.Generator().manual_seed(0)), dim=1
    ).numpy()
    subsets = [
        METHODS["facility_location"].choose(points, 33, torch.Generator().manual_seed(seed), part_rows=50).rows.tolist()
        for seed in (0, 0, 1)
    ]
    assert subsets[0] == subsets[1] != subsets[2]
    assert len(subsets[2]) == 33


# --- sampling against density -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "budget", "chances"),
    [
        ([1, 1, 2, 4], 2, [0.25, 0.25, 0.5, 1]),
        ([1, 1, 2, 4], 3, [0.5, 0.5, 1, 1]),
        ([1, 1, 2, 4], 4, [1, 1, 1, 1]),
        ([0, 0, 3, 1], 1, [0, 0, 0.75, 0.25]),
        ([0, 0, 3, 1], 3, [0.5, 0.5, 1, 1]),
        ([0, 0, 0, 0], 1, [0.25, 0.25, 0.25, 0.25]),
    ],
)
def test_chances_are_proportional_to_size_and_sum_to_the_budget(sizes, budget, chances):
    np.testing.assert_allclose(inclusion_chances(np.array(sizes, dtype=float), budget), chances)


def test_over_many_seeds_rows_are_drawn_as_often_as_their_neighbours_are_far():
    # Pairs of points, pairs far apart: the first neighbour of each point is its partner, at a gap of its own.
    rng = np.random.default_rng(0)
    gaps = np.repeat([0.02, 0.04, 0.06, 0.08], 10)
    centres = np.eye(40)
    aside = np.roll(np.eye(40), 20, axis=1)
    points = np.concatenate([centres, centres + gaps[:, None] * aside]).astype(np.float32)
    points = points[rng.permutation(80)]
    distance = np.sort(np.linalg.norm(points[:, None] - points[None], axis=2), axis=1)[:, 1]
    drawn = np.zeros(80)
    for seed in range(1500):
        drawn[METHODS["density"].choose(points, 24, torch.Generator().manual_seed(seed), neighbours=1).rows] += 1
    for gap in (0.02, 0.04, 0.06, 0.08):
        group = np.abs(distance - gap) < 0.005
        assert group.sum() == 20
        assert drawn[group].mean() / 1500 == pytest.approx(24 * gap / (20 * 0.2), rel=0.03)


def test_a_lone_point_is_certain_and_copies_come_last():
    angles = np.deg2rad([0, 0, 0, 0, 10, 11, 12, 13, 180])
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    for seed in range(30):
        assert 8 in METHODS["density"].choose(points, 2, torch.Generator().manual_seed(seed), neighbours=2).rows
        five = METHODS["density"].choose(points, 5, torch.Generator().manual_seed(seed), neighbours=2).rows
        assert five.tolist() == [4, 5, 6, 7, 8]


# --- semantic duplicates ----------------------------------------------------------------------------------------------


def test_of_two_near_copies_the_one_farther_from_the_centroid_stays():
    # The centroid lies at 33.6 degrees; from the least like it: 90, 0, 1, 42, 40.
    points = on_circle([0, 1, 40, 42, 90])
    scores = METHODS["semdedup"].choose(points, 5, draw(), clusters=1).scores
    expected = [np.cos(np.deg2rad(90)), np.cos(np.deg2rad(1)), np.cos(np.deg2rad(2)), np.cos(np.deg2rad(41)), -1]
    np.testing.assert_allclose(-scores, expected, atol=1e-6)
    kept = {
        budget: METHODS["semdedup"].choose(points, budget, draw(), clusters=1).rows.tolist() for budget in range(1, 5)
    }
    assert kept == {1: [4], 2: [0, 4], 3: [0, 3, 4], 4: [0, 2, 3, 4]}


def test_rows_of_different_clusters_are_not_compared():
    points = on_circle([0, 0.1, 179.9, 180])
    apart = Clusters(torch.eye(2), np.array([0, 1, 0, 1]), np.float32([0.9, 0.8, 0.7, 0.6]))
    np.testing.assert_allclose(duplicates.duplication(points, apart), [-1, -1, -1, -1], atol=1e-4)


@pytest.mark.parametrize("block", [5, 1024])
def test_scores_are_those_of_a_plain_restatement_whatever_the_blocks(block, monkeypatch):
    monkeypatch.setattr(duplicates, "_BLOCK_ROWS", block)
    rows = torch.nn.functional.normalize(torch.randn(120, 6, generator=draw()), dim=1).numpy()
    clustered = cluster_rows(rows, 4, 10, draw(1))
    expected = np.full(120, -1.0)
    for row in range(120):
        for other in np.flatnonzero(clustered.nearest == clustered.nearest[row]):
            if clustered.similarity[other] < clustered.similarity[row]:
                expected[row] = max(expected[row], float(rows[row] @ rows[other]))
    np.testing.assert_allclose(duplicates.duplication(rows, clustered), expected, atol=1e-6)


def test_copies_go_first_and_one_of_each_is_left():
    points = on_circle([*[0] * 5, *[50] * 4, *[100] * 3, 150, 200])
    choice = METHODS["semdedup"].choose(points, 5, draw(), clusters=1)
    assert np.unique(points[choice.rows].round(3), axis=0).shape == (5, 2)


def test_d4_measures_the_unusual_without_the_copies():
    # Eight copies draw the centroid of all rows to 0 degrees; without seven of them it lies at 40.
    points = on_circle([*[0] * 8, 10, 20, 30, 40, 50, 60, 70, 80])
    hard = METHODS["prototypicality_hard"].choose(points, 2, draw(), clusters=1)
    assert hard.rows.tolist() == [14, 15]
    choice = METHODS["d4"].choose(points, 2, draw(), clusters=1, deduplicated_share=9 / 16)
    assert choice.rows[0] < 8
    assert choice.rows[1] == 15


def test_d4_beyond_its_first_share_is_semdedup_alone():
    points = torch.nn.functional.normalize(torch.randn(80, 6, generator=draw()), dim=1).numpy()
    for budget in (60, 70):
        d4, semdedup = (METHODS[name].choose(points, budget, draw(2)).rows for name in ("d4", "semdedup"))
        assert d4.tolist() == semdedup.tolist()
    assert (
        METHODS["d4"].choose(points, 59, draw(2)).rows.tolist()
        != METHODS["semdedup"].choose(points, 59, draw(2)).rows.tolist()
    )


# --- a hierarchy of clusters ------------------------------------------------------------------------------------------


def test_a_budget_is_divided_evenly_at_every_level():
    # Two clusters at the top: one of six rows; one of two small clusters of two rows each.
    labels = [np.array([0] * 6 + [1] * 2 + [2] * 2), np.array([0, 1, 1])]
    for seed in range(10):
        place = balanced_sequence(labels, 10, draw(seed))
        assert sorted(place) == list(range(10))
        for budget, counts in ((2, {(1, 1, 0), (1, 0, 1)}), (4, {(2, 1, 1)}), (8, {(4, 2, 2)}), (9, {(5, 2, 2)})):
            chosen = labels[0][place < budget]
            assert tuple(np.bincount(chosen, minlength=3)) in counts


def test_no_cluster_lags_behind_a_sibling_unless_it_is_exhausted():
    rng = np.random.default_rng(0)
    labels = [rng.choice(12, 400, p=rng.dirichlet(np.ones(12))), rng.integers(0, 4, 12), rng.integers(0, 2, 4)]
    place = balanced_sequence(labels, 400, draw())
    owner, parents = np.arange(400), [*labels, np.zeros(2, dtype=int)]
    for level in range(3):
        owner = labels[level][owner]
        sizes = np.bincount(owner, minlength=len(parents[level + 1]))
        for budget in (1, 7, 50, 211, 399):
            counts = np.bincount(owner[place < budget], minlength=len(sizes))
            for parent in np.unique(parents[level + 1]):
                siblings = np.flatnonzero(parents[level + 1] == parent)
                unfinished = siblings[counts[siblings] < sizes[siblings]]
                if len(unfinished):
                    assert counts[siblings].max() - counts[unfinished].min() <= 1


def test_small_groups_get_as_much_as_large_ones_until_they_are_whole():
    group = np.repeat([0, 1, 2, 3], [900, 60, 30, 10])
    place = balanced_sequence([group], 1000, draw())
    assert np.bincount(group[place < 100]).tolist() == [30, 30, 30, 10]


def test_rare_groups_are_kept_well_above_their_share():
    rng = np.random.default_rng(1)
    group = np.repeat([0, 1, 2, 3], [900, 60, 30, 10])
    points = np.eye(4, 16)[group] + 0.05 * rng.normal(size=(1000, 16))
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    rare = group[METHODS["hierarchical"].choose(points, 100, draw()).rows] > 0
    assert rare.mean() > 2 * (group > 0).mean()


def test_levels_shrink_and_must_exist():
    assert plan_levels(100_000, 3, None) == [2154, 167, 30]
    assert plan_levels(100_000, 2, 1000) == [1000, 100]
    assert plan_levels(1, 3, None) == [1, 1, 1]
    with pytest.raises(StudyError, match="at least one level, not 0"):
        plan_levels(10, 0, None)


# --- the online curator's bands ---------------------------------------------------------------------------------------


STREAMED = 960


@pytest.fixture(scope="module")
def streamed() -> np.ndarray:
    rng = np.random.default_rng(0)
    points = np.eye(6, 32)[rng.integers(0, 6, STREAMED)] + 0.15 * rng.normal(size=(STREAMED, 32))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def published(streamed):
    """What the published rule decides on the same stream, row by row."""
    return curate_stream(streamed, CuratorConfig(), draw(), 480).set_index("row").sort_index()


def test_at_its_own_share_the_published_rule_comes_out_unchanged(streamed, published):
    budget = published.kept.sum()
    assert budget == pytest.approx(0.225 * STREAMED, abs=8)
    choice = METHODS["bands"].choose(streamed, budget, draw())
    assert choice.rows.tolist() == published.index[published.kept].tolist()


def test_near_its_share_the_farthest_point_order_decides(streamed, published):
    kept = published.index[published.kept]
    lost = kept.difference(METHODS["bands"].choose(streamed, len(kept) - 5, draw()).rows)
    assert published.loc[lost, "order"].tolist() == [9] * 5
    more = METHODS["bands"].choose(streamed, len(kept) + 5, draw()).rows
    gained = published.loc[np.setdiff1d(more, kept)]
    assert gained.band.tolist() == ["central"] * 5


def test_below_the_support_band_only_support_is_kept_and_outliers_come_last(streamed):
    config = CuratorConfig(central_cap=1)
    support = curate_stream(streamed, config, draw(), 480).query("band == 'support'")["row"]
    assert set(METHODS["bands"].choose(streamed, 50, draw()).rows) <= set(support)

    budget = STREAMED - 20
    cap = round((budget - 0.1 * STREAMED) / 12)
    decisions = curate_stream(streamed, CuratorConfig(central_cap=cap), draw(), 480)
    left_out = np.setdiff1d(np.arange(STREAMED), METHODS["bands"].choose(streamed, budget, draw()).rows)
    outliers = decisions.query("band == 'outlier'").sort_values("distance")["row"]
    assert set(left_out) == set(outliers.tail(20))


@pytest.mark.parametrize("super_batch", [96, 480, 2048])
def test_bands_meet_a_budget_whatever_the_batch(streamed, super_batch):
    assert len(METHODS["bands"].choose(streamed, 218, draw(), super_batch=super_batch).rows) == 218


def test_budgeted_keeps_what_the_stream_keeps(streamed):
    config = CuratorConfig(rule="budgeted", budget=218, warm_up_order="random", warm_up_features="normalised")
    decisions = curate_stream(streamed, config, draw(3), 480).set_index("row").sort_index()
    choice = METHODS["budgeted"].choose(streamed, 218, draw(3))
    assert choice.rows.tolist() == decisions.index[decisions.kept].tolist()
    # Among the kept, and among the dropped, scores follow the priority.
    for kept in (True, False):
        rows = np.flatnonzero(decisions.kept == kept)
        by_score = rows[np.argsort(-choice.scores[rows])]
        assert (np.diff(decisions.priority.to_numpy()[by_score]) <= 0).all()


def test_budgeted_takes_outliers_where_they_are_wanted(streamed):
    kept = {
        policy: set(METHODS["budgeted"].choose(streamed, 218, draw(), outlier_policy=policy).rows)
        for policy in ("drop", "keep")
    }
    centre = np.eye(6, 32)[(streamed @ np.eye(6, 32).T).argmax(axis=1)]
    distance = np.linalg.norm(streamed - centre, axis=1)
    farthest = set(np.argsort(-distance)[:20])
    assert len(kept["keep"] & farthest) > len(kept["drop"] & farthest)


# --- clusters and prototypicality -------------------------------------------------------------------------------------


TWO_ARCS = on_circle([-20, -5, 0, 5, 20, 160, 175, 180, 185, 200])


def test_easy_takes_the_middle_and_hard_the_ends_of_each_arc():
    easy = METHODS["prototypicality_easy"].choose(TWO_ARCS, 2, draw(), clusters=2)
    hard = METHODS["prototypicality_hard"].choose(TWO_ARCS, 4, draw(), clusters=2)
    assert easy.rows.tolist() == [2, 7]
    assert hard.rows.tolist() == [0, 4, 5, 9]
    np.testing.assert_allclose(easy.scores, np.cos(np.deg2rad([20, 5, 0, 5, 20] * 2)), atol=1e-6)
    np.testing.assert_allclose(hard.scores, -easy.scores, atol=1e-6)


def test_centroids_have_unit_norm_and_rows_go_to_the_most_similar():
    rows = torch.nn.functional.normalize(torch.randn(500, 8, generator=draw()), dim=1).numpy()
    found = clusters.cluster_rows(rows, 9, 10, draw(1))
    np.testing.assert_allclose(found.centroids.norm(dim=1), 1, atol=1e-6)
    cosines = rows @ found.centroids.numpy().T
    assert (cosines.argmax(axis=1) == found.nearest).all()
    np.testing.assert_allclose(cosines.max(axis=1), found.similarity, atol=1e-6)


def test_large_sets_are_fitted_on_a_sample_and_assigned_in_blocks(monkeypatch):
    monkeypatch.setattr(clusters, "_FITTED_ROWS", 6)
    found = clusters.cluster_rows(np.tile(TWO_ARCS, (900, 1)), 2, 10, draw(3))
    assert len(found.nearest) == 9000
    assert (found.nearest.reshape(-1, 10) == found.nearest[:10]).all()


# --- agreement, loss, learnability ------------------------------------------------------------------------------------


NONE = np.zeros((6, 1), dtype=np.float32)


def test_agreement_is_the_cosine_of_image_and_text_of_any_length():
    image, text = on_circle([0, 0, 90, 30, 10, 5]), 3 * on_circle([180, 60, 90, 40, 80, 5])
    choice = METHODS["agreement"].choose(NONE, 3, draw(), image=image, text=text)
    np.testing.assert_allclose(choice.scores, np.cos(np.deg2rad([180, 60, 0, 10, 70, 0])), atol=1e-6)
    assert choice.rows.tolist() == [2, 3, 5]


def test_loss_takes_the_highest_and_learnability_what_the_reference_finds_easier():
    loss = np.array([5.0, 4.0, 3.0, 2.0, 1.0, 0.0])
    reference = np.array([5.0, 1.0, 2.5, 0.0, 0.9, 0.1])
    assert METHODS["loss"].choose(NONE, 2, draw(), loss=loss).rows.tolist() == [0, 1]
    learnable = METHODS["learnability"].choose(NONE, 2, draw(), loss=loss, reference_loss=reference)
    assert learnable.rows.tolist() == [1, 3]
    np.testing.assert_allclose(learnable.scores, [0, 3, 0.5, 2, 0.1, -0.1])


def test_errors_of_two_orthogonal_pairs():
    image = text = np.eye(2, dtype=np.float32)
    right = np.e / (np.e + 1)
    scores = METHODS["el2n"].choose(NONE[:2], 1, draw(), image=image, text=text, temperature=1.0).scores
    np.testing.assert_allclose(scores, np.sqrt(2) * (1 - right), rtol=1e-6)


def test_an_exchanged_report_has_the_longest_error():
    image = np.eye(8, dtype=np.float32)
    text = image[[0, 1, 2, 3, 5, 4, 6, 7]]
    choice = METHODS["el2n"].choose(NONE, 2, draw(), image=image, text=text)
    assert choice.rows.tolist() == [4, 5]


LOSS = np.array([0.0, 0.0, 0.0, 0.0, 10.0, 10.0])


@pytest.mark.parametrize(
    ("budget", "weights"), [(6, [1] * 6), (5, [4 / 3] * 3 + [1] * 2), (4, [2] * 2 + [1] * 2), (3, [4, 1, 1]), (1, [6])]
)
def test_soft_pruning_rescales_the_drawn_so_that_weights_sum_to_all_pairs(budget, weights):
    choice = METHODS["infobatch"].choose(NONE, budget, draw(), loss=LOSS)
    np.testing.assert_allclose(choice.weights, weights)
    assert choice.weights.sum() == pytest.approx(6)
    if budget >= 3:
        assert {4, 5} <= set(choice.rows)


def test_soft_pruning_below_what_the_mean_allows_raises_the_threshold():
    loss = np.arange(100.0)
    choice = METHODS["infobatch"].choose(np.zeros((100, 1)), 23, draw(), loss=loss)
    # 77 of the lowest 86 losses are pruned, 90 %; the highest 14 stay.
    assert set(range(86, 100)) <= set(choice.rows)
    assert choice.weights[:9].tolist() == [86 / 9] * 9
    assert choice.weights.sum() == pytest.approx(100)
    with pytest.raises(StudyError, match=r"from 0\.01 to 0\.99"):
        METHODS["infobatch"].choose(NONE, 2, draw(), loss=LOSS, highest_ratio=1.0)


def test_the_rescaled_sum_of_a_pruned_set_is_that_of_the_whole_on_average():
    loss = np.random.default_rng(0).exponential(size=200)
    gradient = np.random.default_rng(1).normal(size=200) + 3
    sums = []
    for seed in range(400):
        choice = METHODS["infobatch"].choose(np.zeros((200, 1)), 120, draw(seed), loss=loss)
        sums.append((choice.weights * gradient[choice.rows]).sum())
    assert np.mean(sums) == pytest.approx(gradient.sum(), rel=0.01)
