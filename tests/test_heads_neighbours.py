"""Nearest neighbours against scikit-learn's and against a plain reading of the papers; masks worked out by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from chexstudy.encoders.frozen_features import FrozenFeatures
from chexstudy.errors import StudyError
from chexstudy.evaluation.adaptation import knn as neighbours_module
from chexstudy.evaluation.adaptation.knn import fit_neighbours
from chexstudy.vectors import neighbours as search

FINDINGS = ("Mass", "Hernia", "Edema")
ENCODER = {"name": "made up", "weights": "0123"}
TEMPERATURE = 0.07


@pytest.fixture(params=[True, False], ids=["faiss", "without"])
def with_and_without_faiss(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(search, "load_faiss", lambda: None)
    elif not search.load_faiss():
        pytest.skip("faiss is not installed")


def make_features(pooled, encoder=ENCODER):
    pooled = np.asarray(pooled, dtype=np.float32)
    ids = [f"made/{row:03d}" for row in range(len(pooled))]
    return FrozenFeatures(ids, pooled, pooled, pooled, None, (pooled.shape[1],), 1, encoder)


@pytest.fixture(scope="module")
def study():
    """120 train, 50 validate, 40 test images on a ring of six features, lengths of all sizes."""
    rng = np.random.default_rng(1)
    labels = (rng.random((210, 3)) < (0.4, 0.3, 0.2)).astype(int)
    pooled = rng.normal(size=(210, 6))
    pooled[:, :3] += 1.2 * labels
    pooled *= rng.uniform(0.1, 10, size=(210, 1))
    features = make_features(pooled)
    cohort = pd.DataFrame(
        {"image_id": features.image_ids, "split": ["train"] * 120 + ["validate"] * 50 + ["test"] * 40}
    )
    for column, finding in enumerate(FINDINGS):
        cohort[finding] = pd.array(labels[:, column], dtype="Int8")
    return features, cohort


def fit(study, **options):
    features, cohort = study
    train, validation = (cohort[cohort.split == split] for split in ("train", "validate"))
    arguments = {"features": features, "train": train, "validation": validation, "findings": FINDINGS}
    return fit_neighbours(**(arguments | options))


def unit(values):
    return values / np.linalg.norm(values, axis=1, keepdims=True)


# --- votes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 7, 120])
def test_votes_are_scikit_learns_weighted_neighbours(study, k, with_and_without_faiss, monkeypatch):
    monkeypatch.setattr(neighbours_module, "_BLOCK_ROWS", 16)
    monkeypatch.setattr(search, "_QUERY_ROWS", 13)
    features, cohort = study
    fitted = fit(study, neighbours=(k,))
    scores = fitted.score(features, cohort.image_id[cohort.split == "test"])
    assert (scores.shape, scores.dtype, fitted.neighbours) == ((40, 3), np.float64, k)
    values = features.pooled.astype(float)
    for column, finding in enumerate(FINDINGS):
        reference = KNeighborsClassifier(
            k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / TEMPERATURE)
        ).fit(values[:120], cohort[finding][:120].astype(int))
        np.testing.assert_allclose(scores[:, column], reference.predict_proba(values[170:])[:, 1], atol=1e-4)


def test_with_one_label_an_image_the_largest_share_is_the_class_of_most_votes(study):
    features, cohort = study
    single = cohort.copy()
    kind = np.random.default_rng(0).integers(0, 3, len(cohort))
    kind[:170] = np.argmax(features.pooled[:170, :3], axis=1)
    for column, finding in enumerate(FINDINGS):
        single[finding] = (kind == column).astype("int8")
    scores = fit((features, single), neighbours=(9,)).score(features, cohort.image_id[170:])
    reference = KNeighborsClassifier(
        9, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / TEMPERATURE)
    ).fit(features.pooled[:120].astype(float), kind[:120])
    np.testing.assert_array_equal(scores.argmax(axis=1), reference.predict(features.pooled[170:].astype(float)))
    np.testing.assert_allclose(scores.sum(axis=1), 1)


def test_a_neighbour_whose_label_is_not_known_does_not_vote(with_and_without_faiss):
    """Neighbours at cosines 1, 0.8, 0.6 of the query and one opposite; the votes are worked out by hand."""
    features = make_features([[1, 0], [0.8, 0.6], [0.6, -0.8], [-1, 0], [1, 0], [0, 1]])
    cohort = pd.DataFrame({"image_id": features.image_ids, "split": ["train"] * 4 + ["test", "validate"]})
    cohort["Mass"] = pd.array([-1, 1, 0, 1, 1, 1], dtype="Int8")
    cohort["Hernia"] = pd.array([None, -1, None, 1, 1, 1], dtype="Int8")
    cohort["Edema"] = pd.array([1, 0, 0, 0, 1, 1], dtype="Int8")
    scores = fit((features, cohort), neighbours=(3,)).score(features, ["made/004"])
    second, third = np.exp(-0.2 / TEMPERATURE), np.exp(-0.4 / TEMPERATURE)
    # Of Hernia no neighbour among the three knows anything: its share among all known training labels, 1 of 1.
    np.testing.assert_allclose(scores[0], [second / (second + third), 1.0, 1 / (1 + second + third)], rtol=1e-5)


def test_lengths_do_not_matter(study):
    features, cohort = study
    scaled = make_features(features.pooled * 1000)
    expected = fit(study).score(features, cohort.image_id[170:])
    np.testing.assert_allclose(fit((scaled, cohort)).score(scaled, cohort.image_id[170:]), expected, atol=1e-5)


# --- choosing k ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choose_by", ["auroc", "auprc"])
def test_k_is_chosen_on_validation(study, choose_by):
    features, cohort = study
    candidates = (2, 8, 30, 100)
    fitted = fit(study, neighbours=candidates, choose_by=choose_by)
    assert fitted.validation.neighbours.tolist() == list(candidates)
    assert fitted.neighbours == fitted.validation.neighbours[fitted.validation[choose_by].argmax()]
    validation = cohort[cohort.split == "validate"]
    labels = validation[list(FINDINGS)].to_numpy(int)
    for row, k in enumerate(candidates):
        alone = fit(study, neighbours=(k,)).score(features, validation.image_id)
        assert fitted.validation.auroc[row] == pytest.approx(roc_auc_score(labels, alone), abs=1e-12)
        assert fitted.validation.auprc[row] == pytest.approx(average_precision_score(labels, alone), abs=1e-12)


def test_the_test_split_is_never_read(study):
    features, cohort = study
    blinded = features.pooled.copy()
    blinded[170:] = np.nan
    pd.testing.assert_frame_equal(fit((make_features(blinded), cohort)).validation, fit(study).validation)


def test_more_neighbours_than_images_cannot_answer(study):
    _, cohort = study
    assert fit(study).validation.neighbours.tolist() == [5, 10, 20, 50, 100]
    few = cohort[cohort.split == "train"].head(4)
    assert fit(study, train=few).neighbours == 4


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"choose_by": "f1"}, "chosen by auroc or auprc, not 'f1'"),
        ({"neighbours": ()}, "one candidate or more"),
        ({"neighbours": (0,)}, "each 1 or more"),
        ({"temperature": 0.0}, "a temperature above 0"),
        ({"parts": "patches"}, "a linear head reads"),
        ({"findings": ("Cavity",)}, "the cohort has no finding 'Cavity'"),
    ],
)
def test_options_that_cannot_be_are_refused(study, options, message):
    with pytest.raises(StudyError, match=message):
        fit(study, **options)


def test_splits_and_encoders_are_checked(study):
    features, cohort = study
    train, validation = (cohort[cohort.split == split] for split in ("train", "validate"))
    with pytest.raises(StudyError, match="the validation split has no images"):
        fit(study, validation=validation.iloc[:0])
    with pytest.raises(StudyError, match="Mass has no known label in the training split"):
        fit(study, train=train.assign(Mass=-1))
    blind = validation.assign(Mass=0, Hernia=-1, Edema=1)
    with pytest.raises(StudyError, match=r"so no number of neighbours can be chosen: .* name one number of neighbours"):
        fit(study, validation=blind)
    assert fit(study, validation=blind, neighbours=(5,)).neighbours == 5
    with pytest.raises(StudyError, match="features of another encoder"):
        fit(study).score(replace(features, encoder={"weights": "4567"}), cohort.image_id)
