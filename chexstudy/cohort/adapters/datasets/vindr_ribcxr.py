"""VinDr-RibCXR: outlines of ribs in JSON files whose columns are the ribs; no patient and no finding is told."""

import os

import pandas as pd
from PIL import Image

from chexstudy.cohort.adapters.layout import Download, ImageFinder, is_image, read_json
from chexstudy.cohort.adapters.manifest import register
from chexstudy.cohort.source_annotations import Polygon

_FILES = {"train": "Vindr_RibCXR_train_mask.json", "validate": "Vindr_RibCXR_val_mask.json"}
_RIBS = {
    f"{letter}{number}": f"{side} rib {number}"
    for letter, side in (("R", "right"), ("L", "left"))
    for number in range(1, 11)
}


def _read_outlines(download: Download) -> pd.DataFrame:
    """A row an image: ``img``, ``split`` and a column of corners for each rib."""
    tables = []
    for split, name in _FILES.items():
        path = download.require(name) if split == "train" else download.find(name)
        if path is None:
            continue
        with read_json(path, "a table of columns img, R1 to R10 and L1 to L10") as told:
            tables.append(pd.DataFrame({rib: pd.Series(told[rib]) for rib in ("img", *_RIBS)}).assign(split=split))
    return pd.concat(tables, ignore_index=True)


def _read_table(download: Download, options: dict[str, str]) -> pd.DataFrame:
    outlines = _read_outlines(download)
    names = outlines["img"].map(lambda name: os.path.splitext(os.path.basename(name))[0])
    table = pd.DataFrame({"image": outlines["img"], "name": names, "split": outlines["split"]}, dtype="str")
    return table.rename_axis("row")


def _list_ribs(download: Download) -> list[Polygon]:
    """The outline of each rib that has one, in pixels of the image, for images that are there."""
    finder = ImageFinder(download.folder, list(filter(is_image, download.files)), anywhere=True)
    ribs = []
    for row in _read_outlines(download).to_dict("records"):
        path = finder.find(row["img"])
        if os.path.isfile(path):
            with Image.open(path) as picture:
                size = picture.size[::-1]
            image_id = f"vindr_ribcxr/{os.path.splitext(os.path.basename(path))[0]}"
            for rib, structure in _RIBS.items():
                corners = tuple((float(one["x"]), float(one["y"])) for one in row[rib] or ())
                if len(corners) > 2:
                    ribs.append(Polygon(image_id, structure, (corners,), size))
    return ribs


register(__file__, read=_read_table, list_annotations=_list_ribs)
