"""Several sources as one cohort: roles, filters, and no patient or image on two sides."""

import shutil

import pytest
import yaml
from official_layouts import LAYOUTS, PAPER, write_copies, write_layouts
from test_adapters_nih import ROWS
from test_adapters_nih import make_folder as make_nih
from test_adapters_reports import write_padchest
from test_check import make_folder as make_own

from chexstudy.cli.main import main
from chexstudy.cohort.adapters import build_source
from chexstudy.cohort.check import check_source
from chexstudy.cohort.joint import OVERLAP, list_joint_annotations, read_joint, read_manifest
from chexstudy.cohort.source_annotations import Box
from chexstudy.errors import StudyError


@pytest.fixture
def build(tmp_path):
    """Write a manifest of the two sources (or of these entries) and read it."""
    make_nih(tmp_path)
    make_own(tmp_path / "own")
    sources = {"nih": {"source": "nih"}, "own": {"source": "folder", "folder": "own"}}

    def read(own=(), nih=(), **manifest):
        entries = [sources["nih"] | dict(nih), sources["own"] | dict(own)]
        (tmp_path / "cohort.yaml").write_text(yaml.safe_dump({"sources": entries} | manifest))
        return read_joint(tmp_path / "cohort.yaml", 0, tmp_path / "unpacked")

    read.path = tmp_path / "cohort.yaml"
    return read


def test_sources_stand_in_the_order_of_the_manifest_under_one_contract(build):
    cohort = build().require_cohort()
    assert list(cohort.source) == ["nih"] * 4 + ["folder"] * 12
    assert cohort["Mass"].notna().all()
    assert cohort.loc[cohort.source == "folder", "Hernia"].isna().all()
    assert set(cohort.loc[cohort.source == "nih", "split"]) == {"train", "test"}
    assert cohort.attrs["nih: patients_split_at_random"] == 3
    boxes = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n00000001_000.png,Infiltrate,1,2,3,4,,,\n"
    (build.path.parent / "nih/BBox_List_2017.csv").write_text(boxes)
    box = Box("nih/00000001_000.png", "Infiltration", (1, 2, 3, 4), (1024, 1024))
    assert list_joint_annotations(build.path, set(cohort.image_id)) == [box]
    # The same boxes, of nobody who is there.
    build(nih={"role": "annotate"})
    with pytest.raises(
        StudyError, match=r"^no mask or box of nih is of an image of this cohort: list the source of its"
    ):
        list_joint_annotations(build.path, {"folder/a"})


def test_a_role_says_what_a_source_is_for_and_filters_what_of_it(build):
    cohort = build(own={"role": "evaluate"}, nih={"role": "pretrain", "views": ["PA"], "ages": [18, 120]}).cohort
    assert set(cohort.loc[cohort.source == "folder", "split"]) == {"test"}
    assert set(cohort.loc[cohort.source == "nih", "split"]) <= {"train", "validate"}
    # Of four, one is AP and one a child; who is of unknown age stays.
    assert list(cohort.image_id[:2]) == ["nih/00000001_000.png", "nih/00000002_000.png"]
    assert cohort.attrs["nih: images left out by role and filters"] == 2
    # With official lists a role takes their splits.
    for name, rows in (("train_val_list.txt", ROWS[:2]), ("test_list.txt", ROWS[2:])):
        (build.path.parent / "nih" / name).write_text("\n".join(row.split(",")[0] for row in rows))
    assert list(build(nih={"role": "pretrain"}).cohort.query("source == 'nih'").image_id) == [
        "nih/00000001_000.png",
        "nih/00000001_001.png",
    ]
    assert list(build(nih={"role": "evaluate"}).cohort.query("source == 'nih'").patient_id) == ["nih/2", "nih/3"]


def test_translations_by_image_study_or_report_stand_for_reports_of_another_language(tmp_path):
    write_padchest(tmp_path / "padchest")
    (tmp_path / "en.csv").write_text("id,text\n901_abc.png,Large heart.\nSP2,Normal.\nR3,Mass.\nR77,Gone.\n")
    entry = {"source": "padchest", "translations": "en.csv"}
    for languages, images in (([], 5), (["en"], 4)):
        manifest = {"sources": [entry | ({"languages": languages} if languages else {})]}
        (tmp_path / "cohort.yaml").write_text(yaml.safe_dump(manifest))
        cohort = read_joint(tmp_path / "cohort.yaml", 0, tmp_path / "unpacked").require_cohort()
        assert list(cohort.report[-4:]) == ["Large heart.", "Normal.", "Mass.", ""]
        assert len(cohort) == images
        assert cohort.attrs["padchest: translations_of_no_image"] == 1


def test_an_image_of_two_sources_is_kept_once_nearest_to_the_test(build):
    table = "File,Patient,Mass,Report\nnih/images_001/images/00000001_000.png,P1,1,A mass.\n"
    (build.path.parent / "cohort.yaml").unlink(missing_ok=True)
    own = build.path.parent / "linked"
    own.mkdir()
    (own / "nih").symlink_to(build.path.parent / "nih")
    (own / "t.csv").write_text(table)
    (own / "cohort.yaml").write_text((build.path.parent / "own/cohort.yaml").read_text())
    cohort = build(own={"folder": "linked", "role": "evaluate"}, nih={"role": "pretrain"}).cohort
    assert cohort.attrs["images of two sources kept once"] == 1
    assert (
        dict(zip(cohort.image_id, cohort.split, strict=True))["folder/nih/images_001/images/00000001_000.png"] == "test"
    )
    assert "nih/00000001_000.png" not in set(cohort.image_id)


def test_what_is_wrong_with_each_source_is_told_at_once(build):
    (build.path.parent / "own/t.csv").unlink()
    found = build(nih={"folder": "absent"})
    assert [problem.split(" ")[0] for problem in found.problems] == ["nih:", "folder:"]
    assert check_source(build.path).problems == found.problems


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"source": "nih", "folder": ""}, r"lists the source nih twice: keep one entry of it\.$"),
        ({"source": "nhi"}, r"^there is no source named 'nhi': did you mean 'nih'"),
        ({"role": "train"}, r"role of folder must be of both, pretrain, evaluate, annotate, not 'train'\.$"),
        ({"views": ["frontal"]}, r"views of folder must be of PA, AP, lateral, unknown, not \['frontal'\]\.$"),
        ({"ages": 18}, r"ages of folder must be two numbers, as in \[18, 120\], not 18\.$"),
        ({"option": {}}, r"has no entry 'option': did you mean 'options'\.$"),
        ({"options": ["gold"]}, r"options of folder must be `name: value` lines, not \['gold'\]\.$"),
    ],
)
def test_a_wrong_entry_is_one_sentence(build, own, said):
    with pytest.raises(StudyError, match=said):
        build(own=own)


@pytest.mark.parametrize("text", ["", "sources: []\n", "- nih\n", "sources: [nih]\n"])
def test_a_file_that_is_no_manifest_is_one_sentence(tmp_path, text):
    (tmp_path / "cohort.yaml").write_text(text)
    with pytest.raises(StudyError, match=r"needs an entry 'sources'|must say `source: NAME`"):
        read_joint(tmp_path / "cohort.yaml", 0, tmp_path)


# --- the sources of the paper -----------------------------------------------------------------------------------------

PUBLISHED = (
    *("chexpert_plus", "mimic_cxr", "padchest", "openi", "bimcv_covid19", "casia_cxr", "candid_ptx", "rexgradient"),
    *("brax", "chestdr", "nih", "vindr_cxr", "vindr_pcxr"),
)


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """Every data set in its owner's layout, with twice as many patients as in its adapter's test."""
    return write_layouts(tmp_path_factory.mktemp("layouts"), copies=2)


@pytest.mark.parametrize("source", [source for source, layout in LAYOUTS.items() if layout.marks])
def test_a_copy_of_a_layout_is_of_other_patients(source, tmp_path):
    cohorts = []
    for copies in (1, 2):
        write_copies(LAYOUTS[source], tmp_path / str(copies), copies)
        cohorts.append(build_source(source, tmp_path / str(copies), 0))
    once, twice = cohorts
    assert (len(twice), twice.patient_id.nunique()) == (2 * len(once), 2 * once.patient_id.nunique())
    assert set(once.image_id) < set(twice.image_id)


def test_the_sources_of_the_paper_join_in_the_published_order(layouts, tmp_path):
    assert tuple(entry.source for entry in read_manifest(PAPER)) == PUBLISHED
    cohort = read_joint(layouts, 0, tmp_path).require_cohort()
    judged = ("cxr_lt_2023", "chexpert_5x200", "rsna_pneumonia", "nlm_tb")
    assert tuple(cohort.source.unique()) == (*PUBLISHED, *judged) == tuple(LAYOUTS)
    assert cohort.groupby("patient_id").split.nunique().max() == 1
    is_judged = cohort.source.isin(judged)
    assert set(cohort.split[is_judged]) == {"test"}
    # Of those trained on, VinDr-CXR has a test set of its own that is judged too.
    assert set(cohort.source[~is_judged & (cohort.split == "test")]) == {"vindr_cxr"}
    # Texts of other languages stand translated: nothing of what was written there is left.
    assert not cohort.report.str.contains("cardiomegali|covid \\.|Opacité").any()
    assert (cohort.report_origin[cohort.source == "padchest"] == "written").sum() == 8


def test_a_patient_of_two_sources_is_on_one_side(layouts, tmp_path):
    cohort = read_joint(layouts, 0, tmp_path).require_cohort()
    # CXR-LT holds out a patient of three training images of MIMIC-CXR, and one of a validation image.
    held_out = {
        "mimic_cxr/19999901": "cxr_lt_2023",
        "chexpert/patient00001": "chexpert_5x200",
        "nih/1": "rsna_pneumonia",
    }
    for patient, source in held_out.items():
        assert set(cohort.source[cohort.patient_id == patient]) == {source}
    said = "8 images of chexpert_plus, mimic_cxr, nih that a set nearer to the test holds (8 by patient)."
    assert cohort.attrs[OVERLAP] == f"taken out of training: {said}"
    # The other patients stay: 4 of MIMIC-CXR's 8 images, 6 of CheXpert Plus' 8, 6 of NIH's 8.
    assert cohort.source.value_counts()[["mimic_cxr", "chexpert_plus", "nih"]].to_list() == [4, 6, 6]


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (
            lambda sources, root: sources.append(sources[1]),
            2,
            "lists the source mimic_cxr twice: keep one entry of it.",
        ),
        (
            lambda sources, root: sources[1].update(folder="padchest"),
            2,
            "mimic_cxr: ROOT/padchest has no mimic-cxr-2.0.0-metadata.csv or cxr-record-list.csv: set data_root to the "
            "folder that holds",
        ),
        (
            lambda sources, root: shutil.rmtree(root / "nih/images_001"),
            0,
            "nih: images named but not in the folder and left out: 4.",
        ),
    ],
)
def test_what_is_wrong_with_one_of_many_is_one_sentence(layouts, tmp_path, capsys, change, code, said):
    root = shutil.copytree(layouts.parent, tmp_path / "layouts")
    told = yaml.safe_load(layouts.read_text())
    change(told["sources"], root)
    (root / "cohort.yaml").write_text(yaml.safe_dump(told))
    assert main(["cohort", "check", str(root / "cohort.yaml")]) == code
    shown = capsys.readouterr()
    lines = (shown.err if code else shown.out).splitlines()
    assert sum(said.replace("ROOT", str(root)) in line for line in lines) == 1
    assert len(lines) == 1 or not code
