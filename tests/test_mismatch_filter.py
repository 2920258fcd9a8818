"""The mismatch filter: ranks worked out by hand, when it abstains, where it cuts, and what `filtered` does with it."""

import re

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from chexstudy.cli.main import main
from chexstudy.curation.embeddings.files import PROVENANCE
from chexstudy.curation.embeddings.group_quotas import GroupQuota, apply_quotas
from chexstudy.curation.methods import choose_subset
from chexstudy.curation.online.configuration import CuratorConfig
from chexstudy.curation.online.curators import build_curator
from chexstudy.curation.online.decisions import MISMATCHED, Reason
from chexstudy.curation.online.mismatch_filter import judge_filter, rank_pairs
from chexstudy.curation.online.streaming import curate_stream
from chexstudy.curation.records.explain import explain_pair
from chexstudy.curation.records.ledger import summarise_bands
from chexstudy.errors import StudyError
from chexstudy.pretraining.configuration import PretrainingConfig

IMAGES = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0.6, 0.8]])
TEXTS = torch.tensor([[4.0, 3], [-3, 4], [3, 4], [4, 3]])


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_pool(pairs: int = 960, wrong: float = 0.1, noise: float = 0.7, seed: int = 0):
    """Image and text embeddings that share a latent, and which pairs carry another's text."""
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(pairs, 16))
    image, text = (latent + noise * rng.normal(size=latent.shape) for _ in range(2))
    swapped = np.sort(rng.choice(pairs, round(wrong * pairs), replace=False))
    text[swapped] = text[np.roll(swapped, 1)]
    return *[(one / np.linalg.norm(one, axis=1, keepdims=True)).astype(np.float32) for one in (image, text)], swapped


def choose(budget, image, text, seed=0, **options):
    features = (np.hstack([image, text]) / np.sqrt(2)).astype(np.float32)
    return choose_subset("filtered", features, budget, draw(seed), image=image, text=text, **options)


# --- ranks and verdict ------------------------------------------------------------------------------------------------


def test_ranks_are_those_worked_out_by_hand():
    # Cosines, a row an image: [.8 -.6 .6], [.6 .8 .8], [-.8 .6 -.6]. The second image has two texts that fit alike; the
    # third text fits its own image worst of all.
    matched, shuffled = rank_pairs(IMAGES[:3], TEXTS[:3])
    assert matched.tolist() == [1, 0.75, 0]
    # Images with the third, the first and the second text, each beside the one pair that has a part in neither.
    assert shuffled.tolist() == [0, 0, 1]


def test_pairs_with_identical_reports_are_no_rivals():
    # The fourth image fits the first text better than the first image does, and its text is the same.
    matched, shuffled = rank_pairs(IMAGES, TEXTS)
    assert matched[0] == 1
    assert shuffled.isnan().tolist() == [True, False, False, False]
    other = TEXTS.clone()
    other[3] = torch.tensor([4.0, 3.1])
    assert rank_pairs(IMAGES, other)[0][0] < 1


def test_ranks_do_not_depend_on_scale_or_on_the_order_of_the_batch():
    image, text, _ = (torch.from_numpy(one) for one in make_pool(480))
    matched, _ = rank_pairs(image, text)
    scaled, _ = rank_pairs(image * 37.3, text * torch.linspace(0.1, 9, 480).unsqueeze(1))
    order = torch.randperm(480, generator=draw())
    moved, _ = rank_pairs(image[order], text[order])
    # Rounding may let two rivals that fit alike change places.
    assert (scaled - matched).abs().max() <= 2 / 479
    assert (moved - matched[order]).abs().max() <= 2 / 479


def test_verdict_is_that_worked_out_by_hand():
    verdict = judge_filter(np.repeat([0.1, 0.8, 0.8, 0.9], 50), np.repeat([0.1, 0.2, 0.3, 0.8], 50))
    # 0.1 beats none and ties with a quarter, 0.8 beats three and ties with one, 0.9 beats all.
    assert verdict.area == pytest.approx((0.125 + 0.875 + 0.875 + 1) / 4)
    # From 0.8 on pass three quarters of the matched and one quarter of the shuffled: nowhere is the difference larger.
    assert verdict.cut == 0.8
    assert verdict.wrong_share == 1
    assert judge_filter(np.repeat([0.8, 0.9], 50), np.repeat([0.1, 0.2, 0.3, np.nan], 50)).wrong_share == 0


@pytest.mark.parametrize("pairs", [1, 2, 60, 960])
def test_it_abstains_where_images_and_texts_know_nothing_of_each_other(pairs):
    rng = np.random.default_rng(pairs)
    image, text = (torch.from_numpy(rng.normal(size=(pairs, 16)).astype(np.float32)) for _ in range(2))
    verdict = judge_filter(*(one.numpy() for one in rank_pairs(image, text)))
    assert verdict.abstains
    assert str(verdict).startswith("The mismatch filter abstains")
    alike = judge_filter(*(one.numpy() for one in rank_pairs(image, text[:1].repeat(pairs, 1))))
    assert alike.abstains
    assert "no two reports differ" in str(alike)


@pytest.mark.parametrize("wrong", [0.0, 0.04, 0.2])
def test_it_finds_wrong_pairs_and_tells_how_many_at_most(wrong):
    image, text, swapped = make_pool(wrong=wrong)
    matched, shuffled = (one.numpy() for one in rank_pairs(*map(torch.from_numpy, (image, text))))
    verdict = judge_filter(matched, shuffled)
    assert not verdict.abstains
    assert wrong - 0.03 < verdict.wrong_share < wrong + 0.06
    aside = matched < verdict.cut
    assert np.delete(aside, swapped).mean() < 0.15
    assert not len(swapped) or aside[swapped].mean() > 0.7


# --- the method -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["bands", "budgeted", "random", "k_centre", "density", "semdedup", "hierarchical"])
def test_what_is_set_aside_is_not_chosen_while_enough_pass(rule):
    image, text, swapped = make_pool()
    choice = choose(200, image, text, rule=rule, strength="0.3")
    assert choice.note.endswith("288 of 960 pairs were set aside.")
    assert np.isin(choice.rows, swapped).mean() < 0.03
    assert (choice.scores < 0).sum() == 288
    assert choice.scores[swapped].mean() < 0


def test_the_next_best_ranks_fill_a_budget_that_fewer_pass_than_it_asks_for():
    image, text, swapped = make_pool()
    choice, larger = (choose(budget, image, text, strength="0.5") for budget in (480, 600))
    assert "fill" not in choice.note
    assert larger.note.endswith("Only 480 pass: the 120 of the next best rank fill the budget.")
    assert len(larger.rows) == 600
    assert set(choice.rows) < set(larger.rows)
    assert len(choose(960, image, text).rows) == 960
    assert np.isin(larger.rows, swapped).mean() < 0.03


def test_while_it_abstains_nothing_is_set_aside():
    image, text, _ = make_pool()
    choice = choose(200, image, text[::-1].copy(), strength="0.9")
    assert choice.note.startswith("The mismatch filter abstains")
    assert len(choice.rows) == 200
    assert choice.scores.min() >= 0


def test_equal_reports_make_it_abstain_and_say_so():
    image, text, _ = make_pool(480)
    choice = choose(100, image, np.tile(text[:1], (480, 1)))
    assert "abstains: matched pairs are not clearly told from shuffled ones (no two reports differ" in choice.note
    assert len(choice.rows) == 100
    assert not choice.set_aside.any()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"text": None}, "method filtered needs text embeddings"),
        ({"text": np.full((480, 16), np.nan, np.float32)}, "text holds values that are not finite: leave those pairs"),
        ({"text": np.ones((480, 9), np.float32)}, "image and text, of 16 and 9 numbers: give embeddings of one joint"),
        ({"text": np.ones((479, 16), np.float32)}, "one embedding for each of the 480 pairs"),
        ({"budget": 481}, "from 1 to 480, not 481"),
    ],
)
def test_the_function_refuses_bad_input_in_one_sentence(changes, complaint):
    image, text, _ = make_pool(480)
    features = (np.hstack([image, text]) / np.sqrt(2)).astype(np.float32)
    given = {"budget": 100, "generator": draw(), "image": image, "text": text} | changes
    with pytest.raises(StudyError, match=complaint) as refused:
        choose_subset("filtered", features, **given)
    assert str(refused.value).count(". ") == 0


def test_a_quota_takes_those_that_pass_first_and_then_the_best_ranks():
    image, text, swapped = make_pool()
    choice = choose(200, image, text, strength="0.3")
    assert choice.set_aside.sum() == 288
    members = np.zeros(960, bool)
    members[swapped] = True
    members[np.flatnonzero(~choice.set_aside)[:40]] = True
    passing = members & ~choice.set_aside
    quota = GroupQuota("kind", "group", (passing.sum() + 5) / members.sum())
    held = apply_quotas(choice, {quota.name: members}, [quota])
    assert len(held.rows) == 200
    assert np.isin(np.flatnonzero(passing), held.rows).all()
    # Five more are needed, and they are the five best of those set aside.
    back = held.rows[choice.set_aside[held.rows]]
    assert set(back) == set(sorted(np.flatnonzero(members & choice.set_aside), key=lambda row: -choice.scores[row])[:5])


def test_super_batches_of_another_size_set_nearly_the_same_pairs_aside():
    image, text, _ = make_pool(1920)
    aside = [choose(200, image, text, super_batch=size).scores < 0 for size in (96, 480, 1920)]
    assert (aside[0] == aside[1]).mean() > 0.93
    assert (aside[2] == aside[1]).mean() > 0.95


# --- while training ---------------------------------------------------------------------------------------------------


def curate_online(config, image, text, super_batch=240):
    joint = (np.hstack([image, text]) / np.sqrt(2)).astype(np.float32)
    return curate_stream(joint, config, draw(), super_batch).set_index("row").sort_index()


@pytest.mark.parametrize("rule", ["published", "budgeted"])
def test_online_it_is_one_more_band_before_the_rule(rule, capsys):
    image, text, swapped = make_pool()
    config = CuratorConfig(rule=rule, mismatch_filter=True, budget=0.25)
    decisions = curate_online(config, image, text)
    aside = decisions.band == "mismatched"
    assert aside.loc[swapped].mean() > 0.7
    assert aside.drop(swapped).mean() < 0.15
    assert not decisions.kept[aside].any()
    assert set(decisions.reason[aside]) == {Reason.MISMATCHED.words}
    # A pair set aside has its nearest prototype, but no band of it.
    assert decisions[aside].distance.between(0.01, 2).all()
    assert decisions[aside].threshold_support.isna().all()
    assert decisions[~aside].threshold_support.notna().all()
    assert rule == "published" or decisions.kept.sum() == 240
    # The verdict is told when it changes, not with every super-batch.
    assert capsys.readouterr().out.count("Super-batch 0: Matched pairs are told from shuffled ones") == 1
    ledger = decisions.reset_index().rename(columns={"row": "image_id"}).astype({"image_id": str})
    assert summarise_bands(ledger).set_index("band").loc["mismatched"].tolist() == [aside.sum(), 0]
    story = explain_pair(ledger, str(aside.idxmax()))
    assert "The mismatch filter set it aside before bands were drawn." in story
    assert "It was dropped: its report rather fits other images" in story


def test_online_a_budget_that_needs_them_takes_pairs_back():
    image, text, _ = make_pool(wrong=0.2)
    config = CuratorConfig(rule="budgeted", mismatch_filter=True, budget=0.9)
    decisions = curate_online(config, image, text)
    assert decisions.kept.sum() == 864
    assert 0 < (decisions.band == "mismatched").sum() <= 96


def test_online_it_can_rank_what_encoders_trained_elsewhere_say(capsys):
    image, text, swapped = (torch.from_numpy(one) for one in make_pool())
    # To the model in training images and texts know nothing of each other.
    features = torch.cat([image, text.flip(0)], dim=1) / np.sqrt(2)
    asked = []
    config = CuratorConfig(rule="budgeted", mismatch_filter=True, budget=0.25)
    curator = build_curator(config, lambda rows: asked.append(rows) or (image[rows], text[rows]))
    curator.warm_up(features, torch.arange(960))
    curator.begin_epoch(960)
    kept, selection = curator.choose(0, torch.arange(960).flip(0), features.flip(0), draw())
    assert [rows.tolist() for rows in asked] == [list(range(959, -1, -1))]
    aside = (selection.band == MISMATCHED).flip(0)
    assert aside[swapped].float().mean() > 0.7
    assert aside.float().mean() < 0.25
    assert kept.sum() == 240
    assert "Matched pairs are told from shuffled ones" in capsys.readouterr().out


def test_online_an_abstaining_filter_changes_nothing(capsys):
    image, text, _ = make_pool()
    text = text[::-1].copy()
    plain, filtered = (curate_online(CuratorConfig(mismatch_filter=on), image, text) for on in (False, True))
    pd.testing.assert_frame_equal(plain, filtered)
    assert capsys.readouterr().out.count("Super-batch 0: The mismatch filter abstains") == 1
    with pytest.raises(StudyError, match="mismatch_filter compares images with their reports"):
        PretrainingConfig(objective="self_supervised", curator=CuratorConfig(mismatch_filter=True))


# --- from files -------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image, text, _ = make_pool(480)
    np.save("I.npy", image)
    np.save("T.npy", text)
    ids = pd.DataFrame({"image_id": [f"x/{number:04d}" for number in range(480)]})
    ids.to_csv("ids.csv", index=False)
    healthy = (np.einsum("id,id->i", image, text) < 0.6) * 1.0
    reports = ["clear lungs" if number % 4 else "clear lungs and a heart of normal size" for number in range(480)]
    ids.assign(**{"No Finding": healthy, "sex": "F", "report": reports}).to_csv("table.csv", index=False)
    return healthy


def curate(*more, text=("--text", "T.npy"), keep=120):
    named = ["--embeddings", "I.npy", *text, "--ids", "ids.csv", "--out", "subset.parquet", "--keep", keep]
    return main(["curate", "--method", "filtered", "--threads", "1", *map(str, named), *map(str, more)])


def test_the_command_says_what_was_set_aside_and_keeps_the_share_of_healthy_patients_if_asked(files, capsys):
    assert curate("-p", "strength", "0.5") == 0
    shown = capsys.readouterr().out
    note = "at most"
    assert note in shown
    assert "240 of 480 pairs were set aside." in shown
    assert note in pq.read_schema("subset.parquet").metadata[PROVENANCE].decode()
    healthy = set(pd.read_csv("table.csv").query("`No Finding` == 1").image_id)
    share = files.mean()
    assert pd.read_parquet("subset.parquet").image_id.isin(healthy).mean() < share
    quota = ["--table", "table.csv", "--floor", "finding=No Finding:1x", "--report", "audit.parquet"]
    assert curate("-p", "strength", "0.5", *quota) == 0
    subset = pd.read_parquet("subset.parquet")
    assert len(subset) == 120
    assert subset.image_id.isin(healthy).mean() >= share
    # The file holds the audit of what was kept; below it, that of what was set aside is shown.
    audited = pd.read_parquet("audit.parquet").set_index("group")
    assert audited.kept["No Finding"] == subset.image_id.isin(healthy).sum()
    assert audited.n["long"] == 120
    kept, passed = capsys.readouterr().out.split("What was set aside beforehand; kept is what was not.")
    assert "120 of 480 pairs (25.0%)" in kept
    assert "240 of 480 pairs (50.0%)" in passed
    assert "report long" in passed


@pytest.mark.parametrize(
    ("more", "spoil", "complaint"),
    [
        ({"text": ()}, None, "method filtered needs text embeddings"),
        ({}, lambda text: np.tile(text[:1], (480, 1)), "T.npy have the same direction"),
        ({}, lambda text: np.where(np.arange(480)[:, None] == 7, np.nan, text), "T.npy holds NaN .* first is row 7"),
        ({}, lambda text: text[:, :9], "give embeddings of one joint space"),
        ({"keep": 481}, None, "481 pairs is more than the 480"),
        ({"options": ("--table", "table.csv", "--floor", "sex=M:0.5")}, None, "no pair has sex=M: sex is one of F"),
        (
            {"options": ("--table", "table.csv", "--floor", "sex=F:0.5")},
            *(None, "asks for 240 of 480 pairs at a budget of 120: lower it or raise the budget"),
        ),
        ({"options": ("-p", "rule", "loss")}, None, "rule must be one of bands, budgeted, .*, not 'loss'"),
        ({"options": ("-p", "strength", "half")}, None, "strength must be auto or a share .*, not 'half'"),
        ({"options": ("-p", "strength", "1")}, None, "strength must be auto or a share"),
        ({"options": ("-p", "super_batch", "1")}, None, "super_batch must be at least 2"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(files, capsys, more, spoil, complaint):
    if spoil:
        np.save("T.npy", spoil(np.load("T.npy")).astype(np.float32))
    assert curate(*more.get("options", ()), **{name: more[name] for name in more if name != "options"}) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(complaint, error)
