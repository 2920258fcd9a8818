import numpy as np
import pandas as pd
import pytest

from chexstudy.errors import StudyError
from chexstudy.evaluation.image_text.evaluate import pair_arms
from chexstudy.evaluation.image_text.prompts import CHOSEN, CLINICAL, PUBLISHED, PromptFamily
from chexstudy.evaluation.image_text.summary import state_arm_differences
from chexstudy.evaluation.image_text.zero_shot import (
    list_inverted,
    prompt_directions,
    score_directions,
    warn_inverted,
)
from chexstudy.evaluation.scores import measure_findings
from chexstudy.pretraining.arms.definitions import CURATING
from chexstudy.statistics.bootstrap import bootstrap_patients

FINDINGS = ["Mass", "Hernia"]


def encode_by_table(table):
    return lambda texts: np.array([table[text] for text in texts], dtype=float)


def zero_shot_scores(images, encode, findings, family):
    return score_directions(images, prompt_directions(encode, findings, family))


PROMPTS = encode_by_table({"Mass": [2, 0, 0], "no Mass": [0, 3, 0], "Hernia": [0, 0, 1], "no Hernia": [0, 0.5, 0]})


def test_scores_are_the_published_softmax_over_two_cosines():
    images = np.array([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]])
    scores = zero_shot_scores(images, PROMPTS, FINDINGS, PUBLISHED)
    cosines = np.array([[[0.6, 0.8], [0.0, 0.8]], [[0.0, 0.0], [1.0, 0.0]]])
    softmax = np.exp(cosines) / np.exp(cosines).sum(axis=2, keepdims=True)
    np.testing.assert_allclose(scores, softmax[..., 0], rtol=1e-12)


def test_arms_that_curate_are_compared_with_all_others_and_with_each_other_once():
    assert pair_arms(["full", "filtered", "curated"], CURATING) == [
        *(("curated", "full"), ("curated", "filtered"), ("filtered", "full")),
    ]
    assert pair_arms(["full", "filtered"], CURATING) == [("filtered", "full")]
    assert pair_arms(["full"], CURATING) == pair_arms(["full"], ["full"]) == []


def test_differences_are_told_of_both_arms_that_curate():
    shared = {"seed": -1, "task": "zero_shot_difference", "metric": "auroc_difference", "finding": "macro"}
    shared |= {"setting": CHOSEN, "data_set": "s/test", "ci_low": 0.01, "ci_high": 0.03, "value": 0.02}
    rows = [{"arm": "filtered", "reference": "full"}, {"arm": "curated", "reference": "full", "ci_low": -0.01}]
    told = state_arm_differences(pd.DataFrame([shared | row for row in rows]))
    assert told[0].startswith("s/test: filtered is better than full, ")
    assert told[1].startswith("s/test: curated cannot be told from full, ")


def test_sentences_of_a_side_are_averaged_as_directions_not_by_length():
    family = PromptFamily("own", ("a {}", "b {}"), ("c {}",), ("n",), ("m",), "as_named")
    table = {"a Mass": [100, 0], "b Mass": [0, 1], "c Mass": [-1, 0]}
    score = zero_shot_scores(np.array([[1.0, 0.0]]), encode_by_table(table), ["Mass"], family)[0, 0]
    # Sides at 45 and 180 degrees from the image.
    assert score == pytest.approx(1 / (1 + np.exp(-(np.sqrt(0.5) + 1))))


def test_every_sentence_is_encoded_once():
    seen = []

    def encode(texts):
        seen.append(texts)
        return np.random.default_rng(0).normal(size=(len(texts), 4))

    zero_shot_scores(np.ones((2, 4)), encode, [*FINDINGS, "No Finding"], CLINICAL)
    assert len(seen) == 1
    assert len(seen[0]) == len(set(seen[0]))


def test_an_inverted_direction_is_listed_with_its_certainty():
    generator = np.random.default_rng(2)
    labels = (generator.random((200, 2)) < 0.4).astype(float)
    images = np.stack([1 - labels[:, 0], labels[:, 0], labels[:, 1]], axis=1) + 0.3 * generator.random((200, 3))
    weights = bootstrap_patients(np.arange(200), 200, generator)
    scores = zero_shot_scores(images, PROMPTS, FINDINGS, PUBLISHED)
    rows = measure_findings([scores], labels, FINDINGS, weights).of_seed(0).assign(setting="published")
    inverted = list_inverted(rows)
    assert inverted.finding.iloc[0] == "Mass"
    assert inverted.certain.iloc[0]
    assert "Hernia" not in set(inverted.finding)
    assert "macro" not in set(inverted.finding)
    (sentence,) = warn_inverted(rows.assign(arm="full", data_set="a/test"))
    assert sentence.startswith("Mass: the prompts 'published' of arm 'full' point the wrong way on a/test, AUROC 0.0")


def test_embeddings_that_cannot_be_compared_are_named():
    with pytest.raises(StudyError, match="embedding number 1 is zero or not finite"):
        zero_shot_scores(np.array([[1.0, 0, 0], [np.nan, 0, 0]]), PROMPTS, FINDINGS, PUBLISHED)
