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
    """Operations of passes through one module, each kind of pass counted once on the module itself.

    Which of its parameters are trained must not change after the first count.
    """

    def __init__(self, module: nn.Module):
        self._module = module
        self._counted: dict[tuple, int] = {}

    def count(self, key: tuple, forward: Callable[[], Tensor], backward: bool) -> int:
        """Operations of the kind of pass that ``key`` names, with the backward pass or without."""
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
