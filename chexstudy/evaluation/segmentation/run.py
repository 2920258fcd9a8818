"""Outline structures of radiographs from encoders, and keep how well each image was outlined.

Decoders see the training and the validation split alone; of a study without outlines in its validation split, a fifth
of the training patients takes its place. Baselines are rows beside them: the mean training mask, which looks at no
image, and a small U-Net on pixels, trained end to end on the same images.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import repeat

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from chexstudy.cohort.annotations import ANNOTATIONS, restore
from chexstudy.cohort.splits import TEST_SPLITS, thin_splits
from chexstudy.encoders.embeddings import hash_texts
from chexstudy.encoders.spec import name_encoder
from chexstudy.errors import StudyError
from chexstudy.evaluation.adaptation.fine_tuning import METHODS, FineTuning
from chexstudy.evaluation.adaptation.recipes import check_labelled_share, name_fitted, name_share, thin_patients
from chexstudy.evaluation.context import EvaluatedModel, Evaluation
from chexstudy.evaluation.encoders import NO_ENCODER
from chexstudy.evaluation.scores import MACRO, Measured, scores_artifact
from chexstudy.evaluation.segmentation.decoder_training import (
    DecoderRecipe,
    Examples,
    average_masks,
    build_segmenter,
    fit_decoder,
)
from chexstudy.evaluation.segmentation.decoders import PIXEL_UNET
from chexstudy.evaluation.segmentation.metrics import measure_image, measure_structures
from chexstudy.evaluation.segmentation.targets import ORGAN, Targets, choose_structures, read_targets
from chexstudy.evaluation.task import Fitted, Task, measure_and_compare, run_tasks
from chexstudy.results import write_interval
from chexstudy.runs import hash_file

SEGMENTATION, SEGMENTATION_DIFFERENCE = "segmentation", "segmentation_difference"
MEAN_MASK = "mean_mask"
_COMPARED = ("dice_difference", "hd95_difference", "surface_dice_difference")
# Of the training patients, where no validation image has outlines.
_HELD_OUT = 0.2


@dataclass(frozen=True)
class SegmentStructures(Task):
    """One decoder on one encoder, or a baseline; the seed is that of the decoder and of the draw of patients."""

    structures: tuple[str, ...]
    decoder: str = "unet"  # of `chexstudy.evaluation.segmentation.decoders.DECODERS`, or the mean mask
    recipe: DecoderRecipe = field(default_factory=DecoderRecipe)
    labelled_share: float = 1.0  # share of the patients, of training and of validation, whose outlines it may see
    variant: str = ""  # a word for what differs from the recipe of other decoders

    def __post_init__(self):
        check_labelled_share(self.labelled_share)

    @property
    def name(self) -> str:
        """Such as ``segmentation_unet.full@10``."""
        return f"{SEGMENTATION}_{name_fitted(self.decoder, self.variant, self.labelled_share)}"

    @property
    def place(self) -> dict[str, str]:
        setting = name_share(self.labelled_share)
        return {"task": SEGMENTATION, "head": self.decoder, "variant": self.variant, "setting": setting}

    def list_parameters(self, evaluation: Evaluation) -> dict:
        own = asdict(self) | {"images": hash_texts(evaluation.cohort.image_id)}
        return own | {"annotations": hash_file(evaluation.run.require(ANNOTATIONS))}

    def fit(self, arm: EvaluatedModel) -> Fitted:
        """Train and keep the decoder, how its training went, and what it cost."""
        evaluation, run, folder = arm.evaluation, arm.evaluation.run, self._folder(arm.name, arm.seed)
        start = time.perf_counter()
        train, validation = (
            _read_examples(evaluation, rows, self.structures) for rows in self.split_patients(evaluation, arm.seed)
        )
        if not train.known.any():
            raise StudyError(f"no training image has outlines of {', '.join(self.structures)}: name other structures.")
        if self.decoder == MEAN_MASK:
            mean, files = average_masks(train), ()

            def predict(pixels: np.ndarray) -> Iterator[np.ndarray]:
                return repeat(mean, len(pixels))

        else:
            encoder = None if arm.name == NO_ENCODER else arm.encoder
            model, table = fit_decoder(
                self.decoder, encoder, train, validation, self.recipe, arm.seed, evaluation.device
            )
            predict, files = model.predict, (f"{folder}/decoder.safetensors", f"{folder}/training.parquet")
            with run.writing(files[0]) as temporary:
                save_file(model.list_weights(), temporary)
            run.write_table(files[1], table)
        run.write_json(f"{folder}/cost.json", {"seconds": time.perf_counter() - start, "images": len(train.pixels)})
        return Fitted(lambda rows: self._score(evaluation, rows, predict), (*files, f"{folder}/cost.json"))

    def _folder(self, arm: str, seed: int) -> str:
        return f"{SEGMENTATION}/{name_encoder(arm)}/seed{seed}/{self.name}"

    def split_patients(self, evaluation: Evaluation, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Rows to train on and to choose the epoch by."""
        train = thin_patients(evaluation.training, self.labelled_share, seed)
        if len(evaluation.validation):
            return train, thin_patients(evaluation.validation, self.labelled_share, seed)
        held_out = thin_patients(train, _HELD_OUT, seed) if train.patient_id.nunique() > 1 else train[:0]
        return train.drop(held_out.index), held_out

    def _score(self, evaluation: Evaluation, rows: pd.DataFrame, predict: Callable) -> pd.DataFrame:
        targets = read_targets(evaluation, rows, self.structures)
        table = []
        for place, predicted in enumerate(self._outline(evaluation, targets, predict)):
            case = measure_image(predicted, targets.draw(place), targets.spacing[place])
            table.append({"image_id": targets.image_ids[place]} | case)
        return pd.DataFrame(table)

    def _outline(
        self, evaluation: Evaluation, targets: Targets, predict: Callable[[np.ndarray], Iterable[np.ndarray]]
    ) -> Iterator[dict[str, np.ndarray]]:
        """The predicted masks of each image at its original size."""
        pixels = evaluation.store.read(targets.image_ids)
        for logits, size in zip(predict(pixels), targets.sizes, strict=True):
            restored = restore(logits, tuple(size.tolist()), evaluation.store.fit)
            yield dict(zip(self.structures, restored > 0, strict=True))

    def look(self, evaluation: Evaluation, arm: str, seed: int, rows: pd.DataFrame) -> Callable[[str], tuple]:
        """Image id -> pixels and predicted and true masks by structure, of a decoder that was kept."""
        model = EvaluatedModel(evaluation, arm, seed)
        encoder = None if arm == NO_ENCODER else model.encoder
        kept = build_segmenter(self.decoder, encoder, len(self.structures), self.recipe, torch.Generator())
        weights = load_file(evaluation.run.require(f"{self._folder(arm, seed)}/decoder.safetensors"))
        kept.load_state_dict(weights, strict=False)
        kept.to(evaluation.device).eval()
        targets = read_targets(evaluation, rows, self.structures)
        outlined = self._outline(evaluation, targets, kept.predict)
        seen = zip(rows.image_id, evaluation.store.read(rows.image_id), outlined, strict=True)
        shown = {one: (pixels, masks, targets.draw(place)) for place, (one, pixels, masks) in enumerate(seen)}
        return shown.__getitem__

    def read(self, evaluation: Evaluation, arm: str, seed: int, rows: pd.DataFrame) -> pd.DataFrame:
        """The kept table: a row an image, columns as in `measure_image`."""
        sets = dict.fromkeys(rows.source + "/" + rows.split)
        names = [scores_artifact(arm, seed, self.name, name) for name in sets]
        return pd.concat([evaluation.run.read_table(name) for name in names], ignore_index=True)

    def measure(self, evaluation: Evaluation, rows: pd.DataFrame, scores: Sequence[pd.DataFrame]) -> list[Measured]:
        """By structure and the mean over structures, see `measure_structures`."""
        return [measure_structures(scores, rows, self.structures, evaluation.draw_patients(rows)[0])]


def _read_examples(evaluation: Evaluation, rows: pd.DataFrame, structures: Sequence[str]) -> Examples:
    targets = read_targets(evaluation, rows, structures)
    return Examples(np.array(evaluation.store.read(rows.image_id)), targets.masks, targets.known)


def choose_images(
    evaluation: Evaluation, wanted: Sequence[str] = (), train_images: int = 0, test_images: int = 0
) -> tuple[Evaluation, tuple[str, ...]]:
    """The images on which it is known of a structure where it is, and the structures: all organs if none is wanted.

    ``train_images`` and ``test_images``: at most so many of training, half as many of validation, and so many of each
    test set, of whole patients; 0 is all. Where nothing can be learnt or judged there are none, and a line says why.
    """
    known = choose_structures(evaluation, least=1) if wanted else choose_structures(evaluation)
    if unknown := [structure for structure in wanted if structure not in known]:
        there = f"name one of {', '.join(known)}" if known else "nobody outlined any structure in this cohort"
        raise StudyError(f"no training image has an outline of {unknown[0]!r}: {there}.")
    structures = tuple(wanted) or tuple(structure for structure, kind in known.items() if kind == ORGAN)
    outlined = read_targets(evaluation, evaluation.cohort, structures).known.any(axis=1)
    most = {"train": train_images, "validate": (train_images + 1) // 2} | dict.fromkeys(TEST_SPLITS, test_images)
    chosen = thin_splits(evaluation.cohort[outlined], most, evaluation.seed)
    if not structures or not chosen.split.isin(TEST_SPLITS).any():
        lacks = "to judge by, no test image has outlines" if structures else "to learn from, no organ is outlined"
        print(f"No structure is segmented: there is nothing {lacks}.")
        structures, chosen = (), chosen[:0]
    return replace(evaluation, cohort=chosen), structures


# --- a study ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SegmentationPlan:
    """What is outlined in a study: every decoder on every encoder, its first on shares of the patients, baselines."""

    structures: tuple[str, ...]  # without any, nothing is done
    encoders: tuple[str, ...]  # arms, and others by name; the first is held against the others
    seeds: tuple[int, ...]
    decoders: tuple[str, ...]  # on encoders
    recipe: DecoderRecipe  # of decoders and of the small U-Net
    label_shares: tuple[float, ...] = ()  # of the patients, below 1, for the first decoder and the baselines
    thinned: tuple[str, ...] = ()  # encoders that are tried on shares
    tuning: tuple[str, ...] = ()  # ways to tune the first encoder under the first decoder, as in `FineTuning`

    def __post_init__(self):
        if not (self.encoders and self.decoders):
            raise StudyError("outlines need an encoder and a decoder: name one of each or more.")
        if wrong := [method for method in self.tuning if method not in METHODS]:
            raise StudyError(f"an encoder is tuned by {', '.join(METHODS)}, not {wrong[0]!r}.")

    def list_work(self) -> list[tuple[tuple[str, ...], list[SegmentStructures]]]:
        """Encoders, and what is done on each of them; baselines are last."""
        whole, baselines = self._list_frozen(), self.list_baselines()

        def thin(tasks: Sequence[SegmentStructures]) -> list[SegmentStructures]:
            return [replace(task, labelled_share=share) for task in tasks for share in self.label_shares]

        work = [
            (self.encoders, whole),
            (self.thinned, thin(whole[:1])),
            (self.encoders[:1], self._list_tuned()),
            ((NO_ENCODER,), baselines + thin(baselines)),
        ]
        return [(encoders, tasks) for encoders, tasks in work if self.structures and encoders and tasks]

    def list_baselines(self) -> list[SegmentStructures]:
        """The mean training mask, and the small U-Net."""
        return [
            SegmentStructures(self.structures, MEAN_MASK),
            SegmentStructures(self.structures, PIXEL_UNET, self.recipe),
        ]

    def _list_frozen(self) -> list[SegmentStructures]:
        return [SegmentStructures(self.structures, decoder, self.recipe) for decoder in self.decoders]

    def _list_tuned(self) -> list[SegmentStructures]:
        recipes = {method: replace(self.recipe, tuning=FineTuning(method)) for method in self.tuning}
        return [SegmentStructures(self.structures, self.decoders[0], one, 1, name) for name, one in recipes.items()]

    def pair(self) -> dict[str, list]:
        """What is subtracted -> pairs of a task and an encoder each."""
        frozen, first = self._list_frozen(), self.encoders[0]
        pairs = {other: [((task, first), (task, other)) for task in frozen] for other in self.encoders[1:]}
        for base in self.list_baselines():
            sides = [(task, encoder) for task in frozen for encoder in self.encoders]
            pairs[base.decoder] = [(side, (base, NO_ENCODER)) for side in sides]
        return pairs | {"frozen": [((task, first), (frozen[0], first)) for task in self._list_tuned()]}


def segment_structures(evaluation: Evaluation, plan: SegmentationPlan, workers: int = 1) -> None:
    """Train all decoders and keep how well they outline the test sets; what is current is left."""
    for encoders, tasks in plan.list_work():
        run_tasks(evaluation, tasks, encoders, plan.seeds, workers)


def measure_segmentation(evaluation: Evaluation, plan: SegmentationPlan, workers: int = 1) -> pd.DataFrame:
    """What `segment_structures` kept, measured and compared; nothing gives no rows.

    Gives rows of the results table. Task ``segmentation``: see `measure_structures`, by encoder (``arm``), decoder
    (``head``), way of tuning (``variant``) and share of the patients (``setting``). Task ``segmentation_difference``,
    over seeds, paired by patient and seed: the first encoder minus each other, each minus a baseline, and tuned minus
    frozen (``reference``); with p values, corrected (``_holm``) for the number of comparisons, and within a comparison
    for that of structures.
    """
    return measure_and_compare(evaluation, plan.list_work(), plan.pair(), plan.seeds, [MACRO], workers, _COMPARED)


def tabulate_differences(rows: pd.DataFrame) -> pd.DataFrame:
    """Differences of the mean over structures: a row a comparison, with intervals and corrected p values."""
    own = rows[(rows.task == SEGMENTATION_DIFFERENCE) & (rows.finding == MACRO)]
    shown = own[own.metric.isin([*_COMPARED, f"{_COMPARED[0]}_p_holm"])]
    words = [
        f"{row.value:.2g}"
        if row.metric.endswith("holm")
        else write_interval(row.value, row.ci_low, row.ci_high, "+.3f")
        for row in shown.itertuples()
    ]
    place = ["data_set", "arm", "head", "variant", "reference"]
    return shown.assign(words=words).pivot(index=place, columns="metric", values="words").fillna("")
