"""The processes that train one arm together, or the one that trains it alone.

Every process holds the whole model and makes the same decisions; only the encoding of a batch is shared out, by rows.
The embeddings of all rows are gathered, so each process computes the loss of the whole batch and its gradient with
respect to every embedding, keeps the part that belongs to its rows, and pushes that through its encoders. The sum over
processes is then the gradient of the whole batch: nothing is divided by their number, as averaging would do, and no
contribution of one process's rows to the loss of another's is lost (F13).

    torchrun --nproc_per_node=4 -m chexstudy.pretraining.training.arm_run --study S --arm curated --config arm.json
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import groupby, pairwise
from operator import itemgetter

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from chexstudy.errors import StudyError

_BUCKET_ELEMENTS = 2**24
# The first process may compute on alone, for example while it merges a ledger of millions of rows.
_PATIENCE = timedelta(hours=2)


def cut_evenly(rows: slice, parts: int) -> list[slice]:
    """A stretch of rows in so many parts: contiguous, as even as can be, some perhaps empty."""
    bounds = np.linspace(rows.start, rows.stop, parts + 1).round().astype(int)
    return [slice(int(start), int(stop)) for start, stop in pairwise(bounds)]


class Processes:
    """A group of ``size`` processes, of which this is number ``rank``, and number ``local_rank`` of its machine."""

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0):
        self.rank, self.size, self.local_rank = rank, size, local_rank

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def shares(self, count: int) -> list[slice]:
        """Which of ``count`` rows each process encodes: contiguous, as even as can be, some perhaps empty."""
        return cut_evenly(slice(0, count), self.size)

    def share(self, count: int) -> slice:
        """Which of ``count`` rows this process encodes."""
        return self.shares(count)[self.rank]

    def gather(self, own: Tensor, count: int, lengths: Sequence[int] = ()) -> Tensor:
        """All ``(count, dim)`` rows from everybody's `share`, the same bytes in every process, without gradient.

        Where they are not shared out evenly, ``lengths`` are how many rows each process has.
        """
        own = own.detach()
        if self.size == 1:
            return own
        lengths = lengths or [share.stop - share.start for share in self.shares(count)]
        padded = own.new_zeros((max(lengths), *own.shape[1:]))
        padded[: len(own)] = own
        pieces = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(pieces, padded)
        return torch.cat([piece[:length] for piece, length in zip(pieces, lengths, strict=True)])

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace each gradient by its sum over the processes.

        A process without rows has no gradients and takes part with zeros; a parameter that no process uses keeps none,
        so that weight decay does not touch it.
        """
        if self.size == 1:
            return
        parameters = list(parameters)
        device = parameters[0].device
        used = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32, device=device)
        dist.all_reduce(used, dist.ReduceOp.MAX)
        for parameter, anywhere in zip(parameters, used.tolist(), strict=True):
            if anywhere and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        # Cut where another bucket is full.
        filled = np.cumsum([gradient.numel() for gradient in gradients]) // _BUCKET_ELEMENTS
        for _, bucket in groupby(zip(filled, gradients, strict=True), key=itemgetter(0)):
            bucket = [gradient for _, gradient in bucket]
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat)
            for gradient, summed in zip(bucket, flat.split([one.numel() for one in bucket]), strict=True):
                gradient.copy_(summed.view_as(gradient))

    def add_up(self, values: list[float]) -> list[float]:
        """The sums of plain numbers over the processes."""
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self._device())
        dist.all_reduce(total)
        return total.tolist()

    def require_agreement(self, kept: Tensor) -> None:
        """Stop if the processes' masks of kept pairs ``(batch,)`` differ; they would train on different batches."""
        if self.size == 1:
            return
        everybody = self.gather(kept[None].to(self._device(), torch.uint8), self.size)
        if not bool((everybody == everybody[0]).all()):
            raise StudyError(
                "the processes chose different pairs from the same embeddings: train on machines of one kind, or with "
                "one process."
            )

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()

    def _device(self) -> torch.device:
        # NCCL moves only what lies on a GPU.
        return torch.device("cuda", self.local_rank) if dist.get_backend() == "nccl" else torch.device("cpu")


@contextmanager
def open_processes(device: str = "auto") -> Iterator[Processes]:
    """Join the group that torchrun started this process for; without torchrun it is alone.

    GPUs talk through NCCL, everything else through Gloo.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield Processes()
        return
    local_rank = int(os.environ["LOCAL_RANK"])
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_gpu and local_rank >= torch.cuda.device_count():
        raise StudyError(
            f"this machine has {torch.cuda.device_count()} GPUs, too few for {os.environ['LOCAL_WORLD_SIZE']} "
            "processes: lower --nproc_per_node, or use --device cpu."
        )
    if on_gpu:
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=_PATIENCE)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), local_rank)
    finally:
        dist.destroy_process_group()
