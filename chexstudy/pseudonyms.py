"""What an image is called where people look: in figures, on the terminal, in the explorer and in notebooks.

An official name may name the patient (``p10/p10000032/s50414267/….jpg``), so it stays in the tables of the run folder.
Shown is a pseudonym, ``image-`` and ten hex digits of the HMAC-SHA-256 of the ``image_id`` under a random key of the
study. The key lies in the run folder, can be read by its owner alone, and is part of no export: without it nobody can
tell which image is meant, not even by trying all official names. Drawn images, those in the truth of the phantom, are
of no patient and keep their names.
"""

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable

from chexstudy.errors import StudyError
from chexstudy.runs import Run, refused_writes

KEY = "pseudonyms.key"
_TRUTH = "truth.parquet"
_KEY_BYTES = 32
# 40 bits: two of 100,000 images share a pseudonym with a chance of 1 in 200, and `find_image_id` would say so.
_DIGITS = 10
_PSEUDONYM = re.compile(rf"(?:image-)?([0-9a-f]{{{_DIGITS}}})", re.IGNORECASE)


def show_image_ids(run: Run, image_ids: Iterable[str]) -> list[str]:
    """What images, by their official names, are called where they are shown; the key is made if there is none."""
    drawn = _drawn_images(run)
    key = None
    shown = []
    for image_id in image_ids:
        if image_id in drawn:
            shown.append(image_id)
        else:
            key = key or _open_key(run)
            shown.append(f"image-{_digest(key, image_id)}")
    return shown


def find_image_id(run: Run, name: str, image_ids: Iterable[str]) -> str:
    """The official name of the image that a user calls by it or by its pseudonym, with or without ``image-``.

    Gives ``name`` itself where it is none of them and no pseudonym of one.
    """
    known, match = list(image_ids), _PSEUDONYM.fullmatch(name.strip())
    if name in known or match is None or not run.has(KEY):
        return name
    key = _open_key(run)
    found = sorted({image_id for image_id in known if _digest(key, image_id) == match[1].lower()})
    if len(found) > 1:
        raise StudyError(f"{len(found)} images of study {run.study!r} are called {name!r}: give the official name.")
    return found[0] if found else name


def _digest(key: bytes, image_id: str) -> str:
    return hmac.new(key, image_id.encode(), hashlib.sha256).hexdigest()[:_DIGITS]


def _drawn_images(run: Run) -> frozenset[str]:
    if not run.has(_TRUTH):
        return frozenset()
    return frozenset(run.read_table(_TRUTH).image_id)


def _open_key(run: Run) -> bytes:
    path = run.path(KEY)
    if not path.exists():
        temporary = path.with_name(f".{KEY}.{secrets.token_hex(8)}")
        with refused_writes(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as handle:
                    handle.write(secrets.token_bytes(_KEY_BYTES))
                # A link never replaces the key of a process that was quicker.
                os.link(temporary, path)
            except FileExistsError:
                pass
            finally:
                temporary.unlink(missing_ok=True)
    key = path.read_bytes()
    if len(key) != _KEY_BYTES:
        raise StudyError(f"{path} is damaged: delete it, and images get new pseudonyms.")
    return key
