"""Encoders that are committed: they learned from drawn patients whom no study sees. Their card lies beside them.

``image/`` and ``text/`` stand in for encoders trained elsewhere, ``pair/`` for a released image-text model. All are
made by ``chexstudy upstream``.
"""

from pathlib import Path

from chexstudy.paths import resolve_user_path

FOLDER = Path(__file__).with_name("pretrained")
IMAGE, TEXT, PAIR = "upstream-image", "upstream-text", "upstream-pair"
FOLDERS = {
    IMAGE: FOLDER / "image",
    TEXT: FOLDER / "text",
    f"{PAIR}-image": FOLDER / "pair/image_encoder",
    f"{PAIR}-text": FOLDER / "pair/text_encoder",
}


def find_pair(name: str) -> Path:
    """Where a trained image-text pair lies: the committed one by its name, or a folder of one's own."""
    return FOLDER / "pair" if name == PAIR else resolve_user_path(name)
