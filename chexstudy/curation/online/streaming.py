"""The online curator run over features that are at hand: what it would keep if the model stood still."""

import numpy as np
import pandas as pd
import torch

from chexstudy.curation.online.configuration import CuratorConfig
from chexstudy.curation.online.curators import build_curator
from chexstudy.curation.online.decisions import ledger_rows
from chexstudy.devices import use_threads
from chexstudy.errors import StudyError
from chexstudy.progress import progress


def curate_stream(
    features: np.ndarray,
    config: CuratorConfig,
    generator: torch.Generator,
    super_batch: int = 480,
    order: np.ndarray | None = None,
    epochs: int = 1,
    label: str = "",
) -> pd.DataFrame:
    """What the online curator decides over unchanging unit-norm joint features ``(n, dim)``, perhaps memory-mapped.

    The generator draws the order of each epoch unless one ``order`` of rows is given for all, the warm-up sample if it
    is random, and the sampler's starts. Progress is shown under the label, if there is one. The ledger's columns come
    back in the order of the stream, with ``row`` in place of ``image_id``.
    """
    count = len(features)
    if super_batch < config.prototypes:
        raise StudyError(
            f"super_batch ({super_batch}) must hold at least one pair a prototype ({config.prototypes}): raise it or "
            "lower prototypes."
        )
    curator = build_curator(config)
    rows = np.arange(count)
    if config.warm_up_order == "random":
        rows = torch.randperm(count, generator=generator).numpy()
    rows = np.sort(rows[: config.warm_up_pairs])
    decisions = []
    steps = -(-count // super_batch)
    # A stream is decided in small pieces; threads that share them would wait for each other most of the time.
    with use_threads(1):
        curator.warm_up(_read(features, rows), torch.from_numpy(rows))
        for step in progress(range(epochs * steps), label=label) if label else range(epochs * steps):
            epoch, number = divmod(step, steps)
            if number == 0:
                curator.begin_epoch(count)
                stream = torch.randperm(count, generator=generator).numpy() if order is None else order
            batch = stream[number * super_batch : (number + 1) * super_batch]
            seen = _read(features, batch)
            kept, selection = curator.choose(step, torch.from_numpy(batch), seen, generator)
            curator.update(seen, kept)
            decisions.append(ledger_rows(batch, epoch, step, selection).rename(columns={"image_id": "row"}))
    return pd.concat(decisions, ignore_index=True)


def _read(features: np.ndarray, rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(features[rows], dtype=np.float32))
