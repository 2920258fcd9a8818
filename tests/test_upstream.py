"""The pretrained start: what is committed, how it is made, and that no study tests on whom it has seen."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_arms import break_off, tiny_config, train_arm

from chexstudy.cli.main import main
from chexstudy.cohort.build import build_cohort
from chexstudy.cohort.phantom.plan import UPSTREAM_SEED, UPSTREAM_STUDY, PhantomConfig
from chexstudy.cohort.table import read_cohort
from chexstudy.encoders.build import build_image_encoder, build_text_encoder
from chexstudy.encoders.frozen_features import FrozenFeatures
from chexstudy.encoders.spec import EncoderSpec
from chexstudy.encoders.upstream_encoders import FOLDER, IMAGE, PAIR, TEXT
from chexstudy.errors import StudyError
from chexstudy.evaluation.context import Evaluation, tell_exposure
from chexstudy.experiments import upstream
from chexstudy.experiments.pretrained_starts import PATCH_PROBE, PROBE, SECONDS, SMALL, probe_patches
from chexstudy.pretraining.models.dual_encoder import load_model
from chexstudy.runs import Run
from chexstudy.statistics.ranking import auroc

pytestmark = pytest.mark.usefixtures("one_thread")
_MOST_BYTES = 8 * 2**20


def test_committed_encoders_load_by_name_and_are_small():
    texts = ["The heart is large.", "There is a left pleural effusion."]
    for name in (IMAGE, f"{PAIR}-image"):
        pixels = torch.randint(256, (2, 1, 96, 96), dtype=torch.uint8)
        assert build_image_encoder(EncoderSpec(name))(pixels).isfinite().all()
    for name in (TEXT, f"{PAIR}-text"):
        encoder = build_text_encoder(EncoderSpec(name))
        assert encoder(**encoder.tokenize(texts)).isfinite().all()
        assert encoder.origin["name"] == name
        # Words of drawn reports are words of its vocabulary.
        assert encoder.tokenizer.tokenize(texts[1]) == ["there", "is", "a", "left", "pleural", "effusion", "."]
    assert all(file.stat().st_size < _MOST_BYTES for file in FOLDER.glob("**/*.safetensors"))
    pair = load_model(FOLDER / "pair")
    with torch.no_grad():
        assert pair.text_tower(**pair.text_tower.tokenize(texts)).norm(dim=1) == pytest.approx(1, abs=1e-5)


def test_arms_that_start_from_them_have_not_seen_the_held_out_patients(tiny_study):
    config = tiny_config(image_encoder=IMAGE, text_encoder=TEXT, warm_up_epochs=0)
    train_arm(tiny_study, "full", config)
    evaluation = Evaluation(tiny_study, read_cohort(tiny_study.path("cohort.parquet")), None)
    assert tell_exposure(evaluation, "full", 0, "tiny/test") == "held_out"
    assert tell_exposure(evaluation, "full", 0, "tiny/train") == "seen"


def test_no_other_study_draws_the_patients_that_they_learned_from(home):
    for study, seed in (("mine", UPSTREAM_SEED), (UPSTREAM_STUDY, 0)):
        with pytest.raises(StudyError, match="are those of the study 'upstream'"):
            build_cohort(Run(study), "phantom", "", 36, "pad", 0, PhantomConfig(60, 36, seed))


def test_they_are_made_compared_and_written_anew(home, monkeypatch, tmp_path, capsys):
    few = upstream.Recipe(pairs=300, pair_epochs=1, text_epochs=1, image_epochs=1, supervised_epochs=1)
    monkeypatch.setattr(upstream, "QUICK", few)
    asked = ["upstream", "--quick", "--quiet", "--device", "cpu", "--workers", "1", "--out", str(tmp_path / "made")]
    assert main([*asked, "--start", "labels"]) == 2
    assert "the start must be one of contrastive, self_supervised, supervised" in capsys.readouterr().err
    assert main(asked) == 0
    table = pd.read_csv(tmp_path / "made/starts.csv")
    assert set(table.start) == {"contrastive", "self_supervised", "supervised", "untrained"}
    assert set(table.measure) == {PROBE, PATCH_PROBE, SECONDS}
    macro = table[(table.measure == PROBE) & (table.finding == "macro")]
    assert len(macro) == 5
    assert (macro.ci_low <= macro.value).all()
    assert len(table[(table.measure == PATCH_PROBE) & (table.finding == SMALL)]) == 5
    card = (tmp_path / "made/README.md").read_text()
    assert "chexstudy upstream --quick" in card
    assert card.count("| tiny-dinov2 |") == 2
    best = macro[macro.start != "untrained"].sort_values("value").iloc[-1]
    assert f"| {best.architecture}, {best.start.replace('_', '-')}:" in card
    written = build_image_encoder(EncoderSpec(str(tmp_path / "made/image")))
    assert written.origin["name"] == IMAGE
    load_model(tmp_path / "made/pair")


def test_a_patch_probe_learns_what_a_lesion_looks_like_and_finds_it_anywhere():
    rng = np.random.default_rng(0)
    images, grid = 60, 4
    rows = pd.DataFrame({"image_id": [f"i{number}" for number in range(images)], "Nodule": np.arange(images) % 2})
    patches = rng.normal(size=(images, grid**2, 3)).astype(np.float16)
    masks = np.zeros((images, 8, 8), dtype=bool)
    for number in np.flatnonzero(rows.Nodule):
        place = rng.integers(grid**2)
        patches[number, place] = (6, 0, 0)
        # A pixel of four: the patch that is covered most counts.
        masks[number, 2 * (place // grid), 2 * (place % grid)] = True
    table = rows[rows.Nodule == 1].assign(finding="Nodule", mask=list(masks[rows.Nodule == 1]))
    vectors = patches.mean(axis=1).astype(np.float32)
    features = FrozenFeatures(rows.image_id.tolist(), vectors, vectors, vectors, patches, (3,), grid, {})
    halves = rows.iloc[:20], rows.iloc[20:40]
    parts = [(one, table[table.image_id.isin(one.image_id)]) for one in halves]
    judges = rows.iloc[40:]
    scores = probe_patches(features, "Nodule", parts, judges)
    assert auroc(judges[["Nodule"]].to_numpy(float), scores[:, None]) == 1
    # Where nobody shows it, nothing is learned, and that is told as not predicted.
    assert np.isnan(probe_patches(features, "Nodule", [(parts[0][0], table.iloc[:0]), parts[1]], judges)).all()


@pytest.mark.slow
def test_the_first_steps_are_those_of_the_committed_encoders(home, monkeypatch):
    recorded, recipe, run = json.loads((FOLDER / "first_losses.json").read_text()), upstream.COMMITTED, Run("upstream")
    phantom = PhantomConfig(recipe.pairs, 96, UPSTREAM_SEED)
    build_cohort(run, "phantom", "", 96, "pad", UPSTREAM_SEED, phantom)
    for arm, config in recipe.configure().items():
        seen = []

        def has_begun(trainer, seen=seen):
            seen[:] = [entry["loss"] for entry in trainer.history]
            return trainer.step == 3

        break_off(monkeypatch, run, arm, config, has_begun)
        assert seen == pytest.approx(recorded[arm], rel=1e-3)
