"""Every constant of the online curator in one dataclass, with its published value, and what follows from them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chexstudy.curation.choice import count_budget
from chexstudy.errors import StudyError

RULES = ("published", "budgeted")
OUTLIER_POLICIES = ("drop", "keep", "review")
SAMPLERS = ("farthest", "density", "random")
ASSIGNMENTS = ("balanced", "nearest")


@dataclass(frozen=True)
class CuratorConfig:
    """Constants of the curator. Defaults are the published ones; F numbers are those of docs/published.md."""

    # ``published`` bands of each batch (`chexstudy.curation.online.selection`), or ``budgeted``: bands by running
    # quantiles, with exactly ``budget`` pairs kept in an epoch (`chexstudy.curation.online.budgeted`; corrects F2).
    rule: str = "published"
    budget: float = 0.227  # of the budgeted rule: share of the pairs (up to 1) or their number (above 1)
    # ``mismatch_filter`` sets pairs aside before any rule sees them (`chexstudy.curation.online.mismatch_filter`; not
    # published).
    mismatch_filter: bool = False
    # Folder of a trained image-text pair whose embeddings the filter ranks, ``upstream-pair`` for the one that comes
    # with the package; empty for those of the model in training.
    filter_pair: str = ""
    prototypes: int = 6  # number of prototypes, K
    # members of a prototype farther than this quantile of their distances are all kept ...
    support_quantile: float = 0.85
    outlier_quantile: float = 0.95  # ... up to this one; those still farther are outliers.
    # ``drop`` outliers (published, F1), ``keep`` them, or ``review``: not trained on, but listed
    outlier_policy: str = "drop"
    # The remaining, central members are thinned to so many by the sampler; with the batch this fixes the fraction that
    # the published rule selects (F2, `expected_fraction`).
    central_cap: int = 10
    sampler: str = "farthest"  # of central members: ``farthest`` points (published), lowest ``density``, or ``random``
    decay: float = 0.9  # share of the old prototype in an update; 1 holds prototypes still
    assignment: str = "balanced"  # of features to prototypes in an update: ``balanced`` (published, F5) or ``nearest``
    sinkhorn_epsilon: float = 0.5  # temperature of the balanced assignment (published: 0.5, which hardly balances, F5)
    sinkhorn_iterations: int = 3  # its iterations
    update_features: str = "kept"  # an update sees the ``kept`` pairs (published, F6) or ``all``
    # with features from ``before_step`` (published, F6) or embedded anew ``after_step``
    update_timing: str = "before_step"
    warm_up_pairs: int = 800  # pairs the first prototypes are fitted on
    warm_up_order: str = "first"  # the ``first`` rows of the cohort (published, F3), or a ``random`` sample
    # K-means sees the concatenated embeddings as they are (``raw``, published, F4) or as selection sees them
    # (``normalised``).
    warm_up_features: str = "raw"
    kmeans_iterations: int = 20  # of the first prototypes
    kmeans_seed: int = 42  # of the first prototypes

    def __post_init__(self):
        if not 0 <= self.support_quantile <= self.outlier_quantile <= 1:
            raise StudyError("support_quantile must not exceed outlier_quantile, and both lie from 0 to 1.")
        for name in ("prototypes", "central_cap", "warm_up_pairs", "kmeans_iterations", "sinkhorn_iterations"):
            if getattr(self, name) < 1:
                raise StudyError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if not 0 <= self.decay <= 1:
            raise StudyError(f"decay must lie from 0 to 1, not {self.decay}.")
        if self.sinkhorn_epsilon <= 0:
            raise StudyError(f"sinkhorn_epsilon must be positive, not {self.sinkhorn_epsilon}.")
        if self.budget <= 0:
            raise StudyError(f"budget must be a share up to 1 or a number of pairs above 1, not {self.budget}.")
        for name, choices in (
            ("rule", RULES),
            ("outlier_policy", OUTLIER_POLICIES),
            ("sampler", SAMPLERS),
            ("assignment", ASSIGNMENTS),
            ("update_features", ("kept", "all")),
            ("update_timing", ("before_step", "after_step")),
            ("warm_up_order", ("first", "random")),
            ("warm_up_features", ("raw", "normalised")),
        ):
            if getattr(self, name) not in choices:
                raise StudyError(f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}.")
        if self.rule == "budgeted" and self.update_timing != "before_step":
            raise StudyError(
                "the budgeted rule moves its prototypes while it decides: use update_timing=before_step with it."
            )


def expected_fraction(config: CuratorConfig, sizes: Sequence[int]) -> np.ndarray:
    """The fraction of each super-batch that a rule selects by design ``(batches,)``, for an epoch of these sizes.

    The published rule selects the support band and ``central_cap`` members of each prototype, whatever the data; where
    prototypes have fewer members than that, or the mismatch filter sets pairs aside, it selects less. The budgeted rule
    selects what it was asked for.
    """
    sizes = np.asarray(sizes)
    if config.rule == "budgeted":
        pairs = int(sizes.sum())
        return np.full(sizes.shape, count_budget(config.budget, pairs) / pairs)
    beyond = 1 if config.outlier_policy == "keep" else config.outlier_quantile
    # 0.95 - 0.85 is a little less than 0.1 in floating point.
    band = round(beyond - config.support_quantile, 12)
    return band + np.minimum(config.central_cap * config.prototypes / sizes, config.support_quantile)
