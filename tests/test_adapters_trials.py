import numpy as np
import pytest
from PIL import Image

from chexstudy.cohort.adapters import build_source, guess_source
from chexstudy.errors import StudyError

YEAR = 365.25
PERSONS = (
    "plco_id,age,sex,race7,cig_stat,lung_cancer,lung_cancer_diagdays,is_dead,dth_days,mortality_exitdays,mortality_exitstat",
    "A-900001-0,62,1,1,.F,1,742,1,4394.5,4394.5,1",
    "A-900002-8,70,2,1,0,0,.N,0,.N,2000,2",
    "A-900003-6,58,2,1,0,1,100,0,.N,2000,2",
)
SCREENS = (
    "plco_id,study_yr,xry_days,xry_result,an_bone,an_cardiac,an_copd,an_gran,an_pleufibro,an_pleufluid,an_scar,"
    "as_nodule,as_mass,as_hilar,as_infiltrate,as_atelect,as_pleural,as_other",
    "A-900001-0,0,11.5,1,0,0,0,0,1,0,0,1,0,0,0,0,0,0",
    "A-900001-0,1,376.75,4,0,0,0,0,0,0,0,0,0,0,0,0,0,0",
    "A-900002-8,0,20,2,.N,.N,.N,.N,.N,.N,.N,.N,.N,.N,.N,.N,.N,.N",
    "A-900003-6,2,731,2,0,0,0,0,0,1,0,0,0,0,0,0,0,0",
)
LINKS = (
    "plco_id,assoc_visit_syr,assoc_visit_visnum,image_file_name,batch_number",
    "A-900001-0,0,1,PL90001AB.tif,batch_1a",
    "A-900001-0,1,1,pl90002AB.TIF,batch_1a",
    "A-900002-8,0,1,PL90003AB.tif,BATCH_1A",
    "A-900003-6,2,1,PL90004AB.tif,batch_2b",
)
NLST_IMAGES = {
    "100001/1.2.3/100001_CR_1999-01-02_120000_CHEST_CHEST_n1__00000_1.2.3.dcm": "100001_1999-01-02",
    "100001/1.2.4/100001_CR_2001-01-02_120000_CHEST_CHEST_n1__00000_1.2.4.dcm": "100001_2001-01-02",
    "100002/1.2.5/100002_CR_2000-01-02_120000_CHEST_CHEST_n1__00000_1.2.5.dcm": "100002_2000-01-02",
}
NLST_PERSONS = (
    "race,cigsmok,gender,age,pid,dataset_version,rndgroup,scr_days0,scr_days1,scr_days2,candx_days,canc_free_days,fup_days,"
    "deathstat,death_days",
    f"1,0,1,63,100001,2021,2,-4,396,730.5,{730.5 + YEAR},{730.5},{730.5 + 2 * YEAR},2,{730.5 + 2 * YEAR}",
    f"1,0,Female,60,100002,2021,2,10,.N,.N,.N,.N,{10 + YEAR},0,.N",
)


def write_table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n")


def save_images(folder, names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 40), 20 * number, np.uint8)).save(folder / name, format="TIFF")


def make_plco(folder, persons=PERSONS, screens=SCREENS, links=LINKS, link="link_2021_25k_selection.csv"):
    # A folder of a name like that of a table in it is none.
    write_table(folder / "lung_data_mar22/lung_data_mar22_d032222.csv", persons)
    write_table(folder / "lung_data_mar22/lung_screen_data_mar22_d032222.csv", screens)
    write_table(folder / "Standard 25K Linkage (2021)" / link, links)
    save_images(folder, ["batch_1a/pl90001ab.tif", "batch_1a/pl90002ab.tif", "batch_1a/pl90003ab.tif"])
    save_images(folder, ["batch_2b/pl90004ab.tif"])
    return folder


def make_nlst(folder, persons=NLST_PERSONS, images=NLST_IMAGES):
    write_table(folder / "nlst_780_prsn_20210527.csv", persons)
    for name in images:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"DICM")
    return folder


def test_plco(tmp_path):
    folder = make_plco(tmp_path)
    assert guess_source(folder) == "plco"
    cohort = build_source("plco", folder, 0)
    assert list(cohort["image_id"]) == ["plco/pl90001ab.tif", "plco/pl90003ab.tif", "plco/pl90004ab.tif"]
    assert cohort.attrs["inadequate_images_left_out"] == 1
    assert list(cohort["patient_id"]) == ["plco/A-900001-0", "plco/A-900002-8", "plco/A-900003-6"]
    assert list(cohort["study_id"]) == ["plco/A-900001-0_0", "plco/A-900002-8_0", "plco/A-900003-6_2"]
    assert list(cohort["sex"]) == ["M", "F", "F"]
    expected = [62 + 11.5 / YEAR, 70 + 20 / YEAR, 58 + 731 / YEAR]
    assert cohort["age_years"].to_numpy() == pytest.approx(expected)
    assert list(cohort["Nodule"].fillna(9)) == [1, 9, 0]
    assert list(cohort["Pleural Effusion"].fillna(9)) == [0, 9, 1]
    assert list(cohort["Pleural Fibrosis"].fillna(9)) == [1, 9, 0]
    assert list(cohort["outcome_death"]) == [1, 0, 0]
    assert cohort["outcome_death_years"].to_numpy() == pytest.approx([12.0, 1980 / YEAR, 1269 / YEAR], rel=1e-3)
    # A cancer found before the image is no outcome of it.
    assert list(cohort["outcome_lung_cancer"].fillna(9)) == [1, 0, 9]
    assert list(cohort["outcome_lung_cancer_years"].fillna(9)) == pytest.approx([2.0, 1980 / YEAR, 9], rel=1e-5)


def test_plco_without_links_takes_the_table_of_images(tmp_path):
    rows = ("plco_id,image_file_name,study_yr", *(",".join(row.split(",")[i] for i in (0, 3, 1)) for row in LINKS[1:]))
    cohort = build_source("plco", make_plco(tmp_path, links=rows, link="lung_xryimg25_data_mar22.csv"), 0)
    assert list(cohort["study_id"]) == ["plco/A-900001-0_0", "plco/A-900002-8_0", "plco/A-900003-6_2"]


def test_several_visits_in_a_year_are_told_by_their_numbers(tmp_path):
    screens = [SCREENS[0] + ",visnum", *(f"{row},1" for row in SCREENS[1:]), SCREENS[1].replace(",1,", ",0,") + ",2"]
    cohort = build_source("plco", make_plco(tmp_path, screens=screens), 0)
    assert list(cohort["Nodule"].fillna(9)) == [1, 9, 0]
    with pytest.raises(StudyError, match=r"d032222\.csv: line 6 repeats what another row holds in columns 'plco_id'"):
        build_source("plco", make_plco(tmp_path / "b", screens=(*SCREENS, SCREENS[1])), 0)


def test_nlst(tmp_path):
    folder = make_nlst(tmp_path)
    assert guess_source(folder) == "nlst"
    cohort = build_source("nlst", folder, 0)
    assert list(cohort["image_id"]) == [f"nlst/{name.rpartition('/')[2]}" for name in NLST_IMAGES]
    assert list(cohort["patient_id"]) == ["nlst/100001", "nlst/100001", "nlst/100002"]
    assert list(cohort["study_id"]) == [f"nlst/{study}" for study in NLST_IMAGES.values()]
    assert list(cohort["sex"]) == ["M", "M", "F"]
    assert list(cohort["age_years"].fillna(-1)) == pytest.approx([63 - 4 / YEAR, 65, -1])
    # The third image is of a screen that the table does not have: its times are unknown.
    assert cohort.attrs["images_of_a_screen_that_the_table_lacks"] == 1
    assert list(cohort["outcome_death"].fillna(9)) == [1, 1, 9]
    assert list(cohort["outcome_death_years"].fillna(9)) == pytest.approx([4 + 4 / YEAR, 2, 9])
    assert list(cohort["outcome_lung_cancer"].fillna(9)) == [1, 1, 9]
    assert list(cohort["outcome_lung_cancer_years"].fillna(9)) == pytest.approx([3 + 4 / YEAR, 1, 9])


def test_the_living_of_nlst_are_followed_until_a_mean_lag_before_their_last_word(tmp_path):
    name = "100002_CR_1999-01-02_120000_CHEST_CHEST_n1__00000_1.2.5.dcm"
    (row,) = build_source("nlst", make_nlst(tmp_path, images=[name]), 0).to_dict("records")
    assert (row["outcome_death"], row["outcome_lung_cancer"]) == (0, 0)
    assert row["outcome_death_years"] == pytest.approx(1 - 58.7590 / YEAR)
    assert row["outcome_lung_cancer_years"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("source", "make", "said"),
    [
        ("plco", lambda folder: make_plco(folder, links=(LINKS[0].replace("plco_id", "id"), *LINKS[1:])),
         r"^link_2021_25k_selection\.csv lacks the column 'plco_id'; it has 'id', 'study_yr'"),
        ("plco", lambda folder: make_plco(folder, screens=(SCREENS[0].replace("xry_days", "days"), *SCREENS[1:])),
         r"^lung_screen_data_mar22_d032222\.csv lacks the column 'xry_days'; it has 'plco_id'"),
        ("plco", lambda folder: make_plco(folder, persons=[row.replace("4394.5", "soon") for row in PERSONS]),
         r"^lung_data_mar22_d032222\.csv: line 2, column 'mortality_exitdays' holds 'soon'; expected a number\.$"),
        ("plco", lambda folder: make_plco(folder, persons=[row.replace("A-9", "A-8") for row in PERSONS]),
         r"^lung_data_mar22_d032222\.csv has no row of any image by column 'plco_id': check that the tables are of on"),
        ("plco", lambda folder: make_plco(folder, screens=[row.replace(",1,0,0,0,0,0,0", ",7,0,0,0,0,0,0")
                                                           for row in SCREENS]),
         r"^link_2021_25k_selection\.csv: line 2, column 'as_nodule' holds '7'; a label is 1 \(present\)"),
        ("nlst", make_plco, r"none of the 4 images of .* is named like 123456_CR_2000-01-01_….dcm, by which persons"),
        ("nlst", lambda folder: make_nlst(folder, images=["100001_CR_2010-01-02_1_CHEST.dcm"]),
         r"holds images that by their names are not of 1999, 2000, 2001, the years of the three screens: times from"),
        # The public edition of the table has no deaths.
        ("nlst", lambda folder: make_nlst(folder, [row.replace("fup_days,deathstat", "a,b") for row in NLST_PERSONS]),
         r"^nlst_780_prsn_20210527\.csv lacks the columns 'fup_days', 'deathstat'; it has 'race', 'cigsmok'"),
        ("nlst", lambda folder: make_nlst(folder, [NLST_PERSONS[0], NLST_PERSONS[1].replace("100001", "200001")]),
         r"^nlst_780_prsn_20210527\.csv has no row of any image by column 'pid': check that the tables are of one"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(tmp_path, source, make, said):
    with pytest.raises(StudyError, match=said):
        build_source(source, make(tmp_path), 0)
