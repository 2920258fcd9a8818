"""Two models compared, as a paper prints it: a table, the sentence below it, and a file with all numbers."""

import numpy as np
import pandas as pd

from chexstudy.evaluation.comparison.two_models import TOO_FEW, Comparison
from chexstudy.evaluation.scores import METRICS

SIGNIFICANCE = 0.05
_TITLES = dict(zip(METRICS, ("AUROC", "average precision"), strict=True))


def tabulate_models(comparison: Comparison) -> pd.DataFrame:
    """The comparison as a paper prints it: a value and its 95 % interval in one cell, p values with ``< 0.001``."""
    rows, (first, second) = comparison.table, comparison.names

    def join(name: str, low: str, high: str, sign: str = "") -> list[str]:
        return [_print_estimate(row[name], row[low], row[high], f"{sign}.3f") for row in rows.to_dict("records")]

    different = (first, second) if first != second else (f"{first} (A)", f"{second} (B)")
    return pd.DataFrame(
        {
            "finding": rows.finding,
            "n": rows.n,
            "positives": ["" if count < 0 else str(count) for count in rows.positives],
            "patients": rows.patients,
            different[0]: join("first", "first_low", "first_high"),
            different[1]: join("second", "second_low", "second_high"),
            "difference": join("difference", "ci_low", "ci_high", "+"),
            "p": [_print_p(p) for p in rows.p],
            "p (Holm)": [_print_p(p) for p in rows.p_holm],
        }
    )


def _print_estimate(value: float, low: float, high: float, form: str) -> str:
    if np.isnan(value):
        return "-"
    return f"{value:{form}}" if np.isnan(low) else f"{value:{form}} ({low:{form}} to {high:{form}})"


def _print_p(p: float) -> str:
    if np.isnan(p):
        return "-"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def describe_models(comparison: Comparison) -> str:
    """The comparison in words: the macro difference, n, seeds, kind of interval and of test, findings that differ."""
    findings, (first, second) = comparison.of_findings, comparison.names
    macro = comparison.table[comparison.table.finding == "macro"].iloc[0]
    measured = findings.difference.notna()
    seeds = f"{comparison.seeds} seed{'s' * (comparison.seeds > 1)} a side"
    drawn = "patients and seeds" if comparison.seeds > 1 else "patients"
    several = comparison.images > comparison.patients
    tested = {
        "delong": "DeLong's for patients with several images" if several else "DeLong's",
        "bootstrap": "from the bootstrap",
        "permutation": f"by exchange of models within patients, {comparison.permutations:,} permutations",
    }[comparison.test]
    if comparison.test == "delong":
        tested += ", of means from the bootstrap"
    different = findings[findings.p_holm < SIGNIFICANCE]
    tests = int(findings.p_holm.notna().sum())
    told = f": {', '.join(different.finding)}" if len(different) else ""
    training = [split for split in comparison.splits if split in ("train", "validate")]
    seen = f" Images of {' and '.join(training)} are among them: models may have seen these." if training else ""
    return (
        f"{_TITLES[comparison.metric]} of {first} minus {second}, mean of {measured.sum()} findings: "
        f"{_print_estimate(macro.difference, macro.ci_low, macro.ci_high, '+.3f')}, p {_print_p(macro.p)}; "
        f"{comparison.images:,} images of {comparison.patients:,} patients, {seeds}; 95 % intervals by paired "
        f"bootstrap of {drawn} ({comparison.resamples:,} resamples); p {tested}; after Holm's correction "
        f"over {tests} findings {len(different)} differ{'s' * (len(different) == 1)} at {SIGNIFICANCE}{told}."
        f"{seen}"
    )


def list_reasons(comparison: Comparison) -> list[str]:
    """One line for each reason why findings have no value, interval or p value."""
    rows = comparison.table[comparison.table.reason.fillna("") != ""]
    return [
        f"{'no interval or p value' if reason == TOO_FEW else 'not evaluable'} ({reason}): {', '.join(alike.finding)}"
        for reason, alike in rows.groupby("reason", sort=False)
    ]


def list_comparison(comparison: Comparison) -> pd.DataFrame:
    """The table of a comparison with all its numbers, each row saying what was compared and how."""
    first, second = comparison.names
    how = {"model_first": first, "model_second": second}
    how |= {
        name: getattr(comparison, name) for name in ("metric", "test", "seeds", "images", "resamples", "permutations")
    }
    return comparison.table.assign(**how)
