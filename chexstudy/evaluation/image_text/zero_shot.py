"""Zero-shot classification: which of two sentences, the finding there or not there, does the image lie closer to?"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from chexstudy.cohort.prevalence import TIERS
from chexstudy.errors import StudyError
from chexstudy.evaluation.context import EvaluatedModel, Evaluation
from chexstudy.evaluation.image_text.prompts import (
    CHOSEN,
    FAMILIES,
    PUBLISHED,
    PromptFamily,
    choose_prompts,
    hash_families,
)
from chexstudy.evaluation.scores import MACRO
from chexstudy.evaluation.task import Fitted, Task
from chexstudy.results import write_interval


def normalise_rows(embeddings: np.ndarray) -> np.ndarray:
    """Rows of unit length, as float64 ``(rows, dim)``."""
    embeddings = np.asarray(embeddings, dtype=float)
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    wrong = np.flatnonzero(~np.isfinite(lengths[:, 0]) | (lengths[:, 0] == 0))
    if len(wrong):
        raise StudyError(
            f"embedding number {wrong[0]} is zero or not finite ({len(wrong)} of {len(lengths)}): train or embed again."
        )
    return embeddings / lengths


def prompt_directions(
    encode_texts: Callable[[list[str]], np.ndarray], findings: Sequence[str], family: PromptFamily
) -> np.ndarray:
    """Unit direction for each finding minus the one against it, ``(findings, dim)``: one encoding for all splits."""
    sides = [side for finding in findings for side in family.prompts(finding)]
    sentences = list(dict.fromkeys(sentence for side in sides for sentence in side))
    row_of = dict(zip(sentences, normalise_rows(encode_texts(sentences)), strict=True))
    directions = normalise_rows(np.stack([np.mean([row_of[sentence] for sentence in side], axis=0) for side in sides]))
    return directions[0::2] - directions[1::2]


def score_directions(image_embeddings: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Scores between 0 and 1 ``(images, findings)``: a softmax over the two sides of each finding.

    Of embeddings ``(images, dim)`` of any length and directions ``(findings, dim)`` of `prompt_directions`.
    """
    return 1 / (1 + np.exp(-(normalise_rows(image_embeddings) @ directions.T)))


def list_families(evaluation: Evaluation) -> Mapping[str, PromptFamily]:
    """The prompt families that are measured, by name."""
    return evaluation.families or FAMILIES


@dataclass(frozen=True)
class ZeroShot(Task):
    """Classification by the prompts of one family, or by those chosen on validation."""

    family: str = CHOSEN
    on_validation = True

    @property
    def name(self) -> str:
        return "zero_shot" if self.family == CHOSEN else f"zero_shot_{self.family}"

    @property
    def place(self) -> dict[str, str]:
        return {"task": "zero_shot", "setting": self.family}

    def list_parameters(self, evaluation: Evaluation) -> dict:
        """The prompts, of all that could be chosen."""
        families = list_families(evaluation)
        of_choice = [name for name, family in families.items() if family.candidate or name == PUBLISHED.name]
        names = of_choice if self.family == CHOSEN else [self.family]
        return {"family": self.family, "prompts": hash_families({name: families[name] for name in names})}

    def fit(self, arm: EvaluatedModel) -> Fitted:
        """Encode the prompts; which, is decided on validation."""
        evaluation, family, files = arm.evaluation, self.family, ()
        if family == CHOSEN:
            family = _choose_family(arm)
            files = (f"evaluation/{arm.name}/seed{arm.seed}/prompts.json",)
            evaluation.run.write_json(files[0], {"chosen_on_validation": family})
        directions = _encode_family(arm, family)
        return Fitted(lambda rows: score_directions(arm.project(rows), directions), files)


def _encode_family(arm: EvaluatedModel, family: str) -> np.ndarray:
    return prompt_directions(arm.encode_texts, arm.evaluation.findings, list_families(arm.evaluation)[family])


def _choose_family(arm: EvaluatedModel) -> str:
    evaluation, rows = arm.evaluation, arm.evaluation.validation
    if not len(rows):
        return PUBLISHED.name
    candidates = [name for name, family in list_families(evaluation).items() if family.candidate]
    scores = {name: score_directions(arm.project(rows), _encode_family(arm, name)) for name in candidates}
    return choose_prompts(scores, evaluation.labels(rows))


def list_inverted(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the results table of findings whose AUROC is under 0.5, lowest first: the wrong way round.

    Beside a good linear probe this points to the text side, for example one direction "abnormal" for all findings, or
    "no X" lying closer to X than to normal. The column ``certain`` says whether the whole interval lies under 0.5.
    """
    single = ~rows.finding.isin([MACRO, *TIERS])
    inverted = rows[single & (rows.metric == "auroc") & (rows.value < 0.5)].sort_values("value", kind="stable")
    return inverted.assign(certain=inverted.ci_high < 0.5).reset_index(drop=True)


def warn_inverted(rows: pd.DataFrame) -> list[str]:
    """A sentence for each finding of rows by prompt family whose interval of the AUROC lies under 0.5, lowest first.

    The sign must not be turned on the test split: the sentences are what to change.
    """
    inverted = list_inverted(rows)
    return [
        f"{row.finding}: the prompts {row.setting!r} of arm {row.arm!r} point the wrong way on {row.data_set}, AUROC "
        f"{write_interval(row.value, row.ci_low, row.ci_high)}; give the finding other sentences in a prompt_file, or "
        "another family, and judge them on validation."
        for row in inverted[inverted.certain].itertuples()
    ]
