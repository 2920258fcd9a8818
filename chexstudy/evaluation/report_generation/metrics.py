"""How right written reports are: their words against reference reports, and the findings that they name.

Every report is counted once; a resample of patients is a weighted sum of these counts, so that a corpus metric is exact
in each of them. Metrics lie between 0 and 1, but for the length ratio. A report without a reference is left out and
counted, an empty report counts as wrong. What needs trained weights is not among them; see
`chexstudy.evaluation.report_generation.bert_score`.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.metadata import version
from itertools import pairwise

import numpy as np
import pandas as pd
from rouge_score.tokenize import tokenize
from sacrebleu.metrics import BLEU
from sacrebleu.metrics.helpers import extract_all_char_ngrams
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from chexstudy.errors import StudyError
from chexstudy.evaluation.report_generation.controls import Labeler
from chexstudy.evaluation.scores import Measured
from chexstudy.progress import progress
from chexstudy.statistics.bootstrap import count_patients
from chexstudy.statistics.ranking import known_labels, macro_mean

FIVE = ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")
FOURTEEN = (
    *("No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema"),
    *("Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other"),
    *("Fracture", "Support Devices"),
)
OVERLAPS = ("bleu_1", "bleu_4", "chrf", "rouge_l", "length_ratio")
VARIETIES = ("distinct_1", "distinct_2", "unique_share", "empty_share")
_WORDS, _CHARACTERS = 4, 6  # orders of n-grams
# Of single pairs counts alone are taken, so that the effective order, which spares a warning, has no effect.
_BLEU, _TOKENS = BLEU(effective_order=True), Tokenizer13a()
_BETA = 2.0  # of chrF: recall counts twice as much as precision

_sacrebleu = f"version:{version('sacrebleu')}"  # in its own spelling
_bleu = f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|{_sacrebleu}"
_rouge = f"stemmer:no|letters:a-z0-9|version:{version('rouge-score')}"
_f1 = "rule labeler|present against present|not mentioned counts as absent"
# Name of a metric -> with which package, version and constants it is computed.
SIGNATURES = {
    "bleu_1": f"sacrebleu|{_bleu}|order:1|level:corpus|scale:0-1",
    "bleu_4": f"sacrebleu|{_bleu}|order:4|level:corpus|scale:0-1",
    "chrf": f"sacrebleu|nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|{_sacrebleu}|beta:2|level:corpus|scale:0-1",
    "rouge_l": f"rouge-score|F1|{_rouge}|level:mean of reports|scale:0-1",
    "length_ratio": f"words written by words of the references|tok:13a|{_sacrebleu}",
    "distinct_1": f"distinct words by words|case:mixed|tok:13a|{_sacrebleu}|level:corpus",
    "distinct_2": f"distinct pairs of words by pairs|case:mixed|tok:13a|{_sacrebleu}|level:corpus",
    "unique_share": "distinct reports by reports",
    "empty_share": "reports without a word by reports",
    "f1": _f1,
    "macro_f1": f"{_f1}|mean over findings present in a reference",
    "micro_f1": f"{_f1}|cases of all findings pooled",
    "findings_said": "findings present in a reference and said present in a report",
}


def measure_reports(
    hypotheses: Sequence[Sequence[str]],
    references: Sequence[str],
    weights: np.ndarray,
    label: Labeler,
    findings: Sequence[str] = (),
    truth: np.ndarray | None = None,
) -> list[Measured]:
    """All metrics of a model's reports: one of the words, then those of findings, see `measure_labels`.

    Args:
        hypotheses: the reports, in the order of the references, a sequence a seed.
        weights: ``(resamples, reports)`` of `bootstrap_patients`.
        label: what tells findings from texts.
        findings: to be measured beside the 14 of CheXpert.
        truth: labels ``(reports, findings)`` of the images, where they are known beyond any report.
    """
    kept = np.array([bool(reference.strip()) for reference in references])
    if not kept.any():
        raise StudyError("all reference reports are empty, so that there is nothing to compare with: give some a text.")
    told = [text for text, keep in zip(references, kept, strict=True) if keep]
    written = [[text for text, keep in zip(texts, kept, strict=True) if keep] for texts in hypotheses]
    weights = weights[:, kept]
    measured = [measure_texts(written, told, weights, int((~kept).sum()))]
    names = list(dict.fromkeys([*findings, *FOURTEEN]))
    said = [np.asarray(label(texts, names)) for texts in written]
    true = np.asarray(label(told, names))
    # Not mentioned is absent; of a text of which nothing is understood, as in another language, nothing is known.
    true = np.where(np.isnan(true) & ~np.isnan(true).all(axis=1, keepdims=True), 0, true)
    measured += measure_labels(said, true, names, weights, "report", findings)
    if truth is not None:
        known = pd.DataFrame(truth[kept], columns=list(findings)).reindex(columns=names).to_numpy()
        measured += measure_labels(
            said, np.where(known_labels(known), known, np.nan), names, weights, "image", findings
        )
    return measured


def sign_metrics(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of metrics, or of their differences, with ``signature``, one of `SIGNATURES`."""
    metrics = rows.metric.str.replace("_difference.*|_of_best_constant", "", regex=True)
    return rows.assign(signature=metrics.map(SIGNATURES).fillna(""))


def measure_texts(
    hypotheses: Sequence[Sequence[str]], references: Sequence[str], weights: np.ndarray, left_out: int = 0
) -> Measured:
    """`OVERLAPS` with references that say something, and `VARIETIES`, as rows of the finding ``all``.

    Varieties have no interval: a resample repeats patients and is therefore less varied than any set of as many.
    """
    values, replicates = [], []
    for texts in hypotheses:
        counts = count_overlaps(texts, references)
        values.append([*score_overlaps(counts.sum(axis=0)), *measure_variety(texts)])
        drawn = score_overlaps(weights @ counts)
        replicates.append(np.pad(drawn, ((0, 0), (0, len(VARIETIES))), constant_values=np.nan))
    place = {"finding": "all", "n": len(references), "positives": -1}
    upper = np.array([np.inf if metric == "length_ratio" else 1 for metric in (*OVERLAPS, *VARIETIES)])[:, None]
    return Measured(
        (*OVERLAPS, *VARIETIES),
        pd.DataFrame([place]),
        np.array(values)[..., None],
        np.array(replicates)[..., None],
        count_patients(np.ones((len(references), 1), dtype=bool), weights),
        bounds=(0, upper),
        beside=pd.DataFrame([place | {"metric": "empty_references", "value": float(left_out)}]),
    )


def count_overlaps(hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """What `score_overlaps` takes of each pair, ``(reports, counts)``; sums of rows are the counts of a corpus."""
    pairs = zip(hypotheses, references, strict=True)
    return np.array([_count_pair(*pair) for pair in progress(pairs, len(references), "comparing reports")], dtype=float)


@lru_cache(maxsize=2**15)
def _count_pair(hypothesis: str, reference: str) -> tuple[float, ...]:
    words = _BLEU.sentence_score(hypothesis, [reference])
    said, told = (extract_all_char_ngrams(text, _CHARACTERS) for text in (hypothesis, reference))
    shared = [(one & other).total() for one, other in zip(said, told, strict=True)]
    # As sacrebleu does: an order that the reference is too short for does not count.
    written = [one.total() if other else 0 for one, other in zip(said, told, strict=True)]
    return (
        *(1, _measure_rouge_l(hypothesis, reference), words.sys_len, words.ref_len, *words.counts, *words.totals),
        *(*shared, *written, *(one.total() for one in told)),
    )


def _measure_rouge_l(hypothesis: str, reference: str) -> float:
    said, told = (tokenize(text, None) for text in (hypothesis, reference))
    return 2 * _measure_common(said, told) / max(1, len(said) + len(told))


def _measure_common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, a whole row as the bits of one number.

    In reports of 10,000 words rouge-score's own table would take a minute and a gigabyte. Source: Hyyrö 2004,
    Bit-parallel LCS-length computation revisited.
    """
    places: dict[str, int] = defaultdict(int)
    for place, word in enumerate(first):
        places[word] |= 1 << place
    row = full = (1 << len(first)) - 1
    for word in second:
        matched = row & places.get(word, 0)
        row = ((row + matched) | (row - matched)) & full
    return len(first) - row.bit_count()


def score_overlaps(counts: np.ndarray) -> np.ndarray:
    """`OVERLAPS` ``(..., 5)`` of a corpus from sums of the rows of `count_overlaps` ``(..., counts)``."""
    reports, rouge, written, told = np.moveaxis(counts[..., :4], -1, 0)
    of_words, of_characters = np.split(counts[..., 4:], [2 * _WORDS], axis=-1)
    matched, words = of_words[..., :_WORDS], of_words[..., _WORDS:]
    with np.errstate(divide="ignore", invalid="ignore"):
        brevity = np.exp(np.minimum(0, 1 - told / written))
        # An order without a match counts as half a match, the next such one as a quarter, ...
        smooth = 2.0 ** -np.cumsum((matched == 0) & (words > 0), axis=-1)
        precision = np.where(words > 0, np.where(matched > 0, matched, smooth) / words, 0)
        bleu = [
            np.where(matched[..., 0] > 0, brevity * np.exp(np.log(precision[..., :order]).mean(axis=-1)), 0)
            for order in (1, _WORDS)
        ]
        ratio, rouge_l = written / told, rouge / reports
    return np.stack([*bleu, _score_characters(of_characters), rouge_l, ratio], axis=-1)


def _score_characters(counts: np.ndarray) -> np.ndarray:
    """chrF ``(...)``: the F of precision and recall, each a mean over the orders that both sides have."""
    matched, written, told = np.split(counts, 3, axis=-1)
    has_both = (written > 0) & (told > 0)
    orders = np.maximum(1, has_both.sum(axis=-1))
    precision, recall = (
        np.divide(matched, count, out=np.zeros(matched.shape), where=has_both).sum(axis=-1) / orders
        for count in (written, told)
    )
    below = _BETA**2 * precision + recall
    return np.divide((1 + _BETA**2) * precision * recall, below, out=np.zeros(below.shape), where=below > 0)


def measure_variety(texts: Sequence[str]) -> tuple[float, ...]:
    """`VARIETIES`: distinct words and pairs of words by their number, and shares of distinct and of empty reports."""
    words = [_TOKENS(text).split() for text in texts]
    pairs = [pair for report in words for pair in pairwise(report)]
    singles = [word for report in words for word in report]
    distinct = [len(set(grams)) / max(1, len(grams)) for grams in (singles, pairs)]
    return *distinct, len(set(texts)) / len(texts), sum(not report for report in words) / len(texts)


def measure_labels(
    said: Sequence[np.ndarray],
    truth: np.ndarray,
    findings: Sequence[str],
    weights: np.ndarray,
    against: str,
    cohort: Sequence[str] = (),
) -> list[Measured]:
    """F1 of findings: of each, then macro and micro of ``chexpert_14``, ``chexpert_5`` and ``all`` of the cohort.

    The column ``group`` says what was taken for true, ``report`` or ``image``; macro and micro are given again, as
    ``report_uncertain_present``, with what is uncertain taken for present on both sides. A finding counts in a macro
    mean if it is present somewhere; how many of these are said at least once is ``findings_said``. Beside stand the
    prevalence and what the best constant gets: the same findings in every report, chosen for this very metric.

    Args:
        said: labels ``(reports, findings)`` of the reports, 1, 0, -1 (uncertain) or NaN, one array a seed.
        truth: labels ``(reports, findings)`` likewise; NaN is not known, and neither right nor wrong.
        against: ``report`` or ``image``.
        cohort: the findings that are ``all``; every one where there are none.
    """
    sets = {"chexpert_14": FOURTEEN, "chexpert_5": FIVE, "all": cohort or findings}
    groups = {name: [findings.index(one) for one in members if one in findings] for name, members in sets.items()}
    absent = _measure_f1(said, truth, findings, weights, groups, against, (1,))
    return [*absent, _measure_f1(said, truth, findings, weights, groups, f"{against}_uncertain_present", (1, -1))[1]]


def _measure_f1(said, truth, findings, weights, groups, against, present: tuple[int, ...]) -> list[Measured]:
    known, true = ~np.isnan(truth), np.isin(truth, present)
    yes = np.isin(said, present)
    # Right, said too much, missed: ``(seeds, reports, 3, findings)``.
    counts = np.stack([yes & true, yes & ~true & known, ~yes & true], axis=2)
    drawn = np.einsum("br,srcf->sbcf", weights.astype(float), counts.astype(float), optimize=True)
    counts, positives = counts.sum(axis=1).astype(float), true.sum(axis=0)
    best = _score_constants(positives, known.sum(axis=0), groups)
    of_findings = Measured(
        ("f1",),
        columns := pd.DataFrame(
            {"finding": list(findings), "group": against, "n": known.sum(axis=0), "positives": positives}
        ),
        _score_f1(counts)[:, None],
        _score_f1(drawn)[:, :, None],
        count_patients(true, weights),
        beside=pd.concat(
            [
                columns.assign(metric="prevalence", value=positives / np.maximum(1, known.sum(axis=0))),
                columns.assign(metric="f1_of_best_constant", value=best["f1"]),
            ]
        ),
    )
    columns = pd.DataFrame(
        {
            "finding": list(groups),
            "group": against,
            "n": [int(known[:, members].any(axis=1).sum()) for members in groups.values()],
            "positives": [int(positives[members].sum()) for members in groups.values()],
        }
    )
    metrics = ("macro_f1", "micro_f1", "findings_said")
    values, replicates = (_score_groups(count, groups) for count in (counts, drawn))
    replicates[..., 2, :] = np.nan  # a count of findings, which resamples can only lower
    of_groups = Measured(
        metrics,
        columns,
        values,
        replicates,
        count_patients(np.stack([true[:, members].any(axis=1) for members in groups.values()], axis=1), weights),
        bounds=(0, np.array([[1], [1], [np.inf]])),
        beside=pd.concat([columns.assign(metric=name, value=best[name]) for name in best if name != "f1"]),
    )
    return [of_findings, of_groups]


def _score_f1(counts: np.ndarray) -> np.ndarray:
    """F1 ``(..., findings)`` of counts ``(..., 3, findings)``; NaN where a finding is nowhere present."""
    right, too_much, missed = np.moveaxis(counts, -2, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(right + missed > 0, 2 * right / (2 * right + too_much + missed), np.nan)


def _score_groups(counts: np.ndarray, groups: Mapping[str, list[int]]) -> np.ndarray:
    """Macro and micro F1 and the number of present findings that are said ``(..., 3, groups)``."""
    scored = []
    for members in groups.values():
        of_group = counts[..., members]
        f1 = _score_f1(of_group)
        micro = _score_f1(of_group.sum(axis=-1, keepdims=True))[..., 0]
        is_said = ~np.isnan(f1) & (of_group[..., :2, :].sum(axis=-2) > 0)
        scored.append(np.stack([macro_mean(f1), micro, is_said.sum(axis=-1)], axis=-1))
    return np.stack(scored, axis=-1)


def _score_constants(positives: np.ndarray, known: np.ndarray, groups: Mapping[str, list[int]]) -> dict[str, list]:
    """What the best constants get, by metric: of each finding, or macro and micro of groups; and findings present."""
    with np.errstate(divide="ignore", invalid="ignore"):
        always = np.where(positives > 0, 2 * positives / (positives + known), np.nan)
    best = {
        "f1": list(always),
        "macro_f1_of_best_constant": [],
        "micro_f1_of_best_constant": [],
        "findings_present": [],
    }
    for members in groups.values():
        # The best set for a micro F1 holds the most prevalent findings: a later one would be worth more than itself.
        order = sorted(members, key=lambda place: -positives[place] / max(1, known[place]))
        right, said = np.cumsum(positives[order]), np.cumsum(known[order])
        total = positives[members].sum()
        best["macro_f1_of_best_constant"].append(float(macro_mean(always[members])))
        best["micro_f1_of_best_constant"].append(float(np.max(2 * right / (said + total))) if total else np.nan)
        best["findings_present"].append(float((positives[members] > 0).sum()))
    return best
