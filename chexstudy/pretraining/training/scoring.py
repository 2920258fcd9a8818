"""What methods of curation are told about the training pairs: embeddings and losses under the shared warm-up.

Under a self-supervised objective these are images alone, as the teacher sees them, and there is no loss of a pair.

Every method of a seed sees the same model, that of the end of the warm-up, and the same losses, so that methods differ
in what they choose and in nothing else. Scoring is one pass over all pairs without gradient, and its cost is kept: a
method that needs it is charged for it.
"""

import time
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pandas as pd
import torch

from chexstudy.cohort.pixels.store import PixelStore, open_pixel_store
from chexstudy.cohort.table import read_cohort
from chexstudy.curation.online.prototypes import join_features
from chexstudy.devices import choose_autocast, choose_device, use_threads
from chexstudy.pretraining.arms.definitions import (
    arm_folder,
    name_objective,
    name_untrained,
    name_warm_up,
    require_current_arm,
)
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.pretraining.engine.compute import FlopMeter
from chexstudy.pretraining.engine.random_streams import RandomStreams
from chexstudy.pretraining.models.dual_encoder import ImageTextModel, build_model, load_image_encoder, load_model
from chexstudy.pretraining.models.images import TrainingImages
from chexstudy.pretraining.models.pairs import TrainingPairs
from chexstudy.pretraining.objectives.contrastive_loss import pair_losses
from chexstudy.pretraining.objectives.contrastive_step import PairEncoder
from chexstudy.pretraining.training.arm_run import pretrain
from chexstudy.pretraining.training.trainer import count_steps
from chexstudy.progress import progress
from chexstudy.runs import Run

_COHORT, _MANIFEST = "cohort.parquet", "pixels/manifest.json"
_INPUTS = (_COHORT, "pixels/index.parquet")
_NO_COST = {"flops": 0.0, "seconds": 0.0, "pairs_scored": 0}


@dataclass(frozen=True)
class Scores:
    """The training pairs as a model sees them, row by row in the order of the cohort."""

    image_ids: np.ndarray  # ``(pairs,)``
    image: np.ndarray  # unit-norm image embeddings ``(pairs, dim)``, float32
    text: np.ndarray | None  # unit-norm text embeddings ``(pairs, dim)``, float32; None of images alone
    loss: np.ndarray | None  # contrastive loss of each pair within its batch ``(pairs,)``, in nats; None likewise
    temperature: float  # of the model's softmax
    batch_size: int  # pairs of a batch, at most
    cost: dict  # operations, seconds and pairs of the pass, ``flops``, ``seconds`` and ``pairs_scored``
    # loss of each pair in the same batch under a reference model ``(pairs,)``, or None
    reference_loss: np.ndarray | None = None
    # the same of the reference model's pass; without the training of that model
    reference_cost: dict = field(default_factory=lambda: dict(_NO_COST))

    @cached_property
    def features(self) -> np.ndarray:
        """Unit-norm features, float32: joint ones ``(pairs, 2 * dim)``, or those of images alone ``(pairs, dim)``."""
        if self.text is None:
            return np.array(self.image)
        return join_features(*(torch.tensor(np.asarray(side)) for side in (self.image, self.text))).numpy()


def read_scoring_towers(
    run: Run, cohort: pd.DataFrame, seed: int, config: PretrainingConfig, device: str = "auto"
) -> tuple:
    """Image and text side of the model that pairs are scored with, after its warm-up, which is trained if need be.

    Without a warm-up they are the pretrained encoders as they are.
    """
    model = _read_model(run, cohort, seed, config, device)
    towers = model.image_tower, model.text_tower
    return towers if config.warm_up_epochs else tuple(tower.encoder for tower in towers)


def joint_features(image: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Unit-norm joint features ``(pairs, 2 * dim)``, float32, of the two sides' embeddings ``(pairs, dim)``."""
    sides = [torch.from_numpy(np.array(side, dtype=np.float32)) for side in (image, text)]
    return join_features(*[torch.nn.functional.normalize(side, dim=1) for side in sides]).numpy()


def score_training_pairs(run: Run, seed: int, config: PretrainingConfig, device: str = "auto") -> Scores:
    """Embed all training pairs with the shared warm-up of a seed, and measure each pair's loss in a random batch.

    Kept in ``curation/scoring/seed<k>/`` as ``image.npy``, ``text.npy``, ``ids.parquet``, ``losses.parquet``
    (``image_id``, ``loss``) and ``compute.json``; a second call with the same model and pairs reads them. The warm-up
    is trained if it is not; without one the model is that which training starts from. Batches are of nearly equal size,
    because a loss depends on how many other pairs it is measured against.
    """
    chosen, folder = choose_device(device), score_folder(seed)
    run.require(_COHORT)
    run.require(_MANIFEST)
    cohort = read_cohort(run.path(_COHORT))
    model = _read_model(run, cohort, seed, config, device)
    name, parameters = f"{folder}/compute.json", _parameters(run, seed, config, model, chosen)
    if not run.is_current(name, run.key(parameters, _INPUTS)):
        measured = measure_pairs(model, cohort, open_pixel_store(run), seed, config, chosen)
        ids = {"image_id": measured.image_ids}
        run.write_array(f"{folder}/image.npy", measured.image)
        run.write_array(f"{folder}/text.npy", measured.text)
        run.write_table(f"{folder}/ids.parquet", pd.DataFrame(ids))
        run.write_table(f"{folder}/losses.parquet", pd.DataFrame(ids | {"loss": measured.loss}))
        softmax = {"temperature": measured.temperature, "batch_size": measured.batch_size}
        run.write_json(name, measured.cost | softmax)
        files = tuple(f"{folder}/{file}" for file in ("image.npy", "text.npy", "ids.parquet", "losses.parquet"))
        run.record(name, parameters, _INPUTS, seed, files)
    return read_scores(run, seed)


def score_training_images(run: Run, seed: int, config: PretrainingConfig, device: str = "auto") -> Scores:
    """The training images as the teacher sees them at the end of the warm-up of a seed, in one plain view each.

    Kept as `score_training_pairs` keeps its embeddings. Without a warm-up the teacher is the encoder that training
    starts from.
    """
    arm, chosen = name_untrained(config), choose_device(device)
    if config.warm_up_epochs:
        arm = name_warm_up(config)
    pretrain(run, arm, seed, config, device)
    images = TrainingImages(read_cohort(run.path(_COHORT)), open_pixel_store(run))
    encoder = load_image_encoder(run.path(f"{arm_folder(arm, seed)}/model")).to(chosen)
    folder, parameters = score_folder(seed, name_objective(config)), {"encoder": encoder.describe()}
    name = f"{folder}/compute.json"
    if not run.is_current(name, run.key(parameters, _INPUTS)):
        batches = np.array_split(np.arange(len(images)), count_steps(len(images), config.micro_batch))
        with use_threads(config.threads), torch.no_grad():
            start = time.perf_counter()
            seen = progress(batches, label="scoring training images, batches")
            features = torch.cat([encoder(images.pixels(rows).to(chosen)).float().cpu() for rows in seen])
            seconds = time.perf_counter() - start
        flops = FlopMeter(encoder).count(("view",), lambda: encoder(images.pixels(np.arange(2)).to(chosen)), False) / 2
        run.write_array(f"{folder}/image.npy", torch.nn.functional.normalize(features, dim=1).numpy())
        run.write_table(f"{folder}/ids.parquet", pd.DataFrame({"image_id": images.image_ids}))
        run.write_json(name, {"flops": flops * len(images), "seconds": seconds, "pairs_scored": len(images)})
        run.record(name, parameters, _INPUTS, seed, (f"{folder}/image.npy", f"{folder}/ids.parquet"))
    ids = run.read_table(f"{folder}/ids.parquet")["image_id"].to_numpy()
    return Scores(ids, run.read_array(f"{folder}/image.npy", memory_map=True), None, None, 0.0, 0, run.read_json(name))


def score_with_reference(
    run: Run, arm: str, seed: int, config: PretrainingConfig, device: str = "auto", scores: Scores | None = None
) -> Scores:
    """`score_training_pairs`, or ``scores``, with the losses of a trained arm's model, such as ``full``'s.

    They are measured in the same batches, and kept beside the others as ``reference.parquet`` (``image_id``, ``loss``)
    and ``reference.json``.
    """
    chosen = choose_device(device)
    reference = require_current_arm(run, arm, seed)
    scores = score_training_pairs(run, seed, config, device) if scores is None else scores
    model = load_model(run.path(f"{reference}/model"))
    parameters = _parameters(run, seed, config, model, chosen) | {"arm": arm}
    name, losses = (f"{score_folder(seed)}/reference.{kind}" for kind in ("json", "parquet"))
    if not run.is_current(name, run.key(parameters, _INPUTS)):
        measured = measure_pairs(model, read_cohort(run.path(_COHORT)), open_pixel_store(run), seed, config, chosen)
        run.write_table(losses, pd.DataFrame({"image_id": measured.image_ids, "loss": measured.loss}))
        run.write_json(name, measured.cost | {"arm": arm, "temperature": measured.temperature})
        run.record(name, parameters, _INPUTS, seed, files=(losses,))
    cost, loss = run.read_json(name), run.read_table(losses)["loss"].to_numpy()
    return replace(scores, reference_loss=loss, reference_cost={part: cost[part] for part in _NO_COST})


def read_scores(run: Run, seed: int) -> Scores:
    """What `score_training_pairs` left, whatever it was made with; embeddings are mapped from disk."""
    folder = score_folder(seed)
    made = run.read_json(f"{folder}/compute.json")
    return Scores(
        run.read_table(f"{folder}/ids.parquet")["image_id"].to_numpy(),
        *(run.read_array(f"{folder}/{side}.npy", memory_map=True) for side in ("image", "text")),
        run.read_table(f"{folder}/losses.parquet")["loss"].to_numpy(),
        made["temperature"],
        made["batch_size"],
        {part: made[part] for part in _NO_COST},
    )


def score_folder(seed: int, variant: str = "") -> str:
    """Where scores of a seed lie within a run."""
    return f"curation/scoring{variant and f'.{variant}'}/seed{seed}"


def _read_model(run: Run, cohort: pd.DataFrame, seed: int, config: PretrainingConfig, device: str) -> ImageTextModel:
    if config.warm_up_epochs:
        pretrain(run, "warm_up", seed, config, device)
        return load_model(run.path(f"{arm_folder('warm_up', seed)}/model"))
    first = RandomStreams(seed, config.fixed_streams).draw_seed("initialisation")
    return build_model(config, cohort[cohort.split == "train"], first).eval()


def _parameters(run: Run, seed: int, config: PretrainingConfig, model: ImageTextModel, device: torch.device) -> dict:
    """What decides embeddings and losses beside the cohort: the model itself, and how it is asked."""
    manifest = run.read_json(_MANIFEST)
    return {
        "seed": seed,
        "image_tower": model.image_tower.describe(),
        "text_tower": model.text_tower.describe(),
        "logit_scale": model.bounded_logit_scale().item(),
        "batch_size": config.batch_size,
        "precision": str(choose_autocast(config.precision, device)),
        "threads": config.threads,
        "fixed_streams": list(config.fixed_streams),
        "pixels": [manifest["size"], manifest["fit"]],
    }


def measure_pairs(
    model: ImageTextModel,
    cohort: pd.DataFrame,
    store: PixelStore,
    seed: int,
    config: PretrainingConfig,
    device: torch.device,
) -> Scores:
    """Embeddings of all training pairs of a cohort under a model, and each pair's loss in a random batch."""
    model.to(device).eval()
    pairs = TrainingPairs(cohort, store, model.text_tower.tokenize)
    encoder = PairEncoder(model, pairs, device, config.micro_batch, choose_autocast(config.precision, device))
    image, text = (np.empty((len(pairs), model.dim), np.float32) for _ in range(2))
    loss = np.empty(len(pairs))
    generator = RandomStreams(seed, config.fixed_streams).generator("scoring")
    order = torch.randperm(len(pairs), generator=generator).numpy()
    batches = np.array_split(order, count_steps(len(pairs), config.batch_size))
    # As an arm is trained, so that seconds can be added up and sums agree in the last bits.
    with use_threads(config.threads), torch.no_grad():
        start = time.perf_counter()
        scale = model.bounded_logit_scale()
        for rows in progress(batches, label="scoring training pairs, batches"):
            embedded = encoder.embed(rows)
            loss[rows] = pair_losses(*embedded, scale).cpu().numpy()
            image[rows], text[rows] = (side.cpu().numpy() for side in embedded)
            # Without its backward pass the loss is one product of image with text embeddings, not three.
            encoder.flops += encoder.meter.loss(len(rows), model.dim) / 3
        seconds = time.perf_counter() - start
    cost = {"flops": encoder.flops, "seconds": seconds, "pairs_scored": len(pairs)}
    return Scores(pairs.image_ids, image, text, loss, torch.exp(-scale).item(), config.batch_size, cost)
