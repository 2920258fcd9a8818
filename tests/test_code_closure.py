"""What of the package an artifact depends on: the code that computes it, and neither words nor other rooms."""

import inspect

import pytest

from chexstudy.code_closure import hash_closure, list_closure, name_computing_modules
from chexstudy.runs import Run

_ENGINE, _STORE = "chexstudy.pretraining.training.arm_run", "chexstudy.cohort.pixels.store"
_ARM = f"{_ENGINE}, chexstudy.pretraining.objectives.contrastive"
_LOSS, _SCORES = "pretraining/objectives/contrastive_loss.py", "evaluation/scores.py"


@pytest.mark.parametrize(
    ("module", "line", "stale"),
    [
        (_LOSS, "# A comment.", []),
        (_LOSS, 'def one():\n    """Words."""', [_ARM]),
        ("pretraining/self_supervision/crops.py", "LATER = 1", []),
        (_SCORES, "LATER = 1", ["chexstudy.evaluation.image_text.evaluate"]),
        ("evaluation/image_text/prompt_families.yaml", "# Data.", ["chexstudy.evaluation.image_text.evaluate"]),
        ("cohort/images/resampling.py", "LATER = 1", [_ARM, _STORE, "chexstudy.evaluation.image_text.evaluate"]),
        ("runs.py", "LATER = 1", []),
        ("plots/looks.py", "LATER = 1", []),
    ],
)
def test_code_makes_stale_what_it_computes_and_nothing_else(checkout, module, line, stale):
    watched = [_ARM, _STORE, "chexstudy.evaluation.image_text.evaluate"]
    before = [hash_closure(one) for one in watched]
    checkout(module, line)
    assert [one for one, value in zip(watched, before, strict=True) if hash_closure(one) != value] == stale


def test_docstrings_and_layout_do_not_count(checkout):
    checkout(_LOSS, 'def one(a, b):\n    """Words."""\n    return a + b')
    before = hash_closure(_ARM)
    folder = checkout(_LOSS, "")
    file = folder / "chexstudy" / _LOSS
    file.write_text(
        file.read_text().replace('"""Words."""\n    return a + b', '"""Other words."""\n\n    return (a +\n b)')
    )
    checkout(_LOSS, "# Read anew.")
    assert hash_closure(_ARM) == before


def test_the_training_of_an_arm_knows_nothing_that_measures_or_shows_it():
    closure = {name for module in _ARM.split(", ") for name in list_closure(module)}
    rooms = {name.split(".")[1] for name in closure if "." in name}
    assert not rooms & {"evaluation", "experiments", "label_planning", "release", "plots", "cli", "workflow", "runs"}
    assert {"pretraining", "curation", "encoders", "cohort"} <= rooms
    assert not [name for name in closure if ".phantom" in name or ".adapters" in name]


def test_the_module_that_computes_is_the_caller_or_the_one_of_a_function(home):
    run = Run("one")
    frame = inspect.currentframe()
    assert name_computing_modules(None, frame) == __name__
    assert name_computing_modules(hash_closure, frame) == "chexstudy.code_closure"
    assert name_computing_modules((hash_closure, Run), frame) == "chexstudy.code_closure, chexstudy.runs"
    run.write_json("a.json", 1)
    run.record("a.json", {"k": 1}, by=hash_closure)
    assert run.provenance("a.json")["module"] == "chexstudy.code_closure"
    assert run.is_current("a.json", run.key({"k": 1}, by=hash_closure))
    assert not run.is_current("a.json", run.key({"k": 1})), "what lies outside of the package depends on all of it"
