"""Decoders: what an encoder's last blocks say of each patch, to logits of classes at each pixel.

`make_decoder` makes all of them, and ``decoder(blocks, size)`` is how all are called: blocks ``(batch, channels, grid,
grid)``, the oldest first, each of its own width and all on one grid, to logits ``(batch, classes, size, size)``.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from chexstudy.errors import StudyError, suggest

PIXEL_UNET = "pixel_unet"
# Switches of `UNetDecoder` as CheXficient's public code has them (cwangrun/CheXficient 93b55e9, torchvision 0.16).
PUBLISHED = {"bounded": True, "align_corners": True, "antialias": False, "spread": 0.01}


class Decoder(nn.Module):
    """Checks the blocks, decodes them at a size of its own, and resizes the logits."""

    antialias = True  # only where logits are made smaller

    def __init__(self, widths: Sequence[int]):
        super().__init__()
        self.widths = tuple(widths)

    def decode(self, blocks: Sequence[Tensor]) -> Tensor:
        """Logits ``(batch, classes, side, side)``, as large as the decoder makes them."""
        raise NotImplementedError

    def forward(self, blocks: Sequence[Tensor], size: int) -> Tensor:
        """Logits ``(batch, classes, size, size)``."""
        shapes = [tuple(block.shape) for block in blocks]
        if tuple(shape[1] for shape in shapes) != self.widths:
            raise StudyError(
                f"the decoder was made for blocks of {self.widths} channels, not {tuple(shape[1] for shape in shapes)}:"
                " make it with the widths of this encoder."
            )
        if len({(shape[0], *shape[2:]) for shape in shapes}) > 1 or shapes[0][2] != shapes[0][3]:
            raise StudyError(
                f"a decoder takes blocks on one square grid, not {' and '.join(map(str, dict.fromkeys(shapes)))}: "
                "embed square images, all of one size."
            )
        return _resize(self.decode(blocks), size, antialias=self.antialias)


class UNetDecoder(Decoder):
    """CheXficient's U-Net: from the last block upwards, each step twice as large and joined by the block before.

    There are as many steps as blocks before the last, 4 in the publication. Step ``i`` gives ``1 / 2**i`` of the last
    block's channels, the last step the classes. All blocks lie on the grid of the patches, so that nothing finer than a
    patch enters; the oldest joins at the finest step.

    Args:
        bounded: end in normalisation and GELU, as published, so that no logit is below -0.17 and each depends on the
            batch; otherwise in a plain convolution.
        align_corners: of the blocks when they are enlarged.
        antialias: of the logits when they are made smaller, as torchvision does it from 0.17 on.
        spread: weights begin as N(0, spread), 0.01 as published; None as He et al. have it, which takes fewer steps.
    """

    def __init__(
        self,
        widths: Sequence[int],
        classes: int,
        *,
        bounded: bool = False,
        align_corners: bool = False,
        antialias: bool = True,
        spread: float | None = None,
    ):
        super().__init__(widths)
        if len(widths) < 2:
            raise StudyError("a U-Net joins blocks, and there is one: give it 2 or more, or use a linear decoder.")
        self.align_corners, self.antialias = align_corners, antialias
        into = widths[-1]
        for step, width in enumerate(reversed(widths[:-1]), 1):
            last = step == len(widths) - 1
            out = classes if last else max(widths[-1] // 2**step, 1)
            self.add_module(f"up{step}", _UpStep(into, width, out, bounded or not last))
            into = out
        _draw_weights(self, spread)

    def decode(self, blocks: Sequence[Tensor]) -> Tensor:
        values = blocks[-1]
        for step, block in zip(self.children(), reversed(blocks[:-1]), strict=True):
            values = step(values, block, self.align_corners)
        return values


class _UpStep(nn.Module):
    def __init__(self, into: int, skipped: int, out: int, bounded: bool):
        super().__init__()
        self.upconv = nn.ConvTranspose2d(into, out, 2, stride=2)
        self.skip_conv = _convolve(skipped, out)
        self.conv = _convolve(2 * out, out) if bounded else nn.Sequential(nn.Conv2d(2 * out, out, 3, padding=1))

    def forward(self, values: Tensor, block: Tensor, align_corners: bool) -> Tensor:
        values = self.upconv(values)
        skipped = _resize(self.skip_conv(block), values.shape[-1], align_corners)
        return self.conv(torch.cat([values, skipped], dim=1))


class LinearDecoder(Decoder):
    """One linear layer a patch, on the last blocks side by side; its logits are enlarged.

    As it stands it is CheXficient's: the last block, weights N(0, 0.1). DINOv2's protocol normalises over the batch
    first, weights N(0, 0.01), on the last block or the last four.
    """

    def __init__(self, widths: Sequence[int], classes: int, *, blocks: int = 1, normalise: bool = False):
        super().__init__(widths)
        self.blocks, channels = blocks, sum(widths[-blocks:])
        self.norm = nn.BatchNorm2d(channels) if normalise else nn.Identity()
        self.classify = nn.Conv2d(channels, classes, 1)
        _draw_weights(self, 0.01 if normalise else 0.1)

    def decode(self, blocks: Sequence[Tensor]) -> Tensor:
        return self.classify(self.norm(torch.cat(list(blocks[-self.blocks :]), dim=1)))


class UPerNetDecoder(Decoder):
    """UPerNet (Xiao et al. 2018) on four scales made of evenly spread blocks, as it is built on plain transformers.

    CheXFound names the decoder and no more of it, so that what follows is our configuration. Blocks are brought to 4,
    2, 1 and 1/2 times their grid; of fewer than four blocks some serve twice. The coarsest is pooled over 1, 2, 3 and 6
    places a side; each finer one takes up the sum of what is coarser. Normalisation is by groups of channels: a batch
    may hold one image, pooled to one place. There is no auxiliary head.

    Args:
        channels: of every scale, commonly 512; no more than the widest block has.
    """

    def __init__(self, widths: Sequence[int], classes: int, *, channels: int = 512, dropout: float = 0.1):
        super().__init__(widths)
        channels = min(channels, max(widths))
        count = len(widths)
        self.chosen = [max(round(count * part / 4) - 1, 0) for part in (1, 2, 3, 4)]
        finest, fine, same, coarse = (widths[block] for block in self.chosen)
        doubled = nn.ConvTranspose2d(finest, finest, 2, stride=2), _normalise(finest), nn.GELU()
        self.scale = nn.ModuleList(
            [
                nn.Sequential(*doubled, nn.ConvTranspose2d(finest, finest, 2, stride=2)),
                nn.ConvTranspose2d(fine, fine, 2, stride=2),
                nn.Identity(),
                nn.MaxPool2d(2, ceil_mode=True),
            ]
        )
        self.pooled = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(side), _convolve(coarse, channels, 1, _normalise, nn.ReLU))
            for side in (1, 2, 3, 6)
        )
        self.top = _convolve(coarse + 4 * channels, channels, 3, _normalise, nn.ReLU)
        self.lateral = nn.ModuleList(_convolve(w, channels, 1, _normalise, nn.ReLU) for w in (finest, fine, same))
        self.smooth = nn.ModuleList(_convolve(channels, channels, 3, _normalise, nn.ReLU) for _ in range(3))
        self.fuse = _convolve(4 * channels, channels, 3, _normalise, nn.ReLU)
        self.classify = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(channels, classes, 1))

    def decode(self, blocks: Sequence[Tensor]) -> Tensor:
        *finer, coarsest = (scale(blocks[block]) for scale, block in zip(self.scale, self.chosen, strict=True))
        pooled = [_resize(pool(coarsest), coarsest.shape[-1]) for pool in self.pooled]
        level = self.top(torch.cat([coarsest, *pooled], dim=1))
        levels = [level]
        for values, lateral, smooth in reversed(list(zip(finer, self.lateral, self.smooth, strict=True))):
            level = lateral(values) + _resize(level, values.shape[-1])
            levels.append(smooth(level))
        side = levels[-1].shape[-1]
        return self.classify(self.fuse(torch.cat([_resize(level, side) for level in levels], dim=1)))


class PixelUNet(Decoder):
    """A small U-Net that sees pixels and is trained end to end: what an encoder has to beat. 0.49 M weights.

    Its only block are the grey values 0 to 255 ``(batch, 1, size, size)`` of any size. Three times it halves the image
    and doubles the channels, and goes back up.
    """

    def __init__(self, widths: Sequence[int], classes: int, *, channels: int = 16):
        super().__init__(widths)
        sizes = [channels * 2**step for step in range(4)]
        self.down = nn.ModuleList(map(_convolve_twice, [*widths, *sizes[:-1]], sizes))
        self.up = nn.ModuleList(_convolve_twice(3 * size, size) for size in reversed(sizes[:-1]))
        self.classify = nn.Conv2d(channels, classes, 1)
        _draw_weights(self)

    def decode(self, blocks: Sequence[Tensor]) -> Tensor:
        values, kept = blocks[0] / 127.5 - 1, []
        for step in self.down:
            values = step(functional.max_pool2d(values, 2, ceil_mode=True) if kept else values)
            kept.append(values)
        for step, skipped in zip(self.up, reversed(kept[:-1]), strict=True):
            values = step(torch.cat([_resize(values, skipped.shape[-1]), skipped], dim=1))
        return self.classify(values)


DECODERS: dict[str, Callable[..., Decoder]] = {
    "unet": UNetDecoder,
    "published_unet": partial(UNetDecoder, **PUBLISHED),
    "linear": LinearDecoder,
    "normalised_linear": partial(LinearDecoder, normalise=True),
    "normalised_linear_4": partial(LinearDecoder, normalise=True, blocks=4),
    "upernet": UPerNetDecoder,
    PIXEL_UNET: PixelUNet,
}


def make_decoder(
    kind: str, widths: Sequence[int], classes: int, generator: torch.Generator, **switches: object
) -> Decoder:
    """A decoder of ``DECODERS`` with weights drawn from the generator.

    Args:
        widths: channels of each block it will be given, oldest first; ``(1,)`` of ``pixel_unet``, which sees pixels.
        switches: those of its class.
    """
    if kind not in DECODERS:
        known = ", ".join(DECODERS)
        raise StudyError(f"there is no decoder {kind!r}: {suggest(kind, DECODERS, f'name one of {known}')}.")
    # Layers of torch draw from the global generator: it is borrowed, and given back as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
        return DECODERS[kind](widths, classes, **switches)


def split_blocks(tokens: Tensor, widths: Sequence[int]) -> list[Tensor]:
    """Blocks ``(batch, channels, grid, grid)`` from their tokens side by side ``(batch, tokens, sum of widths)``.

    Tokens are those of `ImageEncoder.embed_blocks`: row by row over a square grid, oldest block first.
    """
    batch, count, channels = tokens.shape
    if math.isqrt(count) ** 2 != count:
        raise StudyError(f"{count} tokens are no square grid: embed square images, without [CLS] and registers.")
    if channels != sum(widths):
        raise StudyError(
            f"the tokens have {channels} channels, and blocks of {tuple(widths)} have {sum(widths)}: give the widths "
            "of the encoder they are of."
        )
    return list(tokens.transpose(1, 2).reshape(batch, channels, *(math.isqrt(count),) * 2).split(list(widths), dim=1))


def _resize(values: Tensor, size: int, align_corners: bool = False, antialias: bool = False) -> Tensor:
    if values.shape[-1] == size:
        return values
    options = {"align_corners": align_corners, "antialias": antialias}
    return functional.interpolate(values, (size, size), mode="bilinear", **options)


def _convolve(into: int, out: int, side: int = 3, normalise=nn.BatchNorm2d, activate=nn.GELU) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(into, out, side, padding=side // 2), normalise(out), activate())


def _convolve_twice(into: int, out: int) -> nn.Sequential:
    return nn.Sequential(*(_convolve(channels, out, activate=nn.ReLU) for channels in (into, out)))


def _normalise(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(channels, max(channels // 8, 1)), channels)


def _draw_weights(module: nn.Module, spread: float | None = None) -> None:
    """Convolutions N(0, spread), or by the number of their inputs (He et al. 2015), with bias 0."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(part.weight, 0.0, spread) if spread else nn.init.kaiming_normal_(part.weight)
            nn.init.zeros_(part.bias)
