"""What was measured on the bench: the whole design, as it comes with the package, or one's own run."""

from pathlib import Path

import pandas as pd

from chexstudy.errors import StudyError
from chexstudy.experiments.regimes.bench import read_outcomes
from chexstudy.experiments.regimes.design import MOST_POOLS, read_design

# Written by `chexstudy regimes --out`.
COMMITTED = Path(__file__).with_name("outcomes.csv")


def read_evidence(own: bool = False) -> pd.DataFrame:
    """A row for each training, as of `read_outcomes` but for single findings: those that come with the package.

    ``own``: those that this home's study ``regimes`` has of the design, instead.
    """
    if not own:
        if not COMMITTED.is_file():
            raise StudyError("this version comes without outcomes of the bench: measure some with `chexstudy regimes`.")
        return pd.read_csv(COMMITTED)
    design = read_design()
    outcomes = read_outcomes(design.list_jobs(seeds=MOST_POOLS), design.methods)
    if outcomes.empty:
        raise StudyError("the bench has measured nothing here yet: run `chexstudy regimes gain --seeds 3` first.")
    return leave_out_findings(outcomes)


def leave_out_findings(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Rows of `read_outcomes` with what a table can hold: no measures of single findings, no options of methods."""
    return outcomes[[name for name in outcomes if "/" not in name and name != "how"]]
