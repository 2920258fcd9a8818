"""The self-supervised objective: a student learns from crops what a teacher, its own running mean, sees in others.

DINO on [CLS], iBOT on masked patches and KoLeo (DINOv2: Oquab et al. 2024; CheXFound).
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from chexstudy.devices import autocast
from chexstudy.encoders.build import build_image_encoder
from chexstudy.encoders.encoder import width_of
from chexstudy.pretraining.configuration import seal_model
from chexstudy.pretraining.engine.compute import FlopMeter
from chexstudy.pretraining.engine.loading import gather_pixels
from chexstudy.pretraining.engine.schedule import Cosine
from chexstudy.pretraining.models.images import TrainingImages
from chexstudy.pretraining.objectives.distillation import Batch, Distillation
from chexstudy.pretraining.objectives.objective import Objective
from chexstudy.pretraining.self_supervision.backbone import group_parameters, list_blocks, move_teacher
from chexstudy.pretraining.self_supervision.centring import SINKHORN_ITERATIONS, Logits
from chexstudy.pretraining.self_supervision.collapse import find_end, judge_training, measure_features, measure_targets
from chexstudy.pretraining.self_supervision.hand_over import check_resolution, save_network, take_heads
from chexstudy.pretraining.self_supervision.head import require_memory
from chexstudy.pretraining.self_supervision.masks import MEAN_MASKED
from chexstudy.pretraining.self_supervision.neighbour_probe import NeighbourProbe
from chexstudy.pretraining.self_supervision.network import Network
from chexstudy.pseudonyms import show_image_ids

# Two rows are counted, because some backends treat a batch of one as a special case.
_COUNTED = 2
# Share of the images from which on copies are why nothing is learned, and how many of them are named.
_MANY_COPIES, _NAMED = 0.5, 5


class SelfSupervisedObjective(Objective):
    """An image encoder that learns from images alone; they need neither report nor label."""

    def _build(self, cohort: pd.DataFrame, seed: int) -> None:
        config, device = self._config, self._device
        self._own = config.self_supervision
        encoder = build_image_encoder(replace(config.image_spec, dropout=False), seed)
        encoder.check_size(self._own.local_size)
        require_memory(self._own, width_of(encoder.model), device)
        self.model = Network(encoder, self._own, seed).to(device)
        check_resolution(self.model, config.image_encoder, config.image_size)
        self._heads_kept = self._own.keep_heads and take_heads(self.model, config.image_encoder)
        self._heads_alone = not self._heads_kept and not config.image_encoder.startswith("tiny-")
        self.teacher = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.examples = TrainingImages(cohort, self._store)
        how = config, self._streams, device, self._processes, self._autocast
        self._step = Distillation(self.model, self.teacher, self.examples, *how)
        self._earlier: Network | None = None
        self.width, self._skipped = encoder.dim, False
        self._meter = FlopMeter(self.model)
        self._probe = NeighbourProbe(cohort)

    def _share(self, share: float) -> int:
        return round(share * self.steps)

    def parameter_groups(self) -> list[dict]:
        depth = self.model.encoder.model.config.num_hidden_layers
        merged: dict[tuple, dict] = {}
        kind = ("rate", "decay", "of_head", "is_prototype")
        for group in group_parameters(self.model.named_parameters(), depth, self._own.layer_decay):
            alike = merged.setdefault(tuple(group[name] for name in kind), group | {"params": []})
            alike["params"] += group["params"]
        return list(merged.values())

    def set_constants(self, groups: list[dict], step: int, learning_rate: float) -> float:
        config, own = self._config, self._own
        rate = Cosine(config.learning_rate, config.min_learning_rate, self.steps, self._share(own.ramp_share))
        decay = Cosine(config.weight_decay, own.final_weight_decay, self.steps)
        frozen = step < self._share(own.frozen_share)
        alone = self._heads_alone and step < self._share(own.heads_only_share)
        for group in groups:
            still = (frozen and group["is_prototype"]) or (alone and not group["of_head"])
            group["lr"] = 0.0 if still else group["rate"] * rate.at(step)
            group["weight_decay"] = group["decay"] * decay.at(step)
        return rate.at(step)

    def finish_step(self, step: int) -> dict[str, float]:
        momentum = Cosine(self._own.teacher_momentum, 1.0, self.steps).at(step)
        if not (self._skipped and self._own.teacher_waits):
            move_teacher(self.teacher, self.model, momentum)
        return {"teacher_momentum": momentum}

    def _set_anchor(self, step: int) -> None:
        """Keep the teacher after one share of the run; patches are anchored to it after another."""
        if self._own.gram_weight and self._earlier is None and step >= self._share(self._own.gram_teacher_share):
            self._earlier = self._copy_teacher()
        self._step.anchor = self._earlier if step >= self._share(self._own.gram_share) else None

    def _copy_teacher(self) -> Network:
        earlier = copy.deepcopy(self.teacher)
        # Only patches are asked for.
        del earlier.crop_head, earlier.patch_head
        return earlier

    def backward(
        self, rows: np.ndarray, step: int, embedded: tuple[Tensor, ...] | None = None, weights: np.ndarray | None = None
    ) -> dict[str, float]:
        self._set_anchor(step)
        self.model.train()
        own, batch = self._own, Batch(self._step, rows, step, weights)
        last, ramp = own.teacher_temperature, self._share(own.temperature_share)
        warm = Cosine(last, last, self.steps, ramp, own.first_teacher_temperature)
        crop_targets, patch_targets = batch.teach(warm.at(step))
        learned = batch.learn(crop_targets, patch_targets)
        crop, patch, koleo, gram = self._processes.add_up([*learned, batch.koleo, batch.gram])
        self._processes.sum_gradients(self.model.parameters())
        self.flops += self._count(*batch.sizes, batch.in_pieces, float(self._step.anchor is not None))
        loss = crop + own.patch_weight * patch + own.koleo_weight * koleo + own.gram_weight * gram
        told = {"loss": loss, "crop_loss": crop, "patch_loss": patch, "koleo": koleo} | self._clip()
        told |= {"gram": gram} if own.gram_weight else {}
        self._skipped = not np.isfinite([loss, told["gradient_norm"]]).all()
        if self._skipped:
            # Without a gradient the optimiser does nothing.
            self.model.zero_grad(set_to_none=True)
        elif step % own.watch_every == 0:
            told |= measure_targets(crop_targets) | measure_features(batch.seen)
            told["teacher_distance"] = self._teacher_distance()
        return told | {"skipped": self._skipped}

    def _clip(self) -> dict[str, float]:
        """Clip the gradient; its norms before, of everything and of each module."""
        modules = dict(self.model.named_children())
        norms = {
            name: nn.utils.get_total_norm([weight.grad for weight in module.parameters() if weight.grad is not None])
            for name, module in modules.items()
        }
        total = torch.stack(list(norms.values())).norm()
        for name, module in modules.items():
            norm = norms[name] if self._own.clipping == "module" else total
            nn.utils.clip_grads_with_norm_(module.parameters(), self._own.clip_norm, norm)
        of_modules = {f"gradient_norm_{name}": float(norm) for name, norm in norms.items()}
        return {"gradient_norm": float(total)} | of_modules

    @torch.no_grad()
    def _teacher_distance(self) -> float:
        """How far the student is from the teacher, as a share of the length of all the teacher's weights."""
        weights = zip(self.model.parameters(), self.teacher.parameters(), strict=True)
        apart = nn.utils.get_total_norm([student - teacher for student, teacher in weights])
        return float(apart / nn.utils.get_total_norm(list(self.teacher.parameters())))

    def count_step(self, rows: np.ndarray) -> float:
        crops = 2 * len(rows) * (self._config.image_size // self.model.patch_size) ** 2
        shares = [share.stop - share.start for share in self._processes.shares(len(rows))]
        in_pieces = len(shares) > 1 or shares[0] > self._step.micro.size
        anchored = 1 - self._own.gram_share if self._own.gram_weight else 0.0
        masked = MEAN_MASKED * crops / len(rows)
        return sum(self._count(images, images * masked, in_pieces, anchored) for images in shares)

    def _count(self, images: int, patches: float, in_pieces: bool, anchored: float) -> float:
        """Operations of a step on so many images and masked patches, but for the distances of KoLeo.

        Of steps whose patches are ``anchored``, a share may be counted.
        """
        own, crops = self._own, 2 + self._own.local_crops
        whole, local = self._config.image_size, own.local_size
        # What is left out of the student is not computed.
        kept = 1 - own.drop_path
        asked = patches / max(2 * images, 1)
        looked = self._count_view(whole, False, asked)
        # The patches of an anchored student are all compared.
        learned = anchored * self._count_view(whole, True) + (1 - anchored) * self._count_view(whole, True, asked)
        views = (1 + in_pieces * kept) * looked + kept * learned
        if anchored:
            products = 8 * self.model.width * (whole // self.model.patch_size) ** 4
            views += anchored * (self._count_view(own.gram_scale * whole, False) + products)
        spent = 2 * images * views + own.local_crops * images * kept * self._count_view(local, True, 0)
        for name, head, teacher, student in (
            ("crop head", self.model.crop_head, 2 * images, crops * images),
            ("patch head", self.model.patch_head, patches, patches),
        ):
            product = 2 * head.last_layer.in_features * head.last_layer.out_features
            held = Logits.are_held(round(teacher * self._processes.size), head.last_layer.out_features)
            passes = 1 if held else SINKHORN_ITERATIONS + 1
            spent += teacher * (self._count_rows(head.reduce, name, False) + passes * product)
            # Backward, a product costs twice.
            spent += student * (self._count_rows(head.reduce, name, True) + 3 * product)
        return spent

    def _count_view(self, size: int, backward: bool, asked: float | None = None) -> float:
        """Operations for one crop of ``size`` pixels a side, of whose patches so many are asked for, or all."""
        sample = torch.zeros(_COUNTED, 1, size, size, device=self._step.device)

        def see() -> Tensor:
            training = self.model.training
            tokens = self.model.eval().encoder.see_tokens(sample)
            self.model.train(training)
            return tokens

        spent = self._meter.count(("view", size, backward), see, backward) / _COUNTED
        if asked is None or self._own.drop_path:
            return spent
        left_out = self.model.registers + (size // self.model.patch_size) ** 2 - asked
        mlp = list_blocks(self.model.encoder.model)[-1].mlp
        return spent - left_out * self._count_rows(mlp, "mlp", backward)

    def _count_rows(self, function: Callable[[Tensor], Tensor], key: str, backward: bool) -> float:
        """Operations of a function of rows for one of them."""
        sample = torch.zeros(_COUNTED, self.model.width, device=self._step.device, requires_grad=backward)
        return self._meter.count((key, backward), lambda: function(sample), backward) / _COUNTED

    def embed(self, rows: np.ndarray, size: int | None = None) -> tuple[Tensor]:
        share = self._processes.share(len(rows))
        self.flops += (share.stop - share.start) * self._count_view(size or self._config.image_size, backward=False)
        read = self.examples.pixels
        return (self._see_all(rows, read, lambda pixels: self.teacher.encoder(pixels, size), self.width),)

    @torch.no_grad()
    def _see_all(self, rows: np.ndarray, read: Callable, see: Callable, width: int) -> Tensor:
        """What is seen of all processes' rows ``(rows, width)``."""
        own, step = rows[self._processes.share(len(rows))], self._step

        def see_own() -> Tensor:
            found, micro = [torch.empty((0, width), device=step.device)], step.micro.size
            for start in range(0, len(own), micro):
                pixels = read(own[start : start + micro]).to(step.device)
                with autocast(step.device, step.autocast):
                    found.append(see(pixels).float())
            return torch.cat(found)

        return self._processes.gather(step.micro.halving(see_own), len(rows))

    def finish_epoch(self, epochs: int, steps: int) -> dict[str, float]:
        every, probe = self._own.knn_every, self._probe
        if not (every and len(probe.image_ids)) or (epochs % every and steps < self.steps):
            return {}

        def see(pixels: Tensor) -> Tensor:
            _, cls, patches = self.teacher.encoder.embed_blocks(pixels, blocks=1)
            return torch.cat([cls, patches.mean(dim=1)], dim=1)

        rows, width = self._store.rows(probe.image_ids), self.model.width
        seen = self._see_all(rows, partial(gather_pixels, self._store), see, 2 * width).cpu().numpy()
        parts = {"knn_auroc": seen[:, :width], "knn_auroc_patches": seen[:, width:]}
        return {name: probe.measure(features) for name, features in parts.items()}

    def join(self, embedded: tuple[Tensor]) -> Tensor:
        return functional.normalize(embedded[0], dim=1)

    def find_fault(self, history: list[dict]) -> str:
        own = self._own
        end = own.patience and find_end(history, own.temperature_share, self.steps, own.patience)
        if not end:
            return ""
        return f"{self._find_cause(history[-1]) or end.reason.removesuffix('.')}, or set patience to 0 to train on"

    def _find_cause(self, last: dict) -> str:
        """Copies among the images, where KoLeo or all of training suffers from them; empty if they are no cause."""
        copies, images = self.examples.find_copies(), len(self.examples)
        is_infinite = self._own.koleo_neighbours == "process" and not np.isfinite(last["koleo"])
        if not (len(copies) and (is_infinite or len(copies) >= _MANY_COPIES * images)):
            return ""
        names = ", ".join(show_image_ids(self._run, self.examples.image_ids[copies[:_NAMED]]))
        told = f"{len(copies)} of {images} images are copies of others ({names}{', ...' * (len(copies) > _NAMED)})"
        if is_infinite:
            return f"{told}, and KoLeo is infinite: keep one of each, set koleo_neighbours to step"
        return f"{told}: keep one of each"

    def judge(self, history: list[dict]) -> str:
        table = pd.DataFrame(history)
        told, last = str(judge_training(table, self._own.temperature_share, self.steps)), table.ffill().iloc[-1]
        if "teacher_distance" in last:
            told += f" Student and teacher are {last.teacher_distance:.1%} apart."
        if "knn_auroc" in last:
            of_patches = f"{last.knn_auroc_patches:.3f} of patches"
            told += f" Nearest neighbours on validation: AUROC {last.knn_auroc:.3f} of [CLS], {of_patches}."
        return told

    def describe(self) -> dict:
        heads = "kept" if self._heads_kept else "new"
        return {"micro_batch": self._step.micro.size, **super().describe(), "heads": heads}

    def state(self) -> dict:
        centres = [centre.value for centre in self._step.centres]
        networks = {"model": self.model, "teacher": self.teacher, "earlier": self._earlier}
        return {name: one and one.state_dict() for name, one in networks.items()} | {"centres": centres}

    def restore(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.teacher.load_state_dict(state["teacher"])
        if state.get("earlier"):
            self._earlier = self._copy_teacher()
            self._earlier.load_state_dict(state["earlier"])
        for centre, value in zip(self._step.centres, state["centres"], strict=True):
            centre.value = value.to(self._step.device)

    def export(self, folder: Path) -> None:
        save_network(self.teacher, folder)
        if self._own.keep_student:
            save_network(self.model, folder / "student")
        seal_model(folder, self._config)
