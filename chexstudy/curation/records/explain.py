"""The story of one pair in words: when it was considered, where it lay, what was decided and on which grounds."""

import numpy as np
import pandas as pd

from chexstudy.cohort.table import finding_columns, read_cohort
from chexstudy.curation.records.ledger import find_likely_ids, ledger_path, read_ledger, read_super_batches
from chexstudy.curation.records.subsets import ChosenSubset, read_subset
from chexstudy.errors import StudyError
from chexstudy.pseudonyms import find_image_id, show_image_ids
from chexstudy.runs import Run

_SEXES = {"F": "female", "M": "male", "unknown": "sex unknown"}
_SPLITS = {"train": "training", "validate": "validation", "test": "test", "test_enriched": "enriched test"}


def tell_story(run: Run, image_id: str, arm: str = "curated", seed: int = 0, with_report: bool = False) -> str:
    """Why an arm of a study, or a method that has curated it, kept or dropped a pair.

    Told from the ledger where the arm keeps one, else from the method's scores, else from the subset alone; with what
    the cohort, the review list and, on the phantom, the truth say about the pair. It may be named by its pseudonym, and
    is called by it unless it was drawn (`chexstudy.pseudonyms`).
    """
    cohort = read_cohort(run.require("cohort.parquet"))
    image_id = find_image_id(run, image_id, cohort.image_id)
    about = cohort[cohort.image_id == image_id]
    if about.empty:
        return _tell_of_quarantine(run, image_id, cohort)
    (shown,) = show_image_ids(run, [image_id])
    if about.split.iloc[0] != "train":
        split = _SPLITS[about.split.iloc[0]]
        story = f"{shown} was never considered: it is in the {split} split, and curation chooses among training pairs."
    elif _has_ledger(run, arm, seed):
        around = read_super_batches(run, image_id, arm, seed)
        story = explain_pair(around, image_id, cohort, shown) if len(around) else ""
        story = story or _tell_of_absence(run, shown, arm, seed)
    else:
        story = explain_choice(read_subset(run, arm, seed), image_id, int((cohort.split == "train").sum()), arm, shown)
    lines = [story, describe_pair(cohort, image_id)]
    reviewed = f"pretraining/{arm}/seed{seed}/review.parquet"
    if run.has(reviewed):
        lines.append(_describe_review(run.read_table(reviewed), image_id))
    if run.has("truth.parquet"):
        lines.append(_describe_truth(run.read_table("truth.parquet"), image_id))
    if with_report:
        lines.append(f"Report: {' '.join(about.report.iloc[0].split()) or '(empty)'}")
    return "\n".join(line for line in lines if line)


def _has_ledger(run: Run, arm: str, seed: int) -> bool:
    path = ledger_path(run, arm, seed)
    return path.exists() or any(path.with_suffix("").glob("part-*.parquet"))


def _tell_of_quarantine(run: Run, image_id: str, cohort: pd.DataFrame) -> str:
    if run.has("quarantine.parquet"):
        quarantine = run.read_table("quarantine.parquet")
        image_id = find_image_id(run, image_id, quarantine.image_id)
        found = quarantine[quarantine.image_id == image_id]
        if len(found):
            (shown,) = show_image_ids(run, [image_id])
            return f"{shown} was never considered: it was set aside when the cohort was built ({found.reason.iloc[0]})."
    likely = show_image_ids(run, find_likely_ids(image_id, cohort.image_id))
    looks = f"its ids look like {show_image_ids(run, cohort.image_id[:1])[0]}."
    hint = f"did you mean {' or '.join(likely)}?" if likely else looks
    raise StudyError(f"there is no pair {image_id!r} in the cohort of study {run.study!r}: {hint}")


def _tell_of_absence(run: Run, shown: str, arm: str, seed: int) -> str:
    if ledger_path(run, arm, seed).exists():
        return f"{shown} is not in the ledger of arm {arm!r} (seed {seed}): it was made from another cohort."
    considered = len(read_ledger(run, arm, seed, columns=["kept"]))
    return f"{shown} was not considered yet: the ledger of arm {arm!r} (seed {seed}) holds {considered:,} decisions."


def explain_pair(ledger: pd.DataFrame, image_id: str, cohort: pd.DataFrame | None = None, shown: str = "") -> str:
    """What a ledger, or the super-batches in which it was considered, says of one pair, called ``shown`` or by its id.

    The cohort tells what the pairs around each prototype are labelled; reports are not read.
    """
    considered = ledger[ledger.image_id == image_id].sort_values(["epoch", "step"])
    if considered.empty:
        raise StudyError(
            f"there is no pair {shown or image_id!r} among the {len(ledger):,} decisions of the ledger: "
            "check its id, or curate first."
        )
    lines = [_tell_outcome(shown or image_id, considered)]
    # A step belongs to one super-batch.
    for row in considered.itertuples():
        lines.append(_tell_decision(row, ledger[ledger.step == row.step], cohort))
    lines.append("(Epochs, steps and prototypes are counted from 0, as in the ledger.)")
    return "\n".join(lines)


def _tell_outcome(shown: str, considered: pd.DataFrame) -> str:
    decisions = list(zip(considered.epoch, considered.kept, strict=True))
    if len(decisions) == 1:
        return f"{shown} was {'kept' if decisions[0][1] else 'dropped'}."
    told, before = [], None
    for epoch, kept in decisions:
        word = "kept" if kept else "dropped"
        if kept == before:
            word += " again"
        elif kept and before is not None:
            word = "taken back"
        told.append(f"{word} in epoch {epoch}")
        before = kept
    return f"{shown} was considered {len(decisions)} times: {', '.join(told)}."


def _tell_decision(row, batch: pd.DataFrame, cohort: pd.DataFrame | None) -> str:
    members = batch[batch.prototype == row.prototype]
    rivals = members[members.band == row.band]
    decision, _, grounds = row.reason.partition(": ")
    sentences = [
        f"Epoch {row.epoch}, step {row.step}: it was one of {len(batch):,} pairs in its super-batch, of which "
        f"{batch.kept.sum():,} were kept.",
        f"Its nearest prototype was number {row.prototype}, at a distance of {row.distance:.3f}; "
        f"{_place_among(row.distance, members.distance)}.",
        "" if cohort is None else _tell_labels(members.image_id, cohort),
        f"{_tell_band(row)}.",
        f"It was {decision}: {grounds}.",
        _tell_rivals(row, rivals),
    ]
    if row.order >= 0:
        picks = int((rivals.order >= 0).sum())
        sentences.append(f"It was pick {row.order + 1} of the sampler's {picks}.")
    priority = getattr(row, "priority", np.nan)
    if np.isfinite(priority):
        below = (batch.priority < priority).mean()
        sentences.append(f"Its priority of {priority:.2f} was above that of {below:.0%} of its super-batch.")
    return " ".join(sentence for sentence in sentences if sentence)


def _tell_labels(image_ids: pd.Series, cohort: pd.DataFrame) -> str:
    present = cohort.loc[cohort.image_id.isin(image_ids), finding_columns(cohort)].eq(1).fillna(False)
    shares = present.mean().sort_values(ascending=False, kind="stable").head(3)
    named = [f"{name} ({share:.0%})" for name, share in shares.items() if share > 0]
    return f"These pairs are most often labelled {', '.join(named)}." if named else ""


def _place_among(distance: float, distances: pd.Series) -> str:
    others = len(distances) - 1
    if others == 0:
        return "no other pair of the super-batch was nearest to that prototype"
    nearer = int((distances < distance).sum())
    if nearer in (0, others):
        return f"it was the {'farthest' if nearer else 'nearest'} of the {others + 1:,} pairs nearest to that prototype"
    return f"{nearer:,} of the {others:,} other pairs nearest to that prototype lay closer ({nearer / others:.0%})"


def _tell_band(row) -> str:
    start, end = row.threshold_support, row.threshold_outlier
    if row.band == "mismatched":
        return "The mismatch filter set it aside before bands were drawn"
    if not np.isfinite(start):
        return f"That prototype's bands had no edges yet, so it counted as {row.band}"
    side = {"central": "below it, in the central band", "support": "inside it", "outlier": "beyond it, as an outlier"}
    return f"That prototype's support band ran from {start:.3f} to {end:.3f}, and the pair lay {side[row.band]}"


def _tell_rivals(row, rivals: pd.DataFrame) -> str:
    band = {
        **{"central": "central pair", "support": "pair in the support band", "outlier": "outlier"},
        "mismatched": "mismatched pair",
    }[row.band]
    if len(rivals) == 1:
        return f"It was the only {band} of that prototype in the super-batch."
    bands = band.replace("pair", "pairs") if "pair" in band else f"{band}s"
    kept = int(rivals.kept.sum())
    share = {0: "none was", len(rivals): "all were", 1: "1 was"}.get(kept, f"{kept} were")
    return f"Of that prototype's {len(rivals)} {bands} in the super-batch, {share} kept."


def explain_choice(subset: ChosenSubset, image_id: str, pairs: int, name: str = "", shown: str = "") -> str:
    """What the scores of a method or an arm, or its subset alone, say of one of ``pairs`` pairs."""
    kept = image_id in subset.kept.index
    name = name or subset.method
    verdict = f"{shown or image_id} was {'kept' if kept else 'dropped'} by {name}, which kept {len(subset.kept):,} of"
    if subset.scores is None:
        return f"{verdict} {pairs:,} pairs; it left no ledger and no scores that would say why."
    scores = subset.scores
    if image_id not in scores.index:
        raise StudyError(f"{name} scored {len(scores):,} pairs, not {shown or image_id}: it chose from another cohort.")
    score = scores[image_id]
    if np.isnan(score):
        return f"{verdict} {len(scores):,} pairs; it has no score."
    rank, ties = int((scores > score).sum()) + 1, int((scores == score).sum()) - 1
    sentences = [
        f"{verdict} {len(scores):,} pairs.",
        f"Its score of {score:.4g} is number {rank:,} from the top, above that of {(scores < score).mean():.0%} of all "
        f"pairs{f', with {ties:,} of the same score' if ties else ''}.",
        f"The lowest score kept is {scores.reindex(subset.kept.index).min():.4g}, the highest dropped "
        f"{scores.drop(subset.kept.index, errors='ignore').max():.4g}.",
    ]
    if kept and rank > len(subset.kept):
        sentences.append("By its score alone it would have been dropped: a group quota held it.")
    if not kept and rank + ties <= len(subset.kept):
        sentences.append("By its score alone it would have been kept: it gave way to a group quota.")
    if kept and subset.kept[image_id] != 1:
        sentences.append(f"It weighs {subset.kept[image_id]:.2f} in training.")
    return " ".join(sentences)


def describe_pair(cohort: pd.DataFrame, image_id: str) -> str:
    """What a cohort table says of one of its pairs, without its report."""
    row = cohort.set_index("image_id").loc[image_id]
    age = f", {row.age_years:.0f} years" if pd.notna(row.age_years) else ""
    view = "view unknown" if row["view"] == "unknown" else f"{row['view']} view"
    report = "no report" if row.report_origin == "none" else f"{row.report_origin} report"
    labels = row[finding_columns(cohort)]
    present, uncertain = ([name for name in labels.index[(labels == one).fillna(False)]] for one in (1, -1))
    sentence = f"The pair: {view}, {_SEXES[row.sex]}{age}, source {row.source}, {report}; "
    sentence += f"labelled {', '.join(present)}." if present else "no finding labelled present."
    return sentence + (f" Uncertain: {', '.join(uncertain)}." if uncertain else "")


def _describe_review(review: pd.DataFrame, image_id: str) -> str:
    place = np.flatnonzero(review.image_id == image_id)
    if len(place) == 0:
        return ""
    row, number = review.iloc[place[0]], f"{place[0] + 1} of {len(review):,}"
    return (
        f"It is on the review list, number {number}, with a mismatch score of {row.mismatch_score:.2f}: {row.advice}."
    )


def _describe_truth(truth: pd.DataFrame, image_id: str) -> str:
    found = truth[truth.image_id == image_id]
    if found.empty:
        return ""
    row, known = found.iloc[0], []
    if row.duplicate_of:
        known.append(f"it nearly repeats {row.duplicate_of}")
    copies = truth.image_id[truth.duplicate_of == image_id]
    if len(copies):
        known.append(f"it is nearly repeated by {' and '.join(copies)}")
    if row.mismatched:
        known.append(f"its report belongs to {row.report_of or 'another image'}")
    if row.junk:
        known.append(f"it is junk ({row.junk_kind})")
    return f"Truth of the phantom: {'; '.join(known) or 'a sound pair, repeated by none'}."
