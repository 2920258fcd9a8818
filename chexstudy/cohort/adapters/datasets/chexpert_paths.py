"""What the tables of all CheXpert sets tell in the paths of their images: split, patient, study and side.

Patients go by the folders of their images, so that somebody who is in several of these sets is one patient.
"""

import pandas as pd

from chexstudy.cohort.table import tell_first
from chexstudy.errors import StudyError

_PATH = (
    r"(?P<image>(?P<folder>train|valid|val|test)/(?P<file>(?P<study>(?P<patient>patient\d+)/study\d+)"
    r"/view\d+_(?P<side>frontal|lateral)\.\w+))$"
)


def read_paths(paths: pd.Series, origin: str) -> pd.DataFrame:
    """``image`` from the split's folder on, ``file`` from the patient's on (the original archives lack the split's).

    And ``folder`` (of the split), ``study``, ``patient``, ``side`` (frontal or lateral).
    """
    told = paths.fillna("").str.extract(_PATH)
    refuse_unclear(told["image"].isna(), paths, "train/patient00001/study1/view1_frontal.jpg", origin)
    return told


def refuse_unclear(wrong: pd.Series, cells: pd.Series, example: str, origin: str) -> None:
    """Raise a StudyError about the first cell that is no path of the kind of the example."""
    for problem in tell_first(wrong, cells, origin, f" does not end in a path such as {example}.", ""):
        raise StudyError(problem)


def tell_views(projections: pd.Series, told: pd.DataFrame) -> pd.Series:
    """Words for the views: AP or PA of frontal images, lateral for the others whatever their column says."""
    return projections.where(told["side"] == "frontal", "lateral")


def tell_ages(ages: pd.Series) -> pd.Series:
    """Ages without 0, which stands for nobody's."""
    return ages.where(pd.to_numeric(ages, errors="coerce") != 0)
