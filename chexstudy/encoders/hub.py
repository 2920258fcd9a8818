"""Models of the Hugging Face Hub, of a folder or of a file: found, read and loaded without surprises.

Nothing here runs code that comes with a checkpoint, unpickles more than tensors, or accepts weights that do not fit the
architecture. A model in the cache is used without asking the network, which is asked only with ``--online``.
"""

import json
import os
import pickle
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError

from chexstudy import paths
from chexstudy.encoders import upstream_encoders
from chexstudy.encoders.published_vit import derive_config, read_backbone
from chexstudy.errors import StudyError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_DESCRIPTIONS = ("*.json", "*.txt", "*.model")
_SAFE_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_TORCH_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
# Any other is, for transformers, the name of a repository of the Hub whose code it fetches and runs.
ATTENTIONS = ("eager", "sdpa", "flash_attention_2")
# Parts of a checkpoint no encoder has a use for: heads of its pretraining and old buffers.
_HEADS = re.compile(
    r"^(cls|classifier|lm_head|head|decoder|logit_scale|logit_bias)\b|(^|\.)pooler\.|(^|\.)(position_ids|mask_token)$"
)
_LARGEST_NUMBER, _MOST_LAYERS = 2**31, 1000


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on this disk."""

    name: str  # what the user asked for
    folder: Path  # where its files lie, or a file of DINOv2's own code
    commit: str = ""  # the Hub commit they belong to; empty for what the user has
    weights: dict[str, torch.Tensor] | None = None  # of such a file


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence ``transformers``' loading reports and bars: what matters in them is checked and raised here."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def find_checkpoint(name: str, revision: str = "", weights: bool = True) -> Checkpoint:
    """Find a checkpoint in a folder or in the Hub's cache, else, with ``--online``, download it.

    ``name`` is one of `chexstudy.encoders.upstream_encoders`, a path or a Hub id; what exists here is taken before a
    Hub id, a file as one of DINOv2's or CheXFound's own code. ``weights``, safetensors before ``pytorch_model.bin``,
    are looked for only where they are needed.
    """
    folder = upstream_encoders.FOLDERS.get(name) or paths.resolve_user_path(name)
    if folder.is_dir():
        lacks = _lacking(folder, weights)
        if lacks:
            raise StudyError(f"the folder {folder} is no model checkpoint: it has no {lacks}.")
        return Checkpoint(name, folder)
    if folder.is_file():
        return Checkpoint(name, folder, weights=read_backbone(folder))
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise StudyError(f"there is no folder {folder} to load an encoder from: check the path, or give a Hub id.")
    from huggingface_hub import snapshot_download

    reason = "nothing is downloaded unless --online is given"
    # The library looks at this when it is imported, which may have been before us.
    offline = os.environ.get("HF_HUB_OFFLINE", "1").upper() in ("1", "ON", "YES", "TRUE")
    for local in (True,) if offline else (True, False):
        for files in ("model*.safetensors", "pytorch_model*.bin"):
            patterns = [*_DESCRIPTIONS, *[files] * weights]
            try:
                found = snapshot_download(
                    name, revision=revision or None, allow_patterns=patterns, local_files_only=local
                )
            except (OSError, ValueError) as error:
                reason = reason if local else type(error).__name__
                break
            if not _lacking(Path(found), weights):
                return Checkpoint(name, Path(found), Path(found).name)
            reason = "no weights in a known format"
    at_revision, option = (f" at revision {revision!r}", f" --revision {revision}") if revision else ("", "")
    raise StudyError(
        f"the model {name!r}{at_revision} is neither a folder nor in the Hugging Face cache, and the Hub did not give "
        f"it ({reason}): run `hf download {name}{option}` where there is internet and bring the cache along, or give "
        "the path of a folder that holds it."
    )


def _lacking(folder: Path, weights: bool) -> str:
    if not (folder / "config.json").exists():
        return "config.json"
    if weights and not any((folder / name).exists() for name in (*_SAFE_WEIGHTS, *_TORCH_WEIGHTS)):
        return f"{_SAFE_WEIGHTS[0]} or {_TORCH_WEIGHTS[0]}"
    return ""


def read_config(checkpoint: Checkpoint) -> "PreTrainedConfig":
    """The configuration of a checkpoint."""
    from transformers import AutoConfig

    if checkpoint.weights is not None:
        return derive_config(checkpoint.weights, checkpoint.name)
    try:
        written = json.loads((checkpoint.folder / "config.json").read_text())
        check_attentions(written, checkpoint.name)
        check_numbers(written, checkpoint.name)
        with quiet_transformers():
            return AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise StudyError(
            f"the config.json of {checkpoint.name} is not one transformers can use ({_first_line(error)}): take an "
            "encoder of an architecture that transformers has; code that a model brings along is never run."
        ) from None


def check_numbers(config: object, name: str) -> None:
    """Raise a StudyError if what was read from a ``config.json`` asks for a model that no machine could ever build."""
    for key, value in config.items() if isinstance(config, dict) else enumerate(config):
        if isinstance(value, dict | list):
            check_numbers(value, name)
        most = _MOST_LAYERS if str(key).endswith("layers") else _LARGEST_NUMBER
        if isinstance(value, int | float) and not abs(value) <= most:
            raise StudyError(f"the config.json of {name} is damaged, its {key} cannot be {value!r:.40}: save it again.")


def check_attentions(config: object, name: str) -> None:
    """Raise a StudyError if a configuration, or one nested in it, names an implementation that is not ours to run."""
    for implementation in _find_implementations(config):
        if implementation not in ATTENTIONS:
            raise StudyError(
                f"the config.json of {name} asks for the attention {implementation!r}, whose code would come from the "
                f"Hub: take that line out, or name one of {', '.join(ATTENTIONS)}."
            )


def _find_implementations(value: object, is_one: bool = False) -> Iterator[object]:
    if isinstance(value, dict | list):
        for name, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _find_implementations(one, is_one or "implementation" in str(name))
    elif is_one and value is not None:
        yield value


def read_preprocessing(checkpoint: Checkpoint) -> dict:
    """What the checkpoint says of its image preprocessing (``image_mean``, ``size`` …); empty if it says nothing."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = checkpoint.folder / name
        if path.exists():
            try:
                values = json.loads(path.read_text())
            except ValueError:
                raise StudyError(f"{path} is not valid JSON: fetch the checkpoint again.") from None
            return values.get("image_processor", values)
    return {}


def preprocessed_size(preprocessing: dict) -> int | None:
    """The side in pixels of what the checkpoint's preprocessing yields, or None if it does not say."""
    crops = preprocessing.get("do_center_crop", "crop_size" in preprocessing)
    for size in (preprocessing.get("crop_size") if crops else None, preprocessing.get("size")):
        side = (size.get("height") or size.get("shortest_edge")) if isinstance(size, dict) else size
        if side:
            return int(side)
    return None


def read_tokenizer(checkpoint: Checkpoint) -> "PreTrainedTokenizerBase":
    """The tokenizer of a checkpoint."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if not any((checkpoint.folder / name).exists() for name in _TOKENIZERS):
        raise StudyError(
            f"{checkpoint.name} has no tokenizer files: put tokenizer.json or vocab.txt into {checkpoint.folder}."
        )
    try:
        with quiet_transformers():
            try:
                return AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=False, local_files_only=True)
            except ImportError:
                # SigLIP's class wants SentencePiece though the compiled tokenizer, which does not, lies beside it.
                return PreTrainedTokenizerFast.from_pretrained(checkpoint.folder)
    except Exception as error:
        # The compiled tokenizers raise bare exceptions.
        raise StudyError(f"the tokenizer of {checkpoint.name} does not load: {_first_line(error)}.") from None


def load_model(checkpoint: Checkpoint, model_class: type, unused: Iterable[str] = (), **options) -> "PreTrainedModel":
    """Load a ``transformers`` model in float32; every weight must be there and every weight there must be explained.

    ``unused`` are patterns of weights that may be in the checkpoint without being used, beside pretraining heads;
    ``options`` go to ``from_pretrained``.
    """
    try:
        with quiet_transformers():
            model, report = model_class.from_pretrained(
                checkpoint.folder if checkpoint.weights is None else None,
                state_dict=checkpoint.weights,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                local_files_only=True,
                dtype=torch.float32,
                weights_only=True,
                **options,
            )
    except pickle.UnpicklingError:
        raise StudyError(
            f"the weights of {checkpoint.name} are a pickle with more than tensors in it, which could run code: "
            "convert them to safetensors where you trust them."
        ) from None
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise StudyError(f"the weights of {checkpoint.name} do not load: {_first_line(error)}.") from None
    explained = [_HEADS, *(re.compile(pattern) for pattern in unused)]
    strange = [key for key in sorted(report["unexpected_keys"]) if not any(part.search(key) for part in explained)]
    missing = [key for key in sorted(report["missing_keys"]) if not key.endswith("mask_token")]
    resized = sorted(key for key, *_ in report["mismatched_keys"])
    for keys, fault in ((missing, "lack"), (strange, "hold the unknown"), (resized, "have another shape in")):
        if keys:
            raise StudyError(
                f"the weights of {checkpoint.name} do not fit {model_class.__name__}: they {fault} {keys[0]}"
                f"{f' and {len(keys) - 1} more' if len(keys) > 1 else ''}; give a checkpoint of that architecture."
            )
    return model


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".:")
