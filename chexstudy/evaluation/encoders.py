"""The encoders that tasks take, by name: arms of the study, others beside them, or none.

- an arm of the study, ``curated``, as it was trained with a seed;
- ``start``, the encoder that the study's arms begin from, and ``untrained``, its architecture with random weights from
  the seed (where arms begin from nothing, the two are the same);
- any other as in `chexstudy.encoders.spec.EncoderSpec`: a Hub id, with ``@revision`` where one is wanted, or a folder;
- ``no_encoder``, for what looks at no image or at the pixels themselves.
"""

from dataclasses import replace

from chexstudy.encoders.build import build_image_encoder
from chexstudy.encoders.image import ImageEncoder
from chexstudy.encoders.spec import EncoderSpec
from chexstudy.errors import StudyError
from chexstudy.pretraining.arms.definitions import find_arm, require_current_arm
from chexstudy.pretraining.arms.study_config import read_config
from chexstudy.pretraining.models.dual_encoder import load_image_encoder
from chexstudy.runs import Run

START, UNTRAINED, NO_ENCODER = "start", "untrained", "no_encoder"


def is_arm(name: str) -> bool:
    try:
        find_arm(name)
    except StudyError:
        return False
    return True


def load_encoder(run: Run, name: str, seed: int) -> ImageEncoder:
    """An image encoder, on the CPU, in evaluation mode; the seed is that of the arm or of random weights."""
    if is_arm(name):
        return load_image_encoder(run.path(f"{require_current_arm(run, name, seed)}/model"))
    return build_image_encoder(_specify(run, name), seed)


def _specify(run: Run, name: str) -> EncoderSpec:
    if name in (START, UNTRAINED):
        return replace(read_config(run).image_spec, pretrained=name == START)
    model, _, revision = name.partition("@")
    return EncoderSpec(model, revision)
