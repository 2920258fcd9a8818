"""CheXlocalize: masks of findings on CheXpert's validation and test images, as COCO's tools pack them.

Only images with a finding have masks: a missing one says nothing of a label.
"""

from chexstudy.cohort.adapters.layout import Download, read_json
from chexstudy.cohort.adapters.manifest import register
from chexstudy.cohort.source_annotations import RunLengths
from chexstudy.inputs.yaml_files import read_data_beside

_HOSTS = read_data_beside(__file__)["data"]["hosts"]


def _list_masks(download: Download) -> list[RunLengths]:
    masks = []
    for name, (source, folder) in _HOSTS.items():
        path = download.find(name)
        if path is None:
            continue
        with read_json(path, "in the form of CheXlocalize's masks") as told:
            for image, findings in told.items():
                # patient64622_study1_view1_frontal is in patient64622/study1.
                patient, study, view = image.split("_", 2)
                for finding, mask in findings.items():
                    image_id, picture = f"{source}/{folder}/{patient}/{study}/{view}.jpg", tuple(map(int, mask["size"]))
                    place = f"{name}, {finding} of one of its images"
                    masks.append(RunLengths(image_id, finding, mask["counts"], picture, place, "coco"))
    return masks


register(__file__, list_annotations=_list_masks)
