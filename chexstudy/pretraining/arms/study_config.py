"""The constants of a study, declared by one notebook, read by all that train, and laid over by what an arm is given."""

import os
from collections.abc import Collection, Mapping

from chexstudy.errors import StudyError
from chexstudy.paths import NOTEBOOKS
from chexstudy.pretraining.arms.definitions import Arm
from chexstudy.pretraining.configuration import PretrainingConfig, list_variables, read_constants
from chexstudy.pretraining.engine.distributed import Processes
from chexstudy.runs import MADE_BY_VARIABLE, Run, write_record
from chexstudy.steps import find_step
from chexstudy.workflow.identity import (
    ENGINE,
    add_values,
    begin_notebook,
    check_accepted,
    choose_profile,
    read_identity,
    settle_values,
)
from chexstudy.workflow.locks import is_inherited, take_study
from chexstudy.workflow.parameters import Parameter, read_parameters

_CONFIG = "pretraining/config.json"


def settle_config(
    run: Run, arm: Arm, given: Mapping[str, object], processes: Processes, change: Collection[str] = ()
) -> PretrainingConfig:
    """The constants of an arm; those given become the study's, which is held from then on.

    Arms under constants of their own (``NAME.VARIANT``) change nothing of the study. A process that a notebook started
    is told all constants, and the notebook has settled them.

    ``given`` are constants as in `PretrainingConfig.from_dict`, what is not given is as in the study; ``change`` names
    parameters whose values may differ from those the study has.
    """
    if is_inherited(run):
        return PretrainingConfig.from_dict(dict(given))
    refused = None
    if processes.first:
        try:
            take_study(run, f"the training of {arm.name}")
            declared = _declare_variables()
            check_accepted(change, {ENGINE: declared})
            asked = {} if arm.variant else list_variables(_lay_over(run, given), declared)
            profile = choose_profile(run, None)
            values = settle_values(run, {ENGINE: declared}, {ENGINE: asked}, profile, accepted=change)
            if not arm.variant:
                begin_notebook(run, ENGINE, values[ENGINE])
        except StudyError as error:
            refused = error
    # All stop with the first process, and read what it has written.
    if any(processes.add_up([float(refused is not None)])):
        raise refused or StudyError("the first process was refused.")
    return _lay_over(run, given)


def read_config(run: Run) -> PretrainingConfig:
    """The study's constants, written once: as the notebook that trains first was given them, or would be.

    They are kept in ``pretraining/config.json``. A notebook that reads them builds on them, so that another value later
    is told as a change of what it has made.
    """
    identity, reader, values = read_identity(run), os.environ.get(MADE_BY_VARIABLE), {}
    if identity is not None:
        values = {name: identity.value(find_step(_CONFIG), one) for name, one in _declare_variables().items()}
        if reader in identity.notebooks:
            add_values(run, reader, values)
    config = read_constants(values)
    write_record(run.path(_CONFIG), config.to_dict())
    return config


def _lay_over(run: Run, given: Mapping[str, object]) -> PretrainingConfig:
    """The study's constants with those given in their place."""
    values = read_config(run).to_dict()
    values["curator"] |= dict(given.get("curator", {}))
    return PretrainingConfig.from_dict(values | {name: value for name, value in given.items() if name != "curator"})


def _declare_variables() -> dict[str, Parameter]:
    """The parameters that are constants, and the list of further ones, of the notebook that trains first."""
    declared = read_parameters(NOTEBOOKS / f"{find_step(_CONFIG)}.py")
    return {name: declared[name] for name in list_variables(PretrainingConfig(), declared)}
