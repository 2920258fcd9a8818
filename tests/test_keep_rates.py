import numpy as np
import pandas as pd
import pytest

from chexstudy.curation.quality.keep_rates import list_keep_rates, measure_keep_rates, tabulate_band
from chexstudy.errors import StudyError
from chexstudy.results import add_results
from chexstudy.runs import Run
from chexstudy.statistics.proportions import wilson_interval


def make_cohort(labels, patients=None, origins=None):
    """A cohort of what the long tail reads: ids, patients, the origin of the report, labels."""
    count = len(next(iter(labels.values())))
    return pd.DataFrame(
        {
            "image_id": [f"t/{number}" for number in range(count)],
            "patient_id": [f"t/{patient}" for patient in (patients if patients is not None else range(count))],
            "report_origin": origins if origins is not None else ["written"] * count,
            **{name: pd.array(values, dtype="Int8") for name, values in labels.items()},
        }
    )


def keep_rates(cohort, kept, density=None, **known):
    """The rates of all seeds together; decisions and density are ``(images,)`` or ``(seeds, images)``."""
    kept, density = (None if one is None else dict(enumerate(np.atleast_2d(one))) for one in (kept, density))
    rates = measure_keep_rates(cohort, kept, density=density, **known)
    return rates[rates.seed == -1]


def pick(rates, group):
    return rates[rates.group == group].iloc[0]


def test_keep_rate_and_enrichment_worked_by_hand():
    cohort = make_cohort(
        {"Mass": [1, 1, 0, 0, 0, 0, 0, -1], "Hernia": [0, 1, 0, 0, 0, 0, 0, 0]},
        origins=["written"] * 4 + ["template"] * 4,
    )
    tiers = {"Mass": "head", "Hernia": "tail"}
    rates = keep_rates(cohort, np.isin(np.arange(8), [0, 1, 2, 4]), tiers=tiers)
    assert pick(rates, "all").keep_rate == 0.5
    mass = pick(rates, "Mass")
    assert (mass.n, mass.kept, mass.keep_rate, mass.enrichment) == (2, 2, 1, 2)
    # Neither present nor uncertain: images 2 to 6.
    normal = pick(rates, "No Finding")
    assert (normal.n, normal.kept) == (5, 2)
    assert pick(rates, "template report").keep_rate == 1 / 4
    assert (pick(rates, "head").n, pick(rates, "tail").n, pick(rates, "medium").n) == (2, 1, 0)
    assert np.isnan(pick(rates, "medium").keep_rate)


def test_a_band_is_tabled_from_the_most_over_represented_group_on():
    cohort = make_cohort({"Mass": [1, 1, 0, 0], "Hernia": [0, 0, 1, 1]})
    table = tabulate_band(measure_keep_rates(cohort, {0: np.array([True, True, True, False])}))
    assert table.index[0] == ("finding", "Mass")
    assert table.loc["finding", "Mass"].tolist()[:3] == [2, 2, 4 / 3]
    assert table["over-representation"]["finding", "Hernia"] == 2 / 3


def test_independent_images_have_wilsons_interval():
    kept = np.arange(100) < 30
    cohort = make_cohort({"Mass": [1] * 100})
    rate = pick(keep_rates(cohort, kept), "Mass")
    # Wilson's interval of 30 out of 100 in the tables.
    assert (rate.ci_low, rate.ci_high) == (pytest.approx(0.2189, abs=5e-4), pytest.approx(0.3958, abs=5e-4))
    assert wilson_interval(0.3, 100) == (pytest.approx(0.2189, abs=5e-5), pytest.approx(0.3958, abs=5e-5))


def test_images_that_share_a_patients_fate_count_as_patients():
    patients = np.repeat(np.arange(50), 4)
    whole = make_cohort({"Mass": [1] * 200}, patients)
    rate = pick(keep_rates(whole, patients < 20), "Mass")
    low, high = wilson_interval(0.4, 50)
    assert (rate.ci_low, rate.ci_high) == (pytest.approx(low, abs=0.004), pytest.approx(high, abs=0.004))
    # A group of which nothing is kept still has an interval: six patients, none kept, z^2 / (n + z^2).
    cohort = make_cohort({"Hernia": [1] * 12 + [0] * 88}, np.repeat(np.arange(50), 2))
    hernia = pick(keep_rates(cohort, np.arange(100) >= 50), "Hernia")
    assert (hernia.keep_rate, hernia.ci_low) == (0, pytest.approx(0, abs=1e-12))
    assert hernia.ci_high == pytest.approx(1.96**2 / (6 + 1.96**2), abs=1e-3)
    assert hernia.enrichment_high == pytest.approx(hernia.ci_high / 0.5)


def test_keep_rate_intervals_cover_the_truth_with_clustered_images():
    generator = np.random.default_rng(0)
    covered, simulations = 0, 200
    for _ in range(simulations):
        patients = np.repeat(np.arange(40), 5)
        chance = generator.choice([0.05, 0.55], size=40)[patients]
        cohort = make_cohort({"Mass": [1] * 200}, patients)
        rate = pick(keep_rates(cohort, generator.random(200) < chance), "Mass")
        covered += rate.ci_low <= 0.30 <= rate.ci_high
    assert 0.90 <= covered / simulations <= 0.99


def test_truth_and_density_groups():
    cohort = make_cohort({"Mass": [0] * 40})
    truth = pd.DataFrame(
        {
            "image_id": cohort.image_id[::-1].to_numpy(),
            "duplicate_of": [""] * 38 + ["t/30", "t/31"],
            "mismatched": [True] + [False] * 39,
            "junk": [False, True] + [False] * 38,
        }
    )
    rates = keep_rates(cohort, np.arange(40) < 8, truth=truth, density=np.arange(40.0))
    # The truth is in reverse order: duplicates are images 0 and 1, the mismatched one is 39, the junk one 38.
    assert (pick(rates, "near-duplicate").n, pick(rates, "near-duplicate").kept) == (2, 2)
    assert (pick(rates, "mismatched").n, pick(rates, "mismatched").kept) == (1, 0)
    assert (pick(rates, "sound pair").n, pick(rates, "sound pair").kept) == (36, 6)
    tenths = rates[rates.group_by == "density"]
    assert list(tenths.group) == [str(number) for number in range(1, 11)]
    assert list(tenths.n) == [4] * 10
    assert list(tenths.kept) == [4, 4, 0, 0, 0, 0, 0, 0, 0, 0]


def test_decisions_truth_or_density_of_another_cohort_are_refused():
    cohort = make_cohort({"Mass": [0, 1]})
    with pytest.raises(StudyError, match="3 decisions for 2 images"):
        keep_rates(cohort, np.ones(3, dtype=bool))
    with pytest.raises(StudyError, match="truth lacks 1 of the images"):
        keep_rates(cohort, np.array([True, False]), truth=pd.DataFrame({"image_id": ["t/0"]}))
    with pytest.raises(StudyError, match=r"density is \(1, 3\) for decisions \(1, 2\)"):
        keep_rates(cohort, np.array([True, False]), density=np.ones(3))
    with pytest.raises(StudyError, match="no training images"):
        keep_rates(cohort[:0], np.ones(0, dtype=bool))


def test_a_seed_that_decides_alike_narrows_nothing():
    cohort = make_cohort({"Mass": [1] * 100}, np.repeat(np.arange(50), 2))
    kept = np.random.default_rng(0).random(100) < 0.3
    once, twice = (pick(keep_rates(cohort, np.stack([kept] * seeds)), "Mass") for seeds in (1, 3))
    assert (twice.n, twice.kept) == (100, kept.sum())
    assert twice.keep_rate == once.keep_rate
    assert (twice.ci_low, twice.ci_high) == (
        pytest.approx(once.ci_low, abs=0.01),
        pytest.approx(once.ci_high, abs=0.01),
    )


def test_independent_seeds_narrow_and_disagreeing_ones_widen():
    cohort = make_cohort({"Mass": [1] * 400})
    generator = np.random.default_rng(3)

    def width(kept):
        rate = pick(keep_rates(cohort, kept), "Mass")
        return rate.ci_high - rate.ci_low

    ratios = []
    for _ in range(20):
        alike = generator.random((3, 400)) < 0.4
        ratios.append(width(alike) / width(alike[0]))
    # Three independent decisions an image would give 1 / sqrt(3) = 0.58 if the seeds were known to agree.
    assert 0.57 < np.mean(ratios) < 0.85
    # Rates of 0.2, 0.4 and 0.6: a standard error of 0.2 / sqrt(3) = 0.115 on the mean.
    apart = generator.random((3, 400)) < np.array([[0.2], [0.4], [0.6]])
    assert width(apart) > 2 * 1.5 * 0.115


def test_seeds_have_their_rows_and_one_together_with_their_own_density(home):
    cohort = make_cohort({"Mass": [1, 1, 1, 1, 0, 0, 0, 0, 0, 0] * 2, "No Finding": [0, 0, 0, 0, 1, 1, 1, 1, 1, 1] * 2})
    kept = {4: np.arange(20) < 2, 5: np.arange(20) < 6}
    local = {4: np.arange(20.0), 5: -np.arange(20.0)}
    rates = measure_keep_rates(cohort, kept, tiers={"Mass": "tail"}, density=local)
    assert list(rates.seed.unique()) == [-1, 4, 5]
    by_seed = rates[rates.group == "Mass"].set_index("seed")
    # Of images 0 to 3 and 10 to 13, seed 4 keeps two and seed 5 four.
    assert dict(by_seed.keep_rate) == {-1: 6 / 16, 4: 2 / 8, 5: 4 / 8}
    assert (by_seed.n == 8).all()
    assert by_seed.kept[-1] == 3
    # The thinnest tenth is images 0 and 1 for seed 4, 18 and 19 for seed 5.
    thinnest = rates[(rates.group_by == "density") & (rates.group == "1")].set_index("seed")
    assert dict(thinnest.keep_rate) == {-1: 0.5, 4: 1.0, 5: 0.0}
    rows = list_keep_rates(rates)
    place = {"arm": "curated", "task": "curation", "data_set": "phantom/train", "exposure": "seen"}
    written = add_results(Run("test"), rows.assign(**place))
    over = written[(written.seed == -1) & (written.metric == "keep_rate") & (written.n > 0)]
    assert over.ci_low.notna().all()
    mass = rows[(rows.finding == "Mass") & (rows.metric == "enrichment") & (rows.seed == 4)].iloc[0]
    assert (mass.value, mass.n, mass.positives, mass.group) == (2 / 8 / 0.1, 8, 2, "finding")


def test_a_cohort_without_labels_has_report_and_density_groups_alone():
    cohort = make_cohort({"Mass": [0] * 20}, origins=["written"] * 10 + ["none"] * 10).drop(columns="Mass")
    rates = keep_rates(cohort, np.arange(20) < 5, tiers={}, density=np.arange(20.0))
    assert list(rates.group_by.unique()) == ["all", "report", "density"]
    assert pick(rates, "no report").keep_rate == 0
