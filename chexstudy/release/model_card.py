"""The model card of a released arm, written from what the run left behind.

It holds counts, constants and results, and never a report, an image or the identifier of a patient.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import pandas as pd
import yaml

from chexstudy.cohort.prevalence import TIERS
from chexstudy.cohort.table import finding_columns, read_cohort
from chexstudy.curation.quality.audit import SIGNIFICANCE
from chexstudy.evaluation.image_text.prompts import CHOSEN
from chexstudy.evaluation.scores import MACRO
from chexstudy.pretraining.arms.definitions import arm_folder, find_arm
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.results import read_results, results_artifact
from chexstudy.runs import Run, hash_file

if TYPE_CHECKING:
    from chexstudy.release.modeling_chexstudy import ChexstudyConfig

_EXPOSURES = {
    "held_out": "both encoders started from scratch and these patients were held out",
    "seen": "the model was trained on these images",
    "unknown": "these patients were held out here, but what the pretrained encoders had seen before is not known",
}


@dataclass(frozen=True)
class Usage:
    """What the code in the card needs to know of the released pair."""

    config: "ChexstudyConfig"  # the released configuration
    image_name: str  # name of the image encoder, as it may be shown
    text_name: str  # the same of the text encoder
    size: int  # side in pixels that the image encoder sees
    stored_size: int  # side in pixels of the stored training images
    fit: str  # ``crop`` or ``pad``
    mean: tuple[float, ...]  # a channel
    std: tuple[float, ...]  # a channel
    max_tokens: int  # of a text
    parameters: int  # how many weights there are
    difference: float  # largest difference of an embedding from that of the trained pair, on a sample

    @property
    def is_plain(self) -> bool:
        """Whether `transformers` reads both encoders without code of the release."""
        return not self.config.group_normalisation


def write_model_card(run: Run, arm: str, seed: int, usage: Usage) -> str:
    """The text of ``README.md``: YAML front matter for the Hub, then Markdown.

    Args:
        run: the study.
        arm: a trained arm.
        seed: its seed.
        usage: of the released pair.
    """
    folder = arm_folder(arm, seed)
    config = PretrainingConfig.from_dict(run.read_json(f"{folder}/model/pretraining.json"))
    cost = run.read_json(f"{folder}/compute.json")
    record = run.provenance(f"{folder}/compute.json")
    cohort = read_cohort(run.require("cohort.parquet"))
    training = cohort[cohort.split == "train"]
    subset = f"{folder}/subset.parquet"
    kept = training[training.image_id.isin(run.read_table(subset).image_id)] if run.has(subset) else training
    sections = [
        _front_matter(usage),
        _describe_model(run, arm, config, usage),
        _show_loading(usage),
        _describe_data(cohort, training, record),
        _describe_curation(arm, config, training, kept),
        _describe_training(arm, config, usage),
        _describe_compute(cost),
        _describe_results(run, arm, seed),
        _describe_limits(run, arm, seed, training, kept),
        _describe_provenance(run, arm, seed, record, usage),
    ]
    return "\n\n".join(sections) + "\n"


# --- what it is -----------------------------------------------------------------------------------------------------


def _front_matter(usage: Usage) -> str:
    bases = [name for name in (usage.image_name, usage.text_name) if "/" in name]
    values = {
        "license": "other",
        "library_name": "transformers",
        "tags": ["chest-x-ray", "radiology", "image-text", "contrastive-learning", "custom_code", "chexstudy"],
        **({"base_model": bases} if bases else {}),
    }
    return f"---\n{yaml.safe_dump(values, sort_keys=False)}---"


def _describe_model(run: Run, arm: str, config: PretrainingConfig, usage: Usage) -> str:
    image = _at_revision(usage.image_name, config.image_revision)
    text = _at_revision(usage.text_name, config.text_revision)
    return _unwrap(f"""
# {run.study}: {arm}

An image-text model of chest radiographs with {usage.parameters / 1e6:.2f} million weights: {image} for images and
{text} for texts, with one linear projection each, embed radiographs of {usage.size} x {usage.size} pixels and reports
of up to {usage.max_tokens} tokens as unit vectors of {config.dim} dimensions. {_explain(arm)}

**A research model. It must not be used for clinical decisions.**
""")


def _at_revision(name: str, revision: str) -> str:
    return f"`{name}` (revision `{revision}`)" if revision else f"`{name}`"


def _explain(arm: str) -> str:
    known = find_arm(arm)
    if known.data == "curated":
        return "A curator chose among the pairs of each super-batch while it was trained; then it saw what was kept."
    return known.explanation


# --- how it is loaded -----------------------------------------------------------------------------------------------


def _show_loading(usage: Usage) -> str:
    parts = [
        "## How to load it",
        "With the two Python files of this folder, which need torch, transformers and Pillow alone. Read them first.",
        _code(
            "import torch",
            "from PIL import Image",
            "from transformers import AutoImageProcessor, AutoModel, AutoTokenizer",
            "",
            'folder = "path/to/this/folder"',
            "model = AutoModel.from_pretrained(folder, trust_remote_code=True)",
            "processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)",
            "tokenizer = AutoTokenizer.from_pretrained(folder)",
            "",
            'pixels = processor(Image.open("radiograph.png"))',
            _tokens_line(usage),
            "with torch.inference_mode():",
            "    image = model.get_image_features(**pixels)",
            "    texts = model.get_text_features(**tokens)",
            "print(image @ texts.T)",
        ),
        "The processor takes 8-bit and deeper pictures. A DICOM file must be windowed first and turned into grey "
        "levels from 0 (black) to 255 (white).",
    ]
    if usage.is_plain:
        parts += [
            "Both encoders are plain transformers models. Without running any code of this folder:",
            _code(*_plain_lines(usage)),
        ]
    else:
        parts.append(
            "The image encoder has group normalisation where its architecture has batch normalisation, so it cannot be "
            "loaded without these files."
        )
    return "\n\n".join(parts)


def _tokens_line(usage: Usage) -> str:
    padding = '"max_length"' if usage.config.text_length else "True"
    return (
        f'tokens = tokenizer(["No finding.", "Pleural effusion."], padding={padding}, truncation=True, '
        'return_tensors="pt")'
    )


def _plain_lines(usage: Usage) -> list[str]:
    """Python lines that embed one picture and two sentences with classes of `transformers`."""
    config, stored, side = usage.config, usage.stored_size, "max" if usage.fit == "pad" else "min"
    image_class, image_options = _loading_class(config.image_config, config.image_class, config.image_pooling)
    text_class, text_options = _loading_class(config.text_config, config.text_class, config.text_pooling)
    resized = usage.size != stored
    classes = ", ".join(sorted({image_class, text_class, "AutoTokenizer"}, key=str.lower))
    values = f"(pixels / 255 - torch.tensor({list(usage.mean)}).view(-1, 1, 1)) / "
    values += f"torch.tensor({list(usage.std)}).view(-1, 1, 1)"
    interpolating = "interpolate_pos_encoding" in inspect.signature(_find_class(config.image_class).forward).parameters
    arguments = "pixel_values=pixels" + (", interpolate_pos_encoding=True" if interpolating else "")
    return [
        "import numpy as np",
        "import torch",
        "from PIL import Image",
        "from safetensors import safe_open",
        f"from torch.nn.functional import {'interpolate, ' if resized else ''}normalize",
        f"from transformers import {classes}",
        "",
        'folder = "path/to/this/folder"',
        f'image_encoder = {image_class}.from_pretrained(folder + "/image_encoder"{image_options})',
        f'text_encoder = {text_class}.from_pretrained(folder + "/text_encoder"{text_options})',
        'tokenizer = AutoTokenizer.from_pretrained(folder + "/text_encoder")',
        'with safe_open(folder + "/model.safetensors", "pt") as file:',
        '    to_image = file.get_tensor("image_projection.weight")',
        '    to_text = file.get_tensor("text_projection.weight")',
        "",
        'picture = Image.open("radiograph.png").convert("L")',
        f"width, height = (max(1, {stored} * length // {side}(picture.size)) for length in picture.size)",
        f"left, top = round((width - {stored}) / 2), round((height - {stored}) / 2)",
        "picture = picture.resize((width, height), Image.Resampling.BICUBIC)",
        f"picture = picture.crop((left, top, left + {stored}, top + {stored}))",
        "pixels = torch.from_numpy(np.array(picture)).float()[None, None]",
        *[f'pixels = interpolate(pixels, ({usage.size},) * 2, mode="bicubic", antialias=True).clamp(0, 255)'] * resized,
        f"pixels = {values}",
        _tokens_line(usage),
        "with torch.inference_mode():",
        f"    output = image_encoder({arguments})",
        *_image_pooling_lines(config, usage.size),
        "    image = normalize(features @ to_image.T)",
        f"    output = text_encoder({_text_arguments(config)})",
        *_text_pooling_lines(config),
        "    texts = normalize(features @ to_text.T)",
        "print(image @ texts.T)",
    ]


def _find_class(name: str) -> type:
    import transformers

    return getattr(transformers, name)


def _loading_class(config, class_name: str, pooling: str) -> tuple[str, str]:
    """What loads an encoder, and the further arguments it needs."""
    import transformers

    known = transformers.MODEL_MAPPING.get(type(config), None)
    own = _find_class(class_name)
    takes_pooler = "add_pooling_layer" in inspect.signature(own.__init__).parameters
    options = f", add_pooling_layer={pooling == 'pooler'}" if takes_pooler else ""
    return "AutoModel" if known is own else class_name, options


def _image_pooling_lines(config: "ChexstudyConfig", size: int) -> list[str]:
    pooling = config.image_pooling
    if pooling == "pooler":
        return ["    features = output.pooler_output.flatten(1)"]
    if pooling == "projection":
        return ["    features = output.image_embeds"]
    lines = ["    hidden = output.last_hidden_state"]
    parts = pooling.split("+")
    if {"mean", "max"} & set(parts):
        if config.image_config.model_type == "resnet":
            lines.append("    patches = hidden.flatten(2).transpose(1, 2)")
        else:
            patch = getattr(config.image_config, "patch_size", None)
            lines.append(f"    patches = hidden[:, -{(size // patch) ** 2}:]" if patch else "    patches = hidden")
    pooled = {"cls": "hidden[:, 0]", "mean": "patches.mean(1)", "max": "patches.amax(1)"}
    expressions = ", ".join(pooled[part] for part in parts)
    return [*lines, f"    features = torch.cat([{expressions}], dim=1)"]


def _text_arguments(config: "ChexstudyConfig") -> str:
    return 'tokens["input_ids"]' if config.text_length else 'tokens["input_ids"], tokens["attention_mask"]'


def _text_pooling_lines(config: "ChexstudyConfig") -> list[str]:
    pooling = config.text_pooling
    if pooling in ("pooler", "projection"):
        return [f"    features = output.{'pooler_output' if pooling == 'pooler' else 'text_embeds'}"]
    if pooling == "first":
        return ["    features = output.last_hidden_state[:, 0]"]
    if pooling == "last":
        return [
            '    last = tokens["attention_mask"].sum(1) - 1',
            "    features = output.last_hidden_state[torch.arange(len(last)), last]",
        ]
    return [
        '    mask = tokens["attention_mask"].unsqueeze(-1)',
        "    features = (output.last_hidden_state * mask).sum(1) / mask.sum(1)",
    ]


# --- how it came to be ----------------------------------------------------------------------------------------------


def _describe_data(cohort: pd.DataFrame, training: pd.DataFrame, record: dict) -> str:
    rows = [
        [source, split, f"{len(group):,}", f"{group.patient_id.nunique():,}", *_count_reports(group)]
        for (source, split), group in cohort.groupby(["source", "split"], sort=True)
    ]
    return _unwrap(f"""
## Data

{_table(["source", "split", "pairs", "patients", "written reports", "reports from templates"], rows)}

The model was trained on pairs of the split `train`: {len(training):,} of {training.patient_id.nunique():,} patients.
Reports from templates were made from labels. SHA-256 of the cohort table: `{record["inputs"]["cohort.parquet"]}`.
""")


def _count_reports(rows: pd.DataFrame) -> list[str]:
    return [f"{int((rows.report_origin == origin).sum()):,}" for origin in ("written", "template")]


def _describe_curation(arm: str, config: PretrainingConfig, training: pd.DataFrame, kept: pd.DataFrame) -> str:
    known, curator = find_arm(arm), config.curator
    if known.data == "all":
        text = f"None: the arm was trained on all {len(training):,} pairs."
    else:
        share = f"{len(kept):,} of {len(training):,} pairs ({len(kept) / len(training):.1%}), of "
        share += f"{kept.patient_id.nunique():,} of {training.patient_id.nunique():,} patients"
        text = f"{_explain(arm)} Kept: {share}."
    if known.data in ("curated", "random", "oracle"):
        budget = (
            f" with a budget of {curator.budget:g} ({'share' if curator.budget <= 1 else 'number'} of the pairs)"
            if curator.rule == "budgeted"
            else "; the share it keeps follows from the constants"
        )
        subject = "The curator" if known.data == "curated" else "The curated arm, which set the number of pairs,"
        text += (
            f" {subject} followed the {curator.rule} rule{budget}: {curator.prototypes} prototypes, super-batches of "
            f"{config.super_batch} pairs, {_epochs(config.curation_epochs)} of curation after "
            f"{_epochs(config.warm_up_epochs)} over all pairs."
        )
    elif known.data == "subset":
        text += f" The subset was chosen by the method `{known.method}`."
    return f"## Curation\n\n{text}"


def _epochs(count: int) -> str:
    return f"{count} epoch{'s' * (count != 1)}"


def _describe_training(arm: str, config: PretrainingConfig, usage: Usage) -> str:
    adapted = []
    if config.frozen_towers:
        adapted.append(f" Frozen encoders: {', '.join(config.frozen_towers)}.")
    if config.lora_rank:
        adapted.append(
            f" Encoders were trained by low-rank updates (rank {config.lora_rank}, alpha {config.lora_alpha:g}), which "
            "are merged into the weights here."
        )
    known = find_arm(arm)
    epochs = f"{config.total_epochs if arm != 'warm_up' else config.warm_up_epochs} over all pairs"
    if known.data != "all":
        epochs = f"{config.warm_up_epochs} over all pairs, {config.curation_epochs} of curation, "
        epochs += f"{config.subset_epochs} over what was kept"
    if known.compute == "matched":
        epochs = "as many as it took to spend the operations of the curated arm"
    values = {"image_encoder": usage.image_name, "text_encoder": usage.text_name}
    values = {constant.name: getattr(config, constant.name) for constant in fields(config)} | values
    del values["curator"]
    values |= {
        f"curator.{constant.name}": getattr(config.curator, constant.name) for constant in fields(config.curator)
    }
    constants = [[f"`{name}`", _show(value)] for name, value in values.items()]
    return _unwrap(f"""
## Training

Contrastive (InfoNCE) over batches of {config.batch_size} pairs, with a learned temperature. AdamW, learning rate
{config.learning_rate:g} down to {config.min_learning_rate:g} (schedule `{config.schedule}`), weight decay
{config.weight_decay:g}. Epochs: {epochs}.{"".join(adapted)}

Images were stored as {usage.stored_size} x {usage.stored_size} pixels of 8-bit grey, made square by `{usage.fit}`.

<details><summary>All constants</summary>

{_table(["constant", "value"], constants)}

</details>
""")


def _show(value: object) -> str:
    value = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"`{value}`" if value else ""


def _describe_compute(cost: dict) -> str:
    phases = ", ".join(f"{phase['steps']:,} {name}" for name, phase in cost.get("by_phase", {}).items())
    rows = [
        ["operations, counted", f"{cost['flops']:.4g} FLOPs"],
        ["time", f"{cost['seconds']:,.1f} s"],
        ["device", f"{cost['device']}, {cost['precision']}, {cost['threads']} CPU thread(s)"],
        ["peak memory", f"{cost['peak_memory_bytes'] / 2**30:.2f} GiB"],
        ["pairs scored", f"{cost['pairs_scored']:,}"],
        ["pairs trained on", f"{cost['pairs_trained']:,}"],
        ["steps", f"{cost['steps']:,}" + (f" ({phases})" if phases else "")],
    ]
    joules = cost.get("energy_joules")
    told = "not told by the machine" if joules is None else f"{joules / 1000:,.1f} kJ (the whole GPU)"
    rows.append(["energy", told])
    return f"## Compute\n\nScoring and warm-up included.\n\n{_table(['', ''], rows)}"


def _describe_results(run: Run, arm: str, seed: int) -> str:
    rows = _read_current_results(run, arm, seed)
    if rows.empty:
        return "## Results\n\nThis model has not been evaluated."
    groups = [MACRO, *TIERS]
    shown = [
        [data_set, group, f"{row.value:.3f}", f"{row.ci_low:.3f} to {row.ci_high:.3f}", f"{row.n:,}", row.exposure]
        for data_set in sorted(set(rows.data_set))
        for group in groups
        for row in rows[(rows.data_set == data_set) & (rows.finding == group)].itertuples()
    ]
    meanings = "; ".join(f"`{name}`: {_EXPOSURES[name]}" for name in sorted(set(rows.exposure)))
    header = ["data set", "findings", "AUROC", "95 % interval", "images", "exposure"]
    return _unwrap(f"""
## Results

Zero-shot classification, mean AUROC over the findings of a group: `macro` is all of them, `head`, `medium` and `tail`
go by how frequent they are in training. Prompts were chosen on the validation split; intervals are bootstrapped over
patients. Exposure, {meanings}.

{_table(header, shown)}
""")


def _read_current_results(run: Run, arm: str, seed: int) -> pd.DataFrame:
    """Zero-shot AUROC rows of this very training; none where it was not evaluated since."""
    evaluated = run.provenance(f"evaluation/{arm}/seed{seed}/results.parquet")
    cost = f"{arm_folder(arm, seed)}/compute.json"
    measured = run.has(results_artifact("zero_shot"))
    if not measured or evaluated is None or evaluated["inputs"].get(cost) != hash_file(run.path(cost)):
        return pd.DataFrame()
    rows = read_results(run, ["zero_shot"])
    rows = rows[(rows.arm == arm) & (rows.seed == seed) & (rows.metric == "auroc")]
    return rows[(rows.setting == CHOSEN) & rows.finding.isin([MACRO, *TIERS])]


# --- what it must not be taken for ----------------------------------------------------------------------------------


def _describe_limits(run: Run, arm: str, seed: int, training: pd.DataFrame, kept: pd.DataFrame) -> str:
    limits = ["It is not a medical device, and it must not be used to decide about a patient."]
    drawn = (training.source == "phantom").mean()
    if drawn:
        limits.append(
            f"{'All' if drawn == 1 else f'{drawn:.0%}'} of its training radiographs were drawn by a program (the "
            "phantom cohort). What it learned from them does not carry over to real radiographs."
        )
    templates = int((training.report_origin == "template").sum())
    if templates:
        limits.append(f"{templates:,} of its {len(training):,} training reports are sentences made from labels.")
    views = ", ".join(f"{view} {count:,}" for view, count in training.view.fillna("unknown").value_counts().items())
    limits.append(f"Views in the training split: {views}. On others nothing is known.")
    if finding_columns(training):
        limits.append("Findings that are rare in training are measured on few cases; look at the intervals.")
    limits.append(_describe_subgroups(run, arm, seed, training, kept))
    limits.append(
        "A text encoder that learned its vocabulary from the training reports has words of these reports in its "
        "tokenizer, and weights can hold what was seen often. Look at the terms of the data before you share it."
    )
    limits.append(
        "No licence was chosen. The terms of the training data and of the encoders it started from decide which one "
        "can be; name it in the first lines of this file."
    )
    return "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits)


def _describe_subgroups(run: Run, arm: str, seed: int, training: pd.DataFrame, kept: pd.DataFrame) -> str:
    unmeasured = "How well it does for patients of different sex or age was not measured."
    audit = _read_current_audit(run, arm, seed, training, kept)
    if audit.empty:
        return f"{unmeasured} Nor was it audited which groups curation left out."
    values = audit.pivot(index=["group", "finding"], columns="metric", values="value")
    flagged = values[values.dropped_more_p < SIGNIFICANCE].sort_values("keep_ratio")
    text = f"{unmeasured} Which groups curation kept was audited for {len(values)} of them. "
    if flagged.empty:
        return text + "None was kept less often than chance explains."
    named = "; ".join(f"{kind} {group}, {row.keep_ratio:.2f} times" for (kind, group), row in flagged.iterrows())
    return text + f"Kept less often than chance explains, compared with all other pairs: {named}."


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


def _describe_provenance(run: Run, arm: str, seed: int, record: dict, usage: Usage) -> str:
    rows = [
        ["code revision", f"`{record['code_revision']}` (hash of the computing code `{record['code_hash']}`)"],
        ["key of the run", f"`{record['key']}`"],
        ["trained", record["written_at"]],
        ["seed", str(seed)],
        ["versions", ", ".join(f"{name} {version}" for name, version in sorted(record["versions"].items()))],
    ]
    return _unwrap(f"""
## Provenance

{_table(["", ""], rows)}

Trained by

    python -m chexstudy.pretraining.training.arm_run --study {run.study} --arm {arm} --seed {seed} --config
    pretraining.json

with the `pretraining.json` of this folder, and released by

    chexstudy release {arm} --study {run.study} --seed {seed} --out FOLDER

Embeddings of a sample differ from those of the trained pair by at most {usage.difference:.1e}. `release.json` has the
SHA-256 of every file.
""")


# --- Markdown -------------------------------------------------------------------------------------------------------


def _unwrap(text: str) -> str:
    """Paragraphs of prose on one line each; headings, tables, lists and code as they are."""
    blocks = text.strip("\n").split("\n\n")
    return "\n\n".join(
        block if block.startswith(("#", "|", "-", "<", "    ")) else " ".join(block.split()) for block in blocks
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _code(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```"])
