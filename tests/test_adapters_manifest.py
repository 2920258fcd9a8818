import gzip

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from chexstudy.cohort import adapters
from chexstudy.cohort.adapters.layout import ImageFinder
from chexstudy.cohort.adapters.manifest import DATASETS, NOT_IN_FOLDER, DatasetSpec
from chexstudy.errors import StudyError


@pytest.fixture
def own_set(tmp_path, monkeypatch):
    """A data set that is registered by its spec alone, and its folder."""
    DATASETS["valley"] = DatasetSpec(
        name="valley",
        title="Valley films",
        address="https://valley.example",
        licence="CC BY 4.0",
        size="6 films",
        holding="films.csv and its films",
        columns={
            "image_path": "Film",
            "patient_id": "Who",
            "view": "View",
            "age_years": "Age",
            "findings": ["Mass"],
        },
        words={"view": {"supine": "AP"}},
        options={"labels": ("union", "majority")},
        patients_of="mountain",
        tables=("films.csv",),
        split_lists={"train": "train.txt", "test": "test.txt"},
    )
    monkeypatch.setattr(adapters, "SOURCES", (*adapters.SOURCES, "valley"))
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


def test_a_data_set_is_what_its_spec_says(own_set):
    assert adapters.guess_source(own_set) == "valley"
    cohort = adapters.build_source("valley", own_set, 0)
    assert list(cohort.image_id) == [f"valley/{number}.png" for number in range(6)]
    # What its words do not tell is unknown: nobody mends a public table.
    assert list(cohort["view"]) == ["PA", "lateral", "unknown", "unknown", "AP", "PA"]
    assert list(cohort.age_years.fillna(-1)) == [58, -1, 0.5, -1, 7, 8]
    assert list(cohort.report_origin) == ["template", "template", "template", "none", "template", "template"]
    assert set(cohort.patient_id) == {"mountain/P0", "mountain/P1", "mountain/P2"}
    assert cohort.groupby("patient_id").split.nunique().max() == 1
    assert "valley" in set(adapters.tabulate_sources().source)
    (own_set / "test.txt").write_text("4.png\n5.png\n")
    cohort = adapters.build_source("valley", own_set, 0)
    assert list(cohort.split[4:]) == ["test", "test"]
    assert set(cohort.split[:4]) <= {"train", "validate"}
    (own_set / "train.txt").write_text("0.png\n1.png\n2.png\n")
    with pytest.raises(StudyError, match=r"^1 images \(the first is that of line 5\) are in neither or"):
        adapters.build_source("valley", own_set, 0)


def test_a_part_of_a_set_and_its_folders_as_unpacked_are_enough(own_set):
    inner = own_set / "valley-1.0/films"
    inner.mkdir(parents=True)
    for path in [own_set / "films.csv", *own_set.glob("part*")]:
        path.rename(inner / path.name)
    (inner / "films.csv.gz").write_bytes(gzip.compress((inner / "films.csv").read_bytes()))
    (inner / "films.csv").unlink()
    (inner / "part0/0.png").unlink()
    (inner / "part1/3.png").rename(inner / "part1/3.PNG")
    assert adapters.guess_source(own_set) == "valley"
    cohort = adapters.build_source("valley", own_set, 0)
    assert list(cohort.image_id) == [f"valley/{number}.png" for number in range(1, 6)]
    assert cohort.attrs[NOT_IN_FOLDER] == 1


@pytest.mark.parametrize(
    ("files", "options", "said"),
    [
        (["a/films.csv", "b/films.csv"], {}, r"holds a/films\.csv and b/films\.csv: set data_root to the folder that"),
        ([], {"label": "union"}, r"^the source valley has no option 'label': its options are labels\.$"),
        ([], {"labels": "all"}, r"^the option 'labels' of the source valley cannot be 'all': choose union or majority"),
    ],
)
def test_two_releases_and_wrong_options_are_refused(own_set, files, options, said):
    for name in files:
        (own_set / name).parent.mkdir()
        (own_set / name).write_text("Film,Who\n1.png,P0\n")
    if files:
        (own_set / "films.csv").unlink()
    with pytest.raises(StudyError, match=said):
        adapters.build_source("valley", own_set, 0, **options)


def test_images_are_found_by_the_end_of_their_path(tmp_path):
    names = ["v1/train/p1/a.jpg", "v1/train/p2/a.jpg", "v1/small/train/p2/a.jpg", "1.2.3", "1.2.4"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"-")
    finder = ImageFinder(tmp_path, names, anywhere=True)
    asked = {
        "train/p1/a.jpg": names[0],
        "p2/a.png": names[1],
        "TRAIN/P2/A": names[1],
        "1.2.3": names[3],
        "1.2.9": "1.2.9",
    }
    assert {name: finder.find(name) for name in asked} == {name: str(tmp_path / path) for name, path in asked.items()}
    assert ImageFinder(tmp_path, names).find("p2/a.png") == str(tmp_path / "p2/a.png")
