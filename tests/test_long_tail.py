import numpy as np
import pandas as pd
import pytest

from chexstudy.errors import StudyError
from chexstudy.evaluation.long_tail import (
    density,
    gain_against_prevalence,
    keep_rates,
    list_keep_rates,
    measure_prevalence,
    prevalence_tiers,
    read_gain_against_prevalence,
    wilson_interval,
)
from chexstudy.evaluation.results import add_results
from chexstudy.evaluation.scores import write_scores
from chexstudy.evaluation.statistics import auroc
from chexstudy.runs import Run


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


def pick(rates, group):
    return rates[rates.group == group].iloc[0]


def test_prevalence_is_the_share_of_all_images():
    cohort = make_cohort({"Mass": [1, 0, -1, None], "No Finding": [0, 1, 1, 1]})
    prevalence = measure_prevalence(cohort)
    assert dict(prevalence) == {"Mass": 0.25, "No Finding": 0.75}


def test_tiers_follow_the_thresholds_and_leave_out_no_finding():
    prevalence = pd.Series({"No Finding": 0.6, "Effusion": 0.101, "Edema": 0.10, "Nodule": 0.01, "Hernia": 0.009})
    assert dict(prevalence_tiers(prevalence)) == {
        "Effusion": "head",
        "Edema": "medium",
        "Nodule": "medium",
        "Hernia": "tail",
    }
    assert dict(prevalence_tiers(prevalence, head=0.05, tail=0.05))["Nodule"] == "tail"


def test_without_thresholds_tiers_are_thirds():
    prevalence = pd.Series([0.02, 0.05, 0.01, 0.04, 0.03, 0.06, 0.06], index=list("abcdefg"))
    tiers = prevalence_tiers(prevalence, head=None, tail=None)
    assert dict(tiers) == {
        "f": "head",
        "g": "head",
        "b": "head",
        "d": "medium",
        "e": "medium",
        "a": "tail",
        "c": "tail",
    }
    assert list(tiers.index) == list("abcdefg")


def test_thresholds_out_of_order_and_counts_are_refused():
    prevalence = pd.Series({"Mass": 0.1})
    with pytest.raises(StudyError, match="tail <= head"):
        prevalence_tiers(prevalence, head=0.01, tail=0.1)
    with pytest.raises(StudyError, match="two thresholds"):
        prevalence_tiers(prevalence, head=None, tail=0.1)
    with pytest.raises(StudyError, match="from 0 to 1"):
        prevalence_tiers(pd.Series({"Mass": 12}))


def test_density_is_one_over_the_mean_distance_to_others():
    line = np.array([[0.0], [1.0], [3.0], [10.0]])
    np.testing.assert_allclose(density(line, neighbours=2), [1 / 2, 1 / 1.5, 1 / 2.5, 1 / 8])
    assert density(np.zeros((4, 2)), neighbours=3)[0] == np.inf
    with pytest.raises(StudyError, match="more than 10 images"):
        density(line)
    with pytest.raises(StudyError, match="not finite"):
        density(np.full((20, 2), np.nan))


def test_keep_rate_and_enrichment_worked_by_hand():
    cohort = make_cohort(
        {"Mass": [1, 1, 0, 0, 0, 0, 0, -1], "Hernia": [0, 1, 0, 0, 0, 0, 0, 0]},
        origins=["written"] * 4 + ["template"] * 4,
    )
    tiers = {"Mass": "head", "Hernia": "tail"}
    rates = keep_rates(cohort, ["t/0", "t/1", "t/2", "t/4"], tiers=tiers)
    assert pick(rates, "all").keep_rate == 0.5
    mass = pick(rates, "Mass")
    assert (mass.n, mass.kept, mass.keep_rate, mass.enrichment) == (2, 2, 1, 2)
    assert (mass.base_share, mass.kept_share) == (2 / 8, 2 / 4)
    # Neither present nor uncertain: images 2 to 6.
    normal = pick(rates, "No Finding")
    assert (normal.n, normal.kept) == (5, 2)
    assert pick(rates, "template report").keep_rate == 1 / 4
    assert (pick(rates, "head").n, pick(rates, "tail").n, pick(rates, "medium").n) == (2, 1, 0)
    assert np.isnan(pick(rates, "medium").keep_rate)


def test_independent_images_have_wilsons_interval():
    kept = np.arange(100) < 30
    cohort = make_cohort({"Mass": [1] * 100})
    rate = pick(keep_rates(cohort, cohort.image_id[kept]), "Mass")
    # Wilson's interval of 30 out of 100 in the tables.
    assert (rate.ci_low, rate.ci_high) == (pytest.approx(0.2189, abs=5e-4), pytest.approx(0.3958, abs=5e-4))
    assert wilson_interval(0.3, 100) == (pytest.approx(0.2189, abs=5e-5), pytest.approx(0.3958, abs=5e-5))


def test_images_that_share_a_patients_fate_count_as_patients():
    patients = np.repeat(np.arange(50), 4)
    whole = make_cohort({"Mass": [1] * 200}, patients)
    rate = pick(keep_rates(whole, whole.image_id[patients < 20]), "Mass")
    assert rate.patients == 50
    low, high = wilson_interval(0.4, 50)
    assert (rate.ci_low, rate.ci_high) == (pytest.approx(low, abs=0.004), pytest.approx(high, abs=0.004))


def test_a_group_of_which_nothing_is_kept_still_has_an_interval():
    cohort = make_cohort({"Hernia": [1] * 12 + [0] * 88}, np.repeat(np.arange(50), 2))
    hernia = pick(keep_rates(cohort, cohort.image_id[50:]), "Hernia")
    assert hernia.keep_rate == 0
    assert hernia.ci_low == pytest.approx(0, abs=1e-12)
    # Six patients, none kept: z^2 / (n + z^2).
    assert hernia.ci_high == pytest.approx(1.96**2 / (6 + 1.96**2), abs=1e-3)
    assert hernia.enrichment_high == pytest.approx(hernia.ci_high / 0.5)


def test_keep_rate_intervals_cover_the_truth_with_clustered_images():
    generator = np.random.default_rng(0)
    covered, simulations = 0, 200
    for _ in range(simulations):
        patients = np.repeat(np.arange(40), 5)
        chance = generator.choice([0.05, 0.55], size=40)[patients]
        cohort = make_cohort({"Mass": [1] * 200}, patients)
        rate = pick(keep_rates(cohort, cohort.image_id[generator.random(200) < chance]), "Mass")
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
    sparse_kept = cohort.image_id[:8]
    rates = keep_rates(cohort, sparse_kept, truth=truth, density=np.arange(40.0))
    # The truth is in reverse order: duplicates are images 0 and 1, the mismatched one is 39, the junk one 38.
    assert (pick(rates, "near-duplicate").n, pick(rates, "near-duplicate").kept) == (2, 2)
    assert (pick(rates, "mismatched").n, pick(rates, "mismatched").kept) == (1, 0)
    assert (pick(rates, "sound pair").n, pick(rates, "sound pair").kept) == (36, 6)
    tenths = rates[rates.group_by == "density"]
    assert list(tenths.group) == [str(number) for number in range(1, 11)]
    assert list(tenths.n) == [4] * 10
    assert list(tenths.kept) == [4, 4, 0, 0, 0, 0, 0, 0, 0, 0]


def test_a_subset_or_truth_of_another_cohort_is_refused():
    cohort = make_cohort({"Mass": [0, 1]})
    with pytest.raises(StudyError, match="not among the training images, such as 'x/9'"):
        keep_rates(cohort, ["t/0", "x/9"])
    with pytest.raises(StudyError, match="truth lacks image 't/1'"):
        keep_rates(cohort, ["t/0"], truth=pd.DataFrame({"image_id": ["t/0"]}))
    with pytest.raises(StudyError, match="density holds 3 values for 2 images"):
        keep_rates(cohort, ["t/0"], density=np.ones(3))


def test_keep_rates_fit_the_results_table(home):
    cohort = make_cohort({"Mass": [1, 1, 0, 0]})
    rows = list_keep_rates(keep_rates(cohort, ["t/0"], density=np.arange(4.0), tiers={"Mass": "tail"}))
    place = {"arm": "curated", "seed": 0, "task": "curation", "data_set": "phantom/train", "exposure": "seen"}
    add_results(Run("test"), rows.assign(**place))
    mass = rows[(rows.finding == "Mass") & (rows.metric == "enrichment")].iloc[0]
    assert (mass.value, mass.n, mass.positives, mass.setting) == (2, 2, 1, "finding")


@pytest.fixture
def rare_gain():
    """Six findings; the first arm is better by more the rarer the finding."""
    generator = np.random.default_rng(1)
    prevalence = pd.Series(np.geomspace(0.3, 0.01, 6), index=[f"F{number}" for number in range(6)])
    labels = (generator.random((400, 6)) < 0.3).astype(float)
    baseline = [0.5 * labels + generator.normal(size=labels.shape) for _ in range(2)]
    first = [scores + labels * np.linspace(0, 1.5, 6) for scores in baseline]
    return first, baseline, labels, prevalence


def test_a_gain_on_the_rare_has_a_falling_trend(rare_gain):
    first, baseline, labels, prevalence = rare_gain
    table = gain_against_prevalence(
        first,
        baseline,
        labels,
        np.arange(400),
        prevalence,
        np.random.default_rng(0),
        tiers={"F5": "tail"},
        resamples=200,
    )
    gain = np.mean(
        [auroc(labels, one) - auroc(labels, other) for one, other in zip(first, baseline, strict=True)], axis=0
    )
    np.testing.assert_allclose(table.value[:6], gain)
    assert list(table.finding) == [*prevalence.index, "trend"]
    assert table.tier[5] == "tail"
    assert table.ci_low[5] > 0
    trend = table.iloc[6]
    assert trend.value == pytest.approx(np.polyfit(np.log10(prevalence), gain, 1)[0])
    assert trend.ci_low < trend.value < trend.ci_high < 0
    assert trend.n == 6


def test_a_finding_without_positives_keeps_its_row_and_leaves_the_trend(rare_gain):
    first, baseline, labels, prevalence = rare_gain
    labels[:, 2] = 0
    table = gain_against_prevalence(
        first, baseline, labels, np.arange(400), prevalence, np.random.default_rng(0), resamples=100
    )
    assert np.isnan(table.value[2])
    assert table.positives[2] == 0
    assert table.n[6] == 5
    assert np.isfinite([table.value[6], table.ci_low[6]]).all()
    with pytest.raises(StudyError, match="auroc, auprc"):
        gain_against_prevalence(
            first, baseline, labels, np.arange(400), prevalence, np.random.default_rng(0), metric="accuracy"
        )


def test_gains_are_read_from_the_scores_a_study_kept(home, rare_gain):
    first, baseline, labels, prevalence = rare_gain
    run = Run("test")
    cohort = make_cohort({name: labels[:, position].astype(int) for position, name in enumerate(prevalence.index)})
    place = {"task": "zero_shot", "data_set": "phantom/test"}
    for arm, scores in (("curated", first), ("full", baseline)):
        for seed, one in enumerate(scores):
            write_scores(run, one, cohort.image_id, list(prevalence.index), arm=arm, seed=seed, **place)
    table, seeds = read_gain_against_prevalence(
        run, cohort, "curated", "full", prevalence, np.random.default_rng(0), data_set="phantom/test", resamples=50
    )
    expected = gain_against_prevalence(
        first, baseline, labels, cohort.patient_id, prevalence, np.random.default_rng(0), resamples=50
    )
    assert seeds == [0, 1]
    assert table.equals(expected)
