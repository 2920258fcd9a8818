import pytest

from chexstudy.errors import StudyError
from chexstudy.workflow.parameters import parse_parameters
from chexstudy.workflow.profiles import Profile, read_profile, resolve_parameters

DECLARED = {
    "01_a": parse_parameters('study = "x"  # .\nseed = 0  # .\nsize = 96  # .', "01_a"),
    "02_b": parse_parameters('study = "x"  # .\nseed = 0  # .\nrate = 0.1  # .', "02_b"),
}


def write(folder, text):
    (folder / "p.yaml").write_text(text)
    return folder


def resolve(profile=None, overrides=None, chosen=("01_a", "02_b"), **options):
    return resolve_parameters(DECLARED, profile or Profile("p"), list(chosen), overrides or {}, "mine", **options)


def test_a_profile_is_read_by_name_or_path_and_an_unknown_one_gets_the_closest(tmp_path):
    write(tmp_path, "title: T\ndescription: >-\n  one\n  two\ncost: little\ndefaults: {rate: 3e-4, seed: 2}\n")
    found = Profile("p", "T", "one two", "little", {"rate": 3e-4, "seed": 2}, {})
    assert read_profile("p", tmp_path) == read_profile(str(tmp_path / "p.yaml"), tmp_path / "elsewhere") == found
    with pytest.raises(StudyError, match="no profile 'pp'; the profiles are p: did you mean 'p'"):
        read_profile("pp", tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("default: {seed: 1}", "unknown field 'default'"),
        ("- a\n- b", "must hold the fields"),
        ("title: [", "not valid YAML at line"),
        ("notebooks: {01_a: 3}", "must be `name: value` lines"),
        ("notebooks: [01_a]", "must be `name: value` lines"),
        ("defaults: 3", "must be `name: value` lines"),
    ],
)
def test_a_profile_of_another_shape_is_refused(tmp_path, text, words):
    with pytest.raises(StudyError, match=words):
        read_profile("p", write(tmp_path, text))


def test_defaults_go_to_notebooks_that_take_them_own_values_win_and_overrides_over_both():
    values = resolve(Profile("p", defaults={"seed": 3, "rate": 1}))
    assert values == {"01_a": {"seed": 3, "study": "mine"}, "02_b": {"seed": 3, "rate": 1.0, "study": "mine"}}
    profile = Profile("p", defaults={"seed": 1}, notebooks={"02_b": {"seed": 2}})
    assert [values["seed"] for values in resolve(profile).values()] == [1, 2]
    assert [values["seed"] for values in resolve(profile, {"seed": 9}).values()] == [9, 9]
    values = resolve(overrides={"rate": "0.5", "size": "64"}, from_text=True)
    assert values == {"01_a": {"size": 64, "study": "mine"}, "02_b": {"rate": 0.5, "study": "mine"}}


@pytest.mark.parametrize(
    ("profile", "overrides", "chosen", "words"),
    [
        (Profile("p", defaults={"sed": 1}), {}, ["01_a"], r"\(profile 'p'\) has no parameter 'sed'.*'seed'"),
        (Profile("p", defaults={"seed": "1"}), {}, ["01_a"], r"'seed' of 01_a \(profile 'p'\) must be a whole"),
        (Profile("p", notebooks={"01_b": {}}), {}, ["01_a"], "a notebook '01_b' that does not exist"),
        (Profile("p", notebooks={"01_a": {"rate": 1.0}}), {}, ["02_b"], "01_a .* has no parameter 'rate'"),
        (Profile("p"), {"rte": 1.0}, ["01_a", "02_b"], "the study has no parameter 'rte'.*did you mean 'rate'"),
        (Profile("p"), {"rate": 1.0}, ["01_a"], "rate is a parameter of 02_b: run that with it"),
    ],
)
def test_what_no_notebook_takes_is_refused(profile, overrides, chosen, words):
    with pytest.raises(StudyError, match=words):
        resolve(profile, overrides, chosen)
