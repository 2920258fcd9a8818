"""How many rows are computed at once: half as many where memory ends, and results do not depend on it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from chexstudy.errors import StudyError
from chexstudy.pretraining.engine.distributed import cut_evenly

_Outcome = TypeVar("_Outcome")


@dataclass
class MicroBatch:
    """Rows that are computed at once on a device."""

    size: int
    device: torch.device
    unit: str  # what a row is, in one word
    mend: str  # constants that a user can lower where one row is too much

    def count_pieces(self, rows: int) -> int:
        """In how many pieces so many rows are computed."""
        return -(-rows // self.size)

    def cut(self, rows: slice) -> list[slice]:
        """The pieces of a stretch of rows, as even as can be; none of no rows."""
        count = self.count_pieces(rows.stop - rows.start)
        return cut_evenly(rows, count) if count else []

    def halving(
        self, attempt: Callable[[], _Outcome], undo: Callable[[], None] = lambda: None, repeats_dropout: bool = True
    ) -> _Outcome:
        """Attempt what may fail for want of memory with ever smaller pieces, undoing a failed attempt;
        ``repeats_dropout`` says whether what is dropped may be drawn anew for them.
        """
        while True:
            try:
                return attempt()
            except (MemoryError, RuntimeError) as error:
                self._halve(error, repeats_dropout)
            undo()

    def _halve(self, error: Exception, repeats_dropout: bool) -> None:
        """Go on with half as many; raise the error again unless memory ran out and that can help."""
        # On a CPU torch raises a plain RuntimeError that only its text tells apart.
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise error
        if self.size == 1:
            raise StudyError(
                f"the memory of {self.device} does not suffice for one {self.unit} at a time: use a smaller "
                f"{self.mend}; the last checkpoint is intact."
            ) from None
        if not repeats_dropout:
            raise StudyError(
                f"micro_batch {self.size} is too much for the memory of {self.device}, and with dropout it "
                "cannot change within a step: use a smaller one; the last checkpoint is intact."
            ) from None
        self.size = -(-self.size // 2)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        print(
            f"memory does not suffice: {self.size} {self.unit}s at once from here on; results do not depend on it",
            flush=True,
        )
