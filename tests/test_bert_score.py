"""BERTScore against the definition, token by token, with a tiny encoder; bert-score 0.3.13 gives the same numbers."""

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from chexstudy.errors import StudyError
from chexstudy.evaluation.report_generation.bert_score import load_bert_score
from chexstudy.statistics.bootstrap import bootstrap_patients

_WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] no left pleural effusion edema heart normal . lungs clear small"
SAID = ["no pleural effusion .", "heart normal", "small left effusion . lungs clear .", "edema", ""]
TOLD = ["small left pleural effusion .", "heart normal .", "lungs clear . no edema", "edema", "edema"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint of three layers."""
    folder = tmp_path_factory.mktemp("tiny") / "bert"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(_WORDS.split()))
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(_WORDS.split()), **sizes)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("layer", [1, 3])
def test_each_word_is_matched_with_its_nearest_token_of_one_layer(folder, layer):
    metric = load_bert_score(f"{folder}@{layer}")
    model, tokenizer = BertModel.from_pretrained(folder).eval(), BertTokenizerFast.from_pretrained(folder)

    def embed(text):
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states[layer][0]
        return hidden / hidden.norm(dim=1, keepdim=True)

    for said, told, score in zip(SAID[:-1], TOLD, metric.score(SAID, TOLD), strict=False):
        cosines = (embed(said) @ embed(told).T).numpy()
        # [CLS] and [SEP] may be the nearest of a word, but are no words.
        precision, recall = cosines.max(axis=1)[1:-1].mean(), cosines.max(axis=0)[1:-1].mean()
        assert score == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-5)
    assert f"|layer:{layer}|" in metric.signature


def test_an_equal_report_is_right_an_empty_one_wrong_and_resamples_are_weighted_means(folder):
    metric = load_bert_score(str(folder))
    scores = metric.score(SAID, TOLD)
    assert metric.layer == 3
    assert scores[3:] == pytest.approx([1, 0])
    assert metric.score(SAID[:1] * 130, TOLD[:1] * 130) == pytest.approx(scores[0])
    weights = bootstrap_patients(range(5), 20, np.random.default_rng(0))
    measured = metric.measure(SAID, TOLD, weights)
    assert measured.values.item() == pytest.approx(scores.mean())
    assert measured.replicates[0, :, 0, 0] == pytest.approx([np.average(scores, weights=one) for one in weights])


def test_a_layer_that_is_not_there_and_an_encoder_that_is_not_here_are_told(folder):
    for layer in ("4", "0", "last"):
        with pytest.raises(StudyError, match=f"has layers 1 to 3, none '{layer}': write .*@3 for the last"):
            load_bert_score(f"{folder}@{layer}")
    with pytest.raises(StudyError, match="nothing is downloaded unless --online is given"):
        load_bert_score("no/such-encoder@5")
