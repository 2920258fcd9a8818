"""Advice: the rule on outcomes worked out by hand, what is measured of a cohort, and what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

from chexstudy.cli.main import main
from chexstudy.cohort.phantom.build import build_phantom
from chexstudy.cohort.phantom.plan import PhantomConfig
from chexstudy.cohort.pixels.store import build_pixel_store
from chexstudy.cohort.table import NO_FINDING, read_cohort, write_cohort
from chexstudy.curation.online.mismatch_filter import FilterVerdict
from chexstudy.errors import StudyError
from chexstudy.experiments.regimes import evidence
from chexstudy.experiments.regimes.advice import EFFECTS, advise, average_gains, estimate_wrong, weigh_conditions
from chexstudy.experiments.regimes.advice_in_words import describe_advice, describe_cohort, tabulate_gains
from chexstudy.experiments.regimes.cohort_measures import CohortMeasures, measure_cohort, measure_study
from chexstudy.experiments.regimes.contrasts import MAIN_METRIC, measure_gains
from chexstudy.experiments.regimes.design import read_design
from chexstudy.runs import Run

CENTRE = {"pool": 16_000, "budget": 2_000, "wrong": 0.04, "duplicates": 0.04, "scorer": "trained", "start": "scratch"}
CENTRE |= {"side": 64}
NOTE = "Matched pairs are told from shuffled ones (AUROC 0.80 [0.79, 0.81]); at most {}% look mismatched. 9 set aside."
TOLD = FilterVerdict(0.8, 0.79, 0.81, 0.5, 0.055, 0.05, 0.06)
SILENT = FilterVerdict(0.5, 0.49, 0.51, -np.inf, np.nan, np.nan, np.nan)
COHORT = CohortMeasures(16_000, TOLD, 0.01, 0.04, 0.6)


def make_outcomes(gains, at=None, looks=5.5, base=0.65, **effects):
    """Rows of a cell: random at ``base`` plus a tenth of the seed, and methods with their gains by pool."""
    rows = []
    for method, own in {"random": [0.0] * max(map(len, gains.values())), **gains}.items():
        for seed, gain in enumerate(own):
            row = CENTRE | (at or {}) | {"method": method, "seed": seed, "choice": 0, "training": 0}
            row |= {MAIN_METRIC: base + seed / 10 + gain, "flops": 4e12, "scoring_flops": 0.0, "note": None}
            row |= {name: 0.4 for name in EFFECTS} | {name: 0.4 + seed / 99 for name in effects}
            if method != "random":
                row |= {"scoring_flops": 8e11, "note": NOTE.format(looks) if "filtered" in method else ""}
                row |= {name: row[name] + value[seed] for name, value in effects.items()}
            rows.append(row)
    return pd.DataFrame(rows)


CLEAR = {"filtered": [0.05, 0.051, 0.052, 0.049, 0.048], "bands": [0.01, -0.01, 0.02, -0.02, 0.0]}


def test_at_one_condition_the_interval_is_students_over_its_pools():
    outcomes = make_outcomes({"bands": [0.04, 0.05, 0.06]})
    conditions = weigh_conditions(COHORT, 2_000, outcomes)
    assert conditions.steps.tolist() == [0]
    assert conditions.weight.tolist() == [1]
    row = average_gains(outcomes, [MAIN_METRIC], conditions).iloc[0]
    reach = 4.302653 * 0.01 / np.sqrt(3)  # t of 2 degrees of freedom
    assert [row.gain, row.ci_low, row.ci_high] == pytest.approx([0.05, 0.05 - reach, 0.05 + reach], abs=1e-6)
    other = measure_gains(outcomes, [MAIN_METRIC]).iloc[0]
    assert [row.p, row["value"], row.pools] == pytest.approx([other.p, other["value"], 3])


def test_steps_are_levels_of_the_design_by_the_logarithm_of_pairs():
    cells = [{}, {"budget": 8_000}, {"budget": 500}, {"duplicates": 0.2}, {"wrong": 0.12}]
    outcomes = pd.concat([make_outcomes({"filtered": [0.1, 0.2]}, at, 13 if at.get("wrong") else 5.5) for at in cells])
    conditions = weigh_conditions(COHORT, 4_000, outcomes)
    found = dict(
        zip(zip(conditions.budget, conditions.duplicates, conditions.wrong, strict=True), conditions.steps, strict=True)
    )
    # Half a step down in pool over budget and half a step up in budget.
    half = np.sqrt(0.5)
    assert found[2_000, 0.04, 0.04] == pytest.approx(half)
    assert found[8_000, 0.04, 0.04] == pytest.approx(half)
    assert found[2_000, 0.2, 0.04] == pytest.approx(np.sqrt(1.5)) == found[2_000, 0.04, 0.12]
    assert (500, 0.04, 0.04) not in found  # three halves of a step twice: 2.1
    assert conditions.weight.tolist() == pytest.approx(np.exp(-(conditions.steps**2)).tolist())
    assert conditions.steps.is_monotonic_increasing


def test_a_share_of_wrong_pairs_is_held_against_what_the_filter_told_of_the_pools():
    outcomes = pd.concat(
        make_outcomes({"filtered": [0.1, 0.2]}, {"wrong": wrong}, looks)
        for wrong, looks in ((0.0, 3), (0.04, 5.5), (0.12, 13))
    )
    assert estimate_wrong(outcomes).to_dict() == pytest.approx({0.0: 0.03, 0.04: 0.055, 0.12: 0.13})
    steps = weigh_conditions(COHORT, 2_000, outcomes).set_index("wrong").steps
    assert steps.to_dict() == pytest.approx({0.04: 0, 0.0: 1, 0.12: 1})
    blind = outcomes.assign(note=None)
    assert estimate_wrong(blind).to_dict() == {0.0: 0.0, 0.04: 0.04, 0.12: 0.12}
    steps = weigh_conditions(COHORT, 2_000, blind).set_index("wrong").steps
    assert steps[0.04] == pytest.approx(0.015 / 0.08)


def test_near_conditions_are_averaged_and_a_pool_they_share_is_one_draw():
    gains, others = [0.02, 0.04, 0.06], [0.08, 0.06, 0.04]
    cells = [make_outcomes({"filtered": gains}), make_outcomes({"filtered": others}, {"budget": 8_000})]
    conditions = weigh_conditions(COHORT, 4_000, pd.concat(cells))
    row = average_gains(pd.concat(cells), [MAIN_METRIC], conditions).iloc[0]
    # Both weigh the same, and what a pool is above in one condition it is below in the other: each pool's mean is 0.05.
    assert [row.gain, row.ci_low, row.ci_high, row.pools, row.conditions] == pytest.approx([0.05, 0.05, 0.05, 3, 2])
    alike = pd.concat([cells[0], make_outcomes({"filtered": gains}, {"budget": 8_000})])
    row = average_gains(alike, [MAIN_METRIC], conditions).iloc[0]
    reach = student.ppf(0.975, 2) * 0.02 / np.sqrt(3)
    assert [row.gain, row.ci_high - row.gain] == pytest.approx([0.04, reach])


def test_the_largest_gain_that_is_beyond_chance_is_advised():
    gains = CLEAR | {"agreement": [0.3, -0.1, 0.2, -0.1, 0.1], "truly_sound": [0.2, 0.2, 0.2, 0.2, 0.21]}
    advice = advise(COHORT, 2_000, evidence=make_outcomes(gains))
    assert (advice.method, advice.budget, advice.is_covered) == ("filtered", 2_000, True)
    assert advice.how == {"method": "filtered", "rule": "bands", "strength": "auto"}
    assert set(advice.gains.method) == {"filtered", "agreement", "bands"}, "what needs the truth is for nobody"
    assert advice.gains.method[0] == "agreement", "the largest mean, which chance explains"
    p = advice.gains.set_index("method").p
    assert advice.gains.set_index("method").p_holm.filtered == pytest.approx(3 * p.filtered)
    assert advice.scoring == pytest.approx(0.2)


def test_random_is_advised_where_nothing_better_was_shown():
    advice = advise(COHORT, 2_000, evidence=make_outcomes({"filtered": [0.3, -0.2, 0.1], "bands": [-0.1, -0.1, -0.11]}))
    assert advice.method == "random"
    assert advice.effects.empty
    assert "Of 2 methods none is above random after Holm's correction; the best was filtered" in " ".join(
        describe_advice(advice)
    )


def test_a_method_that_was_not_measured_at_the_nearest_condition_is_no_candidate():
    outcomes = pd.concat([make_outcomes({"filtered": CLEAR["filtered"]}), make_outcomes(CLEAR, {"budget": 8_000})])
    outcomes = outcomes[(outcomes.method != "filtered") | (outcomes.budget == 2_000)]
    assert advise(COHORT, 2_000, evidence=outcomes).method == "filtered"
    assert advise(COHORT, 8_000, evidence=outcomes).method == "random"


def test_with_a_scorer_that_cannot_tell_only_such_a_scorers_outcomes_count():
    silent = replace(COHORT, verdict=SILENT)
    advice = advise(silent, 2_000, evidence=make_outcomes(CLEAR))
    assert advice.method == "random"
    assert "a scorer that cannot tell matched from shuffled pairs" in advice.gaps
    assert "is no evidence here" in " ".join(describe_advice(advice))
    blind = make_outcomes({"bands": CLEAR["filtered"], "filtered": CLEAR["bands"]}, {"scorer": "unaligned"})
    advice = advise(silent, 2_000, evidence=pd.concat([make_outcomes(CLEAR), blind]))
    assert (advice.method, advice.is_covered) == ("bands", True)


def test_other_starts_and_sizes_of_images_say_nothing():
    others = [make_outcomes({"filtered": [-0.5, -0.5, -0.51]}, at) for at in ({"start": "upstream"}, {"side": 96})]
    outcomes = pd.concat([make_outcomes(CLEAR), *others])
    assert advise(COHORT, 2_000, evidence=outcomes).gains.gain.max() == pytest.approx(0.05)
    assert advise(COHORT, 2_000, "upstream", outcomes).method == "random"


@pytest.mark.parametrize(
    ("cohort", "keep", "gap"),
    [
        (COHORT, 12_000, "a pool over budget of 1.3 (measured: 2.0 to 8.0)"),
        (COHORT, 12_000, "a budget of 12,000 (measured: 2,000 to 8,000)"),
        (replace(COHORT, pairs=40_000), 8_000, "a pool of 40,000 (measured: 16,000 to 16,000)"),
        (replace(COHORT, copies=0.3), 2_000, "30.0% near-duplicates (measured: up to 4.0%)"),
        (
            replace(COHORT, verdict=replace(TOLD, wrong_share=0.2, wrong_low=0.18)),
            2_000,
            "20.0% of pairs that look mismatched (measured: up to 5.5%)",
        ),
        (
            replace(COHORT, verdict=replace(TOLD, area=0.7, ci_high=0.71)),
            2_000,
            "a scorer that tells matched from shuffled pairs with an AUROC of 0.70 (measured: 0.80 to 0.80)",
        ),
    ],
)
def test_what_lies_outside_of_what_was_measured_is_said(cohort, keep, gap):
    outcomes = pd.concat([make_outcomes(CLEAR), make_outcomes(CLEAR, {"budget": 8_000})])
    advice = advise(cohort, keep, evidence=outcomes)
    assert gap in advice.gaps
    assert not advice.is_covered
    assert f"{gap}" in next(line for line in describe_advice(advice) if line.startswith("Not covered by what we meas"))


def test_without_a_budget_the_smallest_is_advised_that_is_as_good_as_the_best():
    small, large = make_outcomes(CLEAR, {"budget": 500}), make_outcomes(CLEAR, {"budget": 8_000})
    better = make_outcomes(CLEAR, {"budget": 8_000}, base=0.75)
    assert advise(COHORT, evidence=pd.concat([small, large])).budget == 500
    assert advise(COHORT, evidence=pd.concat([small, better])).budget == 8_000
    assert advise(replace(COHORT, pairs=8_000), evidence=pd.concat([small, better])).budget == 4_000


def test_what_else_the_method_does_is_said_where_it_is_resolved():
    effects = {"specificity_healthy": [-0.05, -0.051, -0.052, -0.049, -0.05], "probe_auroc_macro": [0.1, -0.1, 0, 0, 0]}
    outcomes = make_outcomes(CLEAR, **effects)
    payer = outcomes[outcomes.method == "random"].assign(method="random_same_compute")
    paid = outcomes[outcomes.method == "filtered"].assign(method="filtered_budgeted_half")
    payer[MAIN_METRIC] += 0.02
    advice = advise(COHORT, 2_000, evidence=pd.concat([outcomes[outcomes.method != "filtered"], payer, paid]))
    assert advice.method == "filtered_budgeted_half"
    told = describe_advice(advice)
    assert any("specificity on healthy patients -0.050 (-0.0" in line and "linear probe" not in line for line in told)
    assert any(line.startswith("Not resolved: ") and "AUROC of a linear probe" in line for line in told)
    assert "Advised: filtered_budgeted_half, 2,000 of 16,000 pairs (12.5%), for a training from scratch" in told[0]
    assert "--method filtered --keep 2000 -p rule budgeted -p strength 0.5`" in told[0]
    assert "It gained +0.050 (+0.048 to +0.052) macro zero-shot AUROC over a random choice" in told[1]
    assert any("takes 20% of a training's operations" in line for line in told)
    assert any("operations, those of scoring included: +0.030 (+0.028 to +0.032)." in line for line in told)
    assert tabulate_gains(advice)["over random"][0] == "+0.050 (+0.048 to +0.052)"


def test_outcomes_from_which_nothing_can_be_told_are_refused():
    with pytest.raises(StudyError, match="nothing was measured from the start upstream"):
        advise(COHORT, 2_000, "upstream", make_outcomes(CLEAR))
    with pytest.raises(StudyError, match="start must be one of scratch, upstream, not 'here'"):
        advise(COHORT, 2_000, "here", make_outcomes(CLEAR))
    with pytest.raises(StudyError, match="too few pools were measured"):
        advise(COHORT, 2_000, evidence=make_outcomes({"bands": [0.1]}))
    with pytest.raises(StudyError, match="1 pairs leave nothing to choose from"):
        advise(replace(COHORT, pairs=1), evidence=make_outcomes(CLEAR))


@pytest.mark.skipif(not evidence.COMMITTED.is_file(), reason="no outcomes are committed")
@pytest.mark.parametrize("start", ["scratch", "upstream"])
def test_the_outcomes_that_come_with_the_package_give_an_advice(start):
    outcomes = evidence.read_evidence()
    assert set(outcomes.method) <= set(read_design().methods)
    assert set(EFFECTS) | {MAIN_METRIC, "note", "flops", "scoring_flops"} <= set(outcomes)
    advice = advise(COHORT, 2_000, start)
    assert advice.is_covered
    assert (advice.gains.pools >= 2).all()
    assert np.isfinite(advice.gains[["gain", "ci_low", "ci_high", "p_holm"]]).all(axis=None)
    assert len(describe_advice(advice)) >= 5


# --- a cohort is measured ---------------------------------------------------------------------------------------------


def make_pairs(pairs=600, wrong=0, seed=0):
    """Unit-norm embeddings of both sides whose pairs are alike, but for the first ``wrong``, which are exchanged."""
    generator = np.random.default_rng(seed)
    image = generator.normal(size=(pairs, 16))
    text = image + 0.1 * generator.normal(size=image.shape)
    text[:wrong] = np.roll(text[:wrong], 1, axis=0)
    return [(side / np.linalg.norm(side, axis=1, keepdims=True)).astype(np.float32) for side in (image, text)]


def test_a_cohort_is_measured():
    image, text = make_pairs(wrong=60)
    image[-1] = image[-2]
    labels = pd.DataFrame({NO_FINDING: [1.0] * 150 + [0.0] * 150 + [np.nan] * 300})
    measured = measure_cohort(image, text, labels)
    assert measured.pairs == 600
    assert measured.healthy == 0.5
    assert measured.exact_copies == pytest.approx(1 / 600)
    assert np.isnan(measured.copies)
    verdict = measured.verdict
    assert verdict.wrong_low < 0.1 < verdict.wrong_high
    assert verdict.wrong_low < verdict.wrong_share < verdict.wrong_high
    assert verdict.area > 0.9
    told = describe_cohort(measured)
    assert told[0].startswith("600 pairs; 0.2% of the images")
    assert "near-duplicates are not known" in told[0]
    assert told[2] == "50.0% of the labelled pairs are without any finding."
    assert FilterVerdict.read(str(verdict)) == pytest.approx((verdict.area, verdict.wrong_share), abs=0.01)
    assert np.isnan(FilterVerdict.read("Nothing of the kind.")).all()


@pytest.fixture
def files(home, monkeypatch):
    """Embeddings of 600 pairs, 10 % of them wrong, their ids, labels, and outcomes of the bench in place."""
    monkeypatch.setenv("CHEXSTUDY_CWD", str(home))
    for name, side in zip("IT", make_pairs(wrong=60), strict=True):
        np.save(home / f"{name}.npy", side)
    ids = pd.DataFrame({"image_id": [f"a/{number}" for number in range(600)]})
    ids.to_parquet(home / "ids.parquet")
    ids.assign(**{NO_FINDING: [1] * 150 + [0] * 450}).to_csv(home / "table.csv", index=False)
    monkeypatch.setattr(evidence, "COMMITTED", home / "outcomes.csv")
    make_outcomes(CLEAR).to_csv(home / "outcomes.csv", index=False)
    return home


def test_the_verb_advises_on_files(files, capsys):
    command = "advise --embeddings I.npy --text T.npy --ids ids.parquet --table table.csv --keep 75 --out gains.csv"
    assert main(command.split()) == 0
    shown = capsys.readouterr().out
    assert "25.0% of the labelled pairs are without any finding." in shown
    assert "Advised: filtered, 75 of 600 pairs (12.5%)" in shown
    assert "Not covered by what we measured: a pool of 600 (measured: 16,000 to 16,000)" in shown
    assert pd.read_csv(files / "gains.csv").method.tolist() == ["filtered", "bands"]
    assert main(["advise", "--embeddings", "I.npy", "--text", "T.npy"]) == 0
    assert "The share of normal radiographs is not known: there are no labels" in capsys.readouterr().out


def damage(name, change):
    def act(folder: Path):
        np.save(folder / f"{name}.npy", change(np.load(folder / f"{name}.npy")))

    return act


def put(array, place, value):
    array[place] = value
    return array


@pytest.mark.parametrize(
    ("change", "command", "sentence"),
    [
        (None, "--embeddings I.npy", "whether reports fit their images cannot be told without texts: give --text"),
        (damage("T", lambda text: text[:1].repeat(600, axis=0)), "", "all 600 rows of "),
        (
            damage("T", lambda text: put(text, 7, np.nan)),
            "",
            "holds NaN or infinite values in 1 row, the first is row 7",
        ),
        (damage("T", lambda text: text[:, :8]), "", "advise compares image and text, but "),
        (damage("T", lambda text: text[:599]), "", "T.npy has 599 rows and "),
        (damage("I", lambda image: image[:0]), "", "is empty, its shape is (0, 16)"),
        (None, "--keep 601", "the budget of 601 pairs is more than the 600 pairs there are."),
        (None, "--keep 1", "a budget of all 600 pairs leaves no choice: give a smaller one."),
        (None, "--table table.csv", "--table needs --ids, which say whose embeddings are in which row."),
        (None, "--start upstream", "nothing was measured from the start upstream"),
        (None, "--study no", "study 'no' has no cohort.parquet yet: run 01_build_cohort first."),
        (lambda folder: (folder / "outcomes.csv").unlink(), "", "this version comes without outcomes of the bench"),
    ],
)
def test_bad_input_is_one_sentence(files, capsys, change, command, sentence):
    if change:
        change(files)
    where = "" if "--study" in command or "--embeddings" in command else "--embeddings I.npy --text T.npy "
    assert main(["advise", *f"{where}{command}".split()]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


@pytest.fixture
def study(files):
    """A study of as many pairs, whose scoring model notebook 2 embedded, with 30 near-duplicates."""
    run, ids = Run("mine"), [f"a/{number}" for number in range(600)]
    columns = {"image_id": ids, "patient_id": ids, "study_id": ids, "image_path": "1.png", "report": "Clear."}
    columns |= {"report_origin": "written", "split": "train", "source": "a", "view": "PA", "sex": "F"}
    cohort = pd.DataFrame(columns | {"age_years": 50.0, NO_FINDING: [1] * 150 + [0] * 450})
    run.write_table("embeddings/scoring/ids.parquet", cohort[["image_id"]])
    for name, side in zip(("image", "text"), make_pairs(wrong=60), strict=True):
        run.write_array(f"embeddings/scoring/{name}.npy", side)
    groups = pd.DataFrame({"image_id": ids[:60], "group": np.arange(60) // 2})
    run.write_table("duplicates.parquet", groups)
    write_cohort(cohort, run.path("cohort.parquet"))
    return run, cohort


def test_a_study_is_measured_by_the_embeddings_it_has(study, capsys):
    run, cohort = study
    measured = measure_study(run, "study")
    assert (measured.pairs, measured.copies, measured.healthy) == (600, 0.05, 0.25)
    assert main(["advise", "--study", "mine", "--scorer", "study", "--keep", "0.125"]) == 0
    assert "5.0% are near-duplicates of another" in capsys.readouterr().out
    write_cohort(
        cohort.drop(columns=NO_FINDING).assign(split=["train"] * 500 + ["test"] * 100), run.path("cohort.parquet")
    )
    measured = measure_study(run, "study")
    assert measured.pairs == 500
    assert np.isnan(measured.healthy)


def test_the_upstream_pair_looks_at_a_study_once(home):
    run = Run("drawn")
    config = PhantomConfig(400, 48, 77, enriched_positives=1, broken_files=0, workers=1)
    build_pixel_store(run, build_phantom(run, config), 48, "pad", 1, run.path("phantom"))
    measured = measure_study(run)
    cohort = read_cohort(run.path("cohort.parquet"))
    assert measured.pairs == (cohort.split == "train").sum()
    assert measured.verdict.area > 0.6, "patients it has never seen, but drawn alike"
    written = run.path("embeddings/upstream-pair/image.npy").stat().st_mtime_ns
    assert measure_study(run) == measured
    assert run.path("embeddings/upstream-pair/image.npy").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"split": "test"}, "study 'mine' has no training pairs"),
        ({"report": "", "report_origin": "none"}, "no training image of study 'mine' has a report"),
        ({"image_id": [f"b/{number}" for number in range(600)]}, "600 training pairs are not embedded yet"),
    ],
)
def test_a_study_that_has_nothing_to_choose_from_is_refused(study, change, sentence):
    run, cohort = study
    write_cohort(cohort.assign(**change), run.path("cohort.parquet"))
    with pytest.raises(StudyError, match=sentence):
        measure_study(run, "study")
    with pytest.raises(StudyError, match="the scorer must be one of upstream, study, not 'mine'"):
        measure_study(run, "mine")


# --- the advice is validated ------------------------------------------------------------------------------------------


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parent.parent / "benchmarks")
    import advice

    return advice


def test_conditions_are_drawn_within_those_measured(benchmark):
    drawn = benchmark.draw_conditions(40, 0)
    assert drawn == benchmark.draw_conditions(40, 0)
    assert drawn[:10] == benchmark.draw_conditions(10, 0)
    assert [seed for _, seed in drawn] == list(range(100, 140))
    assert all(4_000 <= cell.pool <= 16_000 and 500 <= cell.budget <= cell.pool / 2 for cell, _ in drawn)
    assert all(0 <= cell.wrong <= 0.12 for cell, _ in drawn)
    assert {cell.start for cell, _ in drawn} == {"scratch", "upstream"}


def test_an_advice_is_right_within_a_hundredth_of_the_best(benchmark):
    """Trainings are made up: the filtered bands gain 0.05, the bands 0.045, from upstream nothing does."""

    def advise_on(cell, seed):
        return advise(COHORT, 2_000, evidence=make_outcomes(CLEAR))

    def train(jobs, methods):
        assert {job.method for job in jobs} == {"random", "bands", "filtered", "filtered_budgeted_half"}
        assert len(jobs) == 12
        assert {(job.choice, job.training) for job in jobs} == {(0, 0), (1, 1), (2, 2)}
        rows = pd.DataFrame([job.describe() for job in jobs])
        gains = {"filtered": 0.05, "bands": 0.045, "filtered_budgeted_half": 0.02}
        gains = rows.method.map(gains).fillna(0) * rows.start.map({"scratch": 1, "upstream": -1})
        return rows.assign(**{MAIN_METRIC: 0.6 + rows.training / 100 + gains})

    conditions = benchmark.draw_conditions(10, 0)
    rows = benchmark.validate(conditions, 3, advise_on, train)
    fresh = sum(cell.start == "scratch" for cell, _ in conditions)
    assert [row["best"] for row in rows] == [
        "filtered" if cell.start == "scratch" else "random" for cell, _ in conditions
    ]
    assert sum(row["advised_below"] <= 0.01 for row in rows) == fresh
    (goal,) = benchmark.judge(rows)
    assert goal.measured == fresh / 10
    assert goal.target == 0.8
    assert f"always random {1 - fresh / 10:.0%}" in goal.note
    assert [row["random_below"] for row in rows if row["start"] == "scratch"] == pytest.approx([0.05] * fresh)
