"""Anybody's reports against anybody's references, from two tables: matched by id, scored beside controls, described."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from chexstudy.cohort.adapters.column_mapping import guess_names, name_plainly
from chexstudy.cohort.finding_names import canonical_name
from chexstudy.cohort.table import finding_columns, require_columns
from chexstudy.errors import StudyError
from chexstudy.evaluation.comparison.two_models import check_ids, holds_labels, read_labels
from chexstudy.evaluation.report_generation.bert_score import BERT_SCORE, BertScore
from chexstudy.evaluation.report_generation.controls import (
    COMMONEST,
    CONTROLS,
    ITSELF,
    RANDOM,
    TURNED,
    commonest_report,
    flip_polarity,
    random_reports,
)
from chexstudy.evaluation.report_generation.labeler import label_reports
from chexstudy.evaluation.report_generation.metrics import FOURTEEN, measure_reports, sign_metrics
from chexstudy.evaluation.report_generation.variants import prepare_texts
from chexstudy.inputs.identifiers import normalise_ids, show_id, unify_patients
from chexstudy.inputs.tables import read_text_table, read_typed_table
from chexstudy.paths import resolve_user_path
from chexstudy.results import write_interval
from chexstudy.statistics.bootstrap import bootstrap_patients

_KEYS = ("image_id", "study_id")
# What a column of reports may be called, in order of preference; compared without case, blanks and underscores.
_REPORTS = (
    "report",
    "generatedreport",
    "hypothesis",
    "prediction",
    "generated",
    "reference",
    "reporttext",
    "text",
    "findings",
)
WRITTEN = "reports"
_SETS = {"all": "all", "chexpert_14": "14", "chexpert_5": "5"}
_SHOWN = {
    "bleu_1": "BLEU-1",
    "bleu_4": "BLEU-4",
    "chrf": "chrF",
    "rouge_l": "ROUGE-L",
    BERT_SCORE: "BERTScore",
    "micro_f1": "micro F1",
    "macro_f1": "macro F1",
    "findings_said": "findings said",
    "length_ratio": "length ratio",
    "distinct_1": "distinct words",
    "distinct_2": "distinct pairs of words",
    "unique_share": "unique reports",
    "empty_share": "empty reports",
}


@dataclass(frozen=True)
class ReportPairs:
    """Reports and references of the same images, or studies, in one order."""

    hypotheses: list[str]
    references: list[str]
    patients: np.ndarray  # of each
    notes: tuple[str, ...]  # what was met and left out, in sentences
    findings: tuple[str, ...] = ()  # beside the 14 of CheXpert
    truth: np.ndarray | None = None  # labels ``(reports, findings)`` of the images


def read_pairs(
    hypotheses: str,
    references: str,
    labels: str | None = None,
    sections: str = "findings",
    strip_comparisons: bool = False,
    shared_only: bool = False,
) -> ReportPairs:
    """Read and match two tables with a column of reports and one of ids, ``image_id`` or else ``study_id``.

    Args:
        hypotheses, references: files; ``patient_id`` of the references says whose report each is.
        labels: a file of what the images show, one column a finding.
        sections, strip_comparisons: as in `prepare_texts`; comparisons are stripped from references.
        shared_only: score the reports that both files hold, where they differ.
    """
    paths = [resolve_user_path(name) for name in (hypotheses, references)]
    tables = [read_text_table(path) for path in paths]
    names = [guess_names(table.columns) for table in tables]
    key = next((key for key in _KEYS if all(key in known for known in names)), None)
    if key is None:
        # The sentence lists the columns of a table that has neither.
        for table, known, path in zip(tables, names, paths, strict=True):
            require_columns(table, ["image_id"] * known.keys().isdisjoint(_KEYS), path.name)
        raise StudyError(f"{paths[0].name} and {paths[1].name} tell reports by different ids: give both an image_id.")
    of = key.removesuffix("_id")
    sides = [
        table.set_index(check_ids(table[known[key]], f"the reports of {path.name}", of))
        for table, known, path in zip(tables, names, paths, strict=True)
    ]
    shared, left_out = _share([side.index for side in sides], [path.name for path in paths], of, shared_only)
    texts = [
        side.loc[shared, _find_reports(side, path.name)].fillna("") for side, path in zip(sides, paths, strict=True)
    ]
    written, of_written = prepare_texts(texts[0], sections)
    told, of_told = prepare_texts(texts[1], sections, strip_comparisons)
    known = sides[1].loc[shared].get(names[1].get("patient_id"))
    patients = normalise_ids(pd.Series(shared) if known is None else known)
    if patients.isna().any():
        raise StudyError(f"{paths[1].name} has no patient_id for {patients.isna().sum():,} reports: name the patients.")
    findings, truth = _read_truth(labels, shared, of) if labels else ((), None)
    notes = [
        *[f"No patient_id in {paths[1].name}: each report counts as another patient's."] * (known is None),
        *[f"{left_out:,} that only one of the files holds were left out."] * (left_out > 0),
        f"Compared are {sections.replace('+', ' and ')}; {of_told['comparisons']:,} of {of_told['sentences']:,} "
        f"sentences of the references compare with an earlier study{', and were taken out' * strip_comparisons}.",
        *[f"{of_told['empty']:,} references have no such text and were left out."] * bool(of_told["empty"]),
        *[f"{of_written['empty']:,} reports have no such text and count as wrong."] * bool(of_written["empty"]),
    ]
    return ReportPairs(written, told, unify_patients(patients)[0].to_numpy(), tuple(notes), findings, truth)


def _find_reports(table: pd.DataFrame, name: str) -> str:
    known = name_plainly(table.columns)
    column = next((known[one] for one in _REPORTS if one in known), None)
    require_columns(table, ["report"] * (column is None), name)
    return column


def _share(ids: Sequence[pd.Index], names: Sequence[str], of: str, shared_only: bool) -> tuple[pd.Index, int]:
    """The ids that both hold, in the order of the references, and how many only one holds."""
    shared = ids[1][ids[1].isin(ids[0])]
    alone = len(ids[0]) + len(ids[1]) - 2 * len(shared)
    if not len(shared):
        shown = " and ".join(map(show_id, ids))
        raise StudyError(
            f"{names[0]} and {names[1]} share no {of} (their ids are written as {shown}): write them alike."
        )
    if alone and not shared_only:
        raise StudyError(
            f"{names[0]} has {len(ids[0]):,} reports and {names[1]} {len(ids[1]):,}, {len(shared):,} of them of one "
            f"{of}: write the reports that are missing, or score these with --shared-only."
        )
    return shared, alone


def _read_truth(name: str, ids: pd.Index, of: str) -> tuple[tuple[str, ...], np.ndarray]:
    path = resolve_user_path(name)
    table = read_typed_table(path)
    key = guess_names(table.columns).get(f"{of}_id")
    require_columns(table, [f"{of}_id"] * (key is None), path.name)
    table = table.set_index(check_ids(table[key], f"the labels of {path.name}", of)).reindex(ids)
    columns = [name for name in finding_columns(table) if name != key]
    findings = tuple(name for name in columns if holds_labels(table[name]) or canonical_name(name) in FOURTEEN)
    if not table[list(findings)].notna().to_numpy().any():
        raise StudyError(f"{path.name} labels no finding of these reports: give it their ids, and 1, 0, -1 or empty.")
    names = tuple(map(canonical_name, findings))
    if len(set(names)) < len(names):
        raise StudyError(f"{path.name} labels one finding in two columns: take one of them out.")
    return names, read_labels(table, findings)


def score_pairs(pairs: ReportPairs, resamples: int, seed: int, bert: BertScore | None = None) -> pd.DataFrame:
    """Every metric of the reports, of controls that look at no image, and paired differences, as a long table.

    ``variant`` is whose reports: `WRITTEN`, the `COMMONEST` reference as a constant, a `RANDOM` one of another patient,
    the reference `ITSELF`, and itself with one finding `TURNED` into its opposite; of a difference ``reference`` is
    to what. ``signature`` says how the metric is computed, and ``references_sha256`` on which texts.
    """
    generator = np.random.default_rng(seed)
    weights = bootstrap_patients(pairs.patients, resamples, generator)
    told = [place for place, text in enumerate(pairs.references) if text]
    references, patients = [pairs.references[place] for place in told], pairs.patients[told]
    texts = {
        WRITTEN: pairs.hypotheses,
        COMMONEST: [commonest_report(references)] * len(pairs.references),
        RANDOM: random_reports(pairs.patients, references, patients, generator),
        ITSELF: pairs.references,
        TURNED: flip_polarity(pairs.references, label_reports, FOURTEEN),
    }
    shared = pairs.references, weights, label_reports, pairs.findings, pairs.truth
    measured = {name: measure_reports([written], *shared) for name, written in texts.items()}
    for name, parts in measured.items() if bert else ():
        parts.append(bert.measure([texts[name][place] for place in told], references, weights[:, told]))
    rows = [part.of_seed(0).assign(variant=name) for name, parts in measured.items() for part in parts]
    for name in CONTROLS:
        sides = zip(measured[WRITTEN], measured[name], strict=True)
        rows += [one.minus(other, generator).assign(variant=WRITTEN, reference=name) for one, other in sides]
    turned = np.mean([text != texts[TURNED][place] for place, text in zip(told, references, strict=True)])
    place = {"variant": TURNED, "finding": "all", "n": len(told), "positives": -1}
    rows.append(pd.DataFrame([place | {"metric": "turned_share", "value": turned}]))
    rows = pd.concat(rows, ignore_index=True).fillna({"group": "", "reference": ""})
    if not pairs.findings:
        rows = rows[(rows.finding != "all") | (rows.group == "")]  # those are the 14
    digest = hashlib.sha256("\0".join(pairs.references).encode()).hexdigest()
    first = ["variant", "reference", "finding", "group", "metric", "value", "ci_low", "ci_high", "n", "positives"]
    rows = sign_metrics(rows[first]).assign(references_sha256=digest)
    if bert:
        rows.loc[rows.metric.str.startswith(BERT_SCORE), "signature"] = bert.signature
    return rows


def tabulate_scores(rows: pd.DataFrame) -> pd.DataFrame:
    """The reports with their intervals and the controls beside, a line a metric."""
    rows = rows[(rows.reference == "") & rows.metric.isin(list(_SHOWN)) & rows.value.notna()]
    place = ["metric", "finding", "group"]
    of = {name: part.set_index(place) for name, part in rows.groupby("variant")}
    written = of[WRITTEN].sort_index(
        key=lambda index: index.map(list(_SHOWN).index) if index.name == "metric" else index
    )
    metrics, findings, groups = (written.index.get_level_values(name) for name in place)
    table = {
        "metric": metrics.map(_SHOWN),
        "findings": findings.map(_SETS).where(groups != "", ""),
        "against": groups.str.replace("_", " "),
    }
    table[WRITTEN] = [write_interval(*row) for row in written[["value", "ci_low", "ci_high"]].to_numpy()]
    return pd.DataFrame(
        table | {name: of[name].value[written.index].map("{:.3f}".format).to_numpy() for name in CONTROLS}
    )


def tabulate_findings(rows: pd.DataFrame) -> pd.DataFrame:
    """F1 of each finding that is present somewhere, with the prevalence and what the best constant gets."""
    rows = rows[(rows.variant == WRITTEN) & (rows.reference == "") & (rows.positives > 0)]
    of = {metric: part.set_index(["finding", "group"]) for metric, part in rows.groupby("metric")}
    f1 = of["f1"]
    table = f1.reset_index()[["finding", "group", "n", "positives"]].rename(columns={"group": "against"})
    table["F1"] = [write_interval(*row) for row in f1[["value", "ci_low", "ci_high"]].to_numpy()]
    for name, metric in (("best constant", "f1_of_best_constant"), ("prevalence", "prevalence")):
        table[name] = of[metric].loc[f1.index, "value"].map("{:.3f}".format).to_numpy()
    return table


def describe_scores(pairs: ReportPairs, rows: pd.DataFrame, resamples: int) -> list[str]:
    """What was compared, left out and resampled, in sentences, and how each metric is computed."""
    whole = rows[(rows.variant == WRITTEN) & (rows.reference == "")].set_index(["metric", "finding", "group"])
    n, understood = whole.n["bleu_4", "all", ""], whole.n["micro_f1", "chexpert_14", "report"]
    differences = rows[(rows.metric == "micro_f1_difference") & (rows.finding == "chexpert_14")]
    differences = differences[differences.group == "report"].set_index("reference")
    ahead = [
        f"{name} {write_interval(*differences.loc[name, ['value', 'ci_low', 'ci_high']], '+.3f')}"
        for name in (COMMONEST, RANDOM)
    ]
    turned = rows.value[rows.metric == "turned_share"].item()
    signed = whole.signature.groupby("metric", sort=False).first()
    signatures = [f"{_SHOWN[name]}: {sign}" for name, sign in signed.items() if name in _SHOWN]
    return [
        f"{n:,} reports of {len(set(pairs.patients[[bool(text) for text in pairs.references]])):,} patients; 95 % "
        f"intervals by bootstrap of patients ({resamples:,} resamples).",
        *pairs.notes,
        *[f"{n - understood:,} references say nothing that the rules understand and enter no F1."]
        * bool(n > understood),
        f"Micro F1 of the 14 findings, minus that of the controls: {', '.join(ahead)}.",
        "Controls: the commonest reference as a constant, a random one of another patient, the reference itself, and "
        f"itself with one finding turned into its opposite, where one could be ({turned:.0%}): what stays high there "
        "does not see that error.",
        f"CheXbert, RadGraph{', BERTScore' * (BERT_SCORE not in signed)} and GREEN are not measured: they need trained "
        "weights.",
        *signatures,
    ]
