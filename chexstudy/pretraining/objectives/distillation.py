"""One step of student and teacher: what both look at, targets, losses, and a gradient that is the whole batch's.

Two parts of a step look at all its images at once, so a batch cannot simply be cut into pieces: the teacher's targets
are balanced over all rows, and KoLeo's neighbours are sought among all images. So the teacher passes over everything
first, without gradient; then the student does, piece by piece, with the targets at hand. Only where a step takes
several pieces or processes does the student look twice at the global crops, for the gradient of KoLeo with respect to
every [CLS].
"""

import random
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.pretraining.engine.distributed import Processes, cut_evenly
from chexstudy.pretraining.engine.random_streams import RandomStreams
from chexstudy.pretraining.models.images import TrainingImages
from chexstudy.pretraining.self_supervision.centring import Centre, Logits, Targets, balance_by_sinkhorn
from chexstudy.pretraining.self_supervision.configuration import BLURS, SelfSupervisionConfig
from chexstudy.pretraining.self_supervision.crops import Views, draw_views, make_crops
from chexstudy.pretraining.self_supervision.distillation_losses import crop_loss, gram_loss, koleo_loss, patch_losses
from chexstudy.pretraining.self_supervision.masks import draw_masks
from chexstudy.pretraining.self_supervision.network import Network


@dataclass
class Distillation:
    """A student, its teacher, and what both look at."""

    student: Network
    teacher: Network
    images: TrainingImages
    config: PretrainingConfig
    streams: RandomStreams
    device: torch.device
    processes: Processes
    autocast: torch.dtype | None  # type of mixed precision, or None
    anchor: Network | None = None  # the earlier teacher, while patches are anchored to it
    centres: list[Centre] = field(init=False)  # of the logits of crops and of patches, where they are centred

    def __post_init__(self):
        self.centres = [Centre(head.last_layer.out_features, self.device) for head in self.teacher.heads]

    @property
    def own(self) -> SelfSupervisionConfig:
        return self.config.self_supervision

    def draw(self, images: int, step: int) -> tuple[list[Views], list[Views], np.ndarray]:
        """Two global views and the local ones of every image of a step, and its masks ``(images, 2, patches)``."""
        own, side, flip = self.own, self.images.side, self.own.flip
        generator = np.random.default_rng(self.streams.draw_seed("crops", step))
        *blurs, of_local = BLURS[own.blur]
        areas = (own.least_global_area, 1.0), (own.least_local_area, own.most_local_area)
        whole = [
            draw_views(images, side, areas[0], generator, blur=blur, flip=flip, solarise=own.solarise and second)
            for second, blur in enumerate(blurs)
        ]
        local = [
            draw_views(images, side, areas[1], generator, blur=of_local, flip=flip) for _ in range(own.local_crops)
        ]
        chance = random.Random(self.streams.draw_seed("masks", step))
        masks = draw_masks(2 * images, self.config.image_size // self.student.patch_size, chance, own.exact_masks)
        return whole, local, masks.reshape(2, images, -1).swapaxes(0, 1)

    def precision(self):
        return torch.autocast(self.device.type, dtype=self.autocast) if self.autocast else nullcontext()

    def see_whole(
        self, network: Network, pixels: Tensor, views: list[Views], masks: Tensor | None = None, scale: int = 1
    ) -> tuple[Tensor, Tensor]:
        """[CLS] ``(2, images, dim)`` and patches ``(images, 2, patches, dim)`` of global crops, float32."""
        crops = torch.cat([make_crops(pixels, one, scale * self.config.image_size) for one in views])
        with self.precision():
            cls, patches = network.see(crops, None if masks is None else masks.transpose(0, 1).flatten(0, 1))
        images = len(pixels)
        return cls.float().view(2, images, -1), patches.float().view(2, images, *patches.shape[1:]).transpose(0, 1)


class Batch:
    """The images of one step, in pieces.

    Attributes:
        pieces: of this process, as slices of the batch.
        seen: the teacher's [CLS] of the first crop of every image ``(images, dim)``, once it has taught.
        koleo: this process's part of KoLeo, once the student has learned.
        gram: this process's part of the Gram loss, once the student has learned.
    """

    def __init__(self, of: Distillation, rows: np.ndarray, step: int, weights: np.ndarray | None):
        self._of, self._rows, self._step = of, rows, step
        self._whole, self._local, masks = of.draw(len(rows), step)
        self._masks = torch.from_numpy(masks).to(of.device)
        counts = masks.sum(axis=2)
        # Where the masked patches of each image begin among those of all.
        self._starts = np.concatenate([[0], np.cumsum(counts.sum(axis=1))])
        of_patch = np.repeat(1 / counts.clip(1).ravel(), counts.ravel())
        weights = np.ones(len(rows)) if weights is None else weights
        self._weights = torch.from_numpy(weights).float().to(of.device)
        of_patch = of_patch * np.repeat(weights, counts.sum(axis=1))
        self._patch_weights = torch.from_numpy(of_patch).float().to(of.device)
        share, micro = of.processes.share(len(rows)), of.config.micro_batch
        count = -(-(share.stop - share.start) // micro)
        self.koleo, self.gram, self.seen, self._held = 0.0, 0.0, torch.empty(0), (slice(0), torch.empty(0))
        self.pieces = cut_evenly(share, count) if count else []

    @property
    def sizes(self) -> tuple[int, int]:
        """Images of this process, and masked patches of theirs."""
        share = self._of.processes.share(len(self._rows))
        patches = self._patches_of(share)
        return share.stop - share.start, patches.stop - patches.start

    @property
    def in_pieces(self) -> bool:
        return len(self.pieces) != 1 or self._of.processes.size > 1

    def _pixels(self, piece: slice) -> Tensor:
        # Those of the piece that was looked at last are at hand: a batch of one piece is read once.
        if piece != self._held[0]:
            self._held = piece, self._of.images.pixels(self._rows[piece]).to(self._of.device)
        return self._held[1]

    def _views(self, views: list[Views], piece: slice) -> list[Views]:
        return [one[piece] for one in views]

    def _patches_of(self, piece: slice) -> slice:
        return slice(int(self._starts[piece.start]), int(self._starts[piece.stop]))

    @torch.no_grad()
    def teach(self, temperature: float) -> tuple[Targets, Targets]:
        """The teacher's targets of all [CLS], image by image, and of all masked patches, balanced over the batch."""
        of, teacher, device = self._of, self._of.teacher, self._of.device
        own = of.own
        whole = [torch.empty((0, of.student.width), device=device)]
        crops = [torch.empty((0, 2, own.crop_bottleneck), device=device)]
        patches = [torch.empty((0, own.patch_bottleneck), device=device)]
        for piece in self.pieces:
            cls, seen = of.see_whole(teacher, self._pixels(piece), self._views(self._whole, piece))
            whole.append(cls[0])
            crops.append(teacher.crop_head.reduce(cls).transpose(0, 1))
            patches.append(teacher.patch_head.reduce(seen[self._masks[piece]]))
        processes, count = of.processes, len(self._rows)
        lengths = [int(self._starts[one.stop] - self._starts[one.start]) for one in processes.shares(count)]
        self.seen = processes.gather(torch.cat(whole), count)
        features = (
            processes.gather(torch.cat(crops), count).flatten(0, 1),
            processes.gather(torch.cat(patches), sum(lengths), lengths),
        )
        targets = []
        for head, centre, reduced in zip(teacher.heads, of.centres, features, strict=True):
            logits = head.logits(reduced)
            if own.centring == "softmax":
                targets.append(centre.balance(logits, temperature))
            else:
                targets.append(balance_by_sinkhorn(logits, temperature, overflows=own.sinkhorn_overflows))
        return tuple(targets)

    def _koleo(self, cls: Tensor, copies: Tensor | None) -> Tensor:
        cls = cls.float() if self._of.own.koleo_precision == "fp32" else cls.to(self._of.autocast or cls.dtype)
        return sum(koleo_loss(crop, copies).float() for crop in cls)

    def _copies(self) -> Tensor:
        return torch.from_numpy(self._of.images.tell_copies(self._rows)).to(self._of.device)

    def spread(self) -> Tensor:
        """Gradient of KoLeo with respect to every [CLS] of the step ``(2, images, dim)``."""
        of, found = self._of, []
        with torch.no_grad():
            for piece in self.pieces:
                torch.manual_seed(self._dropout_seed(piece))
                masks = self._masks[piece]
                cls, _ = of.see_whole(of.student, self._pixels(piece), self._views(self._whole, piece), masks)
                found.append(cls.transpose(0, 1))
        nothing = torch.empty((0, 2, of.student.width), device=of.device)
        own = torch.cat([nothing, *found])
        every = of.processes.gather(own, len(self._rows)).transpose(0, 1).requires_grad_()
        if of.own.koleo_neighbours == "process":
            share = of.processes.share(len(self._rows))
            if share.start == share.stop:
                return torch.zeros_like(every)
            loss = self._koleo(every[:, share], None) * ((share.stop - share.start) / len(self._rows))
            self.koleo = loss.item()
        else:
            loss = self._koleo(every, self._copies())
            # All processes compute the same.
            self.koleo = loss.item() / of.processes.size
        return torch.autograd.grad(loss, every)[0]

    def _dropout_seed(self, piece: slice) -> int:
        return self._of.streams.draw_seed("dropout", self._step, piece.start)

    def learn(
        self, piece: slice, crop_targets: Targets, patch_targets: Targets, spread: Tensor | None
    ) -> tuple[float, float]:
        """Add the gradient of the loss of some images; returns their part of the losses on crops and patches."""
        of, student, count = self._of, self._of.student, len(self._rows)
        images, own = piece.stop - piece.start, self._of.own
        pixels, masks = self._pixels(piece), self._masks[piece]
        torch.manual_seed(self._dropout_seed(piece))
        cls, patches = of.see_whole(student, pixels, self._views(self._whole, piece), masks)
        local = torch.cat([make_crops(pixels, one, own.local_size) for one in self._views(self._local, piece)])
        with of.precision():
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
        if of.anchor is not None:
            gram = self._compare_grams(piece, patches) * (images / count)
            self.gram += gram.item()
            total = total + own.gram_weight * gram
        reduced = student.patch_head.reduce(patches[masks])
        patch, outputs, gradients = self._learn_patches(reduced, patch_targets, self._patches_of(piece))
        torch.autograd.backward([total, *outputs], [None, *gradients])
        return crop.item(), patch

    def _compare_grams(self, piece: slice, patches: Tensor) -> Tensor:
        """The Gram loss of patches and what the earlier teacher makes of the same crops, undistorted."""
        of, scale, side = self._of, self._of.own.gram_scale, round(patches.shape[2] ** 0.5)
        plain = [one.undistorted() for one in self._views(self._whole, piece)]
        with torch.no_grad():
            _, seen = of.see_whole(of.anchor, self._pixels(piece), plain, scale=scale)
        seen = seen.flatten(0, 1).transpose(1, 2).unflatten(2, (scale * side, scale * side))
        seen = functional.interpolate(seen, (side, side), mode="bicubic").flatten(2).transpose(1, 2)
        return gram_loss(patches.flatten(0, 1), seen)

    def _learn_patches(self, reduced: Tensor, targets: Targets, rows: slice) -> tuple[float, list, list]:
        """The loss on patches, chunk by chunk, and its gradient with respect to features and prototypes."""
        of = self._of
        weight, scale = of.student.patch_head.last_layer.weight, 1 / (2 * len(self._rows))
        features, prototypes = reduced.detach().requires_grad_(), weight.detach().requires_grad_()
        total = 0.0
        for chunk in Logits(features, prototypes).chunks():
            places = slice(rows.start + chunk.start, rows.start + chunk.stop)
            logits = features[chunk] @ prototypes.T
            loss = patch_losses(targets.chunk(places), logits, self._patch_weights[places]) * scale
            (of.own.patch_weight * loss).backward()
            total += loss.item()
        if features.grad is None:
            return total, [], []
        return total, [reduced, weight], [features.grad, prototypes.grad]
