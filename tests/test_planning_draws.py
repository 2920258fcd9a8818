import itertools

import numpy as np
import pandas as pd
import pytest

from chexstudy.errors import StudyError
from chexstudy.label_planning.draws import count_classes, draw_labels, make_pool, resolve_grid


def make_training(labels, patients=None):
    """Rows of a training split with one finding, Mass."""
    count = len(labels)
    patients = range(count) if patients is None else patients
    return pd.DataFrame(
        {
            "image_id": [f"t/{number}" for number in range(count)],
            "patient_id": [f"t/p{patient}" for patient in patients],
            "Mass": pd.array(labels, dtype="Int8"),
        }
    )


def draw(pool, n, number=0, seed=0, **options):
    return draw_labels(pool, n, number, seed, **options)


@pytest.fixture
def pool():
    """200 images of 100 patients, a quarter of the patients with the finding in both images."""
    return make_pool(make_training([1, 1, 0, 0, 0, 0, 0, 0] * 25, [number // 2 for number in range(200)]), "Mass")


def test_a_pool_holds_the_images_whose_label_is_known():
    pool = make_pool(make_training([1, -1, None, 0, 0], [0, 0, 1, 1, 2]), "Mass")
    assert pool.rows.tolist() == [0, 3, 4]
    assert pool.present.tolist() == [True, False, False]
    assert pool.patients[1] != pool.patients[2]
    assert pool.prevalence == pytest.approx(1 / 3)


@pytest.mark.parametrize(("labels", "word"), [([0, 0, -1], "no positive"), ([1, 1, None], "no negative")])
def test_a_finding_with_one_class_has_no_pool(labels, word):
    with pytest.raises(StudyError, match=f"Mass has {word}"):
        make_pool(make_training(labels), "Mass")


@pytest.mark.parametrize(("n", "positives"), [(2, 1), (10, 3), (20, 5), (50, 13), (100, 25), (200, 50)])
def test_cases_are_stratified_exactly(pool, n, positives):
    for number in range(5):
        drawn = draw(pool, n, number)
        assert len(set(drawn.rows.tolist())) == n
        assert pool.present[drawn.rows].sum() == drawn.positives == positives


def test_a_rare_finding_is_there_at_least_once_and_so_are_negatives():
    rare = make_pool(make_training([1] + [0] * 999), "Mass")
    assert draw(rare, 10).positives == 1
    assert count_classes(make_pool(make_training([1] * 999 + [0]), "Mass"), 10) == (9, 1)


def test_positives_are_drawn_with_negatives_at_the_pools_ratio_or_as_many(pool):
    natural = draw(pool, 8, unit="positives")
    assert (natural.positives, len(natural.rows)) == (8, 32)
    equal = draw(pool, 8, unit="positives", balance="equal")
    assert (equal.positives, len(equal.rows)) == (8, 16)


def test_patients_give_a_second_image_only_when_no_other_is_left(pool):
    assert draw(pool, 100).patients == 100
    assert draw(pool, 101).patients == 100
    # 50 positives are of 25 patients, whatever is done; the 50 negatives are of others.
    assert draw(pool, 50, unit="positives", balance="equal").patients == 75
    assert draw(pool, 25, unit="positives", balance="equal").patients == 50


def test_a_patient_is_not_favoured_for_having_many_images():
    many = make_training([0] * 91 + [1], [0] * 90 + [1, 2])
    pool = make_pool(many, "Mass")
    first = [draw(pool, 2, number).rows for number in range(400)]
    share = np.mean([90 in rows for rows in first])
    # Two patients without the finding, one of them with 90 images: each is drawn half of the time.
    assert share == pytest.approx(0.5, abs=0.1)


def test_every_image_of_a_patient_comes_first_at_times():
    pool = make_pool(make_training([0, 0, 0, 1], [0, 0, 0, 1]), "Mass")
    firsts = {int(row) for number in range(60) for row in draw(pool, 2, number).rows}
    assert firsts == {0, 1, 2, 3}


def test_the_same_call_gives_the_same_draw_others_differ_and_everything_is_drawn_whole(pool):
    one = draw(pool, 40).rows
    np.testing.assert_array_equal(one, draw(pool, 40).rows)
    assert set(one.tolist()) != set(draw(pool, 40, 1).rows.tolist())
    assert set(one.tolist()) != set(draw(pool, 40, seed=1).rows.tolist())
    assert sorted(draw(pool, 200).rows.tolist()) == list(range(200))


def test_draws_differ_between_findings():
    table = make_training([1, 0, 0, 0] * 20).assign(Nodule=pd.array([1, 0, 0, 0] * 20, dtype="Int8"))
    drawn = [draw(make_pool(table, finding), 20).rows.tolist() for finding in ("Mass", "Nodule")]
    assert set(drawn[0]) != set(drawn[1])


@pytest.mark.parametrize("unit", ["cases", "positives"])
def test_nested_draws_hold_the_smaller_ones_and_others_do_not(pool, unit):
    counts = (5, 10, 20, 40)
    nested = [draw(pool, n, nested=True, unit=unit).rows for n in counts]
    for small, large in itertools.pairwise(nested):
        np.testing.assert_array_equal(large[: len(small)], small)
    free = [draw(pool, n, unit=unit).rows for n in counts]
    assert any(not set(small.tolist()) <= set(large.tolist()) for small, large in itertools.pairwise(free))


def test_more_than_there_is_is_refused_in_a_sentence(pool):
    with pytest.raises(StudyError, match=r"201 of Mass cannot be drawn: the training split has 200 images"):
        draw(pool, 201)
    with pytest.raises(StudyError, match="has 50 images with the finding"):
        draw(pool, 51, unit="positives")
    common = make_pool(make_training([1, 1, 1, 0]), "Mass")
    with pytest.raises(StudyError, match="3 positives of Mass need 3 negatives: the training split has 1"):
        draw(common, 3, unit="positives", balance="equal")


@pytest.mark.parametrize("wrong", [{"unit": "studies"}, {"balance": "even"}, {"n": 1}, {"n": 0, "unit": "positives"}])
def test_wrong_requests_are_refused(pool, wrong):
    with pytest.raises(StudyError):
        draw(pool, **({"n": 10} | wrong))


def test_a_grid_is_resolved_for_each_finding(pool):
    assert resolve_grid(pool, (20, 10, "all", 200)) == [10, 20, 200]
    assert resolve_grid(pool, (10, "all"), "positives") == [10, 50]
    for wrong in ("most", -5, 2.5):
        with pytest.raises(StudyError, match="grid"):
            resolve_grid(pool, (wrong,))
