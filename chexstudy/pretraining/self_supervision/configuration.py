"""Constants of self-supervised pretraining, with the published values beside them."""

from dataclasses import dataclass

from chexstudy.errors import StudyError

# Chance of a blurred first global, second global and local crop.
BLURS = {
    "none": (0.0, 0.0, 0.0),
    "intended": (1.0, 0.1, 0.5),
    # Published code passes the chance of staying sharp where that of a blur is meant (S2).
    "published": (0.0, 0.9, 0.5),
}
_CHOICES = {
    "centring": ("sinkhorn", "softmax"),
    "blur": tuple(BLURS),
    "koleo_neighbours": ("step", "process"),
    "koleo_precision": ("fp32", "compute"),
    "positions": ("size", "offset"),
    "drop_path_form": ("image", "batch"),
    "clipping": ("together", "module"),
}

_SHARES = (
    *("ramp_share", "temperature_share", "frozen_share"),
    *("heads_only_share", "gram_teacher_share", "gram_share"),
)


# Constants by which a training is watched, and not what comes out of it.
WATCHING = ("watch_every", "knn_every", "patience")


@dataclass(frozen=True)
class SelfSupervisionConfig:
    """The defaults are those of the default study; comments give what CheXFound publishes, and S-numbers its faults."""

    crop_prototypes: int = 64  # of the head on [CLS] (published: 131,072)
    patch_prototypes: int = 512  # of the head on patches (published: 131,072)
    head_hidden: int = 256  # width of the heads (published: 2,048)
    crop_bottleneck: int = 64  # published: 384
    patch_bottleneck: int = 64  # published: 256
    plain_prototypes: bool = False  # a linear last layer, as in DINOv3
    local_crops: int = 4  # of an image (published: 8)
    local_size: int = 32  # pixels a side of a local crop (published: 96)
    # Shares of the image: a global crop has at least the first, a local one lies between the others (published: 0.32,
    # 0.05 and 0.32).
    least_global_area: float = 0.5
    least_local_area: float = 0.15
    most_local_area: float = 0.5
    blur: str = "intended"  # ``none``, ``intended``, or ``published`` chances, which are inverted (S2)
    flip: bool = False  # mirror half of the crops (published: yes, S3)
    solarise: bool = False  # turn bright bone dark in a fifth of the second global crops (published: yes, S3)
    exact_masks: bool = True  # masks of the wanted size (published: no, S11)
    centring: str = "sinkhorn"  # or ``softmax``, as DINOv2 does by default
    sinkhorn_overflows: bool = False  # exponentiate large logits as they are (published: yes, S7)
    patch_weight: float = 3.0  # of the loss on patches (as published; DINOv2: 1, S1)
    koleo_weight: float = 0.02  # of the spread of [CLS] (published: 0.1)
    koleo_neighbours: str = "step"  # sought in the whole step, or as published within one ``process`` (S5)
    koleo_precision: str = "fp32"  # or that of the computation, as published (S4)
    gram_weight: float = 0.0  # of Gram anchoring to an earlier teacher (CheXFound: none; DINOv3: 2)
    gram_scale: int = 1  # how much larger that teacher sees its crops (DINOv3: 2)
    positions: str = "size"  # interpolated to a size, or as published with an ``offset`` (S12)
    new_positions: bool = False  # drawn for a size that is new, not interpolated (published: yes, S12)
    keep_heads: bool = True  # begin with the heads left beside the encoder, if shapes agree; else with new ones
    keep_student: bool = False  # leave it in ``model/student``; published stages begin with it (published: yes, S12)
    drop_path: float = 0.0  # published: 0.4
    drop_path_form: str = "image"  # each image by chance, or as published a fixed share of the ``batch``
    clip_norm: float = 3.0  # largest norm of the gradient
    clipping: str = "together"  # of all weights, or as published of each ``module`` (S10)
    teacher_waits: bool = True  # the teacher stays where no step was taken (published: no, S21)
    teacher_momentum: float = 0.97  # at the start, 1 at the end (published: 0.994 over 250,000 steps)
    # At the start; at the published 0.04, targets of a small encoder say nothing and training does not begin.
    first_teacher_temperature: float = 0.01
    teacher_temperature: float = 0.04  # after its rise (published: 0.07)
    final_weight_decay: float = 0.2  # it rises from ``weight_decay`` (published: 0.04)
    layer_decay: float = 1.0  # of the learning rate from block to block
    watch_every: int = 10  # steps between two looks at whether it collapses
    # Epochs between two looks at what the teacher's features are worth on validation, and one after the last epoch; 0
    # for none. A cohort without labels has none.
    knn_every: int = 5
    # Steps in a row that may not be taken, for a loss or gradient that is not finite; with 0 a training is never
    # stopped, whatever it looks like (published: 0).
    patience: int = 50
    # Shares of the run (published: 25,000, 75,000 and 2,500 of 250,000 steps).
    ramp_share: float = 0.1  # in which the learning rate rises
    temperature_share: float = 0.6  # in which the teacher's temperature rises
    frozen_share: float = 0.01  # in which prototypes stay as they are
    gram_teacher_share: float = 0.25  # after which the teacher is kept for Gram anchoring
    gram_share: float = 0.65  # after which Gram anchoring counts
    heads_only_share: float = 0.0  # in which new heads learn alone, on an encoder that is given

    def __post_init__(self):
        for name in ("crop_prototypes", "patch_prototypes", "head_hidden", "crop_bottleneck", "patch_bottleneck"):
            if getattr(self, name) < 2:
                raise StudyError(f"{name} must be at least 2, not {getattr(self, name)}.")
        for name in ("local_crops", "local_size", "gram_scale", "watch_every"):
            if getattr(self, name) < 1:
                raise StudyError(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise StudyError(f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}.")
        for name in (*_SHARES, "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise StudyError(f"{name} must be at least 0 and below 1, not {getattr(self, name)}.")
        for name in ("patch_weight", "koleo_weight", "gram_weight", "final_weight_decay", "patience", "knn_every"):
            if getattr(self, name) < 0:
                raise StudyError(f"{name} must not be negative, not {getattr(self, name)}.")
        for name in ("clip_norm", "first_teacher_temperature", "teacher_temperature", "layer_decay"):
            if getattr(self, name) <= 0:
                raise StudyError(f"{name} must be above 0, not {getattr(self, name)}.")
        if self.gram_share < self.gram_teacher_share:
            raise StudyError(
                f"gram_share ({self.gram_share}) must be at least gram_teacher_share ({self.gram_teacher_share}): "
                "patches are anchored to a teacher that was kept before."
            )
        if not 0 < self.least_global_area <= 1:
            raise StudyError(f"least_global_area must be above 0 and at most 1, not {self.least_global_area}.")
        if not 0 < self.least_local_area <= self.most_local_area <= 1:
            raise StudyError(
                f"least_local_area ({self.least_local_area}) must be above 0 and at most most_local_area "
                f"({self.most_local_area}), and that at most 1."
            )
        if not 0 <= self.teacher_momentum <= 1:
            raise StudyError(f"teacher_momentum must lie between 0 and 1, not {self.teacher_momentum}.")


# What is published, on top of `SelfSupervisionConfig`: constants, and faults that numbers depend on.
PUBLISHED = {
    **{"crop_prototypes": 131_072, "patch_prototypes": 131_072, "head_hidden": 2048},
    **{"crop_bottleneck": 384, "patch_bottleneck": 256, "local_crops": 8, "local_size": 96},
    **{"blur": "published", "flip": True, "solarise": True, "exact_masks": False, "sinkhorn_overflows": True},
    **{"patch_weight": 3.0, "koleo_neighbours": "process", "koleo_precision": "compute", "positions": "offset"},
    **{"new_positions": True, "keep_student": True},
    **{"drop_path": 0.4, "drop_path_form": "batch", "clipping": "module", "teacher_momentum": 0.994},
    **{"teacher_waits": False, "patience": 0},
    **{"least_global_area": 0.32, "least_local_area": 0.05, "most_local_area": 0.32, "koleo_weight": 0.1},
    **{"first_teacher_temperature": 0.04, "teacher_temperature": 0.07, "temperature_share": 0.3},
}
