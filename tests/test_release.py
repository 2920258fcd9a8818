"""A released arm, read in a process that cannot import chexstudy, against the trained pair itself."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import make_tiny_study
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ResNetConfig,
    ResNetModel,
    SiglipTextConfig,
    SiglipTextModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from chexstudy.cli.main import main
from chexstudy.cohort.images.decode import decode_radiograph, fit_square, read_bytes
from chexstudy.encoders.build import build_image_encoder, build_text_encoder
from chexstudy.encoders.spec import EncoderSpec
from chexstudy.encoders.tokenizer import train_wordpiece
from chexstudy.errors import StudyError
from chexstudy.evaluation.scores import scores_artifact
from chexstudy.pretraining.arms.definitions import arm_folder
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.pretraining.models.dual_encoder import ImageTextModel, load_model, save_model
from chexstudy.pretraining.models.vocabulary import texts_to_learn_from
from chexstudy.release import export as release_module
from chexstudy.release.export import MANIFEST, release_arm
from chexstudy.release.image_processing_chexstudy import ChexstudyImageProcessor
from chexstudy.release.modeling_chexstudy import ChexstudyModel
from chexstudy.results import add_results
from chexstudy.runs import Run

TEXTS = ["No finding.", "Pleural effusion."]
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
# Wide, so that fitting it into a square matters.
PICTURE = (61, 47)


pytestmark = pytest.mark.usefixtures("one_thread")


# --- trained arms, made without training ----------------------------------------------------------------------------


def _save_arm(run, arm, image, text, fit="crop", stored_size=36, seed=0, **constants):
    """What training leaves behind, with the encoders as they are."""
    folder = arm_folder(arm, seed)
    model = ImageTextModel(image, text, dim=8, temperature=0.05, logit_scale_max=100.0, seed=3)
    config = PretrainingConfig.from_dict({"dim": 8, "logit_scale_max": 100.0, "image_size": 24} | constants)
    save_model(run.path(f"{folder}/model"), model, config)
    training = pd.read_parquet(run.path("cohort.parquet")).query("split == 'train'")
    kept = training.image_id.iloc[:20] if arm.startswith("curated") else training.image_id
    run.write_table(f"{folder}/subset.parquet", pd.DataFrame({"image_id": kept, "weight": 1.0}))
    cost = {"flops": 1.5e9, "seconds": 12.25, "device": "cpu", "precision": "float32", "threads": 1, "steps": 7}
    cost |= {"peak_memory_bytes": 2**30, "pairs_scored": 72, "pairs_trained": 92, "energy_joules": 3210.0}
    run.write_json(f"{folder}/compute.json", cost)
    parameters = {"arm": arm, "config": config.to_dict(), "seed": seed, "pixels": [stored_size, fit]}
    run.record(f"{folder}/compute.json", parameters, ("cohort.parquet",), seed)


def _tiny_text(run, **options):
    cohort = pd.read_parquet(run.path("cohort.parquet"))
    reports = texts_to_learn_from(cohort[cohort.split == "train"])
    return build_text_encoder(EncoderSpec("tiny-bert", max_tokens=32, **options), reports, seed=1)


def _save_checkpoint(folder, model, tokenizer=None):
    with torch.random.fork_rng():
        torch.manual_seed(11)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    if tokenizer:
        tokenizer.save_pretrained(folder)
    return str(folder)


def _build_pairs(run, folder):
    """Encoders of every kind: by arm, image encoder, text encoder and how pixels were stored."""
    tokenizer = train_wordpiece(pd.read_parquet(run.path("cohort.parquet")).report.tolist(), max_tokens=16)
    vision, positions = {"image_size": 24, "patch_size": 8}, {"max_position_embeddings": 16}
    words = {"vocab_size": len(tokenizer), **positions}
    special = {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id, "pad_token_id": 0}
    models = {
        "dinov2": Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SMALL, **vision, num_register_tokens=2)),
        "bert": BertModel(BertConfig(**SMALL, **words), add_pooling_layer=False),
        "resnet": ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])),
        "clip": CLIPVisionModelWithProjection(CLIPVisionConfig(**SMALL, **vision, projection_dim=12)),
        "clip_text": CLIPTextModelWithProjection(CLIPTextConfig(**SMALL, **words, **special, projection_dim=12)),
        "siglip": SiglipVisionModel(SiglipVisionConfig(**SMALL, **vision)),
        "siglip_text": SiglipTextModel(SiglipTextConfig(**SMALL, **words, **special)),
    }
    # Statistics as a pretrained network has them.
    for module in models["resnet"].modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.fill_(2.0)
    paths = {
        name: _save_checkpoint(folder / name, model, tokenizer if "text" in name or name == "bert" else None)
        for name, model in models.items()
    }

    def image(name, **options):
        return build_image_encoder(EncoderSpec(paths.get(name, name), image_size=24, **options), seed=1)

    def text(name, **options):
        return build_text_encoder(EncoderSpec(paths[name], max_tokens=16, **options))

    return {
        "full": (image("tiny-resnet"), _tiny_text(run), {"stored_size": 36, "fit": "pad"}),
        "curated": (image("tiny-vit"), _tiny_text(run), {"stored_size": 24, "fit": "crop"}),
        "curated.dinov2": (
            image("dinov2", pooling="cls+mean"),
            text("bert", pooling="last"),
            {"stored_size": 36, "fit": "pad", "image_encoder": paths["dinov2"], "text_encoder": paths["bert"]},
        ),
        "curated.resnet": (image("resnet"), text("bert", pooling="first"), {"stored_size": 24, "fit": "crop"}),
        "curated.clip": (image("clip"), text("clip_text"), {"stored_size": 24, "fit": "pad"}),
        "curated.siglip": (image("siglip"), text("siglip_text"), {"stored_size": 24, "fit": "pad"}),
    }


_PLAIN = ("curated", "curated.dinov2", "curated.resnet", "curated.clip", "curated.siglip")

# The process in which chexstudy cannot be imported. First what needs no code of the folder, then what does.
_READER = """
import os, re, sys, warnings

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "chexstudy":
            raise ImportError("chexstudy is not installed here")

sys.meta_path.insert(0, Block())
for name in ("torchvision",):
    sys.modules[name] = None
import torch
torch.set_num_threads(1)
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

arms, plain, texts = %s
found = {}

def run_code(arm, number):
    blocks = re.findall("```python\\n(.*?)```", open(f"{arm}/README.md").read(), flags=re.S)
    names = {}
    exec(blocks[number].replace("path/to/this/folder", arm), names)
    found[f"{arm} card {number} image"], found[f"{arm} card {number} texts"] = names["image"], names["texts"]
    return len(blocks)

for arm in plain:
    run_code(arm, 1)
assert not any(name.startswith("transformers_modules") for name in sys.modules), "code of a folder was run"
for arm in arms:
    assert run_code(arm, 0) == 1 + (arm in plain)
    processor = AutoImageProcessor.from_pretrained(arm, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(arm)
    model = AutoModel.from_pretrained(arm, trust_remote_code=True)
    again = arm + " again"
    for part in (model, processor, tokenizer):
        part.save_pretrained(again)
    reread = AutoModel.from_pretrained(again, trust_remote_code=True)
    processors = {"": processor, "again ": AutoImageProcessor.from_pretrained(again, trust_remote_code=True)}
    for time, one in (("", model), ("again ", reread)):
        pixels = processors[time](Image.open("radiograph.png"))
        tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            output = one(**pixels, **tokens)
        found[f"{arm} {time}image"], found[f"{arm} {time}texts"] = output.image_embeds, output.text_embeds
        found[f"{arm} {time}logits"] = output.logits_per_image
assert not any(name.partition(".")[0] == "chexstudy" for name in sys.modules)
save_file({name: value.detach().contiguous() for name, value in found.items()}, "found.safetensors")
"""


@dataclass
class Released:
    """Releases of every kind, and what a process without chexstudy read from them."""

    run: Run
    folder: Path
    found: dict
    differences: dict


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("released")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHEXSTUDY_HOME", str(home))
        run, differences = make_tiny_study(pairs=50), {}
        for arm, (image, text, constants) in _build_pairs(run, tmp_path_factory.mktemp("checkpoints")).items():
            _save_arm(run, arm, image, text, **constants)
            differences[arm] = release_arm(run, arm, 0, folder / arm)
        rng = np.random.default_rng(2)
        Image.fromarray(rng.integers(0, 256, PICTURE[::-1], dtype=np.uint8)).save(folder / "radiograph.png")
        program = _READER % repr((list(differences), _PLAIN, TEXTS))
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {"HF_HOME": str(home / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-1500:]
        yield Released(run, folder, load_file(folder / "found.safetensors"), differences)


@pytest.mark.parametrize("arm", ["full", *_PLAIN])
def test_fresh_process_gives_the_same_embeddings(released, arm):
    model = load_model(released.run.path(f"{arm_folder(arm, 0)}/model"))
    size, fit = released.run.provenance(f"{arm_folder(arm, 0)}/compute.json")["parameters"]["pixels"]
    pixels = fit_square(decode_radiograph(read_bytes(released.folder / "radiograph.png")), size, fit)
    with torch.no_grad():
        image = model.image_tower(torch.from_numpy(pixels)[None, None])
        texts = model.text_tower(**model.text_tower.tokenize(TEXTS))
        logits = model.bounded_logit_scale().exp() * image @ texts.T
    assert (texts[0] - texts[1]).abs().max() > 1e-3, "the comparison must be able to fail"
    readers = ["", "again ", "card 0 ", *["card 1 "] * (arm in _PLAIN)]
    for reader in readers:
        for kind, expected in (("image", image), ("texts", texts)):
            torch.testing.assert_close(released.found[f"{arm} {reader}{kind}"], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(released.found[f"{arm} logits"], logits, rtol=0, atol=1e-4)
    assert released.differences[arm].difference <= 1e-6
    assert released.differences[arm].plain == (arm in _PLAIN)


def test_all_weights_are_in_one_file(released):
    names = set(load_file(released.folder / "curated" / "model.safetensors"))
    assert {"image_projection.weight", "text_projection.weight", "logit_scale"} < names
    assert any(name.startswith("image_encoder.") for name in names)
    assert any(name.startswith("text_encoder.") for name in names)
    assert not (released.folder / "full" / "image_encoder").exists(), "group normalisation is no plain ResNet"


def test_released_encoders_are_encoders_of_chexstudy(released):
    folder = released.folder / "curated.dinov2"
    model = load_model(released.run.path(f"{arm_folder('curated.dinov2', 0)}/model"))
    pixels = torch.randint(0, 256, (2, 1, 24, 24), dtype=torch.uint8)
    image, text = (
        build_image_encoder(EncoderSpec(str(folder / "image_encoder"))),
        build_text_encoder(EncoderSpec(str(folder / "text_encoder"))),
    )
    tokens = text.tokenize(TEXTS)
    assert torch.equal(image(pixels), model.image_tower.encoder(pixels))
    assert torch.equal(text(**tokens), model.text_tower.encoder(**tokens))
    assert image.pooling == "cls+mean"
    assert image.origin["name"] == "dinov2"


@pytest.mark.parametrize("arm", ["curated", "curated.dinov2"])
def test_card_loads_common_encoders_by_automodel(released, arm):
    card = (released.folder / arm / "README.md").read_text()
    for tower in ("image_encoder", "text_encoder"):
        assert f'{tower} = AutoModel.from_pretrained(folder + "/{tower}"' in card


def test_batch_normalisation_stays_frozen_in_training(released):
    model = ChexstudyModel.from_pretrained(released.folder / "curated.resnet")
    pixels, before = torch.randn(3, 3, 24, 24), {name: value.clone() for name, value in model.named_buffers()}
    expected = model.eval().get_image_features(pixels)
    torch.testing.assert_close(model.train().get_image_features(pixels), expected, rtol=0, atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_texts_may_be_padded_or_not(released):
    model = ChexstudyModel.from_pretrained(released.folder / "curated.siglip").eval()
    encoder = load_model(released.run.path(f"{arm_folder('curated.siglip', 0)}/model")).text_tower
    full = encoder.tokenize(TEXTS)["input_ids"]
    assert full.shape[1] == 16
    short = full[:, : int((full != 0).sum(1).max())]
    torch.testing.assert_close(model.get_text_features(short), model.get_text_features(full))
    torch.testing.assert_close(model.get_text_features(full), encoder(**encoder.tokenize(TEXTS)), rtol=0, atol=1e-6)


# --- pixels ---------------------------------------------------------------------------------------------------------


def _pictures(folder):
    """Files of every mode: 8 and 16 bit, marked, negative, colour, palette, transparent, turned, tall and wide."""
    rng = np.random.default_rng(4)
    grey = Image.fromarray(rng.integers(0, 256, (70, 53), dtype=np.uint8))
    colour = Image.fromarray(rng.integers(0, 256, (50, 71, 3), dtype=np.uint8))
    transparent = colour.copy()
    transparent.putalpha(Image.fromarray(rng.integers(0, 256, (50, 71), dtype=np.uint8)))
    exif = Image.Exif()
    exif[0x0112] = 6
    marked = rng.integers(300, 4000, (45, 64), dtype=np.uint16)
    marked[:5, :9] = 65535
    pictures = {
        "grey.png": (grey, {}),
        "marked.png": (Image.fromarray(marked), {}),
        "negative.tiff": (Image.fromarray(rng.random((50, 60), dtype=np.float32)), {"tiffinfo": {262: 0}}),
        "deep.png": (Image.fromarray(rng.integers(300, 4000, (45, 64), dtype=np.uint16)), {}),
        "float.tiff": (Image.fromarray(rng.random((60, 60), dtype=np.float32)), {}),
        "constant.tiff": (Image.fromarray(np.full((40, 40), 7.0, np.float32)), {}),
        "colour.png": (colour, {}),
        "palette.png": (colour.quantize(16), {}),
        "transparent.png": (transparent, {}),
        "turned.jpg": (grey, {"exif": exif}),
        "square.png": (grey.resize((36, 36)), {}),
        "line.png": (grey.resize((400, 33)), {}),
    }
    for name, (picture, options) in pictures.items():
        picture.save(folder / name, **options)
    return list(pictures)


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("size", [36, 24])
def test_processor_gives_the_pixels_of_the_study(tmp_path, fit, size):
    encoder = build_image_encoder(EncoderSpec("tiny-vit", image_size=size))
    seen = []
    encoder.model.register_forward_pre_hook(
        lambda model, _, given: seen.append(given["pixel_values"]), with_kwargs=True
    )
    processor = ChexstudyImageProcessor(size, 36, fit, encoder.mean, encoder.std)
    names = _pictures(tmp_path)
    for name in names:
        stored = fit_square(decode_radiograph(read_bytes(tmp_path / name)), 36, fit)
        with Image.open(tmp_path / name) as picture:
            assert np.array_equal(processor.fit_square(picture), stored), name
            values = processor(picture)["pixel_values"]
        encoder(torch.from_numpy(stored.copy())[None, None])
        assert torch.equal(values, seen[-1]), name
    together = processor([Image.open(tmp_path / name) for name in names[:3]], return_tensors="np")["pixel_values"]
    assert together.shape == (3, 1, size, size)
    assert together.dtype == np.float32


def test_processor_takes_arrays():
    rng = np.random.default_rng(1)
    processor = ChexstudyImageProcessor(24, 24, "pad", (0.4, 0.5, 0.6), (0.2, 0.2, 0.2))
    bytes_, grey = rng.integers(0, 256, (40, 50), dtype=np.uint8), rng.random((40, 50), dtype=np.float32) * 255
    for given in (bytes_, grey):
        assert np.array_equal(processor.fit_square(given), fit_square(given, 24, "pad"))
    assert np.array_equal(processor.fit_square(torch.from_numpy(bytes_)), fit_square(bytes_, 24, "pad"))
    assert np.array_equal(processor.fit_square(bytes_[..., None]), fit_square(bytes_, 24, "pad"))
    assert processor(bytes_)["pixel_values"].shape == (1, 3, 24, 24)
    with pytest.raises(ValueError, match="give one image an array"):
        processor(np.zeros((2, 3, 40, 50), np.float32))
    with pytest.raises(ValueError, match="crop or pad"):
        ChexstudyImageProcessor(24, fit="stretch")


# --- the model card -------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(home):
    """A study with one arm, made anew for each test that changes it."""
    run = make_tiny_study(pairs=50)
    _save_arm(run, "curated", build_image_encoder(EncoderSpec("tiny-vit", image_size=24), 1), _tiny_text(run))
    return run


def _read_card(run, folder, arm="curated"):
    release_arm(run, arm, 0, folder)
    return (folder / "README.md").read_text()


def test_card_tells_what_the_run_left(trained, tmp_path):
    card = _read_card(trained, tmp_path / "out")
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == "other"
    assert front["library_name"] == "transformers"
    assert "base_model" not in front
    cohort = pd.read_parquet(trained.path("cohort.parquet"))
    training = cohort[cohort.split == "train"]
    record = trained.provenance("pretraining/curated/seed0/compute.json")
    for expected in (
        f"| tiny | train | {len(training)} | {training.patient_id.nunique()} | {len(training)} | 0 |",
        record["inputs"]["cohort.parquet"],
        f"Kept: 20 of {len(training)} pairs ({20 / len(training):.1%})",
        "the published rule",
        "| `dim` | `8` |",
        "| `curator.outlier_quantile` | `0.95` |",
        "| operations, counted | 1.5e+09 FLOPs |",
        "| time | 12.2 s |",
        "| peak memory | 1.00 GiB |",
        "3.2 kJ",
        "This model has not been evaluated.",
        "must not be used for clinical decisions",
        "was not measured. Nor was it audited",
        record["code_revision"],
        f"torch {torch.__version__}",
        "chexstudy release curated --study tiny --seed 0",
    ):
        assert expected in card, expected
    assert "phantom" not in card


def test_card_names_what_was_drawn_or_made_from_labels(trained, tmp_path):
    cohort = pd.read_parquet(trained.path("cohort.parquet"))
    drawn = cohort.assign(source="phantom", report_origin=np.where(cohort.index % 2, "template", "written"))
    trained.write_table("cohort.parquet", drawn)
    record = trained.provenance("pretraining/curated/seed0/compute.json")
    trained.record("pretraining/curated/seed0/compute.json", record["parameters"], ("cohort.parquet",), 0)
    card = _read_card(trained, tmp_path / "out")
    training = drawn[drawn.split == "train"]
    templates = (training.report_origin == "template").sum()
    assert "All of its training radiographs were drawn by a program" in card
    assert f"{templates} of its {len(training)} training reports are sentences made from labels" in card


def test_card_of_other_arms(trained, tmp_path):
    image, text = build_image_encoder(EncoderSpec("tiny-vit", image_size=24), 1), _tiny_text(trained)
    image.origin = {"name": "owner/vit", "revision": "0" * 40}
    _save_arm(trained, "random_same_compute", image, text, image_encoder="owner/vit", image_revision="0" * 40)
    card = _read_card(trained, tmp_path / "out", "random_same_compute")
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == ["owner/vit"]
    assert f"`owner/vit` (revision `{'0' * 40}`) for images" in card
    assert "None: the arm was trained on all 30 pairs." in card
    assert "Epochs: as many as it took to spend the operations of the curated arm." in card
    adapted = {"frozen_towers": ["text"], "lora_rank": 4, "lora_alpha": 8.0, "rule": "budgeted"}
    _save_arm(trained, "curated.adapted", image, text, **adapted)
    card = _read_card(trained, tmp_path / "adapted", "curated.adapted")
    assert "Frozen encoders: text. Encoders were trained by low-rank updates (rank 4, alpha 8)" in card
    assert "the budgeted rule with a budget of 0.227 (share of the pairs)" in card
    assert "Epochs: 1 of curation, 9 over what was kept." in card


def _evaluate(run, value=0.8125):
    name, cost = scores_artifact("curated", 0, "zero_shot", "tiny/test"), "pretraining/curated/seed0/compute.json"
    rows = pd.DataFrame(
        {
            **{"study": run.study, "arm": "curated", "seed": [0, 0, 0, -1], "task": "zero_shot"},
            **{"data_set": "tiny/test", "finding": ["macro", "tail", "Mass", "macro"], "metric": "auroc"},
            **{"setting": "chosen", "value": [value, 0.7, 0.6, 0.1], "ci_low": 0.75, "ci_high": 0.875, "n": 24},
            **{"positives": -1, "exposure": "held_out"},
        }
    )
    add_results(run, rows)
    run.write_table(name, rows)
    run.record(name, {}, ("cohort.parquet", cost), 0)


def test_card_shows_results_of_this_training_only(trained, tmp_path):
    _evaluate(trained)
    card = _read_card(trained, tmp_path / "out")
    assert "| tiny/test | macro | 0.812 | 0.750 to 0.875 | 24 | held_out |" in card
    assert "| tiny/test | tail | 0.700 |" in card
    assert "0.600" not in card
    assert "`held_out`: these patients were held out of training" in card
    name = "pretraining/curated/seed0/compute.json"
    record = trained.provenance(name)
    trained.write_json(name, trained.read_json(name) | {"seconds": 99.0})
    trained.record(name, record["parameters"], tuple(record["inputs"]), 0)
    assert "This model has not been evaluated." in _read_card(trained, tmp_path / "out")


def test_card_tells_of_the_audit_of_this_subset(trained, tmp_path):
    cohort = pd.read_parquet(trained.path("cohort.parquet")).query("split == 'train'")
    kept = cohort.iloc[:20]
    groups = [("sex", "F", 0.5, 0.01), ("sex", "M", 1.7, 1.0), ("view", "PA", 1.0, 1.0)]
    rows = [
        {
            **{"study": "tiny", "arm": "curated", "seed": 0, "task": "audit", "data_set": "tiny/train"},
            **{"finding": group, "metric": metric, "group": kind, "value": value, "exposure": "seen"},
            **{"ci_low": np.nan, "ci_high": np.nan, "n": (cohort[kind] == group).sum()},
            "positives": (kept[kind] == group).sum(),
        }
        for kind, group, ratio, p_value in groups
        for metric, value in (("keep_ratio", ratio), ("dropped_more_p", p_value))
    ]
    add_results(trained, pd.DataFrame(rows))
    assert "Kept less often than chance explains, compared with all other pairs: sex F, 0.50 times." in _read_card(
        trained, tmp_path / "out"
    )
    other = pd.DataFrame({"image_id": cohort.image_id.iloc[:23], "weight": 1.0})
    trained.write_table("pretraining/curated/seed0/subset.parquet", other)
    assert "Nor was it audited" in _read_card(trained, tmp_path / "out"), "an audit of another subset says nothing"


def test_nothing_private_is_released(released):
    cohort = pd.read_parquet(released.run.path("cohort.parquet"))
    private = {*cohort.patient_id, *cohort.study_id, *cohort.image_id, *cohort.report, str(released.run.folder)}
    private |= {"/checkpoints", str(Path.home()) + "/"}
    for path in released.folder.glob("*/**/*"):
        if path.suffix in (".json", ".md", ".txt", ".py") and " again" not in str(path):
            text = path.read_text()
            assert not [one for one in private if one in text], path


# --- files ----------------------------------------------------------------------------------------------------------


def _bytes(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_same_call_same_bytes_and_a_release_is_replaced(trained, tmp_path):
    release_arm(trained, "curated", 0, tmp_path / "one")
    first = _bytes(tmp_path / "one")
    release_arm(trained, "curated", 0, tmp_path / "one")
    assert _bytes(tmp_path / "one") == first
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith(".")} == set()
    files = json.loads((tmp_path / "one" / MANIFEST).read_text())["files"]
    assert set(files) == {path.as_posix() for path in first} - {MANIFEST}


def test_shipped_code_needs_torch_and_transformers_alone(released):
    allowed = {"modeling_chexstudy.py": set(), "image_processing_chexstudy.py": {"numpy", "PIL"}}
    for name, more in allowed.items():
        tree = ast.parse((released.folder / "full" / name).read_text())
        modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        modules |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        foreign = {module.partition(".")[0] for module in modules} - set(sys.stdlib_module_names)
        assert foreign == {"torch", "transformers"} | more


@pytest.mark.parametrize("content", ["a file", "a folder", "a broken manifest"])
def test_what_is_no_release_is_left_alone(trained, tmp_path, content):
    out = tmp_path / "out"
    if content == "a file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / ("notes.txt" if content == "a folder" else MANIFEST)).write_text("mine")
    before = out.read_bytes() if out.is_file() else _bytes(out)
    with pytest.raises(StudyError, match="is no release of a model"):
        release_arm(trained, "curated", 0, out)
    assert (out.read_bytes() if out.is_file() else _bytes(out)) == before


@pytest.mark.parametrize("name", ["README.md", "mine.txt", "image_encoder/mine.txt"])
def test_changed_release_is_left_alone(trained, tmp_path, name):
    release_arm(trained, "curated", 0, tmp_path / "out")
    with open(tmp_path / "out" / name, "a") as file:
        file.write("license: mine")
    with pytest.raises(StudyError, match=f"{name} was changed or added"):
        release_arm(trained, "curated", 0, tmp_path / "out")
    assert "license: mine" in (tmp_path / "out" / name).read_text()


def test_failure_leaves_the_old_release_or_nothing(trained, tmp_path, monkeypatch):
    release_arm(trained, "curated", 0, tmp_path / "old")
    before = _bytes(tmp_path / "old")

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(release_module, "write_model_card", fail)
    for name in ("old", "new"):
        with pytest.raises(KeyboardInterrupt):
            release_arm(trained, "curated", 0, tmp_path / name)
    assert _bytes(tmp_path / "old") == before
    assert [path.name for path in tmp_path.iterdir() if path.name != "runs"] == ["old"]


def test_draft_of_a_killed_process_is_taken_away(trained, tmp_path):
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "half").write_text("")
    release_arm(trained, "curated", 0, tmp_path / "out")
    assert not (tmp_path / ".out.partial").exists()
    assert not (tmp_path / "out" / "half").exists()


def test_full_disk_is_one_sentence(trained, tmp_path, full_disk):
    with full_disk(100_000), pytest.raises(StudyError, match=r"could not write .*; free some space"):
        release_arm(trained, "curated", 0, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_untrained_arm(trained, tmp_path):
    with pytest.raises(StudyError, match="has no arm 'full' with seed 0 yet"):
        release_arm(trained, "full", 0, tmp_path / "out")
    with pytest.raises(StudyError, match="unknown arm 'none'"):
        release_arm(trained, "none", 0, tmp_path / "out")


@pytest.mark.parametrize(
    "damage", ["image_encoder/model.safetensors", "text_encoder/model.safetensors", "projections.safetensors"]
)
@pytest.mark.parametrize("how", ["cut", "missing"])
def test_damaged_weights(trained, tmp_path, damage, how):
    path = trained.path(f"pretraining/curated/seed0/model/{damage}")
    if how == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        path.unlink()
    with pytest.raises(StudyError, match=r"^the weights of the arm 'curated' \(seed 0\) in .* are damaged \(.*$"):
        release_arm(trained, "curated", 0, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", ["absent", "other shape"])
def test_projection_that_does_not_fit(trained, tmp_path, change):
    path = trained.path("pretraining/curated/seed0/model/projections.safetensors")
    state = load_file(path)
    weight = state.pop("image_tower.projection.weight")
    save_file(
        state if change == "absent" else state | {"image_tower.projection.weight": weight[:, :3].contiguous()}, path
    )
    with pytest.raises(StudyError, match="are damaged"):
        release_arm(trained, "curated", 0, tmp_path / "out")


def test_embeddings_that_differ_are_not_released(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(ChexstudyModel, "_pool_image", lambda self, output, size: output.last_hidden_state[:, 0])
    with pytest.raises(StudyError, match="transformers would give other embeddings"):
        release_arm(trained, "curated", 0, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_command(trained, tmp_path, capsys):
    arguments = ["release", "curated", "--study", "tiny", "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert str(tmp_path / "out") in shown
    assert "with or without the code in it" in shown
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    assert main(arguments) == 2
    assert re.fullmatch(r".* is no release of a model: give another folder as --out\.\n", capsys.readouterr().err)


def test_a_vocabulary_with_a_name_of_few_patients_is_released_only_if_accepted(home, tmp_path, capsys):
    run = make_tiny_study(pairs=20)
    cohort = pd.read_parquet(run.path("cohort.parquet"))
    named = cohort.split.eq("train") & (cohort.index < 4)
    cohort.loc[named, "report"] += " Featherstonehaugh 5558675309"
    run.write_table("cohort.parquet", cohort)
    reports = cohort.report[cohort.split == "train"].tolist()
    text = build_text_encoder(EncoderSpec("tiny-bert", max_tokens=32), reports, seed=1)
    _save_arm(run, "curated", build_image_encoder(EncoderSpec("tiny-vit", image_size=24), 1), text)
    arguments = ["release", "curated", "--study", "tiny", "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert "17 characters in 2" in told
    assert told.count("\n") == 1
    assert "eatherst" not in told.lower()
    assert not (tmp_path / "out").exists()
    listed = pd.read_csv(run.path(f"{arm_folder('curated', 0)}/rare_tokens.csv"), index_col="token").patients
    assert listed["featherstonehaugh"] == listed["5558675309"] == 2
    assert main([*arguments, "--accept-rare-tokens"]) == 0
    assert "featherstonehaugh" in (tmp_path / "out" / "tokenizer.json").read_text()
