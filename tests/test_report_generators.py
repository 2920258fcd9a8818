"""Generators of reports: the nearest report, told labels, and the signature they share."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional

from chexstudy.cohort.pseudo_reports import template_report
from chexstudy.encoders.build import build_image_encoder
from chexstudy.encoders.spec import EncoderSpec
from chexstudy.encoders.tokenizer import train_byte_pairs
from chexstudy.errors import StudyError
from chexstudy.evaluation.context import Evaluation
from chexstudy.evaluation.report_generation import alignment, language_model
from chexstudy.evaluation.report_generation.alignment import (
    FAITHFUL,
    AlignedModel,
    LanguageModelPlan,
    train_aligned_model,
)
from chexstudy.evaluation.report_generation.generators import (
    GeneratorSettings,
    choose_f1_thresholds,
    choose_medoid,
    fit_generator,
    list_training_reports,
)
from chexstudy.evaluation.report_generation.language_model import Stage, load_language_model
from chexstudy.runs import Run

pytestmark = pytest.mark.usefixtures("one_thread")
FINDINGS = ["No Finding", "Edema", "Mass", "Hernia"]


class PlaneArm:
    """An arm whose features are the first two pixels of an image, and whose texts lie where a table says."""

    def __init__(self, cohort, pixels, places=None):
        images = dict(zip(cohort.image_id, pixels, strict=True))
        store = SimpleNamespace(read=lambda ids: np.stack([images[one] for one in ids]))
        self.evaluation = Evaluation(None, cohort, store)
        self.encoder = lambda batch: batch[:, 0, 0, :2].float()
        self.model = SimpleNamespace(image_tower=SimpleNamespace(project=lambda features: features.flip(1)))
        self._places = places

    def embed(self, rows):
        return self.evaluation.store.read(rows.image_id)[:, 0, :2].astype(np.float32)

    def encode_texts(self, texts):
        return np.array([self._places[text] for text in texts], dtype=np.float32)


def make_cohort(splits, reports, patients=None, **labels):
    count = len(splits)
    table = {
        "image_id": [f"x/{number}" for number in range(count)],
        "patient_id": patients or [f"x/p{number}" for number in range(count)],
        "source": "x",
        "split": splits,
        "report": reports,
    }
    columns = {name: pd.array(values, dtype="Int8") for name, values in labels.items()}
    return pd.DataFrame(table | columns)


def lay_out(points):
    pixels = np.zeros((len(points), 4, 4), dtype=np.uint8)
    pixels[:, 0, :2] = points
    return pixels


# --- the nearest report -----------------------------------------------------------------------------------------------

TEXTS = ["Heart large.", "Lungs clear.", "Lungs clear.", "", "Left effusion.", "Asked.", "Asked too."]
POINTS = [(100, 0), (0, 100), (50, 55), (100, 1), (90, 30), (100, 2), (1, 100)]


def make_plane():
    cohort = make_cohort(["train"] * 5 + ["test"] * 2, TEXTS, ["x/a", "x/b", "x/c", "x/d", "x/e", "x/f", "x/g"])
    places = {"Heart large.": (1, 0), "Lungs clear.": (0, 1), "Left effusion.": (1, 1)}
    return PlaneArm(cohort, lay_out(POINTS), places)


def test_the_nearest_report_on_a_plane():
    arm = make_plane()
    nearest = fit_generator("nearest_image", arm, arm.evaluation)
    # The image at (100, 1) is nearer, but has no report.
    assert nearest.generate(["x/6", "x/5"]) == ["Lungs clear.", "Heart large."]
    # The projection turns the plane, so that an image finds what is written at right angles to it.
    by_text = fit_generator("nearest_text", arm, arm.evaluation)
    assert by_text.generate(["x/5", "x/6"]) == ["Lungs clear.", "Heart large."]
    # Other pixels in the place of the images: what is looked at decides.
    assert nearest.generate(["x/6", "x/5"], pixels=lay_out([(90, 29), (0, 9)])) == ["Left effusion.", "Lungs clear."]


def test_no_report_of_the_same_patient_is_copied():
    arm = make_plane()
    nearest = fit_generator("nearest_image", arm, arm.evaluation)
    assert nearest.generate(["x/0", "x/1"]) == ["Left effusion.", "Lungs clear."]
    arm.evaluation.cohort["patient_id"] = ["x/a", "x/b", "x/b", "x/d", "x/a", "x/f", "x/g"]
    nearest = fit_generator("nearest_image", arm, arm.evaluation)
    assert nearest.generate(["x/0", "x/1"]) == ["Lungs clear.", "Left effusion."]


def test_the_medoid_shares_most_words():
    assert choose_medoid(["a b", "c d", "a b c", "x"]) == "a b c"
    assert choose_medoid(["a", "b"]) == "a"
    arm = make_plane()
    assert fit_generator("nearest_image", arm, arm.evaluation).generate(["x/5"]) == ["Heart large."]
    assert fit_generator("medoid_image", arm, arm.evaluation).generate(["x/5"]) == ["Lungs clear."]


# --- told labels ------------------------------------------------------------------------------------------------------


def make_labelled(count=200):
    """Edema is where the first number is high, a mass where the second is; every case knows neither or both."""
    rng = np.random.default_rng(0)
    points = rng.integers(0, 250, (count, 2))
    edema, mass = (points > 125).T.astype(int)
    splits = [("train", "train", "validate", "test")[number % 4] for number in range(count)]
    labels = {"No Finding": 1 - (edema | mass), "Edema": edema, "Mass": mass, "Hernia": np.zeros(count)}
    cohort = make_cohort(splits, ["Some four words here."] * count, **labels)
    return PlaneArm(cohort, lay_out(points)), cohort


def test_composed_reports_tell_the_labels_of_the_image():
    arm, cohort = make_labelled()
    generator = fit_generator("composition", arm, arm.evaluation, seed=3)
    test = cohort[cohort.split == "test"]
    texts = generator.generate(test.image_id.tolist())
    told = pd.DataFrame({name: [name.lower() in text.lower() for text in texts] for name in FINDINGS[1:]})
    assert (told.Edema.to_numpy() == (test.Edema == 1)).mean() > 0.9
    assert (told.Mass.to_numpy() == (test.Mass == 1)).mean() > 0.9
    # No training image has a hernia, so that nothing is said of it; and of a clear image there is one sentence.
    assert not told.Hernia.any()
    clear = int(np.flatnonzero((test["No Finding"] == 1) & ~told.any(axis=1).to_numpy())[0])
    assert texts[clear] == template_report({"No Finding": 1}, test.image_id.iloc[clear], 3)


def test_the_threshold_with_the_best_f1():
    scores = np.array([[0.9, 5, np.nan], [0.8, 5, np.nan], [0.7, 5, np.nan], [0.1, 5, np.nan], [0.0, 9, np.nan]])
    labels = np.array([[1, 1, 1], [0, 0, 0], [1, 1, 1], [0, 1, 1], [-1, np.nan, 1.0]])
    # By hand: F1 at 0.9 is 2/3, at 0.8 1/2, at 0.7 4/5, at 0.1 2/3. Scores alike are called present together.
    np.testing.assert_array_equal(choose_f1_thresholds(scores, labels), [0.7, 5, np.nan])
    assert np.isnan(choose_f1_thresholds(scores, np.zeros((5, 3)))).all()


# --- a language model -------------------------------------------------------------------------------------------------

SENTENCES = ("The heart is large.", "Lungs are clear.", "There is fluid on the left.", "A mass lies on the right.")
QUICK = LanguageModelPlan(
    visual_tokens=4,
    writing=Stage(1, 3e-3, 32, least_steps=60),
    alignment=Stage(1, 1e-2, 32),
    tuning=Stage(1, 3e-3, 32, least_steps=120),
    max_tokens=24,
)


class Quarters:
    """An encoder whose four patches are the quarters of an image."""

    def eval(self):
        return self

    def block_widths(self):
        return (3,)

    def embed_layer(self, pixels, layer, normalise):
        means = functional.avg_pool2d(pixels.float() / 255, 2).flatten(1).unsqueeze(2)
        return torch.cat([means, means**2, 1 - means], dim=2)


def make_toy(name="toy", count=160):
    """An arm, its cohort of images with one bright quarter each, and which; the report says which in its sentence."""
    rng = np.random.default_rng(1)
    quarter = rng.integers(0, 4, count)
    pixels = rng.integers(0, 60, (count, 4, 4)).astype(np.uint8)
    for image, (row, column) in zip(pixels, zip(*np.divmod(quarter, 2), strict=True), strict=True):
        image[2 * row : 2 * row + 2, 2 * column : 2 * column + 2] += 150
    splits = [("train", "train", "train", "test")[number % 4] for number in range(count)]
    cohort = make_cohort(splits, [SENTENCES[one] for one in quarter])
    arm = PlaneArm(cohort, pixels)
    arm.evaluation = replace(arm.evaluation, run=Run(name))
    arm.encoder, arm.name, arm.seed, arm.inputs, arm.parameters = Quarters(), "full", 0, (), {}
    return arm, cohort[cohort.split == "test"]


def fit_toy(arm, plan=QUICK):
    return fit_generator("language_model", arm, arm.evaluation, GeneratorSettings(plan=plan), seed=0)


def make_aligned(folder=None, **changes):
    """A language model that has learnt nothing, with a projector."""
    tokenizer = train_byte_pairs(SENTENCES)
    model = load_language_model(str(folder)) if folder else language_model._make_tiny_model(tokenizer, 0)
    return AlignedModel(model, (4, 3), replace(QUICK, **changes), seed=0).eval()


def save_checkpoint(folder, kind):
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    tokenizer = train_byte_pairs(SENTENCES)
    shared = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2}
    if kind == "llama":
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(**shared, **sizes))
    else:
        model = GPT2LMHeadModel(GPT2Config(**shared, n_embd=16, n_layer=2, n_head=2))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_toy_is_learnt_from_the_images_and_not_from_blank_ones(home):
    arm, test = make_toy()
    generator = fit_toy(arm)
    ids, wanted = test.image_id.tolist(), test.report.tolist()
    written = generator.generate(ids)
    assert np.mean([one == other for one, other in zip(written, wanted, strict=True)]) > 0.9
    blank = generator.generate(ids, pixels=np.full((len(ids), 4, 4), 40, np.uint8))
    assert len(set(blank)) == 1
    assert generator.generate(ids[::-1], pixels=arm.evaluation.store.read(ids)) == written
    kept = arm.evaluation.run.path("report_models").rglob("*.json")
    costs = {path.stem: json.loads(path.read_bytes()) for path in kept}
    assert (costs["alignment"]["steps"], costs["tuning"]["steps"]) == (4, 120)
    assert costs["alignment"]["texts_seen"] == 120
    # Read from the study, it writes the same.
    assert fit_toy(arm).generate(ids) == written


def test_a_killed_training_goes_on_with_the_stage_it_was_in(home, monkeypatch):
    quick = replace(QUICK, writing=Stage(1, 3e-3), tuning=Stage(1, 3e-3))
    whole = fit_toy(make_toy("whole")[0], quick)
    stages, train_stage = [], alignment.train_stage

    def die_in_tuning(*arguments):
        stages.append(arguments[5])
        if len(stages) == 3:
            raise KeyboardInterrupt
        return train_stage(*arguments)

    for module in (alignment, language_model):
        monkeypatch.setattr(module, "train_stage", die_in_tuning)
    arm, _ = make_toy("killed")
    with pytest.raises(KeyboardInterrupt):
        fit_toy(arm, quick)
    resumed = fit_toy(arm, quick)
    assert stages == ["learning to write", "aligning image and language", *["learning to report"] * 2]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_reports_depend_neither_on_their_batch_nor_on_the_cache(home):
    model = make_aligned()
    with torch.no_grad():
        # So that what it writes is as different as what it sees.
        for weight in model.parameters():
            weight.mul_(8)
    patches = torch.randn(7, 4, 3, generator=torch.Generator().manual_seed(0)).half()
    indications = ["", "cough", "", "fever and cough", "cough", "", "pain"]
    frames = [model.frame(one) for one in indications]
    written = model.write(patches, frames)
    assert len(set(written)) > 1
    alone = [model.write(patches[row : row + 1], frames[row : row + 1])[0] for row in range(7)]
    assert alone == written
    seen = torch.cat([model.see(patches[:3], []), model.language_model.embed(torch.ones(3, 1, dtype=torch.long))], 1)
    with_cache, without = (model.language_model.write(seen, 24, use_cache=use) for use in (True, False))
    assert with_cache == without


def test_the_loss_is_that_of_the_answers_alone(home):
    model = make_aligned()
    patches = torch.randn(3, 4, 3)
    answers = [[5, 6, 7, 2], [9, 2], [5, 2]]
    frames = [([], [1]), ([], [1, 30, 31]), ([], [1, 40])]
    loss = model.sum_loss(patches, frames, answers)
    expected = 0.0
    for row, ((_, given), answer) in enumerate(zip(frames, answers, strict=True)):
        text = torch.tensor([given + answer])
        context = torch.cat([model.see(patches[row : row + 1], []), model.language_model.embed(text)], dim=1)
        told = model.language_model.model(inputs_embeds=context).logits[0].log_softmax(-1)
        expected -= sum(told[4 + len(given) + place - 1, token] for place, token in enumerate(answer))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)


def test_low_rank_updates_are_of_the_blocks_of_the_language_model_alone(home, tmp_path):
    for kind, layers in (("llama", 7), ("gpt2", 4)):
        arm, _ = make_toy(kind)
        plan = replace(FAITHFUL, model=str(save_checkpoint(tmp_path / kind, kind)), layer=-1, rank=2, max_tokens=8)
        plan = replace(plan, alignment=Stage(0, 1e-3), tuning=Stage(0.1, 1e-3))
        before = load_language_model(plan.model).model.state_dict()
        model = train_aligned_model(arm, list_training_reports(arm.evaluation), plan, 0)
        trained = {name for name, value in model.named_parameters() if value.requires_grad}
        updates = {name for name in trained if "lora_" in name}
        assert len(updates) == 2 * 2 * layers
        assert not any("lm_head" in name or "projector" in name for name in updates)
        assert trained - updates == {f"projector.{place}.{part}" for place in (0, 2) for part in ("weight", "bias")}
        after = {
            name.replace(".base_layer", ""): value for name, value in model.language_model.model.state_dict().items()
        }
        assert all(torch.equal(after[name], value) for name, value in before.items())
        assert len(fit_toy(arm, plan).generate(["x/3", "x/7"])) == 2


def test_the_question_is_asked_with_and_without_an_indication(home, tmp_path):
    model = make_aligned(save_checkpoint(tmp_path / "llama", "llama"), system="Be kind.", question="Describe it")
    decode = model.language_model.tokenizer.decode
    before, after = model.frame("cough\nand fever")
    assert decode(before) == "<s>Be kind. USER: "
    assert decode(after) == "\nDescribe it given the following indication: cough and fever ASSISTANT: "
    assert decode(model.frame("")[1]) == "\nDescribe it. ASSISTANT: "
    assert model.frame("cough", plain=True) == ([1], [])
    tiny = make_aligned()
    assert tiny.frame("") == tiny.frame("cough", plain=True) == ([], [1])
    assert decode(tiny.frame("cough")[1]) == "<s>cough\n"


@pytest.mark.parametrize(("name", "grid"), [("tiny-resnet", 6), ("tiny-dinov2", 12)])
def test_patches_leave_the_last_block_but_one(name, grid):
    encoder = build_image_encoder(EncoderSpec(name))
    pixels = torch.randint(0, 255, (2, 1, 96, 96), dtype=torch.uint8)
    with torch.no_grad():
        states = encoder._run(pixels, 96, output_hidden_states=True).hidden_states
        patches = encoder.embed_layer(pixels)
    last_but_one = states[-2].flatten(2).transpose(1, 2) if name == "tiny-resnet" else states[-2][:, -grid * grid :]
    assert torch.equal(patches, last_but_one)
    assert patches.shape[1] == grid**2
    seen = alignment.read_patches(encoder, pixels[:, 0].numpy(), QUICK)
    assert seen.shape == (2, min(grid**2, 4), encoder.block_widths()[-1])
    with pytest.raises(StudyError, match="a layer is -1 to -4"):
        encoder.embed_layer(pixels, -5)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda arm: fit_generator("poet", arm, arm.evaluation), "there is no generator 'poet'"),
        (lambda arm: fit_generator("nearest_image", arm, arm.evaluation).generate(["x/5"], ["a", "b"]), "1 images and"),
        (lambda arm: fit_generator("composition", arm, arm.evaluation), "a validation split"),
        (lambda arm: LanguageModelPlan(visual_tokens=10), "a square grid: give 0, 1, 4"),
        (lambda arm: LanguageModelPlan(rank=-1), "rank is 0 or more"),
        (lambda arm: make_aligned(max_tokens=1000), "reads 1024 tokens, too few for 4 of an image"),
        (lambda arm: Stage(-1, 1e-3), "epochs of 0 or more"),
        (lambda arm: load_language_model("nobody/writes@1"), "neither a folder nor in the Hugging Face cache"),
        (
            lambda arm: fit_generator("nearest_image", arm, Evaluation(None, arm.evaluation.cohort[5:], None)),
            "no training image has a report",
        ),
    ],
)
def test_mistakes_get_a_sentence(home, act, sentence):
    with pytest.raises(StudyError, match=sentence):
        act(make_plane())


def test_no_images_give_no_reports():
    arm = make_plane()
    assert fit_generator("nearest_image", arm, arm.evaluation).generate([]) == []
