"""A trained pair as a Hugging Face model: a folder that `transformers` reads where chexstudy is not installed.

``config.json`` and ``model.safetensors`` (both towers, projections, logit scale) with ``modeling_chexstudy.py``; the
image processor with its file; the tokenizer; ``README.md``, the model card; ``pretraining.json``, the constants of the
run; and ``release.json``, the hash of every file. Encoders that are plain `transformers` models lie once more in
``image_encoder/`` and ``text_encoder/``, which load without running any code of the folder.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import SafetensorError, safe_open

from chexstudy.cohort.table import read_cohort
from chexstudy.encoders.checkpoint import save_encoder
from chexstudy.encoders.hub import quiet_transformers
from chexstudy.encoders.image import ImageEncoder
from chexstudy.encoders.spec import RECORD
from chexstudy.encoders.text import TextEncoder
from chexstudy.encoders.tokenizer import CONTINUATION
from chexstudy.errors import StudyError
from chexstudy.pretraining.arms.definitions import find_arm, require_current_arm
from chexstudy.pretraining.models.dual_encoder import ImageTextModel, load_model
from chexstudy.pretraining.models.vocabulary import LEAST_PATIENTS, find_rare_tokens
from chexstudy.release.model_card import Usage, write_model_card
from chexstudy.runs import Run, atomic_path, hash_file
from chexstudy.steps import find_step

MANIFEST = "release.json"
_PROJECTIONS = {"image_tower.projection.weight", "text_tower.projection.weight", "logit_scale"}
_SAMPLES = ("no finding", "a large left pleural effusion and a small nodule in the right upper lobe")
# Of unit-norm embeddings in float32: rounding stays well below it, and any other pooling or layer well above.
_TOLERANCE = 1e-5
_RARE_TOKENS_TOLD = 5


@dataclass(frozen=True)
class Release:
    """What was written."""

    folder: Path  # where
    plain: bool  # whether the encoders also load without running code of the folder
    difference: float  # largest difference of an embedding from that of the trained pair, on a sample


def release_arm(run: Run, arm: str, seed: int, folder: Path, accept_rare_tokens: bool = False) -> Release:
    """Write a trained arm as a Hugging Face model, with a model card.

    The folder is there whole or not at all. One that holds an earlier release is replaced. A vocabulary that holds
    tokens of few patients, which may be names, is released only if that is accepted.
    """
    from chexstudy.release.image_processing_chexstudy import ChexstudyImageProcessor

    find_arm(arm)
    source = require_current_arm(run, arm, seed)
    _check_folder(folder)
    stored_size, fit = run.provenance(f"{source}/compute.json")["parameters"]["pixels"]
    model = _load_trained(run.path(f"{source}/model"), arm, seed)
    # The vocabulary of a checkpoint was learned elsewhere.
    if model.text_tower.encoder.origin["name"].startswith("tiny-") and not accept_rare_tokens:
        _refuse_rare_tokens(run, source, model.text_tower.encoder)
    with _whole_folder(folder) as draft, quiet_transformers():
        _write_tokenizer(draft, model.text_tower.encoder)
        image = model.image_tower.encoder
        processor = ChexstudyImageProcessor(image.image_size, stored_size, fit, image.mean, image.std)
        processor.save_pretrained(draft)
        released = _write_model(draft, model)
        difference = _largest_difference(model, draft, processor)
        if not difference <= _TOLERANCE:
            raise StudyError(
                f"the arm {arm!r} cannot be released: transformers would give other embeddings (by {difference:.1e}), "
                "because it runs one of its encoders in another way; use encoders that chexstudy.encoders.spec lists."
            )
        names = {}
        constants = run.read_json(f"{source}/model/pretraining.json")
        for tower, encoder in (("image", model.image_tower.encoder), ("text", model.text_tower.encoder)):
            names[tower] = _public_name(constants[f"{tower}_encoder"], encoder.origin)
            constants[f"{tower}_encoder"] = names[tower]
            if not released.config.group_normalisation:
                encoder.origin = encoder.origin | {"name": names[tower]}
                _write_encoder(draft / f"{tower}_encoder", encoder)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        max_tokens = model.text_tower.encoder.max_tokens
        usage = Usage(released.config, processor, names["image"], names["text"], max_tokens, parameters, difference)
        _write_json(draft / "pretraining.json", constants)
        (draft / "README.md").write_text(write_model_card(run, arm, seed, usage), encoding="utf-8")
        files = {path: hash_file(draft / path) for path in _list_files(draft)}
        _write_json(draft / MANIFEST, {"study": run.study, "arm": arm, "seed": seed, "files": files})
        for weights in draft.rglob("*.safetensors"):
            # Written for the owner alone, unlike all else.
            shutil.copymode(draft / MANIFEST, weights)
    return Release(folder, usage.is_plain, difference)


def _load_trained(folder: Path, arm: str, seed: int) -> ImageTextModel:
    try:
        with safe_open(folder / "projections.safetensors", "pt") as file:
            missing = _PROJECTIONS.difference(file.keys())
        if not missing:
            return load_model(folder)
        reason = f"{min(missing)} is missing"
    except (StudyError, OSError, SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
    raise StudyError(
        f"the weights of the arm {arm!r} (seed {seed}) in {folder} are damaged ({reason}): delete the arm's folder and "
        f"run {find_step('pretraining/')} again."
    )


def _refuse_rare_tokens(run: Run, source: str, encoder: TextEncoder) -> None:
    """Refuse a vocabulary that may give a name away; its rare tokens are listed in the arm's folder."""
    cohort = read_cohort(run.require("cohort.parquet"))
    rare = find_rare_tokens(encoder.tokenizer.get_vocab(), cohort[cohort.split == "train"])
    if rare.empty:
        return
    path = run.path(f"{source}/rare_tokens.csv")
    with atomic_path(path) as temporary:
        rare.rename_axis("token").rename("patients").to_csv(temporary)
    longest = sorted(rare.index, key=len, reverse=True)[:_RARE_TOKENS_TOLD]
    told = ", ".join(f"{len(token.removeprefix(CONTINUATION))} characters in {rare[token]}" for token in longest)
    raise StudyError(
        f"the vocabulary that would leave holds {len(rare)} tokens from reports of fewer than {LEAST_PATIENTS} "
        f"patients, which may be names or numbers (the longest: {told}; all are listed in {path}): train the arm "
        "again, which leaves them out, or release them with --accept-rare-tokens."
    )


def _check_folder(folder: Path) -> None:
    """Refuse a folder in which something would be lost."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        written = json.loads((folder / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        raise StudyError(f"{folder} exists and is no release of a model: give another folder as --out.") from None
    for path in _list_files(folder):
        if path != MANIFEST and written.get(path) != hash_file(folder / path):
            raise StudyError(
                f"{folder} is a release in which {path} was changed or added: give another folder as --out, or delete "
                "this one."
            )


def _list_files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


@contextmanager
def _whole_folder(final: Path) -> Iterator[Path]:
    """Yield a draft beside ``final`` that takes its place when the block succeeds, and clear what killed ones left."""
    draft, old = (final.with_name(f".{final.name}.{kind}") for kind in ("partial", "replaced"))
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        yield draft
        for path in _list_files(draft):
            with open(draft / path, "rb") as handle:
                os.fsync(handle.fileno())
        # A folder cannot take the place of another in one step. Killed between the two, the old one is under `old`.
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():
            final.rename(old)
        draft.rename(final)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StudyError(f"could not write {final}: {reason}; free some space or give another --out.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write_model(folder: Path, model: ImageTextModel):
    """Write both towers, projections and logit scale as the shipped class; returns that model."""
    from chexstudy.release.modeling_chexstudy import ChexstudyConfig, ChexstudyModel

    image, text = model.image_tower.encoder, model.text_tower.encoder
    # Without what chexstudy notes in a configuration, such as where it was loaded from.
    configs = [
        {name: value for name, value in one.model.config.to_dict().items() if name not in (RECORD, "_name_or_path")}
        for one in (image, text)
    ]
    # The length that every text is padded to, 0 where texts are padded to the longest of them.
    length = text.tokenize([""])["input_ids"].shape[1]
    config = ChexstudyConfig(
        *configs,
        image_class=type(image.model).__name__,
        text_class=type(text.model).__name__,
        image_pooling=image.pooling,
        text_pooling=text.pooling,
        text_length=length if length == text.max_tokens else 0,
        text_padding_id=text.tokenizer.pad_token_id,
        group_normalisation=getattr(image.model.config, RECORD, {}).get("group_normalisation", False),
        image_dim=image.dim,
        text_dim=text.dim,
        dim=model.dim,
        logit_scale_init_value=model.logit_scale.item(),
        logit_scale_max=model.logit_scale_max,
    )
    with torch.random.fork_rng(devices=[]):
        released = ChexstudyModel(config).eval()
    released.image_encoder.load_state_dict(image.model.state_dict())
    released.text_encoder.load_state_dict(text.model.state_dict())
    released.image_projection.load_state_dict(model.image_tower.projection.state_dict())
    released.text_projection.load_state_dict(model.text_tower.projection.state_dict())
    released.logit_scale.data.copy_(model.logit_scale.data)
    released.save_pretrained(folder)
    return released


def _public_name(name: str, origin: dict) -> str:
    of_the_hub = name == origin["name"] and origin["revision"]
    return name if of_the_hub else Path(name).name


def _write_tokenizer(folder: Path, encoder: TextEncoder) -> None:
    """Write the tokenizer as it was before its first use, which would leave its padding in the file."""
    tokenizer = encoder.tokenizer
    tokenizer.model_max_length = encoder.max_tokens
    for how_it_was_read in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(how_it_was_read, None)
    tokenizer.save_pretrained(folder)


def _write_encoder(folder: Path, encoder: ImageEncoder | TextEncoder) -> None:
    """Write a plain encoder as chexstudy does, with the names of weights that older versions of transformers read."""
    # The folder of this machine from which it was read is no part of a release.
    encoder.model.config.name_or_path = ""
    save_encoder(encoder, folder)
    with TemporaryDirectory(dir=folder) as draft:
        encoder.model.save_pretrained(draft)
        os.replace(Path(draft) / "model.safetensors", folder / "model.safetensors")


@torch.no_grad()
def _largest_difference(model: ImageTextModel, folder: Path, processor) -> float:
    """Between embeddings of the trained pair and of what was written, on noise and two sentences."""
    from chexstudy.release.modeling_chexstudy import ChexstudyModel

    released = ChexstudyModel.from_pretrained(folder, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    side = processor.stored_size
    pixels = torch.randint(0, 256, (2, 1, side, side), dtype=torch.uint8, generator=generator)
    tokens = model.text_tower.tokenize(_SAMPLES)
    of_images = model.image_tower(pixels) - released.get_image_features(processor.normalise(pixels))
    of_texts = model.text_tower(**tokens) - released.get_text_features(**tokens)
    return max(float(difference.abs().max()) for difference in (of_images, of_texts))


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
