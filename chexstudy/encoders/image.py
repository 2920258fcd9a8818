"""Pixels to one vector an image, or to the tokens of its last blocks."""

import copy
import inspect
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from chexstudy.encoders.encoder import Encoder, width_of
from chexstudy.errors import StudyError

# The normalisation after the last block. CLIP's own forward applies it to [CLS] alone.
_FINAL_NORMS = {
    **dict.fromkeys(("vit", "deit", "dinov2", "dinov2_with_registers"), "layernorm"),
    **dict.fromkeys(("clip", "clip_vision_model", "siglip", "siglip_vision_model"), "post_layernorm"),
    "dinov3_vit": "norm",
}
# They take any size without being asked to.
_ANY_SIZE = ("dinov2", "dinov2_with_registers", "dinov3_vit")


class ImageEncoder(Encoder):
    """Pixels to one vector an image; those of another size than ``image_size`` are resized inside."""

    def __init__(self, model, pooling: str, origin: dict, image_size: int, mean: Sequence[float], std: Sequence[float]):
        super().__init__(model, pooling, origin)
        self.image_size = image_size
        self.mean, self.std = tuple(mean), tuple(std)
        self._interpolates = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        self._tried_sizes: set[int] = set()
        self._channels_last = model.config.model_type == "resnet"
        if self._channels_last:
            self.model.to(memory_format=torch.channels_last)
        # uint8 pixel * scale + shift = (pixel / 255 - mean) / std; broadcasting repeats the channel.
        means, deviations = torch.tensor(self.mean), torch.tensor(self.std)
        self.register_buffer("_scale", (1 / (255 * deviations)).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("_shift", (-means / deviations).view(1, -1, 1, 1), persistent=False)

    def check_size(self, size: int) -> None:
        """Make sure that the encoder can look at ``size`` pixels a side."""
        config, name = self.model.config, self.origin["name"]
        if size < 1:
            raise StudyError(f"{name} cannot look at images of {size} pixels a side: give 1 or more.")
        patch = getattr(config, "patch_size", None)
        if not isinstance(patch, int):
            return
        if size % patch:
            below = size // patch * patch
            raise StudyError(
                f"{name} cuts images into patches of {patch} pixels, and {size} is no multiple of it: use "
                f"{f'{below} or ' if below else ''}{below + patch}."
            )
        if self._interpolates or config.model_type in _ANY_SIZE or size in self._tried_sizes:
            return
        # Only the model itself knows, so it looks at nothing once.
        try:
            with torch.no_grad():
                self.model(pixel_values=self._shift.expand(1, -1, size, size))
        except (ValueError, RuntimeError):
            own = getattr(config, "image_size", "its own size")
            raise StudyError(
                f"{name} is a {config.model_type}, which cannot look at {size} pixels a side: use {own}."
            ) from None
        self._tried_sizes.add(size)

    def at_size(self, size: int) -> "ImageEncoder":
        """The same encoder, weights shared, that looks at ``size`` pixels a side."""
        self.check_size(size)
        other = copy.copy(self)
        other.image_size = size
        return other

    def _run(self, pixels: Tensor, size: int, **outputs: bool):
        if pixels.dtype != torch.uint8 or pixels.shape[1:] != (1, pixels.shape[-1], pixels.shape[-1]):
            raise StudyError(
                "an image encoder takes square uint8 pixels (batch, 1, height, width), not "
                f"{str(pixels.dtype).removeprefix('torch.')} {tuple(pixels.shape)}: read them from the pixel store."
            )
        if size != self.image_size:
            self.check_size(size)
        values = pixels.float()
        if pixels.shape[-1] != size:
            values = functional.interpolate(values, (size,) * 2, mode="bicubic", antialias=True)
            # Bicubic overshoots at edges; 8-bit resizing, which the checkpoints saw, stays within the range.
            values = values.clamp(0, 255)
        return self._see(values, **outputs)

    def see_tokens(self, values: Tensor, masks: Tensor | None = None) -> Tensor:
        """All tokens of the last layer ``(batch, tokens, width)`` of grey values from 0 to 255 ``(batch, 1, size,
        size)``.

        In place of masked patches ``(batch, patches)``, bool, the model sees its mask token.
        """
        return self._see(values, **({} if masks is None else {"bool_masked_pos": masks})).last_hidden_state

    def _see(self, values: Tensor, **outputs):
        values = values * self._scale + self._shift
        if self._channels_last:
            values = values.contiguous(memory_format=torch.channels_last)
        # Interpolating positions costs under 1 % of a pass over a batch of 32 or more, so they are not kept.
        options = {"interpolate_pos_encoding": True} if self._interpolates else {}
        return self.model(pixel_values=values, **options, **outputs)

    def _patches(self, tokens: Tensor, size: int) -> Tensor:
        if tokens.ndim == 4:
            return tokens.flatten(2).transpose(1, 2)
        # Whatever is more than one token a patch ([CLS], registers) stands before the patches.
        patch = getattr(self.model.config, "patch_size", None)
        count = (size // patch) ** 2 if isinstance(patch, int) else tokens.shape[1]
        return tokens[:, max(tokens.shape[1] - count, 0) :]

    def forward(self, pixels: Tensor, size: int | None = None) -> Tensor:
        """Square uint8 pixels ``(batch, 1, height, width)`` of any size to vectors ``(batch, dim)``, not normalised.

        The encoder looks at ``size`` pixels a side this time, ``image_size`` by default; positions learned at another
        size are interpolated.
        """
        size = self.image_size if size is None else size
        return self._pool(self._run(pixels, size), size)

    def _pool(self, output, size: int) -> Tensor:
        if self.pooling == "pooler":
            return output.pooler_output.flatten(1)
        if self.pooling == "projection":
            return output.image_embeds
        tokens = output.last_hidden_state
        seen = self._patches(tokens, size)
        pooled = {"cls": lambda: tokens[:, 0], "mean": lambda: seen.mean(1), "max": lambda: seen.amax(1)}
        return torch.cat([pooled[part]() for part in self.pooling.split("+")], dim=1)

    def block_widths(self) -> tuple[int, ...]:
        """Channels of each block, first block first: transformer blocks, or stages of a convolutional encoder."""
        config = self.model.config
        if config.model_type == "resnet":
            return tuple(config.hidden_sizes)
        if config.model_type in _FINAL_NORMS:
            return (width_of(self.model),) * config.num_hidden_layers
        # Only the model itself knows, so it looks at a blank image.
        size = self.image_size
        pixels = torch.zeros(1, 1, size, size, dtype=torch.uint8, device=self._scale.device)
        states = self._block_states(self._run(pixels, size, output_hidden_states=True))
        return tuple(block.shape[1 if block.ndim == 4 else 2] for block in states)

    def embed_blocks(self, pixels: Tensor, blocks: int = 4) -> tuple[Tensor, Tensor, Tensor]:
        """What `forward` gives, and what the last blocks say of an image, as the heads on frozen features see it.

        CheXFound takes 4 blocks of ViT-L. Tokens of a transformer pass the backbone's final normalisation where it has
        one. CLIP normalises [CLS] alone before it pools; here its patches are normalised too. Registers are left out.
        SigLIP has no [CLS]: the mean over the patches of each block stands in. Of architectures not listed in this
        module the final normalisation is not known, and only the last block, as the model gives it, has passed it.

        A ResNet's blocks are its stages. Their maps have different sizes and are brought to one grid, that of the
        second-finest stage whatever ``blocks`` is: finer maps are averaged, coarser ones interpolated. "cls" is the
        mean of each map as it leaves its stage.

        Returns:
            Pooled ``(batch, dim)``, [CLS] ``(batch, channels)`` and patches ``(batch, tokens, channels)``; channels are
            those of the blocks side by side, first block first, and tokens go row by row over a square grid.
        """
        output = self._run(pixels, self.image_size, output_hidden_states=True)
        states = self._block_states(output)
        most = len(states)
        if not 1 <= blocks <= most:
            raise StudyError(f"{self.origin['name']} has {most} blocks, not {blocks}: ask for 1 to {most} of them.")
        pooled = self._pool(output, self.image_size)
        if states[-1].ndim == 4:
            return pooled, *_join_maps(states, blocks)
        every = torch.cat(self._normalise_blocks(states[-blocks:], output.last_hidden_state), dim=2)
        patches = self._patches(every, self.image_size)
        has_cls = patches.shape[1] < every.shape[1]
        return pooled, every[:, 0] if has_cls else patches.mean(1), patches

    def embed_layer(self, pixels: Tensor, layer: int = -2, normalise: bool = False) -> Tensor:
        """Patches as they leave one block, -1 the last, on the grid they have there ``(batch, tokens, channels)``.

        LLaVA takes the last block but one, before the final normalisation, and leaves [CLS] out; of a ResNet a block is
        a stage.
        """
        output = self._run(pixels, self.image_size, output_hidden_states=True)
        states = self._block_states(output)
        if not -len(states) <= layer < 0:
            raise StudyError(f"{self.origin['name']} has {len(states)} blocks: a layer is -1 to -{len(states)}.")
        if normalise and states[-1].ndim == 3:
            states = self._normalise_blocks(states, output.last_hidden_state)
        return self._patches(states[layer], self.image_size)

    def _block_states(self, output) -> tuple[Tensor, ...]:
        """What leaves each block, ``(batch, tokens, width)`` or ``(batch, width, height, width)``."""
        # The first state is what enters the first block.
        states = tuple(getattr(output, "hidden_states", None) or ())[1:]
        alike = {state.ndim for state in states} in ({3}, {4})
        if not alike or (states[0].ndim == 3 and len({state.shape[:2] for state in states}) > 1):
            raise StudyError(
                f"{self.origin['name']} is a {self.model.config.model_type}, whose blocks cannot be seen on one grid: "
                "use a ViT, DINOv2, CLIP, SigLIP or ResNet."
            )
        return states

    def _normalise_blocks(self, states: tuple[Tensor, ...], last: Tensor) -> list[Tensor]:
        model_type = self.model.config.model_type
        if model_type not in _FINAL_NORMS:
            return [*states[:-1], last]
        leaf = _FINAL_NORMS[model_type]
        norm = next(module for name, module in self.model.named_modules() if name.rpartition(".")[2] == leaf)
        normalised = norm(states[-1]) if model_type.startswith("clip") else last
        return [*(norm(state) for state in states[:-1]), normalised]

    def describe(self) -> dict:
        return super().describe() | {"image_size": self.image_size, "mean": self.mean, "std": self.std}


def _join_maps(maps: tuple[Tensor, ...], blocks: int) -> tuple[Tensor, Tensor]:
    """Means ``(batch, channels)`` and tokens ``(batch, tokens, channels)`` of the last maps, on one grid."""
    sides = sorted((state.shape[-1] for state in maps), reverse=True)
    grid = sides[min(1, len(sides) - 1)]
    joined = []
    for state in maps[-blocks:]:
        if state.shape[-1] >= grid:
            joined.append(functional.adaptive_avg_pool2d(state, grid))
        else:
            joined.append(functional.interpolate(state, (grid, grid), mode="bilinear", align_corners=False))
    means = torch.cat([state.mean((2, 3)) for state in maps[-blocks:]], dim=1)
    return means, torch.cat(joined, dim=1).flatten(2).transpose(1, 2)
