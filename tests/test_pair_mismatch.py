import numpy as np
import pandas as pd
import pytest

from chexstudy.curation.quality.pair_mismatch import REVIEW_COLUMNS, MismatchScores, review_list
from chexstudy.curation.quality.pair_mismatch import score_mismatch as score_features
from chexstudy.errors import StudyError

DIM = 24
TOPICS, MEMBERS, RARE, SWAPPED, ODD = 4, 60, 14, 6, 3
PAIRS = TOPICS * MEMBERS + RARE


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def make_pairs(seed=0):
    """Four common topics and a rare one, each with a direction of its own; image and text share it.

    Six pairs have the text of another common topic, three have an image along directions that nothing else has.
    """
    rng = np.random.default_rng(seed)
    topic = np.repeat(np.arange(TOPICS + 1), [MEMBERS] * TOPICS + [RARE])
    # The rare pairs scatter more widely, as what the encoders have seldom seen does.
    spread = np.where(topic == TOPICS, 0.15, 0.1)[:, None]
    told = topic.copy()
    swapped = np.arange(SWAPPED) * 7
    told[swapped] = 1 + np.arange(SWAPPED) % (TOPICS - 1)
    directions = np.eye(DIM)
    image = directions[topic] + spread * rng.standard_normal((PAIRS, DIM))
    text = directions[told] + spread * rng.standard_normal((PAIRS, DIM))
    odd = MEMBERS + np.arange(ODD) * 11
    image[odd] = directions[TOPICS + 1 + np.arange(ODD)] + 0.05 * rng.standard_normal((ODD, DIM))
    return unit(image).astype(np.float32), unit(text).astype(np.float32), topic == TOPICS, swapped, odd


def score_mismatch(image, text, neighbours=10):
    return score_features(np.concatenate([image, text], axis=1) / np.sqrt(2).astype(np.float32), neighbours)


def spoil(rows, place, value):
    rows = rows.copy()
    rows[place] = value
    return rows


def test_wrong_pairs_score_high_and_rare_ones_are_not():
    image, text, rare, swapped, odd = make_pairs()
    scores = score_mismatch(image, text)
    wrong = np.concatenate([swapped, odd])
    sound = np.setdiff1d(np.arange(PAIRS), wrong)
    assert scores.score[wrong].min() > scores.score[sound].max()
    assert np.mean(scores.score[rare] < 3) > 0.9
    # Each score means what it says.
    common = np.setdiff1d(np.flatnonzero(~rare), np.concatenate([swapped, odd]))
    assert set(np.argsort(scores.mismatch)[-SWAPPED:]) <= set(swapped) | set(odd)
    assert scores.isolation[rare].min() > np.quantile(scores.isolation[common], 0.95)
    assert set(np.argsort(scores.isolation)[-ODD:]) == set(odd)
    # A swapped pair lies in two dense places that contradict each other.
    assert scores.isolation[swapped].max() < 3
    np.testing.assert_allclose(scores.agreement, (image * text).sum(axis=1), atol=1e-6)
    assert abs(np.median(scores.mismatch)) < 1e-9
    assert abs(np.median(scores.isolation)) < 1e-9


def restate(image, text, k):
    """The definition, pair by pair, from full cosine matrices."""
    image, text = image.astype(float), text.astype(float)

    def nearest(cosine):
        return np.argsort(-(cosine - 9 * np.eye(len(cosine))), axis=1)[:, :k]

    def others(cosine):
        return (cosine.sum(axis=1) - np.diag(cosine)) / (len(cosine) - 1)

    def regret(value, cosine):
        ceiling = np.take_along_axis(cosine, nearest(cosine), axis=1).mean(axis=1)
        span = ceiling - others(cosine)
        return (ceiling - value) / np.maximum(span, np.median(span) / 2)

    def standardise(values):
        away = values - np.median(values)
        return away / (1.4826 * np.median(abs(away)))

    ii, tt, it = image @ image.T, text @ text.T, image @ text.T
    by_image = np.take_along_axis(tt, nearest(ii), axis=1).mean(axis=1)
    by_text = np.take_along_axis(ii, nearest(tt), axis=1).mean(axis=1)
    own = np.diag(it)
    mean = (regret(by_image, tt) + regret(by_text, ii) + regret(own, it) + regret(own, it.T)) / 4
    kth = [np.sort(np.linalg.norm(one[:, None] - one[None], axis=2), axis=1)[:, k] for one in (image, text)]
    return standardise(mean), standardise(kth[0]), standardise(kth[1])


@pytest.mark.parametrize("k", [1, 4, 10])
def test_equals_the_definition_written_out(k):
    image, text, *_ = make_pairs(3)
    scores = score_mismatch(image, text, neighbours=k)
    mismatch, isolation, text_isolation = restate(image, text, k)
    np.testing.assert_allclose(scores.mismatch, mismatch, atol=1e-4)
    np.testing.assert_allclose(scores.isolation, isolation, atol=1e-4)
    score = np.maximum(mismatch, isolation - np.maximum(text_isolation, 0))
    np.testing.assert_allclose(scores.score, score, atol=2e-4)


def test_does_not_depend_on_the_order_of_the_pairs_and_repeats_itself():
    image, text, *_ = make_pairs(1)
    order = np.random.default_rng(0).permutation(PAIRS)
    straight, shuffled = score_mismatch(image, text), score_mismatch(image[order], text[order])
    np.testing.assert_allclose(straight.score[order], shuffled.score, atol=1e-4)
    assert score_mismatch(image, text).score.tobytes() == straight.score.tobytes()


def test_equal_pairs_score_zero():
    same = np.tile(unit(np.ones((1, 8))), (40, 1))
    scores = score_mismatch(same, same)
    np.testing.assert_array_equal(scores.score, 0)


def test_equal_texts_do_not_hide_a_wrong_one():
    """With template reports more than half of the texts are one and the same."""
    image, text, _, swapped, _ = make_pairs(2)
    text = np.where(np.arange(PAIRS)[:, None] < 3 * MEMBERS, np.round(text), text)
    scores = score_mismatch(image, unit(text).astype(np.float32))
    assert np.isfinite(scores.score).all()
    assert (scores.mismatch[swapped] > 3).all()


IMAGE, TEXT, *_ = make_pairs()


@pytest.mark.parametrize(
    ("image", "text", "neighbours", "sentence"),
    [
        (IMAGE, TEXT[:, 1:], 10, "halved"),
        *[(spoil(IMAGE, 7, bad), TEXT, 10, "row 7 of the joint features") for bad in (np.nan, np.inf, 0.0)],
        (IMAGE[:11], TEXT[:11], 10, "12 pairs, not 11"),
        (IMAGE, TEXT, 0, "neighbour"),
    ],
)
def test_refuses_what_it_cannot_score(image, text, neighbours, sentence):
    with pytest.raises(StudyError, match=sentence):
        score_mismatch(image, text, neighbours)


def make_scores(values):
    values = np.asarray(values, dtype=float)
    return MismatchScores(values, values + 1, values + 2, np.zeros_like(values))


def test_the_review_list_holds_outliers_highest_score_first():
    ledger = pd.DataFrame(
        {
            "image_id": ["a", "b", "c", "d", "e"],
            "distance": [1.0, 2.0, 3.0, 4.0, 5.0],
            "band": ["outlier", "central", "outlier", "outlier", "outlier"],
            "prototype": [0, 1, 2, 3, 4],
        }
    )
    review = review_list(ledger, make_scores([2.0, 9.0, 3.5, 1.0, 2.0]))
    assert tuple(review.columns) == REVIEW_COLUMNS
    assert list(review.image_id) == ["c", "a", "e", "d"]
    assert list(review.advice) == ["rather wrong", "unclear", "unclear", "rather rare"]
    assert list(review.distance) == [3.0, 1.0, 5.0, 4.0]
    assert list(review.prototype) == [2, 0, 4, 3]
    assert list(review.mismatch) == [4.5, 3.0, 3.0, 2.0]
    assert list(review.isolation) == [5.5, 4.0, 4.0, 3.0]
    with pytest.raises(StudyError, match="3 mismatch scores for 5 rows"):
        review_list(ledger, make_scores([1, 2, 3]))


def test_of_several_epochs_the_last_decision_is_reviewed():
    ledger = pd.DataFrame(
        {
            "image_id": ["a", "b", "b", "a"],
            "distance": [1.0, 2.0, 3.0, 4.0],
            "band": ["outlier", "central", "outlier", "central"],
            "prototype": 0,
        }
    )
    review = review_list(ledger, make_scores([5, 5, 4, 5]))
    assert list(review.image_id) == ["b"]
    assert list(review.distance) == [3.0]
    assert list(review.mismatch_score) == [4.0]


def test_a_review_list_may_be_empty():
    ledger = pd.DataFrame({"image_id": ["a"], "distance": [1.0], "band": ["central"], "prototype": [0]})
    review = review_list(ledger, make_scores([5]))
    assert len(review) == 0
    assert tuple(review.columns) == REVIEW_COLUMNS
