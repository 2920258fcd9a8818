"""The model card of a released arm, written from what the run left behind.

Its words are those of ``model_card.md``. It holds counts, constants and results, and never a report, an image or the
identifier of a patient.
"""

import inspect
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from chexstudy.cohort.prevalence import TIERS
from chexstudy.cohort.table import finding_columns, read_cohort
from chexstudy.curation.quality.audit import SIGNIFICANCE
from chexstudy.evaluation.image_text.prompts import CHOSEN
from chexstudy.evaluation.scores import MACRO, scores_artifact
from chexstudy.pretraining.arms.definitions import arm_folder, find_arm
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.results import read_results, results_artifact
from chexstudy.runs import Run, hash_file

if TYPE_CHECKING:
    from chexstudy.release.image_processing_chexstudy import ChexstudyImageProcessor
    from chexstudy.release.modeling_chexstudy import ChexstudyConfig

_TEMPLATE = Path(__file__).with_name("model_card.md")
_TAGS = ["chest-x-ray", "radiology", "image-text", "contrastive-learning", "custom_code", "chexstudy"]

_CURATED = "A curator chose among the pairs of each super-batch while it was trained; then it saw what was kept."


@dataclass(frozen=True)
class Usage:
    """What the code in the card needs to know of the released pair."""

    config: "ChexstudyConfig"  # the released configuration
    processor: "ChexstudyImageProcessor"  # what makes pixels of pictures
    image_name: str  # name of the image encoder, as it may be shown
    text_name: str  # the same of the text encoder
    max_tokens: int  # of a text
    parameters: int  # how many weights there are
    difference: float  # largest difference of an embedding from that of the trained pair, on a sample

    @property
    def is_plain(self) -> bool:
        """Whether `transformers` reads both encoders without code of the release."""
        return not self.config.group_normalisation


def write_model_card(run: Run, arm: str, seed: int, usage: Usage) -> str:
    """The text of ``README.md``: YAML front matter for the Hub, then Markdown."""
    from huggingface_hub import ModelCard, ModelCardData

    folder, known = arm_folder(arm, seed), find_arm(arm)
    config = PretrainingConfig.from_dict(run.read_json(f"{folder}/model/pretraining.json"))
    cohort = read_cohort(run.require("cohort.parquet"))
    training = cohort[cohort.split == "train"]
    subset = f"{folder}/subset.parquet"
    kept = training[training.image_id.isin(run.read_table(subset).image_id)] if run.has(subset) else training
    bases = [name for name in (usage.image_name, usage.text_name) if "/" in name]
    card = ModelCard.from_template(
        ModelCardData(base_model=bases or None, license="other", library_name="transformers", tags=_TAGS),
        template_path=str(_TEMPLATE),
        study=run.study,
        arm=known,
        seed=seed,
        usage=usage,
        config=config,
        explanation=_CURATED if known.curates else known.explanation,
        cost=run.read_json(f"{folder}/compute.json"),
        record=run.provenance(f"{folder}/compute.json"),
        padding='"max_length"' if usage.config.text_length else "True",
        plain=_load_plainly(usage) if usage.is_plain else None,
        splits=[
            {"source": _escape(source), "split": split} | _count(rows)
            for (source, split), rows in cohort.groupby(["source", "split"], sort=True)
        ],
        training=_count(training),
        kept=_count(kept),
        drawn=float((training.source == "phantom").mean()),
        views=training.view.fillna("unknown").value_counts().to_dict(),
        labelled=bool(finding_columns(training)),
        constants=_list_constants(config, usage),
        **_list_results(run, arm, seed),
        **_list_audited(run, arm, seed, training, kept),
    )
    return card.content.rstrip() + "\n"


def _escape(value: object) -> str:
    return str(value).replace("|", "\\|")


def _count(rows: pd.DataFrame) -> dict[str, int]:
    """Pairs and patients, and the pairs whose report is of each origin."""
    origins = {origin: int((rows.report_origin == origin).sum()) for origin in ("written", "template")}
    return {"pairs": len(rows), "patients": rows.patient_id.nunique()} | origins


def _list_constants(config: PretrainingConfig, usage: Usage) -> dict[str, str]:
    values = {one.name: getattr(config, one.name) for one in fields(config) if one.name != "curator"}
    values |= {"image_encoder": usage.image_name, "text_encoder": usage.text_name}
    values |= {f"curator.{one.name}": getattr(config.curator, one.name) for one in fields(config.curator)}
    return {name: _escape(", ".join(value) if isinstance(value, tuple) else value) for name, value in values.items()}


def _load_plainly(usage: Usage) -> dict[str, object]:
    """How `transformers` loads both encoders by itself, in pieces of Python."""
    import transformers

    config = usage.config
    image_class, image_options = _loading_class(config.image_config, config.image_class, config.image_pooling)
    text_class, text_options = _loading_class(config.text_config, config.text_class, config.text_pooling)
    patch = getattr(config.image_config, "patch_size", None)
    if config.image_config.model_type == "resnet":
        patches = ".flatten(2).transpose(1, 2)"
    else:
        patches = f"[:, -{(usage.processor.size // patch) ** 2}:]" if patch else ""
    forward = inspect.signature(getattr(transformers, config.image_class).forward)
    classes = ", ".join(sorted({image_class, text_class, "AutoTokenizer"}, key=str.lower))
    interpolates = "interpolate_pos_encoding" in forward.parameters
    return {"classes": classes, "interpolates": interpolates, "patches": patches} | {
        "image": f'{image_class}.from_pretrained(folder + "/image_encoder"{image_options})',
        "text": f'{text_class}.from_pretrained(folder + "/text_encoder"{text_options})',
    }


def _loading_class(config, class_name: str, pooling: str) -> tuple[str, str]:
    """What loads an encoder, and the further arguments it needs."""
    import transformers

    own = getattr(transformers, class_name)
    takes_pooler = "add_pooling_layer" in inspect.signature(own.__init__).parameters
    options = f", add_pooling_layer={pooling == 'pooler'}" if takes_pooler else ""
    return "AutoModel" if transformers.MODEL_MAPPING.get(type(config), None) is own else class_name, options


def _list_results(run: Run, arm: str, seed: int) -> dict[str, list]:
    """Rows of the macro average and the tiers by data set, and the exposures among them."""
    rows = _read_current_results(run, arm, seed)
    if rows.empty:
        return {"results": [], "exposures": []}
    rows = rows.assign(place=rows.finding.map([MACRO, *TIERS].index)).sort_values(["data_set", "place"])
    return {"results": list(rows.itertuples()), "exposures": sorted(set(rows.exposure))}


def _read_current_results(run: Run, arm: str, seed: int) -> pd.DataFrame:
    """Zero-shot AUROC rows of this very training; none of a data set that it was not scored on since."""
    if not run.has(results_artifact("zero_shot")):
        return pd.DataFrame()
    cost = f"{arm_folder(arm, seed)}/compute.json"

    def is_current(data_set: str) -> bool:
        record = run.provenance(scores_artifact(arm, seed, "zero_shot", data_set))
        return record is not None and record["inputs"].get(cost) == hash_file(run.path(cost))

    rows = read_results(run, ["zero_shot"])
    rows = rows[(rows.arm == arm) & (rows.seed == seed) & (rows.metric == "auroc")]
    rows = rows[(rows.setting == CHOSEN) & rows.finding.isin([MACRO, *TIERS])]
    return rows[rows.data_set.isin([name for name in rows.data_set.unique() if is_current(name)])]


def _list_audited(run: Run, arm: str, seed: int, training: pd.DataFrame, kept: pd.DataFrame) -> dict[str, object]:
    """How many groups were audited, None where none were, and those that were kept less often than chance explains."""
    audit = _read_current_audit(run, arm, seed, training, kept)
    if audit.empty:
        return {"audited": None}
    values = audit.pivot(index=["group", "finding"], columns="metric", values="value")
    flagged = values[values.dropped_more_p < SIGNIFICANCE].sort_values("keep_ratio")
    named = [{"kind": kind, "name": group, "keep_ratio": row.keep_ratio} for (kind, group), row in flagged.iterrows()]
    return {"audited": len(values), "left_out": named}


def _read_current_audit(run: Run, arm: str, seed: int, training: pd.DataFrame, kept: pd.DataFrame) -> pd.DataFrame:
    """The audit's rows, or none where there are none or they count another subset."""
    if not run.has(results_artifact("audit")):
        return pd.DataFrame()
    rows = read_results(run, ["audit"])
    rows = rows[(rows.arm == arm) & (rows.seed == seed)]
    for row in rows[rows.group == "sex"].itertuples():
        if ((training.sex == row.finding).sum(), (kept.sex == row.finding).sum()) != (row.n, row.positives):
            return pd.DataFrame()
    return rows
