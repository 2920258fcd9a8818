"""What an arm costs: floating-point operations as torch counts them, seconds and peak memory.

Counting every step would slow the training down, so each shape is counted once, on the real modules, and multiplied.
A multiply-add is two operations, as in torch's counter; normalisation and activation functions are not counted.
"""

import resource
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.compiler import set_stance
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from chexstudy.pretraining.models.texts import PackedTexts, PaddedTexts, TextBatch, TextTowerLike

# Linux keeps the peak of a process and can forget it; elsewhere the peak is that of the process's whole life.
_STATUS, _CLEAR_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def count_flops(function: Callable[[], object]) -> int:
    """Floating-point operations of one call, as ``torch.utils.flop_counter`` counts them.

    Attention runs in its plain form meanwhile and compiled modules as they are written, because the counter knows
    neither the fused CPU kernel nor what the compiler makes.
    """
    with set_stance("force_eager"), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


class FlopMeter:
    """Operations of the encoders by shape, and of the loss.

    Which parameters are trained must not change after the first count.

    Args:
        encode_image: image pixels ``(batch, 1, height, width)`` to embeddings ``(batch, dim)``; with ``size`` and
            ``patches`` where these are counted.
        encode_text: token ids and mask ``(batch, length)`` to embeddings ``(batch, dim)``; with ``forward_packed``
            where packed texts are counted.
        module: what owns the parameters, whose gradients the count must not leave behind.
    """

    # Two rows, because some backends treat a batch of one as a special case.
    _ROWS = 2

    def __init__(self, encode_image: Callable[..., Tensor], encode_text: TextTowerLike, module: nn.Module):
        self._encode_image, self._encode_text, self._module = encode_image, encode_text, module
        self._counted: dict[tuple, int] = {}

    def images(self, pixels: Tensor, backward: bool, size: int | None = None, patches: Tensor | None = None) -> float:
        """Operations to encode ``pixels``, with the backward pass or without.

        Args:
            pixels: ``(batch, 1, height, width)``.
            backward: count the backward pass too.
            size: side in pixels at which the encoder looks; None for its own.
            patches: patch tokens that are kept ``(batch, kept)``; None for all.
        """
        shape, kept = tuple(pixels.shape[1:]), None if patches is None else patches.shape[1]
        sample, options = pixels[:1].expand(self._ROWS, *shape), {}
        if size is not None:
            options["size"] = size
        if patches is not None:
            options["patches"] = patches[:1].expand(self._ROWS, kept)
        key = ("image", shape, size, kept, backward)
        return len(pixels) * self._count(key, lambda: self._encode_image(sample, **options), backward) / self._ROWS

    def texts(self, batch: TextBatch, backward: bool) -> float:
        """Operations to encode the texts of a batch in its layout."""
        return sum(
            self._packed_texts(part, backward) if isinstance(part, PackedTexts) else self._padded_texts(part, backward)
            for part in batch.parts
        )

    def _padded_texts(self, part: PaddedTexts, backward: bool) -> float:
        length = part.input_ids.shape[1]
        ids, full = (
            values.expand(self._ROWS, length) for values in (part.input_ids[:1], torch.ones_like(part.mask[:1]))
        )
        key = ("text", length, backward)
        return len(part.input_ids) * self._count(key, lambda: self._encode_text(ids, full), backward) / self._ROWS

    def _packed_texts(self, part: PackedTexts, backward: bool) -> float:
        """The cost of a text is quadratic in its length, and that of a row is the sum and a constant.

        So three lengths of one text, and one length of two texts, give the exact cost of any row.
        """

        def count(*lengths: int) -> int:
            ids = part.input_ids[:1].expand(sum(lengths))
            return self._count(
                ("packed", lengths, backward),
                lambda: self._encode_text.forward_packed(ids, torch.tensor(lengths)),
                backward,
            )

        one, two, three, constant = count(1), count(2), count(3), 2 * count(1) - count(1, 1)
        # Newton's form through the lengths 1, 2 and 3.
        ahead = part.lengths.double() - 1
        texts = (one - constant) + ahead * (two - one) + ahead * (ahead - 1) / 2 * (three - 2 * two + one)
        return float(texts.sum()) + constant

    @staticmethod
    def loss(pairs: int, dim: int) -> float:
        """Operations of the contrastive loss with its backward pass: three products of ``pairs x dim x pairs``."""
        return 6.0 * pairs * pairs * dim

    def _count(self, key: tuple, forward: Callable[[], Tensor], backward: bool) -> int:
        if key not in self._counted:
            # A count must leave the training exactly as it was: gradients, random state and all.
            gradients = [parameter.grad for parameter in self._module.parameters()]
            self._module.zero_grad(set_to_none=True)

            def encode() -> None:
                embedded = forward()
                # Nothing flows back where everything is frozen.
                if embedded.requires_grad:
                    embedded.sum().backward()

            with torch.random.fork_rng(), torch.set_grad_enabled(backward):
                self._counted[key] = count_flops(encode)
            for parameter, gradient in zip(self._module.parameters(), gradients, strict=True):
                parameter.grad = gradient
        return self._counted[key]


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement of `peak_memory_bytes`, where the device or the kernel lets us."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        _CLEAR_PEAK.write_text("5")


def peak_memory_bytes(device: torch.device) -> int:
    """The device's peak allocation, or the process's peak resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError, StopIteration):
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
