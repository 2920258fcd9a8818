"""The steps that self-supervision is measured by: our objective on a drawn study, and the published step restated.

The restatement is our own and plain. It takes the modules, crops and masks of our objective and does with them what is
published: one batch at once, zero-padded buffers of patches, the logits of all rows held, Sinkhorn-Knopp by exponents
of the whole matrix. What it tells are the losses that are optimised.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, normalize, pairwise_distance
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from chexstudy.cohort.phantom.build import build_phantom
from chexstudy.cohort.phantom.plan import PhantomConfig
from chexstudy.cohort.pixels.store import build_pixel_store
from chexstudy.cohort.table import read_cohort
from chexstudy.devices import autocast, choose_autocast
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.pretraining.engine.distributed import Processes
from chexstudy.pretraining.engine.random_streams import RandomStreams
from chexstudy.pretraining.objectives.distillation import Distillation
from chexstudy.pretraining.objectives.self_supervised import SelfSupervisedObjective
from chexstudy.pretraining.self_supervision.backbone import move_teacher
from chexstudy.pretraining.self_supervision.crops import make_crops
from chexstudy.runs import Run

_STUDY, _SIDE = "benchmark", 96
# Of a drawn cohort, at least so many images are for training.
_TRAINING_SHARE = 0.6
_FEWEST_DRAWN = 60
_STUDENT_TEMPERATURE, _EPSILON = 0.1, 1e-8
_SINKHORN_ITERATIONS = 3
_LARGEST_MASKS = (0.1, 0.5)
# The momentum of both schemes; a rate at which weights hardly move keeps the steps alike.
_MOMENTUM, _LEARNING_RATE = 0.99, 1e-6


@dataclass(frozen=True)
class Scale:
    """What is trained, and on how many images a step.

    ``encoder`` is a name of ours or the width of a ViT/16 with registers and SwiGLU, drawn at random.
    """

    encoder: str | int
    images: int
    constants: dict = field(default_factory=dict)


def small_scale() -> Scale:
    """As the default study trains, but at 64 pixels: minutes on two cores."""
    return Scale("tiny-dinov2", 64, {"image_size": 64})


def least_scale() -> Scale:
    """For tests: runs through everything in a moment."""
    heads = {"crop_prototypes": 24, "patch_prototypes": 32, "head_hidden": 32}
    sizes = {"image_size": 32, "local_size": 16, "local_crops": 2, "crop_bottleneck": 16, "patch_bottleneck": 16}
    return Scale("tiny-dinov2", 12, heads | sizes)


def paper_scale(image_size: int = 224, images: int = 64) -> Scale:
    """ViT-B/16 with the published heads and crops, and nothing left out (published: ViT-L/16, drop path 0.4)."""
    heads = {"crop_prototypes": 131_072, "patch_prototypes": 131_072, "head_hidden": 2048, "crop_bottleneck": 384}
    crops = {"local_crops": 8, "local_size": {224: 96, 512: 144}[image_size]}
    return Scale(768, images, {"image_size": image_size, "patch_bottleneck": 256} | heads | crops)


@contextmanager
def drawn_study(images: int, seed: int) -> Iterator[Run]:
    """A study of at least so many drawn training images, which is gone afterwards."""
    with TemporaryDirectory() as folder:
        before = os.environ.get("CHEXSTUDY_HOME")
        os.environ["CHEXSTUDY_HOME"] = folder
        try:
            run = Run(_STUDY)
            pairs = max(_FEWEST_DRAWN, int(images / _TRAINING_SHARE) + 1)
            drawn = PhantomConfig(pairs, _SIDE, seed, duplicate_share=0.0, junk_share=0.0, broken_files=0, workers=1)
            build_pixel_store(run, build_phantom(run, drawn), _SIDE, workers=1, root=run.path("phantom"))
            yield run
        finally:
            os.environ.pop("CHEXSTUDY_HOME")
            if before is not None:
                os.environ["CHEXSTUDY_HOME"] = before


def build_objective(
    scale: Scale, seed: int, device: torch.device | str = "cpu", **constants: object
) -> SelfSupervisedObjective:
    """Our objective on the drawn study, with the constants of the scale and further ones."""
    run, device = Run(_STUDY), torch.device(device)
    config = _configure(scale, run, **constants)
    cohort, streams = read_cohort(run.path("cohort.parquet")), RandomStreams(seed)
    return SelfSupervisedObjective(run, cohort, config, streams, device, Processes())


def _configure(scale: Scale, run: Run, **constants: object) -> PretrainingConfig:
    encoder = scale.encoder
    if isinstance(encoder, int):
        folder = run.path(f"vit-{encoder}")
        if not folder.exists():
            model = Dinov2WithRegistersModel(
                Dinov2WithRegistersConfig(
                    hidden_size=encoder,
                    num_attention_heads=encoder // 64,
                    patch_size=16,
                    image_size=224,
                    use_swiglu_ffn=True,
                )
            )
            model.save_pretrained(folder)
        encoder = str(folder)
    chosen = {"objective": "self_supervised", "image_encoder": encoder, "micro_batch": scale.images}
    return PretrainingConfig.from_dict(chosen | scale.constants | constants)


class Step:
    """A step over the first images of the drawn study, again and again: gradient, clipping, optimiser, teacher.

    Attributes:
        objective: ours.
        gradients: the two ways to the gradient of a step, by name; each gives its losses.
    """

    def __init__(self, scale: Scale, seed: int, device: torch.device | str = "cpu", **constants: object):
        # As published: below a temperature of 0.01 or so, exponents of logits overflow.
        constants = {"clipping": "module", "first_teacher_temperature": 0.04} | constants
        self.objective = build_objective(scale, seed, device, **constants)
        self.objective.plan(10**6)
        self.rows = np.arange(scale.images)
        self._optimizer = torch.optim.AdamW(self.objective.parameter_groups(), lr=_LEARNING_RATE)
        self._step = 0
        config = _configure(scale, Run(_STUDY), **constants)
        precision = choose_autocast(config.precision, torch.device(device))
        both = self.objective.model, self.objective.teacher
        same = config, RandomStreams(seed), torch.device(device), Processes(), precision
        self._published = PublishedStep(Distillation(*both, self.objective.examples, *same))
        self.gradients = {
            "ours": lambda: self.objective.backward(self.rows, self._step),
            "published": lambda: self._published(self.rows, self._step),
        }

    def take(self, scheme: str) -> None:
        """One step; waits for the device."""
        self.gradients[scheme]()
        self._optimizer.step()
        move_teacher(self.objective.teacher, self.objective.model, _MOMENTUM)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def compare(self) -> tuple[dict[str, float], float]:
        """Relative differences of the losses, by name, and of the gradient (norm of the difference)."""
        found = {}
        for scheme, gradient in self.gradients.items():
            torch.manual_seed(0)
            told = gradient()
            found[scheme] = told, flat_gradient(self.objective.model)
        (ours, mine), (published, expected) = found["ours"], found["published"]
        losses = {name: abs(ours[name] - value) / abs(value) for name, value in published.items()}
        return losses, float((mine - expected).norm() / expected.norm())


def flat_gradient(model: nn.Module) -> Tensor:
    """All gradients, side by side."""
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


# --- the published step -----------------------------------------------------------------------------------------------


class PublishedStep:
    """The gradient of a step as published, for the student of what it is given."""

    def __init__(self, of: Distillation):
        self._of = of

    def __call__(self, rows: np.ndarray, step: int) -> dict[str, float]:
        """Set the gradient of the student, each module's norm clipped; returns the losses that are optimised."""
        of, own = self._of, self._of.own
        student, teacher, images = of.student, of.teacher, len(rows)
        whole, local, masks = of.draw(images, step)
        pixels = of.images.pixels(rows).to(of.device)
        whole = torch.cat([make_crops(pixels, view, of.config.image_size) for view in whole])
        local = torch.cat([make_crops(pixels, view, own.local_size) for view in local])
        masks = torch.from_numpy(masks).to(of.device).transpose(0, 1).flatten(0, 1)
        places, counts = masks.flatten().nonzero()[:, 0], masks.sum(dim=1)
        weights = (1 / counts.clamp(min=1))[:, None].expand(-1, masks.shape[1])[masks]
        ends = np.linspace(*_LARGEST_MASKS, images + 1)[1:]
        room = sum(int(masks.shape[1] * end) for end in ends)

        student.train().zero_grad(set_to_none=True)
        with torch.no_grad():
            cls, patches = self._see(teacher, whole)
            cls = torch.cat(cls.chunk(2)[::-1])
            temperature = own.first_teacher_temperature
            crop_targets = balance_plainly(teacher.crop_head(cls), temperature).view(2, images, -1)
            masked = teacher.patch_head(_buffer(patches, places, room))[: len(places)]
            patch_targets = balance_plainly(masked, temperature)
        cls, patches = self._see(student, whole, masks)
        local_cls, _ = self._see(student, local)
        logits = student.crop_head(torch.cat([local_cls, cls]))
        terms = 2 + 2 * own.local_crops
        crops = logits[: len(local_cls)].chunk(own.local_crops)
        of_local = sum(cross_entropy(target, crop).mean() for crop in crops for target in crop_targets) / terms
        of_global = 2 * cross_entropy(crop_targets.flatten(0, 1), logits[len(local_cls) :]).mean() / terms
        masked = student.patch_head(_buffer(patches, places, room))[: len(places)]
        patch = (weights * cross_entropy(patch_targets, masked)).sum() / (2 * images)
        koleo = sum(spread_plainly(crop) for crop in cls.chunk(2))
        loss = of_local + of_global + own.patch_weight * patch + own.koleo_weight * koleo
        loss.backward()
        for module in (student.encoder, *student.heads):
            nn.utils.clip_grad_norm_(module.parameters(), own.clip_norm)
        told = {"loss": loss, "crop_loss": of_local + of_global, "patch_loss": patch, "koleo": koleo}
        return {name: value.item() for name, value in told.items()}

    def _see(self, network: nn.Module, crops: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor]:
        with autocast(self._of.device, self._of.autocast):
            cls, patches = network.see(crops, masks)
        return cls.float(), patches.float()


def _buffer(patches: Tensor, places: Tensor, room: int) -> Tensor:
    buffer = patches.new_zeros(room, patches.shape[-1])
    buffer[: len(places)] = patches.flatten(0, 1)[places]
    return buffer


def balance_plainly(logits: Tensor, temperature: float) -> Tensor:
    """Sinkhorn-Knopp on the whole matrix: ``(rows, prototypes)`` to probabilities."""
    matrix = (logits / temperature).exp().T
    prototypes, rows = matrix.shape
    matrix /= matrix.sum()
    for _ in range(_SINKHORN_ITERATIONS):
        matrix /= matrix.sum(dim=1, keepdim=True)
        matrix /= prototypes
        matrix /= matrix.sum(dim=0, keepdim=True)
        matrix /= rows
    return (matrix * rows).T


def cross_entropy(targets: Tensor, logits: Tensor) -> Tensor:
    """Of each row ``(rows,)``."""
    return -(targets * log_softmax(logits / _STUDENT_TEMPERATURE, dim=-1)).sum(dim=-1)


def spread_plainly(cls: Tensor) -> Tensor:
    """KoLeo of the [CLS] of one crop of each image."""
    cls = normalize(cls, eps=_EPSILON, dim=-1)
    with torch.no_grad():
        nearest = (cls @ cls.T).fill_diagonal_(-1).argmax(dim=1)
    return -torch.log(pairwise_distance(cls, cls[nearest], eps=_EPSILON) + _EPSILON).mean()
