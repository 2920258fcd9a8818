import numpy as np
import pandas as pd
import pytest
from PIL import Image

from chexstudy import paths
from chexstudy.cohort import adapters
from chexstudy.cohort.adapters.manifest import DATASETS, DatasetSpec, register
from chexstudy.errors import StudyError
from chexstudy.inputs.tables import read_text_table


@pytest.fixture
def own_set(tmp_path):
    """A data set that is registered by its spec alone, and its folder."""
    register(
        DatasetSpec(
            name="valley",
            title="Valley films",
            address="https://valley.example",
            licence="CC BY 4.0",
            holding="films.csv and its films",
            columns={
                "image_path": "Film",
                "patient_id": "Who",
                "view": "View",
                "age_years": "Age",
                "findings": ["Mass"],
            },
            read=lambda folder, path: read_text_table(path),
            words={"view": {"supine": "AP"}},
            tables=("films.csv",),
            split_lists={"train": "train.txt", "test": "test.txt"},
        )
    )
    table = pd.DataFrame(
        {
            "Film": [f"{number}.png" for number in range(6)],
            "Who": [f"P{number // 2}" for number in range(6)],
            "View": ["pa", "LL", "oblique", None, "Supine", "PA"],
            "Age": ["58", "411", "6 months", None, "7", "8"],
            "Mass": [1, 0, -1, None, 0, 1],
        }
    )
    table.to_csv(tmp_path / "films.csv", index=False)
    for number, name in enumerate(table.Film):
        place = tmp_path / f"part{number % 2}"
        place.mkdir(exist_ok=True)
        Image.fromarray(np.full((40, 40), 20 * number, np.uint8)).save(place / name)
    yield tmp_path
    del DATASETS["valley"]


def test_a_data_set_is_what_its_spec_says(own_set, monkeypatch):
    monkeypatch.setattr(adapters, "SOURCES", (*adapters.SOURCES, "valley"))
    assert adapters.guess_source(own_set) == "valley"
    cohort = adapters.build_source("valley", own_set, 0)
    assert list(cohort.image_id) == [f"valley/{number}.png" for number in range(6)]
    # What its words do not tell is unknown: nobody mends a public table.
    assert list(cohort["view"]) == ["PA", "lateral", "unknown", "unknown", "AP", "PA"]
    assert list(cohort.age_years.fillna(-1)) == [58, -1, 0.5, -1, 7, 8]
    assert list(cohort.report_origin) == ["template", "template", "template", "none", "template", "template"]
    assert cohort.groupby("patient_id").split.nunique().max() == 1
    assert "valley" in set(adapters.tabulate_sources().source)
    (own_set / "test.txt").write_text("4.png\n5.png\n")
    cohort = adapters.build_source("valley", own_set, 0)
    assert list(cohort.split[4:]) == ["test", "test"]
    assert set(cohort.split[:4]) <= {"train", "validate"}
    (own_set / "train.txt").write_text("0.png\n1.png\n2.png\n")
    with pytest.raises(StudyError, match=r"^1 images \(the first is that of line 5\) are in neither or"):
        adapters.build_source("valley", own_set, 0)


def test_every_data_set_is_in_the_readme_of_data():
    readme = (paths.REPOSITORY / "data" / "README.md").read_text()
    rows = {
        tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in readme.splitlines() if line.count("|") == 4
    }
    assert {(f"`{spec.name}`", spec.title, f"<{spec.address}>") for spec in DATASETS.values()} <= rows
