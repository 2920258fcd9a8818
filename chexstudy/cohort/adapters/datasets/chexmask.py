"""CheXmask: masks of lungs and heart that a network drew on other sets, told by starts and lengths of runs along rows.

Masks whose estimate of their own quality (reverse classification accuracy) is below 0.7 are left out, as the owners
advise. Mean and maximum are swapped in some releases: the lower of both is the mean.
"""

from collections.abc import Iterator

import pandas as pd

from chexstudy.cohort.adapters.layout import Download
from chexstudy.cohort.adapters.manifest import register
from chexstudy.cohort.source_annotations import RunLengths
from chexstudy.errors import StudyError
from chexstudy.inputs.yaml_files import read_data_beside

_DATA = read_data_beside(__file__)["data"]
_QUALITY, _LEAST = ["Dice RCA (Mean)", "Dice RCA (Max)"], 0.7
_ROWS_AT_ONCE = 2_000  # a row holds some 30 KB of runs


def _list_masks(download: Download) -> Iterator[RunLengths]:
    """The masks of all tables that are there, one table and one row after the other: together they need 20 GB."""
    for name, host in _DATA["hosts"].items():
        path = download.find(f"OriginalResolution/{name}.csv")
        if path is None:
            continue
        needed = {*_DATA["structures"], *_QUALITY, "Height", "Width"}
        try:
            header = list(pd.read_csv(path, nrows=0).columns)
            key = next((column for column in host["columns"] if column in header), host["columns"][0])
            missing = [column for column in (key, *sorted(needed)) if column not in header]
            if missing:
                raise StudyError(f"{path.name} lacks the column {missing[0]!r}; it has {', '.join(map(repr, header))}.")
            line = 2
            for rows in pd.read_csv(path, usecols=[key, *needed], dtype="str", chunksize=_ROWS_AT_ONCE):
                yield from _read_rows(rows, key, host, path.name, line)
                line += len(rows)
        except (ValueError, OSError, EOFError) as error:
            if isinstance(error, StudyError):
                raise
            raise StudyError(f"{path} cannot be read as a table: fetch it again.") from None


def _read_rows(rows: pd.DataFrame, key: str, host: dict, origin: str, first_line: int) -> Iterator[RunLengths]:
    quality = rows[_QUALITY].apply(pd.to_numeric, errors="coerce").min(axis=1)
    names = rows[key].str.extract(host["name"], expand=False)
    for number, row in enumerate(rows.to_dict("records")):
        if not quality.iloc[number] >= _LEAST:
            continue
        picture = int(float(row["Height"])), int(float(row["Width"]))
        for column, structure in _DATA["structures"].items():
            if isinstance(row[column], str):
                image_id, place = f"{host['source']}/{names.iloc[number]}", f"{origin}: line {first_line + number}"
                yield RunLengths(image_id, structure, row[column], picture, place, "starts")


register(__file__, list_annotations=_list_masks)
