"""The encoder with its two heads: the student, and the teacher that follows it."""

import torch
from torch import Tensor, nn

from chexstudy.encoders.encoder import width_of
from chexstudy.encoders.image import ImageEncoder
from chexstudy.errors import StudyError
from chexstudy.pretraining.self_supervision.backbone import (
    ask_for_tokens,
    drop_paths,
    fit_positions,
    use_published_positions,
)
from chexstudy.pretraining.self_supervision.configuration import SelfSupervisionConfig
from chexstudy.pretraining.self_supervision.head import ProjectionHead

_ARCHITECTURES = ("dinov2", "dinov2_with_registers", "dinov3_vit")


class Network(nn.Module):
    """A DINOv2 or DINOv3 of transformers that learns at its ``image_size``, a head on [CLS] and one on patches.

    The seed decides the heads' weights, and positions that are drawn. ``width`` is that of tokens, ``patch_size`` the
    side of a patch in pixels, ``registers`` are tokens between [CLS] and patches.
    """

    def __init__(self, encoder: ImageEncoder, config: SelfSupervisionConfig, seed: int):
        super().__init__()
        architecture = encoder.model.config.model_type
        if architecture not in _ARCHITECTURES:
            raise StudyError(
                f"self-supervision masks patches, and {encoder.origin['name']} is a {architecture}, which has no token "
                "for a masked one: use tiny-dinov2, or a DINOv2 or DINOv3."
            )
        embeddings = encoder.model.embeddings
        if embeddings.mask_token is None:
            embeddings.mask_token = nn.Parameter(torch.zeros(1, width_of(encoder.model)))
            encoder.model.config.use_mask_token = True
        self.encoder = encoder
        self.width, self.patch_size = width_of(encoder.model), encoder.model.config.patch_size
        self.registers = getattr(encoder.model.config, "num_register_tokens", 0)
        width, hidden, plain = self.width, config.head_hidden, config.plain_prototypes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.crop_head = ProjectionHead(width, config.crop_prototypes, hidden, config.crop_bottleneck, plain)
            self.patch_head = ProjectionHead(width, config.patch_prototypes, hidden, config.patch_bottleneck, plain)
            fit_positions(encoder.model, encoder.image_size, config.new_positions)
        if config.positions == "offset":
            use_published_positions(encoder.model)
        if config.drop_path:
            drop_paths(encoder.model, config.drop_path, config.drop_path_form == "batch")

    @property
    def heads(self) -> tuple[ProjectionHead, ProjectionHead]:
        """On [CLS] and on patches."""
        return self.crop_head, self.patch_head

    def see(self, crops: Tensor, masks: Tensor | None = None, wanted: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """[CLS] ``(crops, dim)`` and patches ``(crops, patches, dim)`` of crops ``(crops, 1, size, size)`` from 0 to
        255.

        Masked patches ``(crops, patches)``, bool, are not seen. If only some are wanted ``(crops, patches)``, bool,
        they come in a row, crop by crop, ``(wanted, dim)``.
        """
        if wanted is not None:
            first = 1 + self.registers
            of_crop, patch = wanted.nonzero(as_tuple=True)
            starts = torch.arange(len(crops), device=crops.device) * (first + wanted.shape[1])
            places = torch.cat([starts, starts[of_crop] + first + patch])
            with ask_for_tokens(self.encoder.model, places):
                tokens = self.encoder.see_tokens(crops, masks)[0]
            return tokens[: len(crops)], tokens[len(crops) :]
        tokens = self.encoder.see_tokens(crops, masks)
        return tokens[:, 0], tokens[:, 1 + self.registers :]
