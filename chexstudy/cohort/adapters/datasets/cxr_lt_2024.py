"""CXR-LT 2024: the three tasks, each with tables of its own over the images of MIMIC-CXR."""

import pandas as pd

from chexstudy.cohort.adapters.datasets.cxr_lt_2023 import read_challenge
from chexstudy.cohort.adapters.layout import Download
from chexstudy.cohort.adapters.manifest import register
from chexstudy.inputs.yaml_files import read_data_beside

_DATA = read_data_beside(__file__)["data"]


def _read_task(download: Download, options: dict[str, str]) -> pd.DataFrame:
    task, findings, unseen = options["task"], SPEC.columns["findings"], _DATA["only_task_3"]
    absent = unseen + _DATA["only_task_1"] * (task == "task2")
    labels = unseen if task == "task3" else [name for name in findings if name not in absent]
    table = read_challenge(download, _DATA["tables"][task], labels, _DATA["other_names"])
    return table.reindex(columns=table.columns.union(findings, sort=False))


SPEC = register(__file__, read=_read_task)
