"""Encoders as checkpoint folders that ``transformers`` reads, and back."""

import json
import os
import tempfile
from pathlib import Path

from safetensors.torch import save_file

from chexstudy.encoders.image import ImageEncoder
from chexstudy.encoders.spec import RECORD, WEIGHTS
from chexstudy.encoders.text import TextEncoder
from chexstudy.runs import atomic_path, name_partial


def save_encoder(encoder: ImageEncoder | TextEncoder, folder: str | Path) -> Path:
    """Write an encoder as a checkpoint folder that its builder and ``transformers`` read.

    Files: ``config.json``, ``model.safetensors``, ``preprocessor_config.json`` or the tokenizer's. ``config.json`` is
    written last: a folder that has it is whole.
    """
    folder = Path(folder)
    state = {name: value.detach().cpu().contiguous() for name, value in encoder.model.state_dict().items()}
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
    record = getattr(encoder.model.config, RECORD, {}) | encoder.origin | {"pooling": encoder.pooling}
    if isinstance(encoder, ImageEncoder):
        record["image_size"] = encoder.image_size
        size = {"height": encoder.image_size, "width": encoder.image_size}
        preprocessing = {"image_mean": encoder.mean, "image_std": encoder.std, "size": size, "resample": 3}
        _write_json(folder / "preprocessor_config.json", preprocessing)
    else:
        record["max_tokens"] = encoder.max_tokens
        with tempfile.TemporaryDirectory(prefix=name_partial("tokenizer"), dir=folder) as draft:
            for path in encoder.tokenizer.save_pretrained(draft):
                if os.path.isfile(path):
                    os.replace(path, folder / Path(path).name)
    config = encoder.model.config.to_dict() | {"architectures": [type(encoder.model).__name__], RECORD: record}
    # Where it was loaded from is a place on this machine.
    config["_name_or_path"] = Path(record["name"]).name
    _write_json(folder / "config.json", config)
    return folder


def _write_json(path: Path, value: dict) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True, default=str) + "\n")
