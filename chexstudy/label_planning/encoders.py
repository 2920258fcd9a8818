"""The encoders that learning curves are measured on: trained arms, the same architecture untrained, released models."""

from collections.abc import Sequence

import pandas as pd

from chexstudy.encoders.build import build_image_encoder
from chexstudy.encoders.embeddings import PixelSource
from chexstudy.encoders.exposure import tell_encoder_exposure
from chexstudy.encoders.frozen_features import FrozenFeatures, freeze_features
from chexstudy.encoders.image import ImageEncoder
from chexstudy.encoders.spec import EncoderSpec
from chexstudy.errors import StudyError
from chexstudy.evaluation.context import Evaluation, load_arm_encoder, tell_exposure
from chexstudy.label_planning.accuracy import EVERY
from chexstudy.pretraining.arms.definitions import find_arm
from chexstudy.progress import progress
from chexstudy.results import worst_exposure
from chexstudy.runs import Run

UNTRAINED = "untrained"
_DEFAULT = EncoderSpec("tiny-resnet")


def freeze_encoders(
    run: Run, cohort: pd.DataFrame, pixels: PixelSource, names: Sequence[str], seed: int, device: str = "cpu"
) -> dict[str, FrozenFeatures]:
    """Frozen features of every image of the cohort by each encoder, kept in the study and shared with other heads.

    Encoders are arms of the study (``curated``), ``untrained`` (random weights in the architecture of the first arm
    named, the baseline), and any other as in `chexstudy.encoders.spec.EncoderSpec`: a Hub id, with ``@revision`` where
    one is wanted, or a folder. ``seed`` is that of the arms and of random weights.

    Returns:
        Features by ``name/seed<k>``, in the order of the names; slashes of a Hub id or folder become ``--``.
    """
    if not names or len(set(names)) < len(names):
        raise StudyError("name each encoder once, and at least one.")
    features = {}
    for name in progress(names, len(names), "freezing encoders"):
        artifact = f"{name_encoder(name)}/seed{seed}"
        encoder = _load(run, name, names, seed)
        features[artifact] = freeze_features(
            run, artifact, encoder, cohort.image_id.tolist(), pixels, patches=False, device=device
        )
    return features


def name_encoder(name: str) -> str:
    """The name of an encoder in tables and files: that of an arm as it is, others without slashes."""
    return name.strip("/").replace("/", "--")


def list_exposures(evaluation: Evaluation, names: Sequence[str], seed: int, data_set: str) -> dict[str, str]:
    """Whether each encoder, named as for `freeze_encoders`, has seen a data set; under ``all``, the worst of them."""

    def tell(name: str) -> str:
        if name == UNTRAINED:
            return "held_out"
        return (
            tell_exposure(evaluation, name, seed, data_set) if _is_arm(name) else tell_encoder_exposure(name, data_set)
        )

    exposures = {name_encoder(name): tell(name) for name in names}
    return exposures | {EVERY: worst_exposure(exposures.values())}


def _is_arm(name: str) -> bool:
    try:
        find_arm(name)
    except StudyError:
        return False
    return True


def _load(run: Run, name: str, names: Sequence[str], seed: int) -> ImageEncoder:
    if _is_arm(name):
        return load_arm_encoder(run, name, seed)
    if name != UNTRAINED:
        model, _, revision = name.partition("@")
        return build_image_encoder(EncoderSpec(model, revision))
    arm = next((other for other in names if _is_arm(other)), None)
    if arm is None:
        return build_image_encoder(_DEFAULT, seed)
    trained = load_arm_encoder(run, arm, seed)
    origin = trained.origin
    spec = EncoderSpec(
        origin["name"], origin.get("revision") or "", trained.image_size, trained.pooling, pretrained=False
    )
    return build_image_encoder(spec, seed)
