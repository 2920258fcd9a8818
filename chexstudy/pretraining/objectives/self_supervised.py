"""The self-supervised objective: a student learns from crops what a teacher, its own running mean, sees in others.

DINO on [CLS], iBOT on masked patches and KoLeo (DINOv2: Oquab et al. 2024; CheXFound). Two parts of a step look at all
its images at once, so a batch cannot simply be cut into pieces: the teacher's targets are balanced over all rows, and
KoLeo's neighbours are sought among all images. So the teacher passes over everything first, without gradient; then the
student does, piece by piece, with the targets at hand. Only where a step takes several pieces or processes does the
student look twice at the global crops, for the gradient of KoLeo with respect to every [CLS].
"""

import copy
import json
import random
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from chexstudy.cohort.pixels.store import open_pixel_store
from chexstudy.encoders.build import build_image_encoder
from chexstudy.encoders.checkpoint import save_encoder
from chexstudy.encoders.encoder import width_of
from chexstudy.encoders.spec import EncoderSpec
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.pretraining.engine.compute import FlopMeter
from chexstudy.pretraining.engine.distributed import Processes
from chexstudy.pretraining.engine.loading import StallMeter
from chexstudy.pretraining.engine.random_streams import RandomStreams
from chexstudy.pretraining.engine.schedule import Cosine
from chexstudy.pretraining.models.images import TrainingImages, tell_copies
from chexstudy.pretraining.objectives.contrastive import choose_autocast
from chexstudy.pretraining.objectives.objective import Objective
from chexstudy.pretraining.self_supervision.backbone import group_parameters, move_teacher
from chexstudy.pretraining.self_supervision.centring import (
    SINKHORN_ITERATIONS,
    Centre,
    Logits,
    Targets,
    balance_by_sinkhorn,
)
from chexstudy.pretraining.self_supervision.collapse import measure_features, measure_targets
from chexstudy.pretraining.self_supervision.crops import BLURS, Views, draw_views, make_crops
from chexstudy.pretraining.self_supervision.distillation_losses import crop_loss, koleo_loss, patch_losses
from chexstudy.pretraining.self_supervision.head import ProjectionHead
from chexstudy.pretraining.self_supervision.masks import MEAN_MASKED, draw_masks
from chexstudy.pretraining.self_supervision.network import Network
from chexstudy.runs import Run, atomic_path, seal_artifact

_GLOBAL_AREAS, _LOCAL_AREAS = (0.32, 1.0), (0.05, 0.32)
_FIRST_TEMPERATURE = 0.04
# Two rows are counted, because some backends treat a batch of one as a special case.
_COUNTED = 2


class SelfSupervisedObjective(Objective):
    """An image encoder that learns from images alone.

    Args:
        run: the study; cohort and pixels must be there.
        cohort: its table; images need neither report nor label.
        config: every constant.
        streams: sources of chance.
        device: where the model is trained.
        processes: those that train together.
    """

    def __init__(
        self,
        run: Run,
        cohort: pd.DataFrame,
        config: PretrainingConfig,
        streams: RandomStreams,
        device: torch.device,
        processes: Processes,
    ):
        self._config, self._own = config, config.self_supervision
        self._streams, self._device, self._processes = streams, device, processes
        seed = streams.draw_seed("initialisation")
        spec = EncoderSpec(
            config.image_encoder,
            config.image_revision,
            image_size=config.image_size,
            normalisation=config.image_normalisation,
        )
        encoder = build_image_encoder(spec, seed)
        encoder.check_size(self._own.local_size)
        self.model = Network(encoder, self._own, seed).to(device)
        self.teacher = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.examples = TrainingImages(cohort, open_pixel_store(run))
        self.width, self.stall, self.flops = encoder.dim, StallMeter(), 0.0
        self.width_of_tokens = width_of(encoder.model)
        self.prepared = {"flops": 0.0, "seconds": 0.0}
        self._autocast = choose_autocast(config, device)
        self._meter = FlopMeter(self.model)
        own = self._own
        self._centres = [Centre(count, device) for count in (own.crop_prototypes, own.patch_prototypes)]

    # --- what changes from step to step -------------------------------------------------------------------------------

    def _share(self, share: float) -> int:
        return round(share * self.steps)

    def parameter_groups(self) -> list[dict]:
        depth = self.model.encoder.model.config.num_hidden_layers
        merged: dict[tuple, dict] = {}
        for group in group_parameters(self.model.named_parameters(), depth, self._own.layer_decay):
            alike = merged.setdefault((group["rate"], group["decay"], group["is_prototype"]), group | {"params": []})
            alike["params"] += group["params"]
        return list(merged.values())

    def set_constants(self, groups: list[dict], step: int, learning_rate: float) -> float:
        config, own = self._config, self._own
        rate = Cosine(config.learning_rate, config.min_learning_rate, self.steps, self._share(own.ramp_share))
        decay = Cosine(config.weight_decay, own.final_weight_decay, self.steps)
        frozen = step < self._share(own.frozen_share)
        for group in groups:
            group["lr"] = 0.0 if frozen and group["is_prototype"] else group["rate"] * rate.at(step)
            group["weight_decay"] = group["decay"] * decay.at(step)
        return rate.at(step)

    def finish_step(self, step: int) -> dict[str, float]:
        momentum = Cosine(self._own.teacher_momentum, 1.0, self.steps).at(step)
        move_teacher(self.teacher, self.model, momentum)
        return {"teacher_momentum": momentum}

    # --- views --------------------------------------------------------------------------------------------------------

    def _draw(self, images: int, step: int) -> tuple[list[Views], list[Views], np.ndarray]:
        """Two global views and the local ones of every image of a step, and its masks ``(images, 2, patches)``."""
        own, size = self._own, self._config.image_size
        generator = np.random.default_rng(self._streams.draw_seed("crops", step))
        blurs, side, flip = BLURS[own.blur], self.examples.side, own.flip
        whole = [
            draw_views(images, side, _GLOBAL_AREAS, generator, blur=blurs[0], flip=flip),
            draw_views(images, side, _GLOBAL_AREAS, generator, blur=blurs[1], flip=flip, solarise=own.solarise),
        ]
        local = [
            draw_views(images, side, _LOCAL_AREAS, generator, blur=blurs[2], flip=flip) for _ in range(own.local_crops)
        ]
        chance = random.Random(self._streams.draw_seed("masks", step))
        masks = draw_masks(2 * images, size // self._patch, chance, own.exact_masks)
        return whole, local, masks.reshape(2, images, -1).swapaxes(0, 1)

    @property
    def _patch(self) -> int:
        return self.model.encoder.model.config.patch_size

    def _precision(self):
        return torch.autocast(self._device.type, dtype=self._autocast) if self._autocast else nullcontext()

    def _see_whole(self, network: Network, pixels: Tensor, views: list[Views], masks: Tensor | None = None):
        """[CLS] ``(2, images, dim)`` and patches ``(images, 2, patches, dim)`` of global crops, float32."""
        crops = torch.cat([make_crops(pixels, one, self._config.image_size) for one in views])
        with self._precision():
            cls, patches = network.see(crops, None if masks is None else masks.transpose(0, 1).flatten(0, 1))
        images = len(pixels)
        return cls.float().view(2, images, -1), patches.float().view(2, images, *patches.shape[1:]).transpose(0, 1)

    # --- a step -------------------------------------------------------------------------------------------------------

    def backward(
        self,
        rows: np.ndarray,
        step: int,
        embedded: tuple[Tensor, ...] | None = None,
        weights: np.ndarray | None = None,
    ) -> dict[str, float]:
        self.model.train()
        self.model.zero_grad(set_to_none=True)
        batch = _Batch(self, rows, step, weights)
        crop_targets, patch_targets = batch.teach()
        spread = batch.spread() if batch.in_pieces else None
        parts = [batch.learn(piece, crop_targets, patch_targets, spread) for piece in batch.pieces]
        parts = [[0.0, 0.0], *parts]
        crop, patch, koleo = self._processes.add_up([*map(sum, zip(*parts, strict=True)), batch.koleo])
        self._processes.sum_gradients(self.model.parameters())
        self.flops += self._count(*batch.sizes, batch.in_pieces)
        loss = crop + self._own.patch_weight * patch + self._own.koleo_weight * koleo
        told = {"loss": loss, "crop_loss": crop, "patch_loss": patch, "koleo": koleo} | self._clip()
        if step % self._own.watch_every == 0:
            told |= measure_targets(crop_targets) | measure_features(batch.seen)
        return told

    def _clip(self) -> dict[str, float]:
        modules = [self.model] if self._own.clipping == "together" else list(self.model.parts())
        norms = [nn.utils.clip_grad_norm_(module.parameters(), self._own.clip_norm) for module in modules]
        return {"gradient_norm": float(torch.stack(norms).max())}

    # --- costs --------------------------------------------------------------------------------------------------------

    def count_step(self, rows: np.ndarray) -> float:
        crops = 2 * len(rows) * (self._config.image_size // self._patch) ** 2
        shares = [share.stop - share.start for share in self._processes.shares(len(rows))]
        in_pieces = len(shares) > 1 or shares[0] > self._config.micro_batch
        return sum(self._count(images, crops * MEAN_MASKED * images / len(rows), in_pieces) for images in shares)

    def _count(self, images: int, patches: float, in_pieces: bool) -> float:
        """Operations of a step on so many images and masked patches, but for the distances of KoLeo."""
        own, crops = self._own, 2 + self._own.local_crops
        whole, local = self._config.image_size, own.local_size
        # What is left out of the student is not computed.
        kept = 1 - own.drop_path
        views = (1 + in_pieces * kept) * self._count_view(whole, False) + kept * self._count_view(whole, True)
        spent = 2 * images * views + own.local_crops * images * kept * self._count_view(local, True)
        for head, teacher, student in (
            (self.model.crop_head, 2 * images, crops * images),
            (self.model.patch_head, patches, patches),
        ):
            product = 2 * head.last_layer.in_features * head.last_layer.out_features
            held = Logits.are_held(round(teacher * self._processes.size), head.last_layer.out_features)
            passes = 1 if held else 2 * SINKHORN_ITERATIONS + 1
            spent += teacher * (self._count_head(head, False) + passes * product)
            # Backward, a product costs twice.
            spent += student * (self._count_head(head, True) + 3 * product)
        return spent

    def _count_view(self, size: int, backward: bool) -> float:
        sample = torch.zeros(_COUNTED, 1, size, size, device=self._device)

        def see() -> Tensor:
            training = self.model.training
            tokens = self.model.eval().encoder.see_tokens(sample)
            self.model.train(training)
            return tokens

        return self._meter.count(("view", size, backward), see, backward) / _COUNTED

    def _count_head(self, head: ProjectionHead, backward: bool) -> float:
        sample = torch.zeros(_COUNTED, head.mlp[0].in_features, device=self._device)
        key = ("head", head is self.model.crop_head, backward)
        return self._meter.count(key, lambda: head.reduce(sample), backward) / _COUNTED

    # --- for curators and readers -------------------------------------------------------------------------------------

    @torch.no_grad()
    def embed(self, rows: np.ndarray, size: int | None = None) -> tuple[Tensor]:
        share, micro = self._processes.share(len(rows)), self._config.micro_batch
        own, found = rows[share], [torch.empty((0, self.width), device=self._device)]
        for start in range(0, len(own), micro):
            pixels = self.examples.pixels(own[start : start + micro]).to(self._device)
            with self._precision():
                found.append(self.teacher.encoder(pixels, size).float())
            self.flops += len(pixels) * self._count_view(size or self._config.image_size, backward=False)
        return (self._processes.gather(torch.cat(found), len(rows)),)

    def join(self, embedded: tuple[Tensor]) -> Tensor:
        return functional.normalize(embedded[0], dim=1)

    def describe(self) -> dict:
        precision = str(self._autocast or torch.float32).removeprefix("torch.")
        return {"micro_batch": self._config.micro_batch, "precision": precision}

    def state(self) -> dict:
        centres = [centre.value for centre in self._centres]
        return {"model": self.model.state_dict(), "teacher": self.teacher.state_dict(), "centres": centres}

    def restore(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.teacher.load_state_dict(state["teacher"])
        for centre, value in zip(self._centres, state["centres"], strict=True):
            centre.value = value.to(self._device)

    def export(self, folder: Path) -> None:
        save_encoder(self.teacher.encoder, folder / "image_encoder")
        with atomic_path(folder / "heads.safetensors") as temporary:
            heads = {name: value.cpu().contiguous() for name, value in self.teacher.state_dict().items()}
            save_file({name: value for name, value in heads.items() if "head." in name}, temporary)
        with atomic_path(folder / "pretraining.json") as temporary:
            temporary.write_text(json.dumps(self._config.to_dict(), indent=2, sort_keys=True) + "\n")
        seal_artifact(folder)


class _Batch:
    """The images of one step, in pieces."""

    def __init__(self, objective: SelfSupervisedObjective, rows: np.ndarray, step: int, weights: np.ndarray | None):
        self._of, self._rows, self._step = objective, rows, step
        self._whole, self._local, masks = objective._draw(len(rows), step)
        self._masks = torch.from_numpy(masks).to(objective._device)
        counts = masks.sum(axis=2)
        # Where the masked patches of each image begin among those of all.
        self._starts = np.concatenate([[0], np.cumsum(counts.sum(axis=1))])
        of_patch = np.repeat(1 / counts.clip(1).ravel(), counts.ravel())
        weights = np.ones(len(rows)) if weights is None else weights
        self._weights = torch.from_numpy(weights).float().to(objective._device)
        of_patch = of_patch * np.repeat(weights, counts.sum(axis=1))
        self._patch_weights = torch.from_numpy(of_patch).float().to(objective._device)
        share, micro = objective._processes.share(len(rows)), objective._config.micro_batch
        count = max(1, -(-(share.stop - share.start) // micro))
        bounds = np.linspace(share.start, share.stop, count + 1).round().astype(int)
        self.koleo = 0.0  # this process's part
        self.pieces = [slice(int(start), int(stop)) for start, stop in pairwise(bounds) if stop > start]

    @property
    def sizes(self) -> tuple[int, int]:
        """Images of this process, and masked patches of theirs."""
        share = self._of._processes.share(len(self._rows))
        patches = self._patches_of(share)
        return share.stop - share.start, patches.stop - patches.start

    @property
    def in_pieces(self) -> bool:
        return len(self.pieces) != 1 or self._of._processes.size > 1

    def _pixels(self, piece: slice) -> Tensor:
        return self._of.examples.pixels(self._rows[piece]).to(self._of._device)

    def _views(self, views: list[Views], piece: slice) -> list[Views]:
        return [one[piece] for one in views]

    def _patches_of(self, piece: slice) -> slice:
        return slice(int(self._starts[piece.start]), int(self._starts[piece.stop]))

    @torch.no_grad()
    def teach(self) -> tuple[Targets, Targets]:
        """The teacher's targets of all [CLS], image by image, and of all masked patches, balanced over the batch."""
        of, teacher, device = self._of, self._of.teacher, self._of._device
        own = of._own
        whole = [torch.empty((0, of.width_of_tokens), device=device)]
        crops = [torch.empty((0, 2, own.crop_bottleneck), device=device)]
        patches = [torch.empty((0, own.patch_bottleneck), device=device)]
        for piece in self.pieces:
            cls, seen = of._see_whole(teacher, self._pixels(piece), self._views(self._whole, piece))
            whole.append(cls[0])
            crops.append(teacher.crop_head.reduce(cls).transpose(0, 1))
            patches.append(teacher.patch_head.reduce(seen[self._masks[piece]]))
        processes, count = of._processes, len(self._rows)
        lengths = [int(self._starts[one.stop] - self._starts[one.start]) for one in processes.shares(count)]
        self.seen = processes.gather(torch.cat(whole), count)
        features = (
            processes.gather(torch.cat(crops), count).flatten(0, 1),
            processes.gather(torch.cat(patches), sum(lengths), lengths),
        )
        temperature = Cosine(
            own.teacher_temperature,
            own.teacher_temperature,
            of.steps,
            of._share(own.temperature_share),
            _FIRST_TEMPERATURE,
        ).at(self._step)
        heads, targets = (teacher.crop_head, teacher.patch_head), []
        for head, centre, reduced in zip(heads, of._centres, features, strict=True):
            logits = head.logits(reduced)
            if own.centring == "softmax":
                targets.append(centre.balance(logits, temperature))
            else:
                targets.append(balance_by_sinkhorn(logits, temperature, overflows=own.sinkhorn_overflows))
        return tuple(targets)

    def _koleo(self, cls: Tensor, copies: Tensor | None) -> Tensor:
        cls = cls.float() if self._of._own.koleo_precision == "fp32" else cls.to(self._of._autocast or cls.dtype)
        return sum(koleo_loss(crop, copies).float() for crop in cls)

    def _copies(self) -> Tensor:
        return torch.from_numpy(tell_copies(self._of.examples.pixels(self._rows))).to(self._of._device)

    def spread(self) -> Tensor:
        """Gradient of KoLeo with respect to every [CLS] of the step ``(2, images, dim)``."""
        of, found = self._of, []
        with torch.no_grad():
            for piece in self.pieces:
                torch.manual_seed(self._dropout_seed(piece))
                masks = self._masks[piece]
                cls, _ = of._see_whole(of.model, self._pixels(piece), self._views(self._whole, piece), masks)
                found.append(cls.transpose(0, 1))
        nothing = torch.empty((0, 2, of.width_of_tokens), device=of._device)
        own = torch.cat([nothing, *found])
        every = of._processes.gather(own, len(self._rows)).transpose(0, 1).requires_grad_()
        if of._own.koleo_neighbours == "process":
            share = of._processes.share(len(self._rows))
            loss = self._koleo(every[:, share], None) * ((share.stop - share.start) / len(self._rows))
            self.koleo = loss.item()
        else:
            loss = self._koleo(every, self._copies())
            # All processes compute the same.
            self.koleo = loss.item() / of._processes.size
        return torch.autograd.grad(loss, every)[0]

    def _dropout_seed(self, piece: slice) -> int:
        return self._of._streams.draw_seed("dropout", self._step, piece.start)

    def learn(
        self, piece: slice, crop_targets: Targets, patch_targets: Targets, spread: Tensor | None
    ) -> tuple[float, float]:
        """Add the gradient of the loss of some images; returns their part of the losses on crops and patches."""
        of, student, count = self._of, self._of.model, len(self._rows)
        images, own = piece.stop - piece.start, self._of._own
        pixels, masks = self._pixels(piece), self._masks[piece]
        torch.manual_seed(self._dropout_seed(piece))
        cls, patches = of._see_whole(student, pixels, self._views(self._whole, piece), masks)
        local = torch.cat([make_crops(pixels, one, own.local_size) for one in self._views(self._local, piece)])
        with of._precision():
            local_cls = student.see(local)[0].float()
        logits = student.crop_head(torch.cat([cls.flatten(0, 1), local_cls])).unflatten(0, (-1, images))
        targets = crop_targets.chunk(slice(2 * piece.start, 2 * piece.stop)).unflatten(0, (images, 2)).transpose(0, 1)
        crop = crop_loss(targets, logits[2:], logits[:2], self._weights[piece]) * (images / count)
        if spread is None:
            copies = None if own.koleo_neighbours == "process" else self._copies()
            koleo = self._koleo(cls, copies)
            self.koleo = koleo.item()
            total = crop + own.koleo_weight * koleo
        else:
            # Its gradient is that of KoLeo, whose value lies elsewhere.
            total = crop + own.koleo_weight * (cls * spread[:, piece]).sum()
        reduced = student.patch_head.reduce(patches[masks])
        patch, outputs, gradients = self._learn_patches(reduced, patch_targets, self._patches_of(piece))
        torch.autograd.backward([total, *outputs], [None, *gradients])
        return crop.item(), patch

    def _learn_patches(self, reduced: Tensor, targets: Targets, rows: slice) -> tuple[float, list, list]:
        """The loss on patches, chunk by chunk, and its gradient with respect to features and prototypes."""
        of = self._of
        weight, scale = of.model.patch_head.last_layer.weight, 1 / (2 * len(self._rows))
        features, prototypes = reduced.detach().requires_grad_(), weight.detach().requires_grad_()
        total = 0.0
        for chunk in Logits(features, prototypes).chunks():
            places = slice(rows.start + chunk.start, rows.start + chunk.stop)
            logits = features[chunk] @ prototypes.T
            loss = patch_losses(targets.chunk(places), logits, self._patch_weights[places]) * scale
            (of._own.patch_weight * loss).backward()
            total += loss.item()
        if features.grad is None:
            return total, [], []
        return total, [reduced, weight], [features.grad, prototypes.grad]
