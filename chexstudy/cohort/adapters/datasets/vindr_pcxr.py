"""VinDr-PCXR: radiographs of children, laid out like VinDr-CXR, one reader an image."""

from chexstudy.cohort.adapters.datasets.vindr_cxr import list_boxes, read_readings
from chexstudy.cohort.adapters.manifest import register

SPEC = register(
    __file__,
    read=lambda download, options: read_readings(SPEC, download, "union"),
    list_annotations=lambda download: list_boxes(SPEC.name, download),
)
