import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from chexstudy.cohort.adapters import build_source
from chexstudy.cohort.adapters.webdataset import _split_name
from chexstudy.cohort.build import build_cohort
from chexstudy.cohort.check import check_source
from chexstudy.cohort.phantom.plan import PhantomConfig
from chexstudy.errors import StudyError
from chexstudy.runs import Run


def picture(number, side=40, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 255, (side, side), np.uint8)).save(file, kind)
    return file.getvalue()


def write_shard(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def sample(number, **fields):
    record = {"Patient ID": f"p{number // 2}", "labels": {"Mass": number % 2, "Lung Nodule": None}, "boxes": [1, 2]}
    return [
        (f"case/{number:03d}.PNG", picture(number)),
        (f"case/{number:03d}.json", json.dumps(record | fields).encode()),
        (f"case/{number:03d}.txt", f"FINDINGS: Report {number}.".encode()),
        (f"case/{number:03d}.npy", b"no part"),
    ]


def write_shards(folder, **fields):
    for shard in range(2):
        numbers = range(shard * 3, shard * 3 + 3)
        write_shard(folder / f"xray-{shard:06d}.tar", [member for n in numbers for member in sample(n, **fields)])
    return folder


def build(data_root, unpack_to, **options):
    return build_source("webdataset", data_root, 0, unpack_to, **options)


@pytest.fixture
def unpack_to(tmp_path):
    return tmp_path / "study" / "images"


def sentence(data_root, unpack_to, **options):
    with pytest.raises(StudyError) as caught:
        build(data_root, unpack_to, **options)
    return str(caught.value)


def test_shards_become_a_cohort(tmp_path, unpack_to):
    cohort = build(write_shards(tmp_path / "shards"), unpack_to)
    assert list(cohort["image_id"]) == [f"webdataset/case/{number:03d}" for number in range(6)]
    assert list(cohort["patient_id"]) == [f"webdataset/p{number // 2}" for number in range(6)]
    assert list(cohort["report"]) == [f"FINDINGS: Report {number}." for number in range(6)]
    assert set(cohort["report_origin"]) == {"written"}
    assert list(cohort["Mass"]) == [0, 1] * 3
    assert cohort["Lung Nodule"].isna().all()
    assert cohort.groupby("patient_id")["split"].nunique().max() == 1
    assert set(cohort["split"]) >= {"train", "test"}
    for number, path in enumerate(cohort["image_path"]):
        assert Path(path).read_bytes() == picture(number)


def test_one_shard_a_pattern_and_a_compressed_shard_are_read_too(tmp_path, unpack_to):
    folder = write_shards(tmp_path / "shards")
    every = build(folder, unpack_to).drop(columns="image_path")
    assert len(build(folder / "xray-000001.tar", unpack_to)) == 3
    pd.testing.assert_frame_equal(build(folder / "xray-*.tar", unpack_to).drop(columns="image_path"), every)
    for shard in folder.glob("*.tar"):
        shard.with_suffix(".tar.gz").write_bytes(gzip.compress(shard.read_bytes()))
        shard.unlink()
    pd.testing.assert_frame_equal(build(folder, unpack_to).drop(columns="image_path"), every)


def test_names_of_shards_tell_the_split_unless_all_are_train(tmp_path, unpack_to):
    folder = tmp_path / "shards"
    for number, name in enumerate(("train-000000.tar", "val/000000.tar", "testing_01.tar")):
        write_shard(folder / name, sample(2 * number))
    assert dict(zip(build(folder, unpack_to)["image_id"], build(folder, unpack_to)["split"], strict=True)) == {
        "webdataset/case/000": "train",
        "webdataset/case/002": "validate",
        "webdataset/case/004": "test",
    }
    every = tmp_path / "train"
    write_shard(every / "train-000000.tar", [member for n in range(20) for member in sample(n)])
    assert set(build(every, unpack_to)["split"]) == {"train", "validate", "test"}


def test_the_mapping_says_what_fields_mean(tmp_path, unpack_to):
    folder = write_shards(tmp_path / "shards", who="x", stance="frontal", tumour="maybe")
    (folder / "cohort.yaml").write_text(
        "source: ours\ncolumns: {patient_id: none, view: stance, findings: {Mass: tumour}, report: null}\n"
        "values: {view: {frontal: PA}, labels: {maybe: -1}}\n"
    )
    cohort = build(folder, unpack_to)
    assert list(cohort["patient_id"]) == list(cohort["image_id"])
    assert cohort["image_id"][0] == "ours/case/000"
    assert (set(cohort["view"]), set(cohort["Mass"]), set(cohort["report_origin"])) == ({"PA"}, {-1}, {"template"})
    assert build(folder, unpack_to, source="theirs")["source"][0] == "theirs"
    for text, said in (("columns: {}\ntable: x\n", "no entry 'table'"), ("columns: [a]\n", "'columns' must be pairs")):
        (folder / "cohort.yaml").write_text(text)
        assert said in sentence(folder, unpack_to)


def test_the_mapping_says_which_of_several_images(tmp_path, unpack_to):
    members = [*sample(0), ("case/000.mask.png", picture(9))]
    folder = write_shard(tmp_path / "shards" / "a.tar", members).parent
    assert "has 2 images (png, mask.png): say which" in sentence(folder, unpack_to)
    cohort = build(folder, unpack_to, columns={"image_path": "png"})
    assert Path(cohort["image_path"][0]).read_bytes() == picture(0)
    cohort = build(folder, unpack_to, columns={"image_path": "mask.png"})
    assert Path(cohort["image_path"][0]).read_bytes() == picture(9)


def test_images_are_unpacked_once_and_again_where_something_changed(tmp_path, unpack_to):
    folder = write_shards(tmp_path / "shards")
    cohort = build(folder, unpack_to)
    times = [_change_time(path) for path in cohort["image_path"]]
    again = build(folder, unpack_to)
    assert [_change_time(path) for path in again["image_path"]] == times
    # A power cut can leave an empty file; its shard is unpacked anew, and only that.
    Path(cohort["image_path"][1]).write_bytes(b"")
    again = build(folder, unpack_to)
    assert Path(again["image_path"][1]).read_bytes() == picture(1)
    assert [_change_time(path) == time for path, time in zip(again["image_path"], times, strict=True)][3:] == [True] * 3
    write_shard(folder / "xray-000001.tar", sample(7))
    again = build(folder, unpack_to)
    assert list(again["image_id"].str[-1]) == ["0", "1", "2", "7"]
    assert not (unpack_to / "webdataset" / "xray-000001.tar" / "case" / "003.png").exists()
    (folder / "xray-000000.tar").unlink()
    build(folder, unpack_to)
    left = [path.name for path in sorted((unpack_to / "webdataset").iterdir())]
    assert left == ["xray-000001.tar", "xray-000001.tar.parquet"]


def _change_time(path):
    return os.stat(path).st_mtime_ns


def test_a_killed_build_goes_on_at_the_next_shard(tmp_path, unpack_to):
    folder = write_shards(tmp_path / "shards")
    whole = (folder / "xray-000001.tar").read_bytes()
    (folder / "xray-000001.tar").write_bytes(whole[:2000])
    assert "xray-000001.tar is damaged or cut short" in sentence(folder, unpack_to)
    done = unpack_to / "webdataset" / "xray-000000.tar" / "case" / "000.png"
    before = _change_time(done)
    assert not (unpack_to / "webdataset" / "xray-000001.tar.parquet").exists()
    (folder / "xray-000001.tar").write_bytes(whole)
    assert len(build(folder, unpack_to)) == 6
    assert _change_time(done) == before


@pytest.mark.parametrize("cut", ["within an image", "between two members", "a broken header", "gzip"])
def test_a_damaged_shard_is_named_with_the_last_good_sample(tmp_path, unpack_to, cut):
    folder = write_shards(tmp_path / "shards")
    shard = folder / "xray-000000.tar"
    data = shard.read_bytes()
    with tarfile.open(shard) as archive:
        second = archive.getmembers()[4].offset
    if cut == "within an image":
        shard.write_bytes(data[: second + 700])
    elif cut == "between two members":
        shard.write_bytes(data[:second])
    elif cut == "a broken header":
        shard.write_bytes(data[:second] + b"x" * 512 + data[second + 512 :])
    else:
        shard.unlink()
        shard = folder / "xray-000000.tar.gz"
        shard.write_bytes(gzip.compress(data)[:-40])
    asked = sentence(folder, unpack_to)
    assert asked.startswith(f"the shard {shard} is damaged or cut short")
    assert cut == "gzip" or "members: fetch it again." in asked


def test_what_is_no_tar_is_said(tmp_path, unpack_to):
    (tmp_path / "shards").mkdir()
    assert "holds and names no tar shard" in sentence(tmp_path / "shards", unpack_to)
    assert "holds and names no tar shard" in sentence(tmp_path / "none" / "*.tar", unpack_to)
    assert "no shards were given" in sentence("", unpack_to)
    (tmp_path / "shards" / "a.tar").write_bytes(b"<html>not found</html>" * 50)
    assert "a.tar is damaged or cut short: fetch it again." in sentence(tmp_path / "shards", unpack_to)
    write_shard(tmp_path / "shards" / "a.tar", [])
    assert "there is no image in a.tar: check data_root" in sentence(tmp_path / "shards", unpack_to)
    os.mkfifo(tmp_path / "pipe.tar")
    assert "holds and names no tar shard" in sentence(tmp_path / "pipe.tar", unpack_to)
    with pytest.raises(StudyError, match="needs unpack_to"):
        build_source("webdataset", tmp_path, 0)


def test_duplicate_keys_are_one_sentence(tmp_path, unpack_to):
    folder = tmp_path / "shards"
    write_shard(folder / "a.tar", [*sample(0), *sample(1), *sample(0)])
    assert "of a.tar has the key of sample 1" in sentence(folder, unpack_to)
    write_shard(folder / "a.tar", [*sample(0), ("case/000.png", picture(3))])
    assert "of a.tar has its member .png twice" in sentence(folder, unpack_to)
    for name in ("a.tar", "b.tar"):
        write_shard(folder / name, sample(0))
    assert "a.tar and b.tar both hold a sample of one key (1 keys repeat)" in sentence(folder, unpack_to)


def test_missing_members_are_one_sentence(tmp_path, unpack_to):
    folder = tmp_path / "shards"
    write_shard(folder / "a.tar", [*sample(0), ("case/001.txt", b"x")])
    assert sentence(folder, unpack_to) == (
        "sample 2 of a.tar has no image (png, jpg, jpeg, dcm, tif or bmp) but txt: add it, or take the sample out."
    )
    assert "has no image (cxr) but png, json, txt" in sentence(folder, unpack_to, columns={"image_path": "cxr"})
    write_shard(folder / "a.tar", [*sample(0), ("case/001.png", picture(1))])
    asked = sentence(folder, unpack_to)
    assert "row 1, column 'Patient ID' is empty (1 rows are; nan, unknown or -1 say no more): fill it in." in asked
    write_shard(folder / "a.tar", sample(0)[:1])
    assert "does not say which column of webdataset.parquet holds patient_id" in sentence(folder, unpack_to)


def test_unreadable_members_are_one_sentence(tmp_path, unpack_to):
    folder = tmp_path / "shards"
    for name, data, expected in (
        ("a.json", b"{", "a JSON object"),
        ("a.json", b"[1]", "a JSON object"),
        ("a.json", b'{"a": ' * 100_000, "a JSON object"),
        ("a.txt", b"\xff\xfe\x00", "UTF-8 text"),
    ):
        write_shard(folder / "a.tar", [("a.png", picture(0)), (name, data)])
        assert f"the member .{name[2:]} of sample 1 of a.tar is not {expected}" in sentence(folder, unpack_to)


@pytest.mark.parametrize("name", ["../../outside.png", "/a/outside.png", "a/../../../outside.png"])
def test_nothing_is_written_outside_the_study(tmp_path, unpack_to, name):
    shard = write_shard(tmp_path / "shards" / "a.tar", [*sample(0), (name, picture(1))])
    assert "of a.tar would lie outside its own folder" in sentence(shard, unpack_to)
    assert not list(tmp_path.rglob("outside*"))


def test_names_are_split_at_the_first_dot():
    assert _split_name("a.b/c.cxr.PNG") == ("a.b/c", "cxr.png")
    assert _split_name("./c.json") == ("c", "json")
    assert _split_name("folder/.hidden")[1] == _split_name("plain")[1] == _split_name("__MACOSX/c.png")[1] == ""


def test_bad_images_and_empty_reports_go_to_quarantine(tmp_path, home):
    members = [member for number in range(4) for member in sample(number)]
    members[4] = (members[4][0], b"")
    members[8] = (members[8][0], b"<html>")
    members[14] = (members[14][0], b"FINDINGS: ___")
    folder = write_shard(home / "shards" / "a.tar", members).parent
    phantom = PhantomConfig(60, 48, workers=1)
    store, _ = build_cohort(Run("mine"), "webdataset", str(folder), 40, "pad", 0, phantom, workers=1)
    assert list(store.image_ids) == ["webdataset/case/000"]
    quarantine = pd.read_parquet(Run("mine").path("quarantine.parquet"))
    assert list(quarantine["reason"]) == ["empty", "not an image", "empty report"]
    assert quarantine["image_path"][0] == "images/webdataset/a.tar/case/001.png"


def test_a_full_disk_is_one_sentence(tmp_path, unpack_to, full_disk):
    shard = write_shard(tmp_path / "a.tar", [("a.png", picture(0, side=300)), ("a.json", b'{"patient": 1}')])
    with full_disk(20_000):
        assert sentence(shard, unpack_to).startswith("could not write ")


def test_keys_may_be_the_uids_of_dicom(tmp_path, unpack_to):
    names, members = [f"1.2.826.0.1.{number}" for number in range(6)], []
    for number, name in enumerate(names):
        record = {"patient_id": f"p{number}", "labels": {"Mass": number % 2}}
        members += [(f"{name}.cxr.png", picture(number)), (f"{name}.json", json.dumps(record).encode())]
    write_shard(tmp_path / "shards" / "a.tar", members)
    cohort = build(tmp_path / "shards", unpack_to)
    assert list(cohort["image_id"]) == [f"webdataset/{name}" for name in names]
    assert list(cohort["Mass"]) == [0, 1] * 3


@pytest.mark.parametrize("fields", [{"labels": {"Mass": [1]}}, {"Patient ID": ["p"]}, {"report": ["Clear.", "Big."]}])
def test_a_field_that_is_a_list_is_not_dropped_in_silence(tmp_path, unpack_to, fields):
    folder = write_shards(tmp_path / "shards", **fields)
    name = {"labels": "labels.Mass"}.get(*fields, *fields)
    assert sentence(folder, unpack_to) == (
        f"the field {name!r} of the webdataset samples holds a list: write one value in each."
    )


def test_ids_of_json_are_one_patient_however_they_are_written(tmp_path, unpack_to):
    spelt = [17, 17.0, "17", " 17 ", "017", "17\u00a0"]
    members = [member for number, name in enumerate(spelt) for member in sample(number, **{"Patient ID": name})]
    write_shard(tmp_path / "shards" / "a.tar", members)
    assert set(build(tmp_path / "shards", unpack_to)["patient_id"]) == {"webdataset/017"}


@pytest.mark.parametrize("name", ["__image__", "__key__", "__split__", "__bytes__", "__lists__"])
def test_metadata_cannot_speak_for_the_archive(tmp_path, unpack_to, name):
    other = tmp_path / "other.png"
    other.write_bytes(picture(9))
    folder = write_shards(tmp_path / "shards", **{name: str(other)})
    assert sentence(folder, unpack_to) == (
        f"sample 1 of xray-000000.tar has a field {name!r}, which only the archive itself may tell: take it out of the "
        "metadata."
    )


def write_member(path, kind=tarfile.REGTYPE, size=0, name="case/001.png", link=""):
    with tarfile.open(path, "w") as archive:
        for one, data in sample(0):
            member = tarfile.TarInfo(one)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        member = tarfile.TarInfo(name)
        member.type, member.linkname, member.size = kind, link, size
        # The header alone: what it claims is not there.
        archive.fileobj.write(member.tobuf(tarfile.GNU_FORMAT))
        archive.fileobj.write(bytes(10_240))
    return path


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_only_regular_files_are_unpacked(tmp_path, unpack_to, kind):
    shard = write_member(tmp_path / "a.tar", kind, link="/etc/passwd")
    assert sentence(shard, unpack_to) == (
        "member 5 of a.tar is a link, a device or a pipe: an archive of samples holds regular files alone."
    )


@pytest.mark.parametrize(
    ("member", "said"),
    [
        ({"size": 2**40}, "member 5 of a.tar has more than 512 MiB, which no radiograph has: take it out."),
        ({"kind": tarfile.XHDTYPE, "size": 2**33}, "a.tar is damaged or cut short after 4 members: fetch it again."),
        ({"kind": tarfile.GNUTYPE_LONGNAME, "size": 2**33}, "a.tar is damaged or cut short after 4 members"),
        ({"name": f"case/{'x' * 300}.png"}, "has a name that no disk takes: names have at most 255 bytes."),
    ],
)
def test_what_an_archive_claims_is_not_believed(tmp_path, unpack_to, member, said):
    assert said in sentence(write_member(tmp_path / "a.tar", **member), unpack_to)


def test_members_fields_and_depth_have_limits(tmp_path, unpack_to):
    deep = b'{"a": ' * 60 + b"1" + b"}" * 60
    many = json.dumps({f"f{number}": 1 for number in range(10_001)}).encode()
    long = b" " * (2**24 + 1)
    for members, said in (
        ([("case/a.json", deep)], "the fields of a sample are nested more than 50 deep"),
        ([("case/a.json", many)], "different fields, and may have 10,000"),
        ([("case/a.txt", long)], "sample 1 of a.tar has a member .txt of more than 16 MiB: take it out."),
        ([(f"case/a.x{number}", b"") for number in range(1000)], "sample 1 of a.tar has more than 1,000 members"),
    ):
        write_shard(tmp_path / "shards" / "a.tar", [("case/a.png", picture(0)), *members])
        assert said in sentence(tmp_path / "shards", unpack_to)


def test_a_check_tells_of_fields_that_nothing_uses(tmp_path):
    folder = tmp_path / "shards"
    write_shard(folder / "a.tar", [member for n in range(40) for member in sample(n, Age="50", site="x")])
    found = check_source(folder)
    assert found.problems == ()
    assert found.remarks[0] == "boxes, site are not used."
    assert build(folder, tmp_path / "images").attrs["columns"] == "boxes, site are not used."
