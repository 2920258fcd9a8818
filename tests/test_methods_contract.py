"""What every method of curation promises, whatever it chooses."""

import functools
import inspect
import itertools

import numpy as np
import pytest
import torch

from chexstudy.curation.methods import METHODS, choose_subset
from chexstudy.errors import StudyError

PAIRS = 300
NAMES = (
    *("bands", "budgeted", "random", "k_centre", "facility_location", "density", "semdedup", "d4"),
    *("prototypicality_easy", "prototypicality_hard", "hierarchical", "agreement", "loss", "el2n", "learnability"),
    "infobatch",
)
# Methods whose subset of a smaller budget lies within that of a larger one.
NESTED = [name for name in NAMES if name not in ("bands", "budgeted", "density", "infobatch", "d4")]
# Methods that do not depend on the order of rows where values differ, with the options that make it so.
ORDERLESS = {
    **{name: {} for name in ("agreement", "loss", "learnability")},
    **{name: {"clusters": 1} for name in ("semdedup", "d4", "prototypicality_easy", "prototypicality_hard")},
}


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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


@pytest.mark.parametrize("name", NESTED)
def test_smaller_subsets_lie_within_larger_ones(name):
    features, signals = make_pairs()
    subsets = [set(choose_subset(name, features, budget, draw(5), **signals).rows) for budget in (1, 20, 68, 200)]
    assert all(small < large for small, large in itertools.pairwise(subsets))


def test_d4_is_nested_up_to_what_semdedup_leaves():
    features, _ = make_pairs()
    subsets = [set(choose_subset("d4", features, budget, draw(5)).rows) for budget in (1, 68, 200, 225)]
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
def test_copies_are_chosen_as_often_as_the_budget_asks(name):
    features, signals = make_pairs()
    copies = np.repeat(features[:20], 10, axis=0)
    alike = np.repeat(features[:1], 50, axis=0)
    for rows, budget in ((copies, 45), (alike, 11)):
        given = {key: values[: len(rows)] for key, values in signals.items()}
        check_contract(choose_subset(name, rows, budget, draw(1), **given), budget, len(rows))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("bands", "budgeted")])
@pytest.mark.parametrize("pairs", [1, 2])
def test_one_or_two_pairs_are_enough(name, pairs):
    features, signals = make_pairs()
    given = {key: values[:pairs] for key, values in signals.items()}
    for budget in range(1, pairs + 1):
        check_contract(choose_subset(name, features[:pairs], budget, draw(1), **given), budget, pairs)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("agreement", "loss", "el2n", "learnability")])
def test_half_precision_features_are_read(name):
    features, signals = make_pairs()
    check_contract(choose_subset(name, features.astype(np.float16), 68, draw(0), **signals), 68, PAIRS)


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


def test_an_unknown_method_is_answered_with_the_list_and_a_guess():
    features, _ = make_pairs()
    with pytest.raises(StudyError, match=r"no method 'semdedupe'; the methods are bands, .*: did you mean 'semdedup'"):
        choose_subset("semdedupe", features, 10, draw(0))


@pytest.mark.parametrize("budget", [0, -1, PAIRS + 1, 0.5, 12.0])
def test_a_budget_that_is_no_number_of_pairs_is_refused(budget):
    features, _ = make_pairs()
    with pytest.raises(StudyError, match="from 1 to 300"):
        choose_subset("random", features, budget, draw(0))


def test_bad_features_options_and_signals_are_refused():
    features, signals = make_pairs()
    for value in (np.nan, np.inf, 0.0):
        bad = features.copy()
        bad[17] = value
        with pytest.raises(StudyError, match="row 17 of the features is not of unit norm"):
            choose_subset("random", bad, 10, draw(0))
    with pytest.raises(StudyError, match="int64"):
        choose_subset("random", np.ones((4, 1), dtype=np.int64), 1, draw(0))
    with pytest.raises(
        StudyError, match=r"no parameter 'cluster'; it takes clusters, iterations: did you mean 'clusters'"
    ):
        choose_subset("semdedup", features, 10, draw(0), cluster=3)
    with pytest.raises(StudyError, match=r"text must hold one embedding for each of the 300 pairs"):
        choose_subset("agreement", features, 10, draw(0), image=signals["image"], text=signals["text"][:-1])
    with pytest.raises(StudyError, match=r"loss must hold one number"):
        choose_subset("loss", features, 10, draw(0), loss=signals["image"])
    with pytest.raises(StudyError, match=r"loss holds values that are not finite"):
        choose_subset("loss", features, 10, draw(0), loss=np.full(PAIRS, np.nan))
