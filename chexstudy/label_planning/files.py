"""Tables of learning curves read from files, and plans written to them."""

from pathlib import Path

import pandas as pd

from chexstudy.errors import StudyError
from chexstudy.inputs.tables import read_typed_table
from chexstudy.runs import Run, atomic_path, refused_writes

CURVES = "label_budget/curves.parquet"
_KINDS = (".parquet", ".csv")


def check_kind(path: Path) -> None:
    """Refuse a file that is neither parquet nor CSV by its name."""
    if path.suffix not in _KINDS:
        raise StudyError(f"{path} is neither {' nor '.join(_KINDS)}: name a file that ends in one of them.")


def read_curves(path: Path | None, study: str) -> pd.DataFrame:
    """A table of learning curves: a file's, or without one the study's.

    Args:
        path: a CSV or Parquet table.
        study: read where there is no path.
    """
    if path is None:
        return Run(study).read_table(CURVES)
    return read_typed_table(path)


def write_plan(plan: pd.DataFrame, path: Path) -> None:
    """Write a plan as parquet or CSV."""
    check_kind(path)
    with refused_writes(path), atomic_path(path) as temporary:
        if path.suffix == ".parquet":
            plan.to_parquet(temporary, index=False)
        else:
            plan.to_csv(temporary, index=False)
