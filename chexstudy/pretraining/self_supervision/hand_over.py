"""From one training to the next: the heads that self-supervision leaves beside an encoder, and sizes that only rise."""

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from chexstudy import paths
from chexstudy.encoders.checkpoint import save_encoder
from chexstudy.encoders.published_vit import read_teacher
from chexstudy.encoders.spec import RECORD
from chexstudy.errors import StudyError
from chexstudy.pretraining.self_supervision.network import Network
from chexstudy.runs import atomic_path

_HEADS = "heads.safetensors"
_PUBLISHED_NAMES = {
    "dino_head.": "crop_head.",
    "ibot_head.": "patch_head.",
    "weight_g": "parametrizations.weight.original0",
    "weight_v": "parametrizations.weight.original1",
}


def save_network(network: Network, folder: Path) -> None:
    """Write the encoder to ``image_encoder``, and its heads beside it."""
    save_encoder(network.encoder, folder / "image_encoder")
    heads = _select_heads(network.state_dict())
    with atomic_path(folder / _HEADS) as temporary:
        save_file({name: value.cpu().contiguous() for name, value in heads.items()}, temporary)


def take_heads(network: Network, image_encoder: str) -> bool:
    """Give a network at the beginning of its training the heads that its encoder was left with; false where there are
    none of its shapes.
    """
    place = _find_heads(image_encoder)
    heads = {_translate(name): value.float() for name, value in read_teacher(place).items()} if place else {}
    heads, own = _select_heads(heads), _select_heads(network.state_dict())
    fit = heads.keys() == own.keys() and all(own[name].shape == value.shape for name, value in heads.items())
    if fit:
        network.load_state_dict(heads, strict=False)
    return fit


def check_resolution(network: Network, image_encoder: str, size: int) -> None:
    """Raise a StudyError if self-supervision left an encoder at a larger size than it is to be trained at."""
    left = getattr(network.encoder.model.config, RECORD, {}).get("image_size", 0)
    if size < left and _find_heads(image_encoder):
        raise StudyError(
            f"image_size ({size}) is below the {left} pixels at which self-supervision left {image_encoder}: stages of "
            f"resolution only rise, so give {left} or more."
        )


def _find_heads(image_encoder: str) -> Path | None:
    """A file of the published code itself, or what lies beside a folder."""
    given = paths.resolve_user_path(image_encoder)
    beside = given.parent / _HEADS
    if given.is_dir() and beside.is_file():
        return beside
    return given if given.is_file() else None


def _select_heads(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in weights.items() if "head." in name}


def _translate(name: str) -> str:
    for published, own in _PUBLISHED_NAMES.items():
        name = name.replace(published, own)
    return name
