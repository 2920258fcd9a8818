"""What sources are known to share, and training without what a test set holds too.

The facts are data, ``overlaps.yaml``. What follows from several is derived: two sets of one source may share its
images.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations

import pandas as pd

from chexstudy.cohort.splits import TEST_SPLITS
from chexstudy.cohort.table import SPLITS
from chexstudy.inputs.identifiers import patient_key
from chexstudy.inputs.yaml_files import read_data_beside

_DATA = read_data_beside(__file__)
# What tells a shared patient or image, the surest first.
_TELLING = ("patient", "image", "mapping", "looking")
# Of two splits that share, the later one keeps what they share.
_NEARNESS = {"train": 0, "validate": 1, **dict.fromkeys(TEST_SPLITS, 2)}


@dataclass(frozen=True)
class Overlap:
    """A known overlap; ``overlaps.yaml`` says what its words mean."""

    set: str
    of: str
    shares: str  # images or hospital
    told_by: str  # patient, image, mapping or looking
    fact: str
    known_from: str
    splits: Mapping[str, Sequence[str]] = field(default_factory=dict, hash=False)


OVERLAPS = tuple(Overlap(**entry | {"of": source}) for entry in _DATA["overlaps"] for source in entry["of"])


def find_overlaps(first: str, second: str) -> tuple[Overlap, ...]:
    """What two data sets share, each ``source/split`` or a source; sets of one source share nothing."""
    sources = {name.partition("/")[0] for name in (first, second)}
    ways, others = _trace(first), _trace(second)
    common = [ways[origin] + others[origin] for origin in ways if origin in others] if len(sources) > 1 else []
    of_hospital = tuple(one for one in OVERLAPS if one.shares == "hospital" and {one.set, one.of} == sources)
    return tuple(dict.fromkeys(min(common, key=len, default=()))) + of_hospital


def share_images(first: str, second: str) -> bool:
    """Whether images of one data set may be of the other."""
    return first == second or any(one.shares == "images" for one in find_overlaps(first, second))


@cache
def _trace(data_set: str) -> dict[str, tuple[Overlap, ...]]:
    """Where images of a data set may come from, as ``source/split``, itself included, and the overlaps on the way."""
    source, _, split = data_set.partition("/")
    traced = {f"{source}/{one}": () for one in ([split] if split else SPLITS)}
    for overlap in OVERLAPS:
        if overlap.set == source and overlap.shares == "images":
            of_set = [split] if split else overlap.splits or SPLITS
            origins = [one for own in of_set for one in overlap.splits.get(own, ())] if overlap.splits else SPLITS
            for origin in origins:
                traced |= {one: (overlap, *way) for one, way in _trace(f"{overlap.of}/{origin}").items()}
    return traced


def tabulate_overlaps(sources: Iterable[str]) -> pd.DataFrame:
    """What each two of some sources share, for people."""
    rows = [
        (*pair, " and ".join(sorted({one.shares for one in found})), _tell_by(found), "; ".join(o.fact for o in found))
        for pair in combinations(dict.fromkeys(sources), 2)
        if (found := find_overlaps(*pair))
    ]
    return pd.DataFrame(rows, columns=["source", "and", "share", "told by", "what is known"])


def describe_exposure(source: str) -> str:
    """In a few words, which sets share a source's images, and so are no test after training on it, or its hospitals."""
    others = sorted({name for one in OVERLAPS for name in (one.set, one.of)} - {source})
    shared = {name: {one.shares for one in find_overlaps(source, name)} for name in others}
    parts = {
        "images": [name for name in others if "images" in shared[name]] + _DATA["elsewhere"].get(source, []),
        "hospitals": [name for name in others if shared[name] == {"hospital"}],
    }
    return "; ".join(f"{what} shared with {', '.join(names)}" for what, names in parts.items() if names)


def exclude_overlap(cohort: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Take out of training, and of validation, what a set nearer to the test holds too, whichever source that is of.

    Shared are patients with one ``patient_id``, and images of one name where `find_overlaps` says that names tell.
    Gives the rows that stay, and in one sentence what was taken out and why, and what may still be shared.
    """
    keys = [("patient", cohort.patient_id.map({name: patient_key(name) for name in cohort.patient_id.unique()}))]
    keys += [("name", key) for key in _name_shared_images(cohort)]
    nearness, why = cohort.split.map(_NEARNESS), pd.Series("", cohort.index)
    for told, key in keys:
        why = why.mask((why == "") & (nearness < nearness.groupby(key).transform("max")), told)
    out, kept = why != "", cohort[why == ""]
    counts = ", ".join(f"{count} by {told}" for told, count in why[out].value_counts(sort=False).items())
    sources = ", ".join(cohort.source[out].unique())
    taken = f"{out.sum()} images of {sources} that a set nearer to the test holds ({counts})" if counts else "no image"
    tests = kept.loc[kept.split.isin(TEST_SPLITS), ["source", "split"]].drop_duplicates().agg("/".join, axis=1)
    untold = [f"{data_set} shares with {source}" for data_set in tests for source in list_untold(kept, data_set)]
    flagged = f"; it cannot be told what {', '.join(untold)}, so results there count as seen" if untold else ""
    return kept, f"taken out of training: {taken}{flagged}."


def list_untold(cohort: pd.DataFrame, data_set: str) -> list[str]:
    """Sources that a cohort trains on and that may share images with a data set of it, which no table tells apart.

    Told apart are sets that number patients alike, for no patient lies in two splits, and images by their names.
    """
    source, _, split = data_set.partition("/")
    of_set, untold = cohort[(cohort.source == source) & (cohort.split == split)], []
    for other in cohort.source[cohort.split == "train"].unique():
        found = [one for one in find_overlaps(f"{other}/train", data_set) if one.shares == "images"]
        if found:
            training = cohort[(cohort.source == other) & (cohort.split == "train")]
            numbered_alike = _list_numberings(of_set) <= _list_numberings(training)
            told = _tell_by(found) == "image" and not set(_name_images(of_set)) & set(_name_images(training))
            untold += [] if numbered_alike or told else [other]
    return untold


def _tell_by(overlaps: Iterable[Overlap]) -> str:
    """What tells what several overlaps share: the least sure of what tells each."""
    return max((one.told_by for one in overlaps), key=_TELLING.index)


def _name_shared_images(cohort: pd.DataFrame) -> Iterator[pd.Series]:
    """For each two sources whose images tell by name what they share: the names of their images, others missing."""
    for pair in combinations(cohort.source.unique(), 2):
        found = [one for one in find_overlaps(*pair) if one.shares == "images"]
        if found and _tell_by(found) == "image":
            yield _name_images(cohort[cohort.source.isin(pair)]).reindex(cohort.index)


def _name_images(rows: pd.DataFrame) -> pd.Series:
    """File names of images without folders and endings, in lower case."""
    return rows.image_id.str.rpartition("/")[2].str.replace(r"\.[a-z]{3,5}$", "", case=False, regex=True).str.lower()


def _list_numberings(rows: pd.DataFrame) -> set[str]:
    """The sources whose numbers the patients have."""
    return set(rows.patient_id.str.replace("/.*", "", regex=True).unique())
