"""Why an image cannot be used: one vocabulary for all that reads images."""

from chexstudy.errors import StudyError
from chexstudy.inputs.yaml_files import read_data_beside

LARGEST_IMAGE = 100_000_000  # pixels; a radiograph of the whole spine has a third of them

REASONS = read_data_beside(__file__)


class UnreadableImage(StudyError):
    """A file that cannot be used as a radiograph: one of ``REASONS``, and what exactly was found, if more is known."""

    def __init__(self, reason: str, detail: str = ""):
        self.reason, self.detail = reason, detail
        super().__init__(f"the image cannot be used: {reason}{f' ({detail})' if detail else ''}; {REASONS[reason]}.")
