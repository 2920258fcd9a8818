"""COVIDx, radiographs of several public sets for one question: lists of images in plain text, one a split.

A line is patient, file, class and the set it is from, with blanks between them, and sometimes within the name of the
file; the oldest lists do not say the set.
"""

from pathlib import Path

import pandas as pd

from chexstudy.cohort.adapters.layout import Download
from chexstudy.cohort.adapters.manifest import register
from chexstudy.errors import StudyError
from chexstudy.inputs.tables import read_characters
from chexstudy.inputs.yaml_files import read_data_beside

_DATA = read_data_beside(__file__)["data"]
_CLASSES = pd.DataFrame.from_dict(_DATA["classes"], orient="index", dtype="str")
_LINE = rf"^\s*(?P<number>\S+)\s+(?P<file>.+?)\s+(?P<label>{'|'.join(_CLASSES.index)})(?:\s+(?P<set>\S+))?\s*$"
_HELD_OUT = {"train": 0, "val": 1, "test": 2}


def _read_lists(download: Download, options: dict[str, str]) -> pd.DataFrame:
    release = "*" if options["release"] == "any" else f"*{options['release']}"
    names = {split: (f"{split}_COVIDx{release}.txt", f"{split}.txt") for split in _HELD_OUT}
    lists = {split: path for split, either in names.items() if (path := download.find(*either))}
    if not lists:
        download.require(*names["train"], *names["test"])
    table = pd.concat([_read_list(path).assign(split=split) for split, path in lists.items()])
    # Each set numbers its patients; one list misspells a set.
    table["patient"] = table["set"].replace(_DATA["misspelt"]).fillna("any") + "_" + table["number"]
    rank = table["split"].map(_HELD_OUT)
    is_kept = rank == rank.groupby(table["patient"]).transform("max")
    table = table[is_kept].join(_CLASSES, on="label")
    table.attrs["images_left_out_because_their_patient_is_held_out_more"] = int((~is_kept).sum())
    return table


def _read_list(path: Path) -> pd.DataFrame:
    lines = pd.Series(read_characters(path).splitlines(), dtype="str")
    lines.index = pd.Index([f"{number} of {path.name}" for number in range(1, len(lines) + 1)], name="line")
    lines = lines[lines.str.strip() != ""]
    told = lines.str.extract(_LINE)
    wrong = told["file"].isna().to_numpy()
    if wrong.any():
        raise StudyError(
            f"{path.name}: line {lines.index[wrong][0].split()[0]} is not patient, file, class "
            f"({', '.join(_CLASSES.index)}) and set."
        )
    return told


SPEC = register(__file__, read=_read_lists)
