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
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

# Linux keeps the peak of a process and can forget it; elsewhere the peak is that of the process's whole life.
_STATUS, _CLEAR_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def count_flops(function: Callable[[], object]) -> int:
    """Floating-point operations of one call, as ``torch.utils.flop_counter`` counts them.

    Attention runs in its plain form meanwhile, because the counter does not know the fused CPU kernel.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


class FlopMeter:
    """Operations of the encoders by shape, and of the loss.

    Args:
        encode_image: image pixels ``(batch, 1, height, width)`` to embeddings ``(batch, dim)``.
        encode_text: token ids and mask ``(batch, length)`` to embeddings ``(batch, dim)``.
        module: what owns the parameters, whose gradients the count must not leave behind.
    """

    # Two rows, because some backends treat a batch of one as a special case.
    _ROWS = 2

    def __init__(
        self,
        encode_image: Callable[[Tensor], Tensor],
        encode_text: Callable[[Tensor, Tensor], Tensor],
        module: nn.Module,
    ):
        self._encode_image, self._encode_text, self._module = encode_image, encode_text, module
        self._counted: dict[tuple, float] = {}

    def images(self, pixels: Tensor, backward: bool) -> float:
        """Operations to encode ``pixels``, with the backward pass or without."""
        shape = tuple(pixels.shape[1:])
        sample = pixels[:1].expand(self._ROWS, *shape)
        return len(pixels) * self._per_row(("image", shape, backward), lambda: self._encode_image(sample), backward)

    def texts(self, input_ids: Tensor, mask: Tensor, backward: bool) -> float:
        """Operations to encode texts padded to the length of ``input_ids``."""
        length = input_ids.shape[1]
        ids, full = input_ids[:1].expand(self._ROWS, length), torch.ones_like(mask[:1]).expand(self._ROWS, length)
        return len(input_ids) * self._per_row(
            ("text", length, backward), lambda: self._encode_text(ids, full), backward
        )

    @staticmethod
    def loss(pairs: int, dim: int) -> float:
        """Operations of the contrastive loss with its backward pass: three products of ``pairs x dim x pairs``."""
        return 6.0 * pairs * pairs * dim

    def _per_row(self, key: tuple, forward: Callable[[], Tensor], backward: bool) -> float:
        if key not in self._counted:
            # A count must leave the training exactly as it was: gradients, random state and all.
            gradients = [parameter.grad for parameter in self._module.parameters()]
            self._module.zero_grad(set_to_none=True)
            with torch.random.fork_rng(), torch.set_grad_enabled(backward):
                total = count_flops(lambda: forward().sum().backward() if backward else forward())
            for parameter, gradient in zip(self._module.parameters(), gradients, strict=True):
                parameter.grad = gradient
            self._counted[key] = total / self._ROWS
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
