"""Large arrays made in parts: each part a file written when it is done, joined at the end.

A killed run goes on at the first part that is missing. The parts lie under the key of the whole, so that parts of
another key are never mixed in.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from chexstudy.progress import progress
from chexstudy.runs import artifact_path, find_damage, forget_artifact


class Parts:
    """Arrays in parts, one file each; parts of another key are thrown away.

    Args:
        folder: where the parts of this key lie; its parent holds nothing but parts.
        rows_a_part: rows of each part but the last.
    """

    def __init__(self, folder: Path, rows_a_part: int):
        self.folder, self._rows_a_part = folder, rows_a_part
        if folder.parent.exists():
            for other in folder.parent.iterdir():
                if other != folder:
                    forget_artifact(other)

    def chunks(self, rows: int) -> list[slice]:
        """The rows of each part, of so many rows in all."""
        return [slice(start, min(start + self._rows_a_part, rows)) for start in range(0, rows, self._rows_a_part)]

    def make(
        self, kinds: Sequence[str], rows: int, compute: Callable[[slice], Sequence[np.ndarray]], label: str
    ) -> None:
        """Compute and write the parts that are not there yet, or not as they were written.

        Args:
            kinds: names of the arrays that are computed together.
            rows: of each array.
            compute: gives the rows of a slice, one array a kind.
            label: what is being done.
        """
        missing = [chunk for chunk in self.chunks(rows) if not all(self._is_whole(kind, chunk) for kind in kinds)]
        for chunk in progress(missing, label=f"{label}, parts of {self._rows_a_part}"):
            for kind, array in zip(kinds, compute(chunk), strict=True):
                with artifact_path(self._path(kind, chunk)) as temporary:
                    np.save(temporary, array)

    def read(self, kind: str, rows: int) -> Iterator[np.ndarray]:
        """The parts of a kind in their order."""
        for chunk in self.chunks(rows):
            yield np.load(self._path(kind, chunk), allow_pickle=False)

    def remove(self) -> None:
        """Take all parts away, once they are joined."""
        forget_artifact(self.folder.parent)

    def _is_whole(self, kind: str, rows: slice) -> bool:
        path = self._path(kind, rows)
        return path.exists() and not find_damage(path)

    def _path(self, kind: str, rows: slice) -> Path:
        return self.folder / f"{kind}_{rows.start:010d}.npy"


def write_rows(path: Path, parts: Iterable[np.ndarray], rows: int) -> None:
    """Write parts one after the other as one ``.npy`` file of ``rows`` rows; never all in memory.

    Written, not mapped: a full disk is then an error and not a killed process.
    """
    with open(path, "wb") as file:
        for number, part in enumerate(parts):
            if number == 0:
                descr = np.lib.format.dtype_to_descr(part.dtype)
                header = {"descr": descr, "fortran_order": False, "shape": (rows, *part.shape[1:])}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(np.ascontiguousarray(part).data)
