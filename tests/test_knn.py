"""Nearest neighbours against scikit-learn's and against a plain reading of the papers; masks worked out by hand."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from chexstudy.errors import StudyError
from chexstudy.evaluation.adaptation.knn import fit_neighbours
from chexstudy.vectors import neighbour_votes, neighbours

TEMPERATURE = 0.07
TRAIN, VALIDATION, TEST = slice(120), slice(120, 170), slice(170, 210)


@pytest.fixture(params=[True, False], ids=["faiss", "without"])
def with_and_without_faiss(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(neighbours, "load_faiss", lambda: None)
    elif not neighbours.load_faiss():
        pytest.skip("faiss is not installed")


@pytest.fixture(scope="module")
def study():
    """Six features of 120 training, 50 validation and 40 test images, lengths of all sizes, and three findings."""
    rng = np.random.default_rng(1)
    labels = (rng.random((210, 3)) < (0.4, 0.3, 0.2)).astype(np.float32)
    features = rng.normal(size=(210, 6))
    features[:, :3] += 1.2 * labels
    features *= rng.uniform(0.1, 10, size=(210, 1))
    return features.astype(np.float32), labels


def fit(features, labels, **options):
    return fit_neighbours(features[TRAIN], labels[TRAIN], features[VALIDATION], labels[VALIDATION], **options)


def reference(k):
    return KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / TEMPERATURE)
    )


@pytest.mark.parametrize("k", [1, 7, 120])
def test_votes_are_scikit_learns_weighted_neighbours(study, k, with_and_without_faiss, monkeypatch):
    monkeypatch.setattr(neighbour_votes, "_BLOCK_ROWS", 16)
    monkeypatch.setattr(neighbours, "_QUERY_ROWS", 13)
    features, labels = study
    fitted = fit(*study, neighbours=(k,))
    scores = fitted.score(features[TEST])
    assert (scores.shape, scores.dtype, fitted.neighbours) == ((40, 3), np.float64, k)
    np.testing.assert_allclose(fitted.score(1000 * features[TEST]), scores, atol=1e-5)
    values = features.astype(float)
    for column in range(3):
        expected = reference(k).fit(values[TRAIN], labels[TRAIN, column]).predict_proba(values[TEST])[:, 1]
        np.testing.assert_allclose(scores[:, column], expected, atol=1e-4)


def test_a_neighbour_whose_label_is_not_known_does_not_vote(with_and_without_faiss):
    """Neighbours at cosines 1, 0.8, 0.6 of the query and one opposite; the votes are worked out by hand."""
    train = np.array([[1, 0], [0.8, 0.6], [0.6, -0.8], [-1, 0]], dtype=np.float32)
    labels = np.array([[-1, np.nan, 1], [1, -1, 0], [0, np.nan, 0], [1, 1, 0]], dtype=np.float32)
    fitted = fit_neighbours(train, labels, np.ones((1, 2), np.float32), np.ones((1, 3)), neighbours=(3,))
    second, third = np.exp(-0.2 / TEMPERATURE), np.exp(-0.4 / TEMPERATURE)
    # Of the second finding no neighbour among the three knows anything: its share among all known labels, 1 of 1.
    expected = [second / (second + third), 1.0, 1 / (1 + second + third)]
    np.testing.assert_allclose(fitted.score(np.array([[1, 0]], np.float32))[0], expected, rtol=1e-5)


def test_k_is_chosen_on_validation(study):
    features, labels = study
    few = fit_neighbours(features[:4], labels[:4], features[VALIDATION], labels[VALIDATION])
    assert few.neighbours == 4, "more neighbours than images cannot answer"
    candidates = (2, 8, 30, 100)
    fitted = fit(*study, neighbours=candidates)
    assert fitted.validation.neighbours.tolist() == list(candidates)
    assert fitted.neighbours == fitted.validation.neighbours[fitted.validation.auroc.argmax()]
    for row, k in enumerate(candidates):
        alone = fit(*study, neighbours=(k,)).score(features[VALIDATION])
        for metric, measure in (("auroc", roc_auc_score), ("auprc", average_precision_score)):
            assert fitted.validation[metric][row] == pytest.approx(measure(labels[VALIDATION], alone), abs=1e-12)


def test_one_number_needs_no_validation_to_choose(study):
    features, labels = study
    blind = labels.copy()
    blind[VALIDATION] = (0, -1, 1)
    with pytest.raises(StudyError, match=r"so no number of neighbours can be chosen: .* name one number of neighbours"):
        fit(features, blind)
    one = fit(features, blind, neighbours=(5,))
    assert one.neighbours == 5
