"""Which device torch computes on, with what precision, and with how many threads."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from chexstudy.errors import StudyError


@contextmanager
def use_threads(count: int) -> Iterator[None]:
    """Compute with ``count`` threads within the block, and with as many as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose_device(name: str, local_rank: int | None = None) -> torch.device:
    """The device of that name; ``auto`` is CUDA where there is one.

    ``local_rank`` numbers this process among several of its machine, each of which takes a GPU of its own.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise StudyError(f"unknown device {name!r:.60}: use auto, cpu or cuda.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise StudyError("device is cuda, but torch sees no CUDA device: use device=auto, or run `chexstudy doctor`.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise StudyError(f"device is {name}, but there are {torch.cuda.device_count()}, counted from cuda:0.")
    if device.type == "cuda" and local_rank is not None:
        return torch.device("cuda", local_rank)
    return device


def memory_of(device: torch.device | str) -> int:
    """Bytes of memory that a device has, used or not."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def autocast_dtype(device: torch.device | str) -> torch.dtype | None:
    """The reduced precision that pays on a device, or None for float32.

    CUDA: bfloat16 from compute capability 8.0. CPU: bfloat16 only where the processor multiplies it natively (AVX-512
    BF16 or AMX); elsewhere it is emulated and slower than float32.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else None
    if device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return torch.bfloat16
    return None


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager:
    """Mixed precision of a type within the block, none if there is no type."""
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


def choose_autocast(precision: str, device: torch.device) -> torch.dtype | None:
    """The type of mixed precision on a device, or None: ``fp32``, ``bf16``, or ``auto`` for what pays there."""
    return {"auto": autocast_dtype(device), "fp32": None, "bf16": torch.bfloat16}[precision]
