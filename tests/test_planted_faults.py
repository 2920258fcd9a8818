"""Planted faults: what is planted, what can be seen of it in pixels alone, and what a scorer makes of it."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chexstudy.cohort.build import build_cohort
from chexstudy.cohort.phantom.drawing import draw_radiograph
from chexstudy.cohort.phantom.plan import PhantomConfig
from chexstudy.cohort.phantom.population import PREVALENCE, simulate_cases
from chexstudy.errors import StudyError
from chexstudy.runs import Run
from chexstudy.statistics.ranking import auroc

_BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
_SIDE = 96


@pytest.fixture(autouse=True)
def benchmarks_at_hand(monkeypatch, torch_settings):
    monkeypatch.syspath_prepend(_BENCHMARKS)


@pytest.fixture(scope="module")
def films():
    drawn = simulate_cases(250, PREVALENCE, np.random.default_rng(5))
    cases = list({case.patient.patient_id: case for case in drawn}.values())[:80]
    return np.stack([draw_radiograph(case, _SIDE).pixels for case in cases])


@pytest.fixture
def cohort(films):
    """Drawn patients, of whom every other one has a mass; each report is its own."""
    rows = np.arange(len(films))
    return pd.DataFrame(
        {
            **{name: [f"one/{name}{row}" for row in rows] for name in ("image_id", "patient_id", "study_id")},
            **{"source": "one", "split": "train", "view": "PA", "sex": "F", "age_years": 50.0, "image_path": ""},
            "report": [f"Findings: report number {row}." for row in rows],
            "report_origin": "written",
            "Mass": rows % 2,
        }
    )


def plant(cohort, films, rate=0.1, seed=0):
    from planting import plant_faults

    return plant_faults(cohort, films, rate, np.random.default_rng(seed))


def area(planted, fault, scores):
    labels = np.select([planted.fault == fault, (planted.fault == "") & ~planted.is_copied], [1, 0], -1)
    return auroc(labels[:, None], np.asarray(scores, dtype=float)[:, None]).item()


def test_faults_are_planted_at_the_rate_and_nothing_else_is_touched(cohort, films):
    planted = plant(cohort, films)
    assert pd.Series(planted.fault).value_counts().to_dict() == {"": 64, "swap": 8, "junk": 8, "copy": 8}
    given = cohort.iloc[planted.origin].reset_index(drop=True)
    is_changed = (planted.images != films[planted.origin]).any(axis=(1, 2))
    assert set(planted.fault[is_changed]) == {"junk", "copy"}
    assert is_changed[planted.fault == "junk"].all()
    exchanged = planted.cohort["report"] != given["report"]
    assert (exchanged == (planted.fault == "swap")).all()
    # Every report is there once, beside those of the copies.
    assert sorted(planted.cohort["report"].iloc[:80]) == sorted(cohort["report"])
    writer = cohort.set_index("report").loc[planted.cohort["report"][exchanged]]
    assert (writer["Mass"].to_numpy() != planted.cohort["Mass"][exchanged]).all()
    copies = planted.cohort[planted.fault == "copy"]
    assert (copies["patient_id"] == "copy/" + given["patient_id"][80:]).all()
    assert planted.is_copied.sum() == 8


def test_planting_is_the_generators(cohort, films):
    first, again, other = (plant(cohort, films, seed=seed) for seed in (1, 1, 2))
    assert (first.images == again.images).all()
    assert first.cohort.equals(again.cohort)
    assert (first.fault != other.fault).any()


def test_reports_are_not_exchanged_where_labels_are_the_same(cohort, films):
    planted = plant(cohort.assign(Mass=0), films)
    assert "swap" not in planted.fault
    assert (planted.cohort["report"] == cohort["report"].iloc[planted.origin].to_numpy()).all()


@pytest.mark.parametrize(("rate", "sentence"), [(0.01, "fewer than the two"), (0.4, "plant a smaller share")])
def test_a_share_that_cannot_be_planted_is_refused(cohort, films, rate, sentence):
    with pytest.raises(StudyError, match=sentence):
        plant(cohort, films, rate)


def test_images_alone_tell_junk_and_copies_and_nothing_of_reports(cohort, films):
    from planting import score_images

    planted = plant(cohort, films)
    seen = score_images(planted, np.random.default_rng(0))
    assert area(planted, "junk", seen["orientation"]) > 0.9
    # Of 80 images few directions are known, so that not all copies are found; nothing else is.
    linked = seen["near-duplicate"] > 0
    assert (planted.is_copied | (planted.fault == "copy"))[linked].all()
    assert linked[planted.fault == "copy"].sum() >= 5
    shuffled = planted.cohort.assign(report=planted.cohort["report"].to_numpy()[::-1])
    blind = score_images(type(planted)(shuffled, *list(vars(planted).values())[1:]), np.random.default_rng(0))
    assert all((blind[name] == seen[name]).all() for name in seen)


def see(planted, batches, image, text, whole):
    from planted_faults import see_pairs

    return see_pairs(planted, batches, lambda number: (image[batches[number]], text[batches[number]]), whole)


def test_a_scorer_finds_swaps_and_folds_need_no_common_space(cohort, films):
    planted = plant(cohort, films)
    rng = np.random.default_rng(3)
    latent = rng.normal(size=(80, 16)).astype(np.float32)
    image = (latent + 0.5 * rng.normal(size=latent.shape)).astype(np.float32)
    writer = cohort.reset_index().set_index("report")["index"].loc[planted.cohort["report"]].to_numpy()
    image, text = image[planted.origin], latent[writer]
    batches = np.array_split(rng.permutation(len(image)), 4)
    plain = see(planted, batches, image, text, whole=False)
    for score in ("filter", "cosine", "doubt"):
        assert area(planted, "swap", plain.scores[score]) > 0.85
    assert not plain.verdict.abstains
    assert area(planted, "swap", see(planted, batches, image, text, whole=True).scores["cosine"]) > 0.85
    for rows in batches:
        # The axes in another order and direction, so that identical reports stay so to the last bit.
        axes, signs = rng.permutation(16), rng.choice([-1, 1], 16).astype(np.float32)
        image[rows], text[rows] = image[rows][:, axes] * signs, text[rows][:, axes] * signs
    again = see(planted, batches, image, text, whole=False)
    for score in ("filter", "cosine"):
        assert again.scores[score] == pytest.approx(plain.scores[score], abs=0.03)


def test_precision_is_counted_among_those_set_aside():
    from planted_faults import measure_share, set_aside

    labels, scores = np.array([1, 0, 1, 0, -1, 0]), np.array([0.9, 0.8, 0.1, 0.2, 1.0, 0.3])
    aside = set_aside(labels, scores, np.random.default_rng(0))
    # Two are wanted, so two are set aside; the highest score is not asked about.
    assert aside.tolist() == [True, True, False, False, False, False]
    weights = np.array([[1, 1, 1, 1, 1, 1], [3, 1, 0, 1, 1, 1], [0, 2, 1, 1, 9, 1]])
    assert measure_share(labels, aside, weights).tolist() == [0.5, 0.75, 0.0]


def run_benchmark(monkeypatch, folder, study, *options):
    import planted_faults

    told = ("--studies", study, *options, "--rounds", 1, "--out", folder)
    monkeypatch.setattr(sys, "argv", ["planted_faults.py", *map(str, told)])
    planted_faults.main()
    return json.loads((folder / f"planted_faults_{study}.json").read_text())["rows"]


def test_a_scorer_is_trained_on_the_rest(tiny_study, tmp_path, monkeypatch):
    rows = run_benchmark(monkeypatch, tmp_path, "tiny", "--trained", "tiny", "--rates", 0.1, "--epochs", 1)
    scorers = {row["scorer"] for row in rows if "scorer" in row}
    assert scorers == {"upstream pair", "trained on the rest", "images alone"}
    swaps = {row["planted"] for row in rows if "auroc" in row and row["fault"] == "swap"}
    assert swaps == {12}
    # The studies of the scorers are gone.
    assert [folder.name for folder in tiny_study.folder.parent.iterdir() if folder.is_dir()] == ["tiny"]


def test_faults_in_real_radiographs(real_data, home, monkeypatch):
    build_cohort(Run("tb"), "nlm_tb", str(real_data / "nlm_tb"), _SIDE, "pad", 0, PhantomConfig())
    rows = run_benchmark(monkeypatch, home, "tb", "--rates", 0.12)
    # Readings alone are taken, not the sentences that stand in where there is none.
    assert {(row["text"], row["pairs"]) for row in rows} == {("written", 386)}
    found = {(row["score"], row["fault"]): row["auroc"] for row in rows if "auroc" in row}
    assert found["orientation", "junk"] > 0.95
    assert found["near-duplicate", "copy"] > 0.9
    # Encoders of drawn images cannot tell which reading is of which radiograph, and the filter says so.
    (cut,) = [row for row in rows if "abstains" in row]
    assert cut["abstains"]
    assert cut["set_aside"] == 0
