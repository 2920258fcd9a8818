"""What encoders had seen before a study, as far as whoever made them says: ``exposure.yaml``."""

from collections.abc import Iterator
from pathlib import Path

from chexstudy.cohort.overlaps import share_images
from chexstudy.cohort.table import PHANTOM, SPLITS
from chexstudy.inputs.yaml_files import read_data_beside
from chexstudy.results import worst_exposure

_DATA = read_data_beside(__file__)
_ENCODERS = {name.lower(): entry for entry in _DATA["encoders"] for name in entry["names"]}
# How the Hub's cache calls the folder of a model, and endings of files that DINOv2's own code saves.
_CACHED, _FILES = "models--", (".pth", ".pt")


def tell_encoder_exposure(encoder: str, data_set: str) -> str:
    """Whether an encoder as it was released has seen a data set, ``source/split``: held_out, seen or unknown.

    ``encoder`` is a name, a Hub id, with ``@revision`` or without, or a folder that is called like it. Data sets that
    share images with one it was trained on count as seen. Of encoders and sources that are not listed, all is unknown.
    """
    entry = next((_ENCODERS[name] for name in _spell(encoder) if name in _ENCODERS), None)
    if entry is None:
        return "unknown"
    earlier = (tell_encoder_exposure(one, data_set) for one in entry.get("began_from", []))
    return worst_exposure([_tell(entry, data_set), *earlier])


def _tell(entry: dict, data_set: str) -> str:
    for state in ("seen", "unknown"):
        listed = entry.get(state, [])
        splits = listed if isinstance(listed, dict) else dict.fromkeys(listed, "all")
        trained_on = (f"{one}/{split}" for one in splits for split in (SPLITS if splits[one] == "all" else splits[one]))
        if any(share_images(one, data_set) for one in trained_on):
            return state
    not_seen = entry.get("not_seen", [])
    if not_seen == "everything":
        return "held_out"
    held_out = {one for name in not_seen for one in _DATA["groups"].get(name, [name])} | {PHANTOM}
    source = data_set.partition("/")[0]
    is_seen_in_part = any(share_images(one, source) for one in entry.get("seen", ()))
    return "held_out" if data_set in held_out or (source in held_out and not is_seen_in_part) else "unknown"


def _spell(encoder: str) -> Iterator[str]:
    """Names in lower case that an encoder's name or place may stand for."""
    name = encoder.lower()
    yield name.partition("@")[0]
    path = Path(name)
    yield from (part.removeprefix(_CACHED).replace("--", "/") for part in path.parts if part.startswith(_CACHED))
    # A Hub id of somebody else is another encoder.
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        called = {path.parent.name, path.stem} if path.suffix in _FILES else {path.name}
        yield from (one for one in _ENCODERS if "/" in one and {one.partition("/")[2], one.replace("/", "--")} & called)
