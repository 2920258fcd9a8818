"""Constants of a run: what is refused, and with which sentence."""

import pytest

from chexstudy.curation.online.configuration import CuratorConfig, expected_fraction
from chexstudy.errors import StudyError
from chexstudy.pretraining.configuration import PretrainingConfig, read_constants


def test_a_configuration_survives_json():
    config = PretrainingConfig(learning_rate=3e-4, fixed_streams=("order",), curator=CuratorConfig(prototypes=4))
    assert PretrainingConfig.from_dict(config.to_dict()) == config


def test_curator_constants_may_stand_beside_the_others():
    config = PretrainingConfig.from_dict({"prototypes": 9, "batch_size": 64})
    assert (config.curator.prototypes, config.batch_size) == (9, 64)


def test_constants_are_found_among_a_notebooks_variables():
    config = read_constants({"study": "demo", "run": object(), "batch_size": 32, "central_cap": 3, "seeds": 2})
    assert (config.batch_size, config.curator.central_cap) == (32, 3)


def test_further_constants_are_read_by_their_type():
    constants = [
        "text_pooling=last",
        "dropout=true",
        "kmeans_seed=7",
        "fixed_streams=order+selection",
        "weight_decay=1e-4",
    ]
    config = read_constants({"constants": constants})
    assert (config.text_pooling, config.dropout, config.curator.kmeans_seed) == ("last", True, 7)
    assert (config.fixed_streams, config.weight_decay) == (("order", "selection"), 1e-4)
    for wrong, sentence in (
        ("colour=red", "unknown constant"),
        ("dropout=maybe", "must be bool"),
        ("dim=x", "must be int"),
    ):
        with pytest.raises(StudyError, match=sentence):
            read_constants({"constants": [wrong]})


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"batchsize": 3}, "unknown constant 'batchsize'"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"batch_size": "64"}, "batch_size must be int"),
        ({"dropout": 1}, "dropout must be bool"),
        ({"learning_rate": 1e-6}, "learning_rate must be positive and at least min_learning_rate"),
        ({"precision": "fp8"}, "precision must be one of auto, fp32, bf16"),
        ({"curation_epochs": 0}, "curation_epochs must be at least 1"),
        ({"outlier_policy": "burn"}, "outlier_policy must be one of drop, keep, review"),
        ({"rule": "budgeted", "update_timing": "after_step"}, "the budgeted rule moves its prototypes while"),
        ({"budget": 0.0}, "budget must be a share up to 1"),
        ({"super_batch": 5}, "super_batch (5) must hold at least one pair a prototype (6)"),
        ({"fixed_streams": ["weather"]}, "fixed_streams must be one of"),
        ({"warm_up_order": "last"}, "warm_up_order must be one of first, random"),
        ({"support_quantile": 0.99}, "support_quantile must not exceed outlier_quantile"),
    ],
)
def test_wrong_constants_are_named(values, sentence):
    with pytest.raises(StudyError) as error:
        PretrainingConfig.from_dict(values)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("constants", "expected"),
    [
        ({}, [0.10 + 60 / 480, 0.95]),
        ({"outlier_policy": "keep"}, [0.15 + 60 / 480, 1.0]),
        ({"support_quantile": 0.5, "outlier_quantile": 0.9, "central_cap": 4}, [0.4 + 24 / 480, 0.4 + 24 / 60]),
        ({"rule": "budgeted", "budget": 54}, [0.1, 0.1]),
    ],
)
def test_the_fraction_selected_follows_from_the_constants(constants, expected):
    assert expected_fraction(CuratorConfig(**constants), [480, 60]).tolist() == pytest.approx(expected, abs=1e-15)
