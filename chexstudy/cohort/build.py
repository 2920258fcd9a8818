"""One call from a source to a cohort with its pixels, for the phantom and for real data alike."""

from dataclasses import asdict

import pandas as pd

from chexstudy import paths
from chexstudy.cohort.adapters import build_source, list_annotations, require_source
from chexstudy.cohort.annotations import ANNOTATIONS
from chexstudy.cohort.joint import JOINT, list_joint_annotations, read_joint
from chexstudy.cohort.near_duplicates import KEEP, settle_near_duplicates
from chexstudy.cohort.orientation import CHECK, settle_orientation
from chexstudy.cohort.phantom.build import build_phantom
from chexstudy.cohort.phantom.plan import UPSTREAM_SEED, UPSTREAM_STUDY, PhantomConfig
from chexstudy.cohort.pixels.store import COHORT, PixelStore, build_pixel_store, count_remarks
from chexstudy.cohort.quality import lacks_report, resolve_image_paths
from chexstudy.cohort.source_annotations import build_annotations
from chexstudy.cohort.table import PHANTOM, read_cohort
from chexstudy.errors import StudyError
from chexstudy.runs import Run

_UNPACKED = "images"
_WORDS = {
    "orientation": {"check": "find images that lie wrong", "mend": "turn them back too", "skip": ""},
    "duplicates": {"keep": "all stay", "one_per_group": "the one nearest to the test stays", "drop": "none stays"},
}
_PHANTOM_COHORT = "phantom/cohort.parquet"
_PHANTOM_IMAGES = "phantom/images"
_PHANTOM_TRUTH = ("truth.parquet", "truth_lesions.parquet", "truth_outcomes.parquet")


def build_cohort(
    run: Run,
    source: str,
    data_root: str,
    size: int,
    fit: str,
    seed: int,
    phantom: PhantomConfig,
    workers: int = 2,
    orientation: str = CHECK,
    duplicates: str = KEEP,
) -> tuple[PixelStore, dict]:
    """Describe a source's images, read each once, and write the study's cohort, pixels, annotations and quarantine.

    The source is ``phantom``, one of `chexstudy.cohort.adapters.SOURCES` in ``data_root``, or ``joint``, those of the
    manifest ``data_root``; for the last two arguments see `settle_orientation` and `settle_near_duplicates`. Notes come
    with the store, such as how many images are copies.
    """
    for name, word in (("orientation", orientation), ("duplicates", duplicates)):
        if word not in _WORDS[name]:
            *first, last = (f"{one} ({meant})" if meant else one for one, meant in _WORDS[name].items())
            raise StudyError(f"{name} must be {', '.join(first)} or {last}, not {word!r}.")
    notes = {}
    if source == PHANTOM:
        cohort, root = _draw_phantom(run, phantom), run.path(PHANTOM)
    else:
        if source != JOINT:
            require_source(source)
        if not data_root:
            raise StudyError(
                f"the source {source!r} needs data_root, the folder that holds its images: give `-p data_root FOLDER`."
            )
        for name in _PHANTOM_TRUTH:
            # A truth left by a phantom of the same study would be read as that of the real images.
            run.path(name).unlink(missing_ok=True)
        root = paths.resolve_user_path(data_root)
        if source == JOINT:
            cohort = read_joint(root, seed, run.path(_UNPACKED)).require_cohort()
            listed = list_joint_annotations(root, set(cohort["image_id"]))
        else:
            cohort = build_source(source, root, seed, run.path(_UNPACKED))
            listed = list_annotations(source, root, set(cohort["image_id"]))
        build_annotations(run, listed, dict(zip(cohort["image_id"], resolve_image_paths(cohort, root), strict=True)))
        if listed:
            notes["images without a mask or a box"] = len(cohort) - len({one.image_id for one in listed})
    build_pixel_store(run, cohort, size, fit, workers, root=root)
    repeated = settle_near_duplicates(run, duplicates, workers)
    store, turned = settle_orientation(run, orientation)
    silent = int(lacks_report(read_cohort(run.path(COHORT))).sum())
    notes["images without a report, for objective self_supervised alone"] = silent
    notes = {note: count for note, count in notes.items() if count}
    return store, {**cohort.attrs, **count_remarks(run), **notes, **repeated, **turned}


def _draw_phantom(run: Run, config: PhantomConfig) -> pd.DataFrame:
    if (config.seed == UPSTREAM_SEED) != (run.study == UPSTREAM_STUDY):
        raise StudyError(
            f"the patients of cohort_seed {UPSTREAM_SEED} are those of the study {UPSTREAM_STUDY!r}, from whom the "
            "upstream encoders learned, and of no other: choose another seed, or another name of the study."
        )
    parameters = {name: value for name, value in asdict(config).items() if name != "workers"}
    if run.is_current(_PHANTOM_COHORT, run.key(parameters)):
        return read_cohort(run.path(_PHANTOM_COHORT))
    cohort = build_phantom(run, config)
    run.record(_PHANTOM_COHORT, parameters, seed=config.seed, files=(_PHANTOM_IMAGES, ANNOTATIONS, *_PHANTOM_TRUTH))
    return cohort
