import pytest

from chexstudy.errors import StudyError
from chexstudy.inputs.yaml_files import read_yaml


def read(tmp_path, text, **options):
    path = tmp_path / "x.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_yaml(path, "the file", **options)


def test_words_are_what_was_written_and_types_are_told_by_the_rules(tmp_path):
    text = "a: no\nb: 0017\nc: 3e-4\nd: ~\ne:\nf: 'null'\n2: [on, 1.0]\n"
    assert read(tmp_path, text, words=True) == {
        **{"a": "no", "b": "0017", "c": "3e-4", "d": None, "e": None, "f": "null"},
        "2": ["on", "1.0"],
    }
    typed = read(tmp_path, text)
    assert (typed["a"], typed["c"], typed["d"], typed[2]) == (False, 3e-4, None, [True, 1.0])
    assert read(tmp_path, "") is None
    assert read(tmp_path, "a: &x 1\nb: *x") == {"a": 1, "b": 1}


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n" for old, new in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.parametrize("words", [True, False])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3", "has 'a' twice, again at line 3: keep one."),
        ("x: {a: 1, a: 2}", "has 'a' twice, again at line 1"),
        ("a: [", "is not valid YAML at line 1: "),
        ("a: *b", "is not valid YAML at line 1: found undefined alias 'b'."),
        ("? [a]\n: b", "is not valid YAML at line 1: found unhashable key."),
        (b"a: \xff\xfe", "is not valid YAML: it is no text."),
        (b"a: \0", "is not valid YAML"),
        (BOMB, "grows to over 100,000 values by its aliases at line 6: write them out."),
        ("a: &a [*a]", "holds itself by an alias at line 1: write it out."),
        ("[" * 5000, "is nested too deeply: take levels out."),
        (b"a: " + b"x" * 2**20, "has over 1,048,576 bytes"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(tmp_path, text, said, words):
    with pytest.raises(StudyError) as caught:
        read(tmp_path, text, words=words)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"the file {tmp_path / 'x.yaml'} ")


def test_a_file_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(StudyError, match=r"^there is no file of prompts at .*none.yaml: check"):
        read_yaml(tmp_path / "none.yaml", "file of prompts")
