from pathlib import Path

from chexstudy import paths


def test_the_checkout_is_home_unless_the_user_says_otherwise(monkeypatch, tmp_path):
    monkeypatch.delenv("CHEXSTUDY_HOME", raising=False)
    assert paths.home() == paths.REPOSITORY
    monkeypatch.setenv("CHEXSTUDY_HOME", str(tmp_path))
    assert paths.runs() == tmp_path.resolve() / "runs"
    assert paths.cache().is_relative_to(paths.runs())


def test_a_tilde_in_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CHEXSTUDY_HOME", "~/studies")
    assert paths.home() == tmp_path.resolve() / "studies"


def test_a_relative_path_is_taken_from_where_the_user_stands(monkeypatch, tmp_path):
    monkeypatch.delenv("CHEXSTUDY_CWD", raising=False)
    monkeypatch.chdir(tmp_path)
    assert paths.resolve_user_path("data") == tmp_path.resolve() / "data"
    monkeypatch.setenv("CHEXSTUDY_CWD", str(tmp_path / "elsewhere"))
    assert paths.resolve_user_path("../data") == tmp_path.resolve() / "data"


def test_an_absolute_path_and_a_tilde_stay_what_they_are(monkeypatch, tmp_path):
    monkeypatch.setenv("CHEXSTUDY_CWD", "/elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.resolve_user_path(tmp_path / "a") == tmp_path.resolve() / "a"
    assert paths.resolve_user_path("~/a") == tmp_path.resolve() / "a"


def test_the_committed_places_lie_in_the_checkout():
    for place in (paths.PACKAGE, paths.NOTEBOOKS, paths.PROFILES, paths.DATA):
        assert place.is_dir()
        assert Path(paths.REPOSITORY) in place.parents
