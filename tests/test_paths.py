import os

import pytest

from chexstudy import paths
from chexstudy.errors import StudyError


def test_the_checkout_is_home_unless_the_user_says_otherwise(monkeypatch, tmp_path):
    monkeypatch.delenv("CHEXSTUDY_HOME", raising=False)
    assert paths.home() == paths.REPOSITORY
    monkeypatch.setenv("CHEXSTUDY_HOME", str(tmp_path))
    assert paths.runs() == tmp_path.resolve() / "runs"
    assert paths.cache().is_relative_to(paths.runs())
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CHEXSTUDY_HOME", "~/studies")
    assert paths.home() == tmp_path.resolve() / "studies"
    for place in (paths.PACKAGE, paths.NOTEBOOKS, paths.PROFILES, paths.REPOSITORY / "data"):
        assert place.is_dir()
        assert paths.REPOSITORY in place.parents


def test_a_relative_path_is_taken_from_where_the_user_stands(monkeypatch, tmp_path):
    monkeypatch.delenv("CHEXSTUDY_CWD", raising=False)
    monkeypatch.chdir(tmp_path)
    assert paths.resolve_user_path("data") == tmp_path.resolve() / "data"
    monkeypatch.setenv("CHEXSTUDY_CWD", str(tmp_path / "elsewhere"))
    assert paths.resolve_user_path("../data") == tmp_path.resolve() / "data"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.resolve_user_path(tmp_path / "a") == paths.resolve_user_path("~/a") == tmp_path.resolve() / "a"


def test_an_unknown_user_is_one_sentence(monkeypatch):
    with pytest.raises(StudyError, match="there is no home folder for '~nobody_here': give the whole path"):
        paths.resolve_user_path("~nobody_here/data")
    monkeypatch.setenv("CHEXSTUDY_HOME", "~nobody_here")
    with pytest.raises(StudyError, match="there is no home folder for '~nobody_here'"):
        paths.home()


def test_in_a_folder_that_was_removed_only_whole_paths_can_be_meant(monkeypatch, tmp_path):
    monkeypatch.delenv("CHEXSTUDY_CWD", raising=False)
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    os.rmdir(tmp_path / "gone")
    assert paths.resolve_user_path(tmp_path / "a") == tmp_path.resolve() / "a"
    with pytest.raises(StudyError, match="the folder you stand in was removed: change to another one"):
        paths.resolve_user_path("a")
    monkeypatch.setenv("CHEXSTUDY_HOME", str(tmp_path))
    assert paths.home() == tmp_path.resolve()
    monkeypatch.setenv("CHEXSTUDY_HOME", "here")
    with pytest.raises(StudyError, match="the folder you stand in was removed"):
        paths.home()
