"""The image-text model: two encoders, a linear projection each, one temperature. It knows nothing of curation."""

import json
import math
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from chexstudy.encoders.build import build_image_encoder, build_text_encoder
from chexstudy.encoders.checkpoint import save_encoder
from chexstudy.encoders.encoder import hash_weights
from chexstudy.encoders.image import ImageEncoder
from chexstudy.encoders.spec import EncoderSpec
from chexstudy.encoders.text import TextEncoder
from chexstudy.errors import StudyError
from chexstudy.pretraining.configuration import PretrainingConfig, seal_model
from chexstudy.pretraining.models.vocabulary import texts_to_learn_from
from chexstudy.runs import atomic_path, require_whole
from chexstudy.steps import find_step

_PROJECTIONS = ("image_tower.projection.weight", "text_tower.projection.weight", "logit_scale")


class Tower(nn.Module):
    """An encoder and its projection into a shared space of ``dim`` dimensions."""

    def __init__(self, encoder: ImageEncoder | TextEncoder, dim: int):
        super().__init__()
        self.encoder = encoder
        self.projection = nn.Linear(encoder.dim, dim, bias=False)

    def project(self, features: Tensor) -> Tensor:
        """The encoder's features ``(batch, encoder dim)`` to unit-norm embeddings ``(batch, dim)``, float32."""
        return normalize(self.projection(features).float(), dim=1)

    def describe(self) -> dict:
        """What decides the embeddings."""
        return {**self.encoder.describe(), "projection": hash_weights(self.projection)}


class ImageTower(Tower):
    def forward(self, pixels: Tensor, size: int | None = None) -> Tensor:
        """uint8 pixels ``(batch, 1, height, width)``, seen at ``size``, to unit-norm embeddings ``(batch, dim)``."""
        return self.project(self.encoder(pixels, size))


class TextTower(Tower):
    def __init__(self, encoder: TextEncoder, dim: int):
        super().__init__(encoder, dim)
        self.tokenize = encoder.tokenize

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids and mask ``(batch, length)`` to unit-norm embeddings ``(batch, dim)``, float32."""
        return self.project(self.encoder(input_ids, attention_mask))

    def forward_packed(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Token ids of all texts in a row ``(tokens,)``, of lengths ``(texts,)``, to embeddings ``(texts, dim)``."""
        return self.project(self.encoder.forward_packed(input_ids, lengths))


class ImageTextModel(nn.Module):
    """Embeds radiographs and reports in one unit sphere (CLIP; CheXficient, model section).

    The softmax temperature is learned from its initial value (published: 0.01), its inverse up to ``logit_scale_max``;
    0 leaves it unbounded, as published (F12). ``seed`` is that of the projections.
    """

    def __init__(
        self,
        image_encoder: ImageEncoder,
        text_encoder: TextEncoder,
        dim: int = 512,
        temperature: float = 0.01,
        logit_scale_max: float = 0.0,
        seed: int = 0,
    ):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.image_tower = ImageTower(image_encoder, dim)
            self.text_tower = TextTower(text_encoder, dim)
        # The published model starts at ln(1 / 0.01).
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))
        self.logit_scale_max, self.dim = logit_scale_max, dim

    def tower(self, side: str) -> ImageTower | TextTower:
        """The tower of a side, ``image`` or ``text``."""
        return {"image": self.image_tower, "text": self.text_tower}[side]

    def bounded_logit_scale(self) -> Tensor:
        """Logarithm of the inverse temperature, clamped where a bound is set."""
        if self.logit_scale_max > 0:
            return self.logit_scale.clamp(max=math.log(self.logit_scale_max))
        return self.logit_scale


def build_model(config: PretrainingConfig, training: pd.DataFrame, seed: int) -> ImageTextModel:
    """The model of a configuration before training; ``seed`` decides every weight that is not loaded.

    A small text encoder learns its vocabulary from the reports of the training rows.
    """
    of_text = {"pooling": config.text_pooling, "max_tokens": config.max_tokens, "dropout": config.dropout}
    image = build_image_encoder(config.image_spec, seed)
    text_spec = EncoderSpec(config.text_encoder, config.text_revision, **of_text)
    text = build_text_encoder(text_spec, texts_to_learn_from(training), seed)
    return ImageTextModel(image, text, config.dim, config.temperature, config.logit_scale_max, seed)


def save_model(folder: Path, model: ImageTextModel, config: PretrainingConfig) -> None:
    """Write a trained model: both encoders as ``transformers`` checkpoints, the projections as safetensors."""
    save_encoder(model.image_tower.encoder, folder / "image_encoder")
    save_encoder(model.text_tower.encoder, folder / "text_encoder")
    state = {name: model.state_dict()[name].detach().cpu().contiguous() for name in _PROJECTIONS}
    with atomic_path(folder / "projections.safetensors") as temporary:
        save_file(state, temporary)
    seal_model(folder, config)


def load_image_encoder(folder: Path) -> ImageEncoder:
    """The image encoder of a trained model, of an image and a text encoder or of images alone, as `load_model`."""
    require_whole(folder)
    return build_image_encoder(EncoderSpec(str(folder / "image_encoder")))


def load_model(folder: Path) -> ImageTextModel:
    """Read what `save_model` wrote, on the CPU, in evaluation mode."""
    if not (folder / "pretraining.json").is_file():
        raise StudyError(f"there is no trained model in {folder}: run {find_step('pretraining/')} first.")
    require_whole(folder)
    config = PretrainingConfig.from_dict(json.loads((folder / "pretraining.json").read_text()))
    image, text = (EncoderSpec(str(folder / f"{side}_encoder")) for side in ("image", "text"))
    image, text = build_image_encoder(image), build_text_encoder(text)
    model = ImageTextModel(image, text, config.dim, config.temperature, config.logit_scale_max)
    file = folder / "projections.safetensors"
    projections = load_file(file)
    if missing := set(_PROJECTIONS) - set(projections):
        raise StudyError(f"{file} lacks {', '.join(sorted(missing))}: train the arm again.")
    model.load_state_dict(projections, strict=False)
    return model.eval()
