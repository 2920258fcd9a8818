import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score

from chexstudy.encoders.frozen_features import FrozenFeatures
from chexstudy.errors import StudyError
from chexstudy.label_planning import batched_heads
from chexstudy.label_planning import curves as curves_module
from chexstudy.label_planning.batched_heads import DropoutRecipe, fit_dropout_sets, fit_logistic_sets
from chexstudy.label_planning.curves import CurveDesign, choose_test, count_test_labels, measure_curves, plan_draws
from chexstudy.label_planning.draws import draw_labels, make_pool
from chexstudy.runs import Run

GRID = (10, 20, 40, "all")


def make_sets(sets=3, images=30, dim=8, kind=np.float64, seed=0):
    """Features, labels that follow the first one, and both classes in every set."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(sets, images, dim)) * np.linspace(0.5, 3, dim)
    present = features[..., 0] + generator.normal(size=(sets, images)) > 0.4
    return features.astype(kind), present


def make_cohort(train=120, test=60, seed=0):
    """Mass can be read off feature 0, Nodule off nothing; two images a patient."""
    generator = np.random.default_rng(seed)
    parts = {"train": train, "validate": 40, "test": test}
    rows = [(split, f"{split}{number // 2}") for split, count in parts.items() for number in range(count)]
    features = generator.normal(size=(len(rows), 6)).astype(np.float32)
    cohort = pd.DataFrame(rows, columns=["split", "patient_id"])
    cohort["image_id"] = [f"t/{number}" for number in range(len(rows))]
    cohort["source"] = "t"
    cohort["Mass"] = pd.array((features[:, 0] > 0.6).astype(int), dtype="Int8")
    cohort["Nodule"] = pd.array((generator.random(len(rows)) < 0.3).astype(int), dtype="Int8")
    cohort["No Finding"] = pd.array((cohort.Mass + cohort.Nodule == 0).astype(int), dtype="Int8")
    return cohort, features


def freeze(cohort, features):
    """Features as they are kept, with [CLS] and mean that differ from the pooled ones."""
    return FrozenFeatures(
        cohort.image_id.tolist(), features, features[:, :2], features[:, 2:4], None, (2,), 1, {"name": "tiny-resnet"}
    )


@pytest.fixture
def study(home):
    return Run("s"), *make_cohort()


def measure(study, names=("curated/seed0",), **options):
    run, cohort, features = study
    design = CurveDesign(**({"grid": GRID, "draws": 4} | options))
    frozen = {name: freeze(cohort, features) for name in names}
    return measure_curves(run, cohort, plan_draws(cohort, design)[0], frozen, design)


@pytest.fixture
def exactly(monkeypatch):
    monkeypatch.setattr(batched_heads, "_TOLERANCE", 1e-9)


@pytest.fixture
def one_setting(monkeypatch):
    monkeypatch.setattr(curves_module, "HEADS", {"logistic": (0.5,), "linear": (0.01,)})


# --- heads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [0.01, 1.0, 300.0])
@pytest.mark.parametrize(("images", "dim"), [(30, 8), (12, 40)])
@pytest.mark.usefixtures("exactly")
def test_batched_logistic_regressions_are_those_of_scikit_learn(penalty, images, dim):
    features, present = make_sets(images=images, dim=dim)
    coefficients, intercepts = fit_logistic_sets(features, present, penalty, np.ones(dim))
    for number in range(len(features)):
        reference = LogisticRegression(C=1 / penalty, tol=1e-12, max_iter=10_000, solver="newton-cholesky")
        reference.fit(features[number], present[number])
        np.testing.assert_allclose(coefficients[number], reference.coef_[0], atol=1e-5)
        assert intercepts[number] == pytest.approx(reference.intercept_[0], abs=1e-5)


@pytest.mark.usefixtures("exactly")
def test_a_logistic_regression_is_the_same_alone_and_among_others_and_for_any_preconditioner():
    features, present = make_sets()
    together = fit_logistic_sets(features, present, 1.0, np.ones(8))
    alone = fit_logistic_sets(features[1:2], present[1:2], 1.0, np.full(8, 50.0))
    np.testing.assert_allclose(together[0][1], alone[0][0], atol=1e-6)


def test_single_precision_ranks_as_double_does():
    features, present = make_sets(images=200)
    exact, _ = fit_logistic_sets(features, present, 1.0, np.ones(8))
    fast, _ = fit_logistic_sets(features.astype(np.float32), present, 1.0, np.ones(8))
    np.testing.assert_allclose(fast, exact, atol=1e-3)


def test_separable_sets_have_a_finite_solution():
    features, _ = make_sets(sets=1, images=10)
    coefficients, _ = fit_logistic_sets(features, features[..., 0] > 0, 1e-3, np.ones(8))
    assert np.isfinite(coefficients).all()
    assert coefficients[0, 0] > 1


@pytest.mark.parametrize(
    ("fit", "sentence"),
    [
        (lambda x, y: fit_logistic_sets(x, y, 1.0, np.ones(8)), "one class only"),
        (lambda x, y: fit_dropout_sets(x, y, 0.01, DropoutRecipe(), 0), "one class only"),
        (lambda x, y: fit_logistic_sets(x[:1], y[:1], 0.0, np.ones(8)), "penalty"),
        *(
            (lambda x, y, wrong=wrong: DropoutRecipe(**wrong), "a head with dropout needs")
            for wrong in ({"dropout": 1.0}, {"steps": 0}, {"batch_size": 0}, {"weight_decay": -1.0})
        ),
        *(
            (lambda x, y, wrong=wrong: CurveDesign(**wrong), "learning curve")
            for wrong in ({"head": "forest"}, {"unit": "studies"}, {"draws": 0}, {"grid": ()})
        ),
    ],
)
def test_what_no_head_and_no_curve_can_be_made_of_is_refused(fit, sentence):
    features, present = make_sets(kind=np.float32)
    present[1] = True
    with pytest.raises(StudyError, match=sentence):
        fit(features, present)


def test_a_head_with_dropout_learns_and_does_not_depend_on_its_company():
    features, present = make_sets(images=200, kind=np.float32)
    recipe = DropoutRecipe(steps=100, batch_size=64)
    coefficients, intercepts = fit_dropout_sets(features, present, 0.03, recipe, 0)
    scores = np.einsum("sid,sd->si", features, coefficients) + intercepts[:, None]
    assert min(roc_auc_score(*one) for one in zip(present, scores, strict=True)) > 0.7
    alone, _ = fit_dropout_sets(features[2:], present[2:], 0.03, recipe, 0)
    np.testing.assert_allclose(alone[0], coefficients[2], atol=1e-5)
    other, _ = fit_dropout_sets(features, present, 0.03, recipe, 1)
    assert np.abs(other - coefficients).max() > 1e-4


@pytest.mark.usefixtures("exactly")
def test_without_dropout_and_decay_many_full_steps_find_the_maximum_likelihood():
    features, present = make_sets(sets=1, images=80, dim=2, kind=np.float32)
    recipe = DropoutRecipe(dropout=0.0, steps=1500, batch_size=80, weight_decay=0.0)
    coefficients, _ = fit_dropout_sets(features, present, 0.05, recipe, 0)
    exact, _ = fit_logistic_sets(features.astype(float), present, 1e-6, np.ones(2))
    np.testing.assert_allclose(coefficients, exact, atol=1e-2)


# --- curves ----------------------------------------------------------------------------------------------------------


def test_the_table_has_a_row_a_draw_and_everything_is_drawn_once(study):
    table = measure(study)
    columns = "encoder seed finding data_set unit n positives patients draw auroc auprc"
    assert list(table.columns) == columns.split()
    assert set(table.finding) == {"Mass", "Nodule"}
    assert table.groupby(["finding", "n"]).size().unstack().to_numpy().tolist() == [[4, 4, 4, 1]] * 2
    assert (table.encoder == "curated").all()
    assert (table.seed == 0).all()
    assert (table.data_set == "t/test").all()
    assert study[0].has("label_budget/curves.parquet")


def test_a_finding_that_can_be_read_off_is_learned_and_one_of_chance_is_not(study):
    mean = measure(study).groupby(["finding", "n"]).auroc.mean()
    assert mean["Mass", 10] < mean["Mass", 120]
    assert mean["Mass", 120] > 0.95
    assert abs(mean["Nodule", 120] - 0.5) < 0.2


@pytest.mark.usefixtures("one_setting")
def test_numbers_are_those_of_scikit_learn_on_the_same_draw(study):
    _, cohort, features = study
    table = measure(study)
    train, test = (cohort[cohort.split == split].reset_index(drop=True) for split in ("train", "test"))
    pool = make_pool(train, "Mass")
    known = features[: len(train)]
    standard = (features - known.mean(axis=0)) / known.std(axis=0)
    for draw in range(4):
        drawn = draw_labels(pool, 20, draw, 0)
        head = LogisticRegression(C=1 / (0.5 * 6), tol=1e-10, max_iter=10_000)
        head.fit(standard[drawn.rows], train.Mass.to_numpy(dtype=int)[drawn.rows])
        scores = head.decision_function(standard[-len(test) :])
        row = table[(table.finding == "Mass") & (table.n == 20) & (table.draw == draw)].iloc[0]
        assert row.auroc == pytest.approx(roc_auc_score(test.Mass.to_numpy(dtype=int), scores), abs=1e-9)
        assert row.auprc == pytest.approx(average_precision_score(test.Mass.to_numpy(dtype=int), scores), abs=1e-9)
        assert (row.positives, row.patients) == (drawn.positives, drawn.patients)


@pytest.mark.usefixtures("one_setting")
def test_draws_do_not_depend_on_the_grid_and_are_the_same_for_all_encoders(study):
    both = measure(study, ("curated/seed0", "full/seed0"))
    parts = [rows.drop(columns=["encoder"]).reset_index(drop=True) for _, rows in both.groupby("encoder")]
    pd.testing.assert_frame_equal(*parts)
    other = measure(study, grid=(20, 30, 40), draws=2)
    shared = both[(both.encoder == "curated") & both.n.isin([20, 40]) & (both.draw < 2)].reset_index(drop=True)
    pd.testing.assert_frame_equal(shared, other[other.n.isin([20, 40])].reset_index(drop=True))


def test_current_curves_are_read_and_a_changed_design_is_measured(study, monkeypatch):
    names = ("curated/seed0", "full/seed0")
    first = measure(study, names)
    calls = []
    fit = curves_module.fit_logistic_sets
    monkeypatch.setattr(curves_module, "fit_logistic_sets", lambda *given: calls.append(1) or fit(*given))
    pd.testing.assert_frame_equal(measure(study, names), first)
    assert not calls
    # One encoder is gone: only that one is measured again.
    study[0].path("label_budget/encoders/full/seed0.parquet").unlink()
    pd.testing.assert_frame_equal(measure(study, names), first)
    once = len(calls)
    measure(study, names, seed=1)
    assert len(calls) == 3 * once


def test_the_global_setting_is_chosen_on_validation_and_its_labels_are_counted(study):
    measure(study)
    settings = study[0].read_table(curves_module.SETTINGS).iloc[0]
    assert settings.setting in curves_module.HEADS["logistic"]
    assert settings.validation_images == 40


def test_a_setting_that_ruins_validation_is_not_chosen_and_without_one_the_middle_is_taken(study, monkeypatch):
    run, cohort, features = study
    measure((run, cohort.assign(split=cohort.split.replace("validate", "test")), features))
    chosen = run.read_table(curves_module.SETTINGS)
    assert (chosen.setting[0], chosen.validation_images[0]) == (1.0, 0)
    monkeypatch.setattr(curves_module, "HEADS", {"linear": (1e-7, 0.03)})
    measure(study, head="linear", recipe=DropoutRecipe(steps=60))
    assert run.read_table(curves_module.SETTINGS).setting[0] == 0.03


def test_positives_are_counted_as_the_table_of_curves_says(study):
    table = measure(study, unit="positives", grid=(2, 5, 10))
    assert sorted(table.positives.unique()) == [2, 5, 10]
    assert (table.n > table.positives).all()


# --- what cannot be drawn --------------------------------------------------------------------------------------------


def test_findings_that_cannot_be_drawn_are_listed_with_the_reason(study):
    _, cohort, _ = study
    nothing = cohort.split == "train"
    cohort = cohort.assign(
        Hernia=pd.array(np.where(nothing, 0, 1), dtype="Int8"),
        Mass=pd.array(np.where(cohort.split == "test", 0, cohort.Mass), dtype="Int8"),
        Cyst=pd.array(np.where(np.arange(len(cohort)) < 8, np.arange(len(cohort)) % 2, pd.NA), dtype="Int8"),
    )
    cohort.loc[cohort.index[-2:], "Cyst"] = [0, 1]
    counts, refused = plan_draws(cohort, CurveDesign(grid=(4, 10, 20, 500, "all")))
    assert counts == {"Nodule": [4, 10, 20, 120]}
    reasons = {(row.finding, row.n): row.reason for row in refused.itertuples()}
    assert "no positive among the 120 images" in reasons["Hernia", -1]
    assert "no positive in t/test" in reasons["Mass", -1]
    assert "500 of Nodule cannot be drawn" in reasons["Nodule", 500]
    assert "a curve needs 3 label counts, and of Cyst 2 can be drawn" in reasons["Cyst", -1]


def test_counts_of_cases_too_small_to_hold_a_positive_are_left_out(study):
    _, cohort, _ = study
    rare = np.flatnonzero(cohort.split == "train")[:3]
    labels = np.where(cohort.split == "train", 0, cohort.Mass)
    labels[rare] = 1
    cohort = cohort.assign(Mass=pd.array(labels, dtype="Int8"))
    grid = (10, 20, 39, 40, 80, "all")
    counts, refused = plan_draws(cohort, CurveDesign(grid=grid))
    assert counts["Mass"] == [40, 80, 120]
    assert refused.n.tolist() == [10, 20, 39]
    assert "10 cases hold 0.25 positives" in refused.reason[0]
    assert plan_draws(cohort, CurveDesign(grid=grid, fewest_positives=0))[0]["Mass"][:2] == [10, 20]


def test_the_enriched_test_is_preferred(study):
    _, cohort, _ = study
    last = cohort.index >= len(cohort) - 10
    name, rows = choose_test(cohort.assign(split=np.where(last, "test_enriched", cohort.split)))
    assert (name, len(rows)) == ("t/test_enriched", 10)
    with pytest.raises(StudyError, match="no test split"):
        choose_test(cohort[cohort.split == "train"])
    present = int((cohort[cohort.split == "test"].Mass == 1).sum())
    assert count_test_labels(cohort, ["Mass"]) == {"Mass": (present, 60 - present)}
