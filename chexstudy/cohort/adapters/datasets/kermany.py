"""Kermany's paediatric pneumonia set, which has no table: folders and names of files tell split, class and child.

Names are as in Kaggle's copy (``person1_virus_6.jpeg``, ``IM-0115-0001.jpeg``) or Mendeley's
(``BACTERIA-1008087-0001.jpeg``). Numbers start anew in each split, so each split has children of its own.
"""

import re

import pandas as pd

from chexstudy.cohort.adapters.layout import Download, is_image
from chexstudy.cohort.adapters.manifest import register
from chexstudy.errors import StudyError

_PATH = re.compile(r"(?P<image>(?P<split>train|val|test)/(?P<label>NORMAL|PNEUMONIA)/(?P<name>[^/]+))$")
_CHILD = r"(person\d+|(?:NORMAL2-)?IM-\d+|(?:NORMAL|BACTERIA|VIRUS)-\d+)"
_OWN_NAME = re.compile(rf"{_CHILD}(_(bacteria|virus)_\d+|(-\d+)+)")


def _list_radiographs(download: Download, options: dict[str, str]) -> pd.DataFrame:
    files = pd.Series(sorted(filter(is_image, download.files)), dtype="str")
    # The Kaggle archive holds everything twice, one folder inside the other.
    table = files.str.extract(_PATH).dropna().drop_duplicates("image", ignore_index=True)
    if table.empty:
        raise StudyError(
            f"{download.folder} has no images in folders train/NORMAL, train/PNEUMONIA, test/NORMAL or test/PNEUMONIA: "
            f"set data_root to the folder that holds {SPEC.holding}."
        )
    # A name of another form stands for a child of its own.
    child = table["name"].str.extract(_CHILD)[0].fillna(table["name"])
    is_sick = table["label"] == "PNEUMONIA"
    germ = table["name"].str.lower().str.extract("(bacteria|virus)")[0].where(is_sick, "none")
    flags = {
        "No Finding": ~is_sick,
        "Pneumonia": is_sick,
        "Bacterial Pneumonia": (germ == "bacteria").where(germ.notna()),
        "Viral Pneumonia": (germ == "virus").where(germ.notna()),
    }
    return table.assign(child=table["split"] + "/" + table["label"] + "/" + child, view="AP", **flags)


SPEC = register(__file__, read=_list_radiographs, is_own_name=lambda name: _OWN_NAME.fullmatch(name) is not None)
