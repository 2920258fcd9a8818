"""Learning curves whose truth is known: the power law, and draws that differ as draws of labels do."""

import numpy as np
import pandas as pd

from chexstudy.label_planning.families import POWER3
from chexstudy.label_planning.observations import LearningCurve

LABELS = np.array([10, 20, 50, 100, 200, 500, 1000, 2000.0])
TRUE = np.array([0.86, 0.55, 0.45])
# Parameters of each family.
CURVES = {
    "power3": [0.86, 0.55, 0.45],
    "power2": [1.0, 0.55, 0.25],
    "exponential": [0.86, 0.3, 0.01],
    "logarithmic": [0.55, 0.04],
    "inverse_log": [0.95, 0.6],
    "power4": [0.86, 0.9, 0.5, 20.0],
    "weibull": [0.88, 0.4, 0.1, 0.4],
}
# Of the power law.
TRUTHS = {
    "Effusion": (0.92, 0.50, 0.45),
    "Edema": (0.88, 0.55, 0.50),
    "Hernia": (0.80, 0.60, 0.55),
    "Mass": (0.75, 0.40, 0.45),
    "Nodule": (0.70, 0.35, 0.40),
    "Fracture": (0.84, 0.50, 0.40),
}


def measure_curve(labels, draws, generator, truth=TRUE, name="Effusion", deviation=0.06):
    """A curve of draws whose standard deviation falls with the root of the labels, from that of ten."""
    noise = generator.standard_normal((len(labels), draws))
    values = POWER3.evaluate(labels, truth)[:, None] + deviation * np.sqrt(10 / labels)[:, None] * noise
    return LearningCurve("curated", name, labels, np.clip(values, 0, 1))


def measure_table(findings=tuple(TRUTHS), encoders=("curated",), labels=LABELS, draws=5):
    """A table as `measure_curves` makes it."""
    generator, rows = np.random.default_rng(0), []
    for encoder in encoders:
        for finding in findings:
            curve = measure_curve(labels, draws, generator, TRUTHS[finding], finding, 0.05)
            drawn = pd.DataFrame(curve.values, index=labels.astype(int)).rename_axis(index="n", columns="draw").stack()
            rows.append(drawn.rename("auroc").reset_index().assign(encoder=encoder, finding=finding))
    place = {"seed": 0, "unit": "cases", "data_set": "t/test"}
    table = pd.concat(rows, ignore_index=True)
    return table.assign(**place, positives=table.n // 10, auprc=table.auroc / 2)


def pick(table, **wanted):
    """The one row of a table with such values."""
    for name, value in wanted.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]
