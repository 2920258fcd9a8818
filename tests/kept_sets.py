"""Features to keep some of, and what settings of a curator came to, as the ablation measures it."""

import numpy as np
import pandas as pd


def draw_features(pairs, seed=0, dim=6):
    """Unit-norm features ``(pairs, dim)``, in every direction."""
    drawn = np.random.default_rng(seed).normal(size=(pairs, dim)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def list_rows(values, metric="keep_ratio", finding="all"):
    """Rows of settings and seeds: ``values[setting]`` lists one value a seed."""
    rows = [(name, seed, value) for name, of_seeds in values.items() for seed, value in enumerate(of_seeds)]
    table = pd.DataFrame(rows, columns=["setting", "seed", "value"])
    return table.assign(metric=metric, finding=finding, ci_low=np.nan, ci_high=np.nan, n=100, positives=10)


def write_features(run, features, seed=0):
    """Features of a seed, as scoring the pairs leaves them."""
    for side in ("image", "text"):
        run.write_array(f"curation/scoring/seed{seed}/{side}.npy", features)
