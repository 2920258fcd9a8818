"""Every known method of choosing a subset, behind one signature.

``METHODS[name].choose(features, budget, generator, **signals_and_options) -> Choice``. Features are unit-norm
``(pairs, dim)``, float32 or float16, perhaps memory-mapped. A method takes the signals it needs and ignores the others,
so all of them can be given to every method: ``image`` and ``text`` embeddings ``(pairs, width)``, not zero, and for
each pair its ``loss`` and ``reference_loss``. The budget of pairs is met exactly, the generator decides everything that
is left to chance, and features are read in blocks of rows: beside them, and a copy or two of them where a search asks
for it, memory grows with the number of rows only. Options that several methods have mean the same in all: ``clusters``
and ``iterations`` of k-means, ``prototypes`` and ``super_batch`` of the online curator.
"""

import inspect
import types
import typing
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import torch

from chexstudy.curation.choice import Choice
from chexstudy.curation.methods.blocks import iterate_blocks
from chexstudy.curation.methods.clusters import choose_easy_prototypes, choose_hard_prototypes
from chexstudy.curation.methods.coverage import choose_at_random, choose_by_density, choose_facilities, choose_k_centre
from chexstudy.curation.methods.duplicates import choose_deduplicated_and_diverse, choose_without_duplicates
from chexstudy.curation.methods.filtered import choose_filtered
from chexstudy.curation.methods.hierarchical import choose_from_hierarchy
from chexstudy.curation.methods.online import choose_by_bands, choose_within_budget
from chexstudy.curation.methods.signals import (
    choose_by_agreement,
    choose_by_error,
    choose_by_loss,
    choose_by_soft_pruning,
    choose_learnable,
)
from chexstudy.errors import StudyError, suggest
from chexstudy.workflow.parameters import Parameter, check_names

# What a method may need beyond features, and where it comes from on the command line.
SIGNALS = {
    "image": "image embeddings (--embeddings)",
    "text": "text embeddings (--text)",
    "loss": "a loss for each pair (column loss of --losses)",
    "reference_loss": "a reference model's loss for each pair (column reference_loss of --losses)",
}
# Features have been through float16 in some files.
_NORM_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Method:
    """A way to choose a subset."""

    name: str  # as the user calls it
    function: Callable[..., Choice]  # of features, budget, generator, the signals needed and its own options
    needs: tuple[str, ...]  # signals it needs beyond features, out of `SIGNALS`
    paper: str  # its source
    summary: str  # what it keeps, in a few words

    def choose(
        self, features: np.ndarray, budget: int, generator: torch.Generator, **signals_and_options: object
    ) -> Choice:
        """Choose pairs; see the module."""
        self.require_signals([name for name, given in signals_and_options.items() if given is not None])
        own = {name: given for name, given in signals_and_options.items() if name in self.needs or name not in SIGNALS}
        return self.function(features, budget, generator, **own)

    def require_signals(self, given: Collection[str]) -> None:
        """Raise a StudyError for a signal that is needed and not among those given."""
        for need in self.needs:
            if need not in given:
                raise StudyError(f"method {self.name} needs {SIGNALS[need]}: give {need}.")

    def list_options(self) -> list[Parameter]:
        """Its plain options: keyword arguments other than signals, with their types and defaults."""
        declared = inspect.signature(self.function, eval_str=True).parameters.values()
        return [
            Parameter(option.name, _plain_type(option.annotation), option.default)
            for option in declared
            if option.kind is option.KEYWORD_ONLY and option.name not in SIGNALS
        ]


def _plain_type(annotation: object) -> type:
    """``int`` of ``int`` and of ``int | None``, likewise for other types."""
    kinds = [kind for kind in typing.get_args(annotation) if kind is not types.NoneType]
    return kinds[0] if kinds else annotation


_SORSCHER = "Sorscher et al. 2022, arXiv 2206.14486"
_TABLE = (
    ("bands", choose_by_bands, (), "CheXficient 2026, arXiv 2602.22843", "published prototype bands"),
    ("budgeted", choose_within_budget, (), "ours, after arXiv 2602.22843", "prototype bands at an exact budget"),
    (
        *("filtered", choose_filtered, ("image", "text"), "ours, after arXiv 2602.22843"),
        "prototype bands among pairs whose report fits",
    ),
    ("random", choose_at_random, (), "none", "a uniform sample: the baseline"),
    ("k_centre", choose_k_centre, (), "Sener and Savarese 2018, arXiv 1708.00489", "farthest points: covers the edges"),
    ("facility_location", choose_facilities, (), "Wei et al. 2015", "representatives: every pair has a similar one"),
    ("density", choose_by_density, (), "Sachdeva et al. 2024, arXiv 2402.09668", "sparse regions more readily"),
    ("semdedup", choose_without_duplicates, (), "Abbas et al. 2023, arXiv 2303.09540", "no semantic duplicates"),
    (
        *("d4", choose_deduplicated_and_diverse, (), "Tirumala et al. 2023, arXiv 2308.12284"),
        "no semantic duplicates, then the unusual",
    ),
    ("prototypicality_easy", choose_easy_prototypes, (), _SORSCHER, "the typical of each cluster"),
    ("prototypicality_hard", choose_hard_prototypes, (), _SORSCHER, "the unusual of each cluster"),
    ("hierarchical", choose_from_hierarchy, (), "Vo et al. 2024, arXiv 2405.15613", "evenly over clusters of clusters"),
    (
        *("agreement", choose_by_agreement, ("image", "text"), "Hessel et al. 2021, arXiv 2104.08718"),
        "reports that fit their radiographs",
    ),
    ("loss", choose_by_loss, ("loss",), "baseline of Paul et al. 2021, arXiv 2107.07075", "the highest losses"),
    ("el2n", choose_by_error, ("image", "text"), "Paul et al. 2021, arXiv 2107.07075", "the longest error vectors"),
    (
        *("learnability", choose_learnable, ("loss", "reference_loss"), "Evans et al. 2024, arXiv 2406.17711"),
        "not learnt yet, but learnable",
    ),
    (
        *("infobatch", choose_by_soft_pruning, ("loss",), "Qin et al. 2024, arXiv 2303.04947"),
        "high losses and a rescaled sample of the others",
    ),
)
METHODS = {row[0]: Method(*row) for row in _TABLE}


def find_method(name: str) -> Method:
    if name not in METHODS:
        guess = suggest(name, METHODS, "choose one of them")
        raise StudyError(f"there is no method {name!r}; the methods are {', '.join(METHODS)}: {guess}.")
    return METHODS[name]


def choose_subset(
    method: str, features: np.ndarray, budget: int, generator: torch.Generator, **signals_and_options: object
) -> Choice:
    """Choose pairs by the method of that name, after a look at everything given (see the module)."""
    chosen = find_method(method)
    options = [option.name for option in chosen.list_options()]
    check_names([name for name in signals_and_options if name not in SIGNALS], options, f"method {method}")
    _check_features(features)
    for name in SIGNALS:
        if signals_and_options.get(name) is not None:
            _check_signal(name, np.asanyarray(signals_and_options[name]), len(features))
    widths = {name: np.shape(signals_and_options.get(name))[-1:] for name in ("image", "text")}
    if set(widths) <= set(chosen.needs) and widths["image"] != widths["text"] and all(widths.values()):
        raise StudyError(
            f"method {method} compares image and text, of {widths['image'][0]:,} and {widths['text'][0]:,} numbers: "
            "give embeddings of one joint space."
        )
    if not isinstance(budget, int | np.integer) or not 1 <= budget <= len(features):
        raise StudyError(f"the budget must be a whole number of pairs from 1 to {len(features):,}, not {budget}.")
    return chosen.choose(features, int(budget), generator, **signals_and_options)


def _check_features(features: np.ndarray) -> None:
    if features.ndim != 2 or not len(features) or features.dtype not in (np.float16, np.float32):
        raise StudyError(
            f"features must be float32 or float16 numbers (pairs, dim) of at least one pair, not {features.dtype} "
            f"{features.shape}."
        )
    for rows, block in iterate_blocks(features):
        # NaN and infinite values fail this test as well.
        fits = (torch.linalg.vector_norm(block, dim=1) - 1).abs() < _NORM_TOLERANCE
        if not fits.all():
            raise StudyError(
                f"row {rows.start + int((~fits).nonzero()[0])} of the features is not of unit norm: bring all rows to "
                "unit norm and leave out those that are zero or not finite."
            )


def _check_signal(name: str, values: np.ndarray, pairs: int) -> None:
    axes = 2 if name in ("image", "text") else 1
    if len(values) != pairs or values.ndim != axes:
        raise StudyError(
            f"{name} must hold {'one embedding' if axes == 2 else 'one number'} for each of the {pairs:,} pairs, not "
            f"an array of shape {values.shape}."
        )
    for start in range(0, pairs, 4096):
        if not np.isfinite(values[start : start + 4096]).all():
            raise StudyError(f"{name} holds values that are not finite: leave those pairs out or measure them anew.")
