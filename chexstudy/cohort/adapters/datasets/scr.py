"""SCR: a picture a structure of each JSRT image, in a folder that is called like the structure."""

import os
import re

from chexstudy.cohort.adapters.layout import Download
from chexstudy.cohort.adapters.manifest import register
from chexstudy.cohort.source_annotations import MaskFile
from chexstudy.inputs.yaml_files import read_data_beside

_FOLDERS = read_data_beside(__file__)["data"]["folders"]
_NAME = re.compile(r"(JPC[LN]N\d{3})\.\w+", re.IGNORECASE)


def _list_masks(download: Download) -> list[MaskFile]:
    masks = []
    for file in download.files:
        folder, name = os.path.split(file)
        structure = _FOLDERS.get(os.path.basename(folder).replace("_", " ").lower())
        if structure and (found := _NAME.fullmatch(name)):
            masks.append(MaskFile(f"jsrt/{found[1].upper()}", structure, download.folder / file))
    return sorted(masks, key=lambda mask: (mask.image_id, mask.structure))


register(__file__, list_annotations=_list_masks)
