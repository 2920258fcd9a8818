"""One step of student and teacher: what both look at, targets, losses, and a gradient that is the whole batch's.

Two parts of a step look at all its images at once, so a batch cannot simply be cut into pieces: the teacher's targets
are balanced over all rows, and KoLeo's neighbours are sought among all images. So the teacher passes over everything
first, without gradient; then the student does, piece by piece, with the targets at hand. Only where a step takes
several pieces or processes does the student look twice at the global crops, for the gradient of KoLeo with respect to
every [CLS].
"""

import random
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from chexstudy.devices import autocast
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.pretraining.engine.distributed import Processes
from chexstudy.pretraining.engine.micro_batch import MicroBatch
from chexstudy.pretraining.engine.random_streams import RandomStreams
from chexstudy.pretraining.models.images import TrainingImages
from chexstudy.pretraining.self_supervision.centring import Centre, Targets, balance_by_sinkhorn
from chexstudy.pretraining.self_supervision.configuration import BLURS, SelfSupervisionConfig
from chexstudy.pretraining.self_supervision.crops import Views, draw_views, make_crops
from chexstudy.pretraining.self_supervision.distillation_losses import crop_loss, gram_loss, koleo_loss, patch_gradient
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
    micro: MicroBatch = field(init=False)  # images seen at once
    centres: list[Centre] = field(init=False)  # of the logits of crops and of patches, where they are centred

    def __post_init__(self):
        self.micro = MicroBatch(self.config.micro_batch, self.device, "image", "encoder, image_size or local_crops")
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

    def see_whole(
        self, network: Network, crops: Tensor, masks: Tensor | None = None, wanted: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """[CLS] ``(2, images, dim)`` and patches, as `Network.see` gives them, of global crops, float32."""
        with autocast(self.device, self.autocast):
            cls, patches = network.see(crops, masks, wanted)
        return cls.float().view(-1, 2, network.width).transpose(0, 1), patches.float()


class Batch:
    """The images of one step, in pieces.

    Attributes:
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
        self.koleo, self.gram, self.seen = 0.0, 0.0, torch.empty(0)
        self._held = slice(0), torch.empty(0), torch.empty(0)

    @property
    def pieces(self) -> list[slice]:
        """Parts of the batch that this process sees one after the other."""
        return self._of.micro.cut(self._of.processes.share(len(self._rows)))

    @property
    def sizes(self) -> tuple[int, int]:
        """Images of this process, and masked patches of theirs."""
        share = self._of.processes.share(len(self._rows))
        patches = self._patches_of(share)
        return share.stop - share.start, patches.stop - patches.start

    @property
    def in_pieces(self) -> bool:
        """Whether the student looks twice."""
        return len(self.pieces) != 1 or self._of.processes.size > 1

    def _look(self, piece: slice) -> tuple[Tensor, Tensor]:
        """Pixels of a piece, and its global crops as of `_make_pairs`."""
        # Those of the piece that was looked at last are at hand: a batch of one piece is read once.
        if piece != self._held[0]:
            pixels = self._of.images.pixels(self._rows[piece]).to(self._of.device)
            views = [one[piece] for one in self._whole]
            self._held = piece, pixels, _make_pairs(pixels, views, self._of.config.image_size)
        return self._held[1:]

    def _masks_of(self, piece: slice) -> Tensor:
        """``(2 * images, patches)``"""
        return self._masks[piece].flatten(0, 1)

    def _patches_of(self, piece: slice) -> slice:
        return slice(int(self._starts[piece.start]), int(self._starts[piece.stop]))

    @torch.no_grad()
    def teach(self, temperature: float) -> tuple[Targets, Targets]:
        """The teacher's targets of all [CLS], image by image, and of all masked patches, balanced over the batch."""
        of, teacher, own = self._of, self._of.teacher, self._of.own
        whole, crops, patches = of.micro.halving(self._see_as_teacher)
        processes, count = of.processes, len(self._rows)
        lengths = [int(self._starts[one.stop] - self._starts[one.start]) for one in processes.shares(count)]
        self.seen = processes.gather(whole, count)
        features = (processes.gather(crops, count).flatten(0, 1), processes.gather(patches, sum(lengths), lengths))
        targets = []
        for head, centre, reduced in zip(teacher.heads, of.centres, features, strict=True):
            logits = head.logits(reduced)
            if own.centring == "softmax":
                targets.append(centre.balance(logits, temperature))
            else:
                targets.append(balance_by_sinkhorn(logits, temperature, overflows=own.sinkhorn_overflows))
        return tuple(targets)

    def _see_as_teacher(self) -> list[Tensor]:
        """[CLS] of the first crops of this process's images, and what enters the last layers of the two heads."""
        of, teacher, device = self._of, self._of.teacher, self._of.device
        shapes = (0, of.student.width), (0, 2, of.own.crop_bottleneck), (0, of.own.patch_bottleneck)
        parts = [[torch.empty(shape, device=device)] for shape in shapes]
        for piece in self.pieces:
            cls, seen = of.see_whole(teacher, self._look(piece)[1], wanted=self._masks_of(piece))
            found = cls[0], teacher.crop_head.reduce(cls).transpose(0, 1), teacher.patch_head.reduce(seen)
            for part, one in zip(parts, found, strict=True):
                part.append(one)
        return [torch.cat(part) for part in parts]

    def _koleo(self, cls: Tensor, copies: Tensor | None) -> Tensor:
        cls = cls.float() if self._of.own.koleo_precision == "fp32" else cls.to(self._of.autocast or cls.dtype)
        return sum(koleo_loss(crop, copies).float() for crop in cls)

    def _copies(self) -> Tensor:
        return torch.from_numpy(self._of.images.tell_copies(self._rows)).to(self._of.device)

    def _spread(self) -> Tensor:
        """Gradient of KoLeo with respect to every [CLS] of the step ``(2, images, dim)``."""
        of = self._of
        own = of.micro.halving(self._see_as_student)
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

    @torch.no_grad()
    def _see_as_student(self) -> Tensor:
        """[CLS] of this process's global crops ``(images, 2, dim)``."""
        of, found = self._of, [torch.empty((0, 2, self._of.student.width), device=self._of.device)]
        for piece in self.pieces:
            torch.manual_seed(self._dropout_seed(piece))
            masks = self._masks_of(piece)
            found.append(of.see_whole(of.student, self._look(piece)[1], masks, masks)[0].transpose(0, 1))
        return torch.cat(found)

    def _dropout_seed(self, piece: slice) -> int:
        return self._of.streams.draw_seed("dropout", self._step, piece.start)

    def learn(self, crop_targets: Targets, patch_targets: Targets) -> tuple[float, float]:
        """Set the gradient of the loss of this process's images; returns their part of the losses on crops and patches.

        Where memory ends, everything is looked at anew in smaller pieces, but for what all processes share.
        """
        of, alone = self._of, self._of.processes.size == 1
        shared = None if alone else self._spread()

        def attempt() -> tuple[float, float]:
            of.student.zero_grad(set_to_none=True)
            self.gram = 0.0
            spread = self._spread() if alone and self.in_pieces else shared
            parts = [self._learn_piece(piece, crop_targets, patch_targets, spread) for piece in self.pieces]
            return tuple(map(sum, zip([0.0, 0.0], *parts, strict=True)))

        return of.micro.halving(attempt, repeats_dropout=alone or not of.own.drop_path)

    def _learn_piece(
        self, piece: slice, crop_targets: Targets, patch_targets: Targets, spread: Tensor | None
    ) -> tuple[float, float]:
        """Add the gradient of the loss of some images; returns their part of the losses on crops and patches."""
        of, student, count = self._of, self._of.student, len(self._rows)
        images, own = piece.stop - piece.start, self._of.own
        (pixels, whole), masks = self._look(piece), self._masks_of(piece)
        torch.manual_seed(self._dropout_seed(piece))
        cls, patches = of.see_whole(student, whole, masks, masks if of.anchor is None else None)
        local = torch.cat([make_crops(pixels, one[piece], own.local_size) for one in self._local])
        no_patch = masks.new_zeros(len(local), (own.local_size // student.patch_size) ** 2)
        with autocast(of.device, of.autocast):
            local_cls = student.see(local, wanted=no_patch)[0].float()
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
            patches = patches[masks]
        reduced, prototypes = student.patch_head.reduce(patches), student.patch_head.last_layer.weight
        rows = self._patches_of(piece)
        patch, *gradients = patch_gradient(
            reduced.detach(), prototypes.detach(), patch_targets, rows, self._patch_weights[rows] / (2 * count)
        )
        torch.autograd.backward([total, reduced, prototypes], [None, *(own.patch_weight * one for one in gradients)])
        return crop.item(), patch.item()

    def _compare_grams(self, piece: slice, patches: Tensor) -> Tensor:
        """The Gram loss of patches and what the earlier teacher makes of the same crops, undistorted."""
        of, scale, side = self._of, self._of.own.gram_scale, round(patches.shape[1] ** 0.5)
        plain = [one[piece].undistorted() for one in self._whole]
        with torch.no_grad():
            crops = _make_pairs(self._look(piece)[0], plain, scale * of.config.image_size)
            _, seen = of.see_whole(of.anchor, crops)
        seen = seen.transpose(1, 2).unflatten(2, (scale * side, scale * side))
        seen = functional.interpolate(seen, (side, side), mode="bicubic").flatten(2).transpose(1, 2)
        return gram_loss(patches, seen)


def _make_pairs(pixels: Tensor, views: list[Views], size: int) -> Tensor:
    """Global crops, those of an image side by side ``(2 * images, 1, size, size)``."""
    return torch.stack([make_crops(pixels, one, size) for one in views], dim=1).flatten(0, 1)
