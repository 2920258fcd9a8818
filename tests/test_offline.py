"""Nothing is asked of the network, whichever way the study is started, unless ``--online`` is given."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import make_tiny_study
from transformers import BertConfig, Dinov2Config, ViTConfig

from chexstudy.encoders import hub
from chexstudy.encoders.build import build_image_encoder, build_text_encoder
from chexstudy.encoders.checkpoint import save_encoder
from chexstudy.encoders.spec import EncoderSpec
from chexstudy.errors import StudyError
from chexstudy.release.modeling_chexstudy import ChexstudyConfig, ChexstudyModel

# Run before anything else by the processes of these tests: whoever looks up a name or connects is written down.
_GUARD = """
import os, socket
def refuse(*asked, **options):
    with open(os.environ["ASKED"], "a") as file:
        file.write(repr(asked) + "\\n")
    raise OSError("no network here")
socket.getaddrinfo = socket.create_connection = socket.socket.connect = refuse
"""


@pytest.fixture
def no_network(monkeypatch):
    asked = []

    def refuse(*arguments, **options):
        asked.append(arguments)
        raise OSError("no network here")

    for place in ("socket.getaddrinfo", "socket.create_connection", "socket.socket.connect"):
        monkeypatch.setattr(place, refuse)
    yield asked
    assert not asked


def run_guarded(folder, *arguments):
    """A process of its own without any switch of the environment; what it asked of the network, and its outcome."""
    (folder / "guard").mkdir()
    (folder / "guard" / "sitecustomize.py").write_text(_GUARD)
    switches = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
    environment = {name: value for name, value in os.environ.items() if name not in switches}
    path = os.pathsep.join([str(folder / "guard"), os.getcwd(), *environment.get("PYTHONPATH", "").split(os.pathsep)])
    environment |= {"PYTHONPATH": path, "ASKED": str(folder / "asked"), "HF_HOME": str(folder / "hub")}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)
    asked = (folder / "asked").read_text() if (folder / "asked").exists() else ""
    return asked, done


def test_the_engine_started_as_the_readme_says_asks_nobody(home, tmp_path):
    make_tiny_study(pairs=20)
    (tmp_path / "arm.json").write_text(json.dumps({"text_encoder": "someone/absent-bert"}))
    command = ("-m", "chexstudy.pretraining.training.arm_run", "--study", "tiny", "--arm", "full")
    asked, done = run_guarded(tmp_path, *command, "--config", str(tmp_path / "arm.json"))
    assert asked == ""
    assert done.returncode == 2, done.stderr
    assert re.search(r"'someone/absent-bert' is neither a folder nor .*unless --online", done.stderr), done.stderr


def test_the_guard_sees_who_asks(tmp_path):
    asked, _ = run_guarded(tmp_path, "-c", "import urllib.request; urllib.request.urlopen('http://example.org')")
    assert "example.org" in asked


def test_a_library_that_was_imported_first_asks_nobody_either(no_network, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(StudyError, match="nothing is downloaded unless --online"):
        hub.find_checkpoint("someone/absent")


@pytest.mark.parametrize(
    "entry",
    [
        {"attn_implementation": "kernels-community/flash-attn"},
        {"_attn_implementation": "someone/kernel:attend"},
        {"_attn_implementation_internal": "flash_attention_3"},
        {"attn_implementation": {"": "someone/kernel", "text_config": "eager"}},
        {"text_config": {"attn_implementation": "someone/kernel"}, "vision_config": {}},
        {"experts_implementation": "someone/kernel"},
    ],
)
def test_code_of_the_hub_is_no_attention(no_network, tmp_path, entry):
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    config.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | entry))
    with pytest.raises(StudyError, match="name one of eager, sdpa, flash_attention_2") as refused:
        build_text_encoder(EncoderSpec(str(tmp_path), pretrained=False), ["some words"])
    assert "\n" not in str(refused.value)


def test_attention_of_our_own_record_is_held_to_the_same(no_network, tmp_path):
    encoder = build_image_encoder(EncoderSpec("tiny-vit", image_size=36))
    save_encoder(encoder, tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values["chexstudy"]["attention"] = "someone/kernel"
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(StudyError, match="asks for the attention 'someone/kernel'"):
        build_image_encoder(EncoderSpec(str(tmp_path)))


@pytest.mark.parametrize("name", ["eager", "sdpa", None])
def test_attentions_by_name_are_taken(tmp_path, name):
    Dinov2Config(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=28).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"attn_implementation": name}))
    encoder = build_image_encoder(EncoderSpec(str(tmp_path), pretrained=False))
    assert encoder.model.config._attn_implementation == (name or "sdpa")


@pytest.mark.parametrize("text", ['{"a": ' * 100_000, "[1]", "no JSON"])
def test_a_description_that_is_none_is_one_sentence(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(StudyError, match="is not one transformers can use") as refused:
        build_image_encoder(EncoderSpec(str(tmp_path), pretrained=False))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("part", ["", "image_config", "text_config"])
def test_the_released_model_runs_no_attention_of_the_hub(no_network, part):
    size = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = ChexstudyConfig(
        ViTConfig(**size, image_size=32), BertConfig(**size), "ViTModel", "BertModel", image_dim=24, text_dim=24, dim=8
    )
    assert isinstance(ChexstudyModel(config).logit_scale, torch.nn.Parameter)
    (getattr(config, part) if part else config)._attn_implementation = "kernels-community/flash-attn"
    with pytest.raises(ValueError, match="would be code of the Hub: name one of eager"):
        ChexstudyModel(config)
