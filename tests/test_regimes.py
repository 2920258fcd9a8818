"""The bench of regimes: pools mixed from a bank, controls by the truth, trainings that are done once."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from chexstudy.cohort.prevalence import measure_prevalence, prevalence_tiers
from chexstudy.cohort.table import NO_FINDING, finding_columns, label_matrix
from chexstudy.errors import StudyError
from chexstudy.experiments.regimes import bench, pools, scorers
from chexstudy.experiments.regimes.choices import choose, describe_choice
from chexstudy.experiments.regimes.design import Cell, Design, Job, Question, read_design
from chexstudy.experiments.regimes.training import configure, train_on

CELL = Cell(pool=240, budget=60, wrong=0.1, duplicates=0.1, scorer="trained", start="scratch", side=32)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A bank of 240 pairs in a home of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHEXSTUDY_HOME", str(tmp_path_factory.mktemp("home")))
        for name, value in {"_AT": 240, "HELD_OUT": 80, "_POSITIVES": 4}.items():
            patch.setattr(pools, name, value)
        patch.setattr(bench, "STEPS", 6)
        yield pools.draw_bank(CELL, 0, workers=1)
        bench._mix.cache_clear()
        bench._score.cache_clear()


def test_a_pool_holds_what_the_cell_asks_for(small):
    pool = pools.mix_pool(small, CELL, 0)
    truth = pool.truth
    assert len(pool.pairs) == len(truth) == 240
    assert pool.pairs.image_id.is_unique
    assert list(truth.image_id) == list(pool.pairs.image_id)
    assert truth.junk.sum() == 8
    assert truth.mismatched.sum() == 16
    assert (~pool.sound).sum() == 24
    copies = truth[truth.duplicate_of != ""]
    assert len(copies) == 24
    assert set(copies.duplicate_of) <= set(truth.image_id)


def test_a_swapped_report_is_anothers_and_tells_other_findings(small):
    pool, clean = pools.mix_pool(small, CELL, 0), pools.mix_pool(small, replace(CELL, wrong=0.0), 0)
    own = clean.pairs.set_index("image_id")
    owners = clean.pairs.groupby("report").image_id.agg(list)
    findings = finding_columns(own)
    for image_id, report in pool.pairs[pool.truth.mismatched.to_numpy()][["image_id", "report"]].itertuples(
        index=False
    ):
        givers = own.loc[[one for one in owners.get(report, []) if one != image_id]]
        assert report != own.report[image_id] or len(givers)
        others = givers[givers.patient_id != own.patient_id[image_id]]
        assert (label_matrix(others, findings) != label_matrix(own.loc[[image_id]], findings)).any(axis=1).any()
    whole = pool.pairs[~pool.truth.mismatched.to_numpy()].set_index("image_id").report
    shared = whole.index.intersection(own.index)
    assert (whole[shared] == own.report[shared]).all()


def test_smaller_pools_and_shares_are_nested(small):
    pool = pools.mix_pool(small, CELL, 0)
    cleaner, smaller = (pools.mix_pool(small, replace(CELL, **own), 0) for own in ({"wrong": 0.05}, {"pool": 120}))

    def wrong(one):
        return set(one.truth.image_id[one.truth.mismatched])

    assert wrong(cleaner) < wrong(pool)
    # An original whose copy lies in the larger pool alone is not swapped there.
    assert len(wrong(smaller) & wrong(pool)) > 0.8 * len(wrong(smaller))
    sound = [set(one.pairs.image_id[one.sound]) for one in (smaller, pool)]
    assert len(sound[0] & sound[1]) > 0.9 * len(sound[0])


def test_nobody_is_trained_on_who_judges(small):
    pool = pools.mix_pool(small, CELL, 0)
    assert set(pool.held_out) == {"validate", "test", "test_enriched"}
    for part in pool.held_out.values():
        assert len(part) == 80
        assert not set(part.patient_id) & set(pool.pairs.patient_id)
    enriched = label_matrix(pool.held_out["test_enriched"], finding_columns(pool.pairs)) == 1
    assert enriched.sum(axis=0).min() >= 4


@pytest.mark.parametrize("wanted", [["sound"], ["sick"], ["sound", "sick"], ["balanced"], ["sound", "balanced"]])
def test_controls_keep_what_the_truth_says(small, wanted):
    pool = pools.mix_pool(small, CELL, 0)
    chosen = choose({"truth": wanted}, pool, None, 40, torch.Generator().manual_seed(0))
    assert len(set(chosen.rows)) == 40
    kept = pool.pairs.iloc[chosen.rows]
    assert "sound" not in wanted or pool.sound[chosen.rows].all()
    assert "sick" not in wanted or (kept[NO_FINDING] != 1).all()
    if "balanced" in wanted:
        of_all = label_matrix(pool.pairs, finding_columns(pool.pairs)) == 1
        uncommon = (of_all.mean(axis=0) > 0) & (of_all.mean(axis=0) < 0.05)
        assert uncommon.any()
        assert of_all[chosen.rows][:, uncommon].mean() > 1.5 * of_all[:, uncommon].mean()


def test_what_was_kept_is_told(small):
    pool = pools.mix_pool(small, CELL, 0)
    tiers = prevalence_tiers(measure_prevalence(pool.pairs)).to_dict()
    everything = describe_choice(pool, type("All", (), {"rows": np.arange(240)}), tiers)
    assert everything["kept_mismatched"] == pytest.approx(16 / 240)
    assert everything["kept_junk"] == pytest.approx(8 / 240)
    assert everything["kept_repeated"] == pytest.approx(24 / 240)
    assert all(everything[f"recall_{tier}"] in (0, 1) for tier in ("head", "medium", "tail"))
    first = describe_choice(pool, type("First", (), {"rows": np.arange(120)}), tiers)
    assert 0 < first["recall_medium"] < 1


def test_a_training_takes_its_steps_and_is_repeated_to_the_bit(small):
    pool = pools.mix_pool(small, CELL, 0)
    config, pairs = configure("scratch", 32, 16), pool.pairs.iloc[:50]
    (first, spent), (second, _) = (train_on(small, pairs, np.ones(50), config, 5, seed=3) for _ in range(2))
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    other, _ = train_on(small, pairs, np.ones(50), config, 5, seed=4)
    assert not torch.equal(first.image_tower.projection.weight, other.image_tower.projection.weight)
    _, twice = train_on(small, pairs, np.ones(50), config, 10, seed=3)
    assert twice == pytest.approx(2 * spent, rel=0.05)


def test_the_bench_does_each_training_once_and_tells_what_it_did(small, capsys):
    methods = {
        "random": {"method": "random"},
        "filtered_half": {"method": "filtered", "rule": "budgeted", "strength": "0.5"},
        "longer": {"method": "random", "spends": "filtered_half"},
    }
    jobs = [Job(CELL, method, 0) for method in methods]
    assert bench._list_scored(jobs, methods) == [(replace(CELL, budget=1), 0)]
    for job in jobs:
        bench._do_job(job, methods)
    outcomes = bench.read_outcomes(jobs, methods).set_index("method")
    assert len(outcomes) == 3
    assert outcomes["zero_shot_auroc_macro"].between(0, 1).all()
    assert outcomes.steps["random"] == outcomes.steps["filtered_half"] == 6 < outcomes.steps["longer"]
    assert outcomes.scoring_flops["random"] == 0 < outcomes.scoring_flops["filtered_half"]
    paid = outcomes.flops["filtered_half"] + outcomes.scoring_flops["filtered_half"]
    assert outcomes.flops["longer"] == pytest.approx(paid, rel=0.15)
    assert "0 of 3 trainings are left" in bench.estimate(jobs, methods, 2)
    # Of a method that has changed since, the training is done again.
    changed = methods | {"random": {"truth": ["sound"]}}
    assert "1 of 3 trainings are left" in bench.estimate(jobs, changed, 2)
    assert len(bench.read_outcomes(jobs, changed)) == 2


def test_unaligned_encoders_make_the_filter_abstain(small):
    pool = pools.mix_pool(small, CELL, 0)
    scores = scorers.score_pool(pool, "unaligned", 0)
    how = {"method": "filtered", "rule": "random", "strength": "auto"}
    chosen = choose(how, pool, scores, 40, torch.Generator().manual_seed(0))
    assert "abstains" in chosen.note
    assert len(chosen.rows) == 40


def test_the_design_is_whole_and_each_training_is_in_it_once():
    design = read_design()
    jobs = design.list_jobs()
    assert len(jobs) == len(set(jobs)) == len({job.name for job in jobs})
    for question in design.questions.values():
        assert "random" in question.methods
        assert set(question.methods) <= set(design.methods)
        assert all(job.cell in question.cells for job in question.list_jobs())
    partners = [how["spends"] for how in design.methods.values() if "spends" in how]
    assert partners
    assert set(partners) <= set(design.methods)


def test_seeds_can_be_others_than_those_of_the_design():
    question = Question("one", "?", (CELL,), ("random", "bands"), seeds=2, repeats=2)
    assert len(question.list_jobs()) == 2 * 2 * 2 * 2
    assert {job.seed for job in question.list_jobs(1, first=7)} == {7}
    names = [question.name]
    assert len(Design({}, {"one": question}).list_jobs(names, 3)) == 3 * 8


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scorer": "best"}, "scorer of a cell must be one of trained, quarter, unaligned"),
        ({"start": "cold"}, "start of a cell must be one of scratch, upstream"),
        ({"budget": 240}, "leaves no choice in a pool of 240"),
        ({"budget": 0}, "leaves no choice"),
    ],
)
def test_a_cell_that_makes_no_sense_is_refused(wrong, message):
    with pytest.raises(StudyError, match=message):
        replace(CELL, **wrong)


def test_an_unknown_question_is_refused_with_a_guess():
    with pytest.raises(StudyError, match=r"no question 'gane'.*did you mean 'gain'"):
        read_design().list_jobs(["gane"])


def test_a_control_that_cannot_be_had_is_refused(small):
    pool = pools.mix_pool(small, CELL, 0)
    with pytest.raises(StudyError, match=r"only .* pairs are sick: ask for a smaller budget"):
        choose({"truth": ["sick"]}, pool, None, 230, torch.Generator())
    with pytest.raises(StudyError, match="a choice by truth is of sound, sick, balanced"):
        choose({"truth": ["best"]}, pool, None, 10, torch.Generator())


def test_a_bank_that_is_too_small_says_so(small):
    with pytest.raises(StudyError, match="has not enough pairs"):
        pools.mix_pool(small, replace(CELL, pool=600, budget=60), 0)


def test_outcomes_are_one_table(small):
    assert isinstance(bench.read_outcomes([], {}), pd.DataFrame)
