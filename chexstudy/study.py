"""A study as a notebook meets it: opened once, everything of it read when it is first asked for.

The first code cell of a notebook reads::

    from chexstudy.study import open_study

    study = open_study("05_compare_arms", globals())
"""

from collections.abc import Mapping, MutableMapping
from functools import cached_property
from typing import TYPE_CHECKING

import pandas as pd

from chexstudy.cohort.table import finding_columns, read_cohort
from chexstudy.runs import Run
from chexstudy.workflow.notebook import start_notebook

# What trains and evaluates brings torch, whose import takes longer than most cells: it waits until it is asked for.
if TYPE_CHECKING:
    from chexstudy.cohort.pixels.store import PixelStore
    from chexstudy.evaluation.context import Evaluation
    from chexstudy.pretraining.configuration import PretrainingConfig


class Study:
    """One study with the parameters of the notebook that opened it; what a property needs of them must be there."""

    def __init__(self, run: Run, parameters: Mapping[str, object]):
        self.run, self.name = run, run.study
        self._parameters = dict(parameters)

    @cached_property
    def cohort(self) -> pd.DataFrame:
        """The cohort table; one line says so if it has no labels, for much is left out then."""
        cohort = read_cohort(self.run.require("cohort.parquet"))
        if not finding_columns(cohort):
            print("The cohort has no labels: what needs them is left out.")
        return cohort

    @cached_property
    def train(self) -> pd.DataFrame:
        """Rows of the training split, numbered from 0."""
        return self.cohort[self.cohort.split == "train"].reset_index(drop=True)

    @cached_property
    def truth(self) -> pd.DataFrame | None:
        """What is known of each training pair that no real cohort tells, in the order of `train`; None elsewhere."""
        if not self.run.has("truth.parquet"):
            print("The truth about copies, mismatched pairs and junk images is not known in this cohort.")
            return None
        truth = pd.read_parquet(self.run.path("truth.parquet"))
        return truth.set_index("image_id").loc[self.train.image_id].reset_index()

    @cached_property
    def pixels(self) -> "PixelStore":
        from chexstudy.cohort.pixels.store import open_pixel_store

        return open_pixel_store(self.run)

    def read_image(self, image_id: str):
        """The pixels ``(size, size)`` uint8 of one image."""
        return self.pixels.read([image_id])[0]

    @property
    def findings(self) -> list[str]:
        """The labelled findings; empty for a cohort without labels."""
        return finding_columns(self.cohort)

    @cached_property
    def prevalence(self) -> pd.Series:
        """Share of the labelled training images with each finding."""
        from chexstudy.cohort.prevalence import measure_prevalence

        return measure_prevalence(self.train)

    @cached_property
    def tiers(self) -> dict[str, str]:
        """Tier of each finding by its prevalence in training."""
        from chexstudy.cohort.prevalence import prevalence_tiers

        return prevalence_tiers(self.prevalence).to_dict()

    @property
    def seed(self) -> int:
        return self._parameters["seed"]

    @cached_property
    def seeds(self) -> list[int]:
        from chexstudy.pretraining.arms.definitions import choose_seeds

        return choose_seeds(self.seed, self._parameters["seeds"])

    @cached_property
    def arms(self) -> list[str]:
        """The arms that were asked for; without labels, all but those that read them."""
        from chexstudy.pretraining.arms.definitions import choose_arms

        return choose_arms(self._parameters["arms"], bool(self.findings))

    @cached_property
    def device(self) -> str:
        """Where models run: the CPU where the notebook has no choice of it."""
        from chexstudy.devices import choose_device

        return str(choose_device(self._parameters.get("device", "cpu")))

    @cached_property
    def config(self) -> "PretrainingConfig":
        """The constants of training, which are the study's and those of no notebook."""
        from chexstudy.pretraining.arms.study_config import read_config

        return read_config(self.run)

    def evaluation(self, **options) -> "Evaluation":
        """What all models are measured with; ``options`` are further fields of `Evaluation`."""
        from chexstudy.evaluation.context import Evaluation

        fixed = {"resamples": self._parameters["resamples"], "seed": self.seed, "device": self.device}
        return Evaluation(self.run, self.cohort, self.pixels, **fixed | options)


def open_study(name: str, namespace: MutableMapping[str, object]) -> Study:
    """Start a notebook (`chexstudy.workflow.notebook.start_notebook`) and open its study.

    The ``namespace`` is its ``globals()``, whose ``study`` may be the one opened before, if a cell is run again.
    """
    if isinstance(namespace.get("study"), Study):
        namespace["study"] = namespace["study"].name
    return Study(start_notebook(name, namespace), namespace)
