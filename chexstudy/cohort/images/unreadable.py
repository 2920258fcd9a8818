"""Why an image cannot be used: one vocabulary for all that reads images."""

from types import MappingProxyType

from chexstudy.errors import StudyError

LARGEST_IMAGE = 100_000_000  # pixels; a radiograph of the whole spine has a third of them

# The whole vocabulary of the quarantine list, but for what is set aside without being looked at.
REASONS = MappingProxyType(
    {
        "missing": "there is no such file, or it may not be read",
        "empty": "the file has no bytes",
        "truncated": "the file ends before the image does",
        "damaged": "the bytes cannot be decoded",
        "not an image": "a page, a text or something else under the name of an image",
        "unsupported": "an image of a kind that is not read: save it as grey PNG",
        "unsupported DICOM": "a DICOM object that is not one radiograph",
        "blank": "every pixel has the same grey level, or nearly",
        "few levels": "the range of its values leaves hardly any grey level to what it shows",
        "too small": "fewer than 32 pixels on a side, or less than a twentieth of the other",
        "too large": "more pixels, or a longer file or header, than any radiograph has",
    }
)


class UnreadableImage(StudyError):
    """A file that cannot be used as a radiograph: one of ``REASONS``, and what exactly was found, if more is known."""

    def __init__(self, reason: str, detail: str = ""):
        self.reason, self.detail = reason, detail
        super().__init__(f"the image cannot be used: {reason}{f' ({detail})' if detail else ''}; {REASONS[reason]}.")
