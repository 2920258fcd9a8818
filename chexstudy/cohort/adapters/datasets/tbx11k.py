"""TBX11K: images in a folder a class, official lists, and boxes of tuberculosis by kind in COCO form.

The official test images have no labels, and the extra ones are those of other sets, Montgomery and Shenzhen among them:
both are left out.
"""

import os

import numpy as np
import pandas as pd

from chexstudy.cohort.adapters.layout import Download, is_image, read_json
from chexstudy.cohort.adapters.manifest import register
from chexstudy.cohort.source_annotations import Box
from chexstudy.errors import StudyError
from chexstudy.inputs.yaml_files import read_data_beside

_DATA = read_data_beside(__file__)["data"]
_FOLDERS, _CATEGORIES, _LEFT_OUT = _DATA["folders"], _DATA["categories"], _DATA["left_out"]
_LISTS = ("TBX11K_train", "TBX11K_val")
_UNKNOWN_KIND = "Tuberculosis"


def _list_images(download: Download, options: dict[str, str]) -> pd.DataFrame:
    """One row an image of the lists; of which kind a tuberculosis is, its boxes tell."""
    listed = [download.require(f"{name}.txt").read_text().split() for name in _LISTS]
    table = pd.DataFrame({"file": [name for names in listed for name in names]}, dtype="str")
    table["split"] = ["train"] * len(listed[0]) + [options["val"]] * len(listed[1])
    classes = table["file"].str.split("/").str[-2].map(_FOLDERS)
    if classes.isna().any():
        raise StudyError(
            f"{' or '.join(f'{name}.txt' for name in _LISTS)} lists {table['file'][classes.isna().idxmax()]}: expected "
            f"an image of one of the folders {', '.join(_FOLDERS)}."
        )
    table = table.assign(**{finding: classes.eq(finding) for finding in _FOLDERS.values()})
    boxes = _read_boxes(download)
    boxed = {
        finding: table["file"].isin(boxes["file"][boxes["finding"] == finding]) for finding in _CATEGORIES.values()
    }
    is_unsure = boxed.pop(_UNKNOWN_KIND)
    is_known = np.logical_or.reduce(list(boxed.values()))
    for finding, is_so in boxed.items():
        cases = [is_so, is_unsure & ~is_known, is_known | classes.ne(_UNKNOWN_KIND)]
        table[finding] = np.select(cases, ["1", "-1", "0"], None)
    folders = pd.Series([set(name.split("/")) for name in download.files if is_image(name)])
    table.attrs |= {
        note: int(folders.map(lambda parts, own=own: own in parts).sum()) for own, note in _LEFT_OUT.items()
    }
    return table


def _read_boxes(download: Download) -> pd.DataFrame:
    """A row a box, of the lists' files that are there: ``file``, ``finding``, ``box`` and ``picture``."""
    rows = []
    for path in filter(None, (download.find(f"{name}.json") for name in _LISTS)):
        with read_json(path, "in the COCO form of TBX11K") as told:
            findings = {one["id"]: _CATEGORIES[one["name"]] for one in told["categories"]}
            images = {one["id"]: one for one in told["images"]}
            for one in told["annotations"]:
                image = images[one["image_id"]]
                box, picture = tuple(map(float, one["bbox"])), (image["height"], image["width"])
                rows.append((image["file_name"], findings[one["category_id"]], box, picture))
    return pd.DataFrame(rows, columns=["file", "finding", "box", "picture"])


def _list_boxes(download: Download) -> list[Box]:
    """Each box twice where its kind is known: whatever the kind, it is a tuberculosis."""
    boxes = _read_boxes(download).to_dict("records")
    findings = [dict.fromkeys((one["finding"], _UNKNOWN_KIND)) for one in boxes]
    return [
        Box(f"tbx11k/{one['file']}", finding, one["box"], one["picture"])
        for one, told in zip(boxes, findings, strict=True)
        for finding in told
    ]


def _is_radiograph(name: str) -> bool:
    return is_image(name) and os.path.basename(os.path.dirname(name)) in _FOLDERS


SPEC = register(__file__, read=_list_images, is_image=_is_radiograph, list_annotations=_list_boxes)
