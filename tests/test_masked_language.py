"""The masked-language objective: what is hidden, one step however it is cut, trained, stopped and gone on with."""

import numpy as np
import pytest
import torch
from tiny_arms import assert_same_weights, break_off, read_weights, tiny_config

from chexstudy.cohort.table import read_cohort
from chexstudy.encoders.build import build_text_encoder
from chexstudy.encoders.spec import EncoderSpec
from chexstudy.encoders.text import TextEncoder
from chexstudy.errors import StudyError
from chexstudy.pretraining.arms.definitions import arm_folder
from chexstudy.pretraining.engine.compute import count_flops
from chexstudy.pretraining.engine.distributed import Processes
from chexstudy.pretraining.engine.random_streams import RandomStreams
from chexstudy.pretraining.objectives.masked_language import MaskedLanguageObjective
from chexstudy.pretraining.training.arm_run import pretrain

pytestmark = pytest.mark.usefixtures("one_thread")

_CONFIG = tiny_config(objective="masked_language", warm_up_epochs=0, subset_epochs=3)


def _objective(run, **constants):
    config = tiny_config(**{"objective": "masked_language"} | constants)
    cohort = read_cohort(run.path("cohort.parquet"))
    return MaskedLanguageObjective(run, cohort, config, RandomStreams(0), torch.device("cpu"), Processes())


def test_fifteen_of_a_hundred_words_are_to_be_named_and_most_of_these_hidden(tiny_study):
    objective = _objective(tiny_study)
    ids, _ = objective._read(np.arange(len(objective.examples)))
    shown, named = zip(*(objective._hide(ids, step) for step in range(30)), strict=True)
    shown, named, tokenizer = torch.stack(shown), torch.stack(named), objective._encoder.tokenizer
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids)).expand(30, -1, -1)
    assert not named[special].any()
    assert torch.equal(shown[~named], ids.expand(30, -1, -1)[~named])
    assert named[~special].float().mean() == pytest.approx(0.15, abs=0.01)
    hidden = shown[named] == tokenizer.mask_token_id
    kept = shown[named] == ids.expand(30, -1, -1)[named]
    assert hidden.float().mean() == pytest.approx(0.8, abs=0.02)
    assert kept.float().mean() == pytest.approx(0.1, abs=0.02)


def test_a_step_in_pieces_is_the_step_at_once_and_its_loss_that_of_transformers(tiny_study):
    rows = np.arange(20)
    whole = _objective(tiny_study, micro_batch=20)
    told = whole.backward(rows, 2)
    ids, mask = whole._read(rows)
    shown, named = whole._hide(ids, 2)
    with torch.no_grad():
        theirs = whole.model(input_ids=shown, attention_mask=mask, labels=ids.masked_fill(~named, -100)).loss
    assert told["loss"] == pytest.approx(theirs.item(), rel=1e-5)
    for micro in (10, 7):
        pieces = _objective(tiny_study, micro_batch=micro)
        assert pieces.backward(rows, 2) == pytest.approx(told, rel=1e-5)
        for one, other in zip(whole.model.parameters(), pieces.model.parameters(), strict=True):
            assert torch.allclose(one.grad, other.grad, atol=1e-6)


def test_where_memory_ends_smaller_pieces_take_the_same_step(tiny_study, monkeypatch, capsys):
    rows = np.arange(20)
    expected, objective = _objective(tiny_study, micro_batch=5), _objective(tiny_study, micro_batch=20)
    told, seen = expected.backward(rows, 0), expected.embed(rows)[0]
    forward = TextEncoder.forward, type(objective.model).forward

    def refuse(number):
        def limited(module, *given, **named):
            if len(given[0] if given else named["input_ids"]) > 5:
                raise torch.OutOfMemoryError("out of memory")
            return forward[number](module, *given, **named)

        return limited

    monkeypatch.setattr(type(objective.model), "forward", refuse(1))
    assert objective.backward(rows, 0) == told
    for one, other in zip(expected.model.parameters(), objective.model.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    assert objective.describe()["micro_batch"] == 5
    assert "memory does not suffice: 10 reports at once from here on" in capsys.readouterr().out
    looks = _objective(tiny_study, micro_batch=20)
    monkeypatch.setattr(TextEncoder, "forward", refuse(0))
    assert torch.equal(looks.embed(rows)[0], seen)


def test_operations_are_those_of_the_model(tiny_study):
    objective = _objective(tiny_study)
    rows = np.arange(12)
    ids, mask = objective._read(rows)
    counted = count_flops(lambda: objective.model(input_ids=ids, attention_mask=mask).logits.sum().backward())
    assert objective.count_step(rows) == pytest.approx(counted)
    objective.backward(rows, 0)
    assert objective.flops == pytest.approx(counted)


def test_an_arm_learns_is_stopped_and_ends_in_the_same_bits_as_a_text_encoder(tiny_study, monkeypatch):
    pretrain(tiny_study, "full", 0, _CONFIG, "cpu")
    expected = read_weights(tiny_study, "full")
    history = tiny_study.read_table(f"{arm_folder('full', 0)}/history.parquet")
    assert history.loss.iloc[-3:].mean() < history.loss.iloc[:3].mean()
    encoder = build_text_encoder(EncoderSpec(str(tiny_study.path(f"{arm_folder('full', 0)}/model/text_encoder"))))
    assert torch.isfinite(encoder(**encoder.tokenize(["The heart is large."]))).all()
    tiny_study.path(f"{arm_folder('full', 0)}/compute.json").unlink()
    break_off(monkeypatch, tiny_study, "full", _CONFIG, lambda trainer: trainer.step == 4)
    pretrain(tiny_study, "full", 0, _CONFIG, "cpu")
    assert_same_weights(read_weights(tiny_study, "full"), expected)


def test_an_encoder_without_a_token_for_hidden_ones_is_refused(tiny_study, monkeypatch):
    monkeypatch.setattr("transformers.MODEL_FOR_MASKED_LM_MAPPING", {})
    with pytest.raises(StudyError, match="is a bert, which has no token for a hidden one"):
        _objective(tiny_study)
