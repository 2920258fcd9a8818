"""Group quotas: by hand, against every possible subset of small sets, and what a user may write wrongly."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from chexstudy.cohort.groups import find_members
from chexstudy.curation.choice import Choice, choose_highest
from chexstudy.curation.embeddings.group_quotas import GroupQuota, apply_quotas, parse_quota
from chexstudy.errors import StudyError


def apply(scores, budget, quotas, **groups):
    groups = {name.replace("_", "="): np.array(members, dtype=bool) for name, members in groups.items()}
    return apply_quotas(
        choose_highest(np.array(scores, dtype=float), budget), groups, [parse_quota(one) for one in quotas]
    )


def test_reading_quotas():
    assert parse_quota("sex=F:0.25") == GroupQuota("sex", "F", 0.25)
    assert parse_quota(" age=80+:0.9x ") == GroupQuota("age", "80+", 0.9, relative=True)
    assert parse_quota("source=a:b:1") == GroupQuota("source", "a:b", 1.0)
    assert str(parse_quota("finding=Pleural Effusion:1.5X")) == "finding=Pleural Effusion:1.5x"


def test_what_is_no_quota_is_one_sentence():
    for text in ("", "sex", "sex=F", "sex:0.5", "=F:0.5", "sex=:0.5", "sex=F:"):
        with pytest.raises(StudyError, match="a group quota is written GROUP=VALUE:SHARE"):
            parse_quota(text)
    for rate in ("1.2", "-0.1", "nan", "inf", "half", "25%", "x1x", "-1x", "infx"):
        with pytest.raises(StudyError, match="asks for"):
            parse_quota(f"sex=F:{rate}")


def test_the_least_number_is_rounded_up_but_not_by_rounding():
    assert GroupQuota("a", "b", 0.25).least(10, 5, 100) == 3
    assert GroupQuota("a", "b", 0.3).least(10, 5, 100) == 3
    assert GroupQuota("a", "b", 0.9, relative=True).least(100, 20, 200) == 9
    assert GroupQuota("a", "b", 0.0).least(10, 5, 100) == 0


def test_the_best_dropped_member_replaces_the_worst_kept_other():
    # Kept are rows 0 to 3; women are 4 to 7.
    choice = apply([9, 8, 7, 6, 5, 4, 3, 2], 4, ["sex=F:0.5"], sex_F=[0, 0, 0, 0, 1, 1, 1, 1])
    assert list(choice.rows) == [0, 1, 4, 5]
    assert list(choice.scores) == [9, 8, 7, 6, 5, 4, 3, 2], "scores stay the method's own"


def test_a_quota_that_holds_changes_nothing():
    before = choose_highest(np.arange(8.0), 4)
    groups = {"sex=F": np.array([1, 0] * 4, dtype=bool)}
    after = apply_quotas(before, groups, [parse_quota("sex=F:0.5"), parse_quota("sex=F:1x")])
    assert list(after.rows) == list(before.rows)
    assert apply_quotas(before, {}, []) is before


def test_no_other_group_falls_below_its_quota():
    # The worst kept pair (row 3) is the only one from the west, whose quota it holds: row 2 must go instead.
    women, west = [0, 0, 0, 0, 1, 0], [0, 0, 0, 1, 0, 0]
    choice = apply([9, 8, 7, 6, 5, 4], 4, ["sex=F:1", "source=west:1"], sex_F=women, source_west=west)
    assert list(choice.rows) == [0, 1, 3, 4]


def test_weights_stay_with_their_pairs():
    choice = Choice(np.array([0, 1, 2]), np.array([3.0, 2, 1, 0]), np.array([1.5, 2.5, 3.5]))
    after = apply_quotas(choice, {"sex=F": np.array([0, 0, 0, 1], dtype=bool)}, [parse_quota("sex=F:1")])
    assert list(after.rows) == [0, 1, 3]
    assert list(after.weights) == [1.5, 2.5, 1.0]


def best_by_trying_all(scores, budget, members, least):
    best = None
    for rows in combinations(range(len(scores)), budget):
        if (members[:, rows].sum(axis=1) >= least).all():
            total = scores[list(rows)].sum()
            best = total if best is None else max(best, total)
    return best


@pytest.mark.parametrize("overlapping", [False, True])
def test_against_every_possible_subset(overlapping):
    rng = np.random.default_rng(0)
    infeasible = changed = 0
    for _ in range(150):
        pairs, budget = 9, int(rng.integers(2, 7))
        scores = rng.normal(size=pairs)
        if overlapping:
            members = rng.random((3, pairs)) < 0.4
        else:
            members = rng.integers(0, 4, pairs) == np.arange(3)[:, np.newaxis]
        if not members.any(axis=1).all():
            continue
        quotas = [GroupQuota("g", str(number), float(rng.choice([0.3, 0.5, 1.0]))) for number in range(3)]
        groups = {quota.name: own for quota, own in zip(quotas, members, strict=True)}
        sizes = members.sum(axis=1)
        least = [quota.least(size, budget, pairs) for quota, size in zip(quotas, sizes, strict=True)]
        best = best_by_trying_all(scores, budget, members, least)
        before = choose_highest(scores, budget)
        if best is None:
            infeasible += 1
            with pytest.raises(StudyError, match="lower"):
                apply_quotas(before, groups, quotas)
            continue
        after = apply_quotas(before, groups, quotas)
        assert len(after.rows) == len(set(after.rows)) == budget
        assert (np.diff(after.rows) > 0).all()
        assert (members[:, after.rows].sum(axis=1) >= least).all()
        changed += list(after.rows) != list(before.rows)
        if not overlapping:
            assert scores[after.rows].sum() == pytest.approx(best)
    assert infeasible > 5
    assert changed > 20


def test_quotas_that_single_swaps_do_not_reach():
    # Two kept pairs must be two women and two from the west: only rows 4 and 5 are both, but row 2 has more score.
    women, west = [0, 0, 1, 0, 1, 1], [0, 0, 0, 1, 1, 1]
    choice = apply([9, 8, 7, 6, 1, 0], 2, ["sex=F:0.6", "source=west:0.6"], sex_F=women, source_west=west)
    assert list(choice.rows) == [4, 5]


def test_quotas_that_cannot_be_met_are_one_sentence():
    women = [1, 1, 1, 0, 0, 0]
    with pytest.raises(StudyError, match="asks for 3 of 3 pairs at a budget of 2: lower it or raise the budget"):
        apply(np.arange(6), 2, ["sex=F:1"], sex_F=women)
    with pytest.raises(StudyError, match=r"no 3 pairs meet the group quotas sex=F:0.6, sex=M:0.6 together"):
        apply(np.arange(6), 3, ["sex=F:0.6", "sex=M:0.6"], sex_F=women, sex_M=np.logical_not(women))
    with pytest.raises(StudyError, match="groups of 5 pairs"):
        apply(np.arange(6), 3, ["sex=F:0.6"], sex_F=women[:5])


def make_table():
    return pd.DataFrame(
        {
            "image_id": list("abcd"),
            "sex": ["F", "M", "unknown", "F"],
            "age_years": np.array([17, 85, np.nan, 60], np.float32),
            "report_origin": ["written", "template", "written", "written"],
            "Mass": pd.array([1, 0, -1, None], dtype="Int8"),
            "hospital": ["east", "west", None, "east"],
            "scanner": [3, 5, 3, 3],
        }
    )


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("sex=F:1", "ad"),
        ("age=80+:1", "b"),
        ("age=60-79:1", "d"),
        ("finding=Mass:1", "a"),
        ("tier=head:1", "a"),
        ("report=template:1", "b"),
        ("hospital=east:1", "ad"),
        ("scanner=5:1", "b"),
        ("Mass=0:1", "b"),
    ],
)
def test_groups_of_a_table(text, rows):
    quota = parse_quota(text)
    members = find_members(make_table(), quota.kind, quota.group)
    assert "".join(make_table().image_id[members]) == rows


@pytest.mark.parametrize(
    ("kind", "group", "sentence"),
    [
        ("gender", "F", "no group by 'gender': take finding, tier, sex, age, report, or a column"),
        ("sex", "X", "no pair has sex=X: sex is one of F, M"),
        ("age", "18-39", "no pair has age=18-39: age is one of 0-17, 60-79, 80"),
    ],
)
def test_wrong_columns_and_values_are_one_sentence(kind, group, sentence):
    with pytest.raises(StudyError, match=sentence):
        find_members(make_table(), kind, group)


def test_messages_show_no_patients_and_no_texts():
    table = make_table().assign(patient_id=["secret1", "secret2", "secret3", "secret4"], note="secret " * 20)
    for kind in ("patient_id", "note"):
        with pytest.raises(StudyError) as refusal:
            find_members(table, kind, "x")
        assert "secret" not in str(refusal.value)
    with pytest.raises(StudyError, match="none of the 30 values of ward is this"):
        find_members(pd.DataFrame({"ward": [f"w{n}" for n in range(30)]}), "ward", "x")
