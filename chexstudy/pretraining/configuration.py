"""Every constant of a pretraining run in one dataclass, with the published values as documentation."""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import UnionType

from chexstudy.curation.online.configuration import CuratorConfig
from chexstudy.encoders.spec import EncoderSpec
from chexstudy.errors import StudyError
from chexstudy.pretraining.self_supervision.configuration import SelfSupervisionConfig
from chexstudy.runs import atomic_path, seal_artifact

TOWERS = ("image", "text")
TEXT_LAYOUTS = ("buckets", "packed", "padded")
_CHOICES = {
    "schedule": ("hold_then_cosine", "published"),
    "precision": ("auto", "fp32", "bf16"),
    "text_layout": TEXT_LAYOUTS,
    "tracker": ("", "tensorboard"),
    "fixed_streams": ("initialisation", "order", "selection", "subset", "dropout"),
    "frozen_towers": TOWERS,
}
_AT_LEAST_ONE = (
    *("batch_size", "super_batch", "micro_batch", "dim", "image_size", "max_tokens", "threads"),
    *("curation_epochs", "overlap_every"),
)
_NOT_NEGATIVE = (
    *("warm_up_epochs", "subset_epochs", "ramp_steps", "curation_learning_rate", "scoring_size", "lora_rank"),
    "checkpoint_minutes",
)
_BEYOND_ALL = 2**62
_MOST_THREADS = 1024
_PARTS = {"curator": CuratorConfig, "self_supervision": SelfSupervisionConfig}


@dataclass(frozen=True)
class PretrainingConfig:
    """Constants of one arm. The defaults are those of the default study; comments give the published value."""

    objective: str = "contrastive"  # what a training step is, see `chexstudy.pretraining.objectives`
    image_encoder: str = "upstream-image"  # name or path for `chexstudy.encoders.build` (published: DINOv2 ViT-B/14)
    image_revision: str = ""  # pinned revision of a Hub model
    text_encoder: str = "upstream-text"  # name or path (published: Bio_ClinicalBERT)
    text_revision: str = ""  # pinned revision of a Hub model
    image_size: int = 96  # pixels a side the image encoder sees (published: 378)
    max_tokens: int = 128  # longest text (published: 256)
    text_pooling: str = "mean"  # ``last`` token as published (F9), ``first`` or ``mean``
    dim: int = 128  # shared space (published: 512)
    temperature: float = 0.07  # initial (published: 0.01)
    logit_scale_max: float = 100.0  # bound of the inverse temperature, 0 for none (published: none, F12)
    warm_up_epochs: int = 0  # plain epochs over all pairs before curation, charged to the arm (as published)
    # Epochs in which all pairs are scored and selected, each anew, so that a pair dropped in one can be taken back in
    # the next (published: 1). Later epochs train on what the last of them kept.
    curation_epochs: int = 1
    curation_learning_rate: float = 0.0  # rate while curating; 0 for that of the schedule, as published
    subset_epochs: int = 9  # epochs over the kept pairs afterwards (published: 19)
    batch_size: int = 128  # pairs a step outside curation (published: 480)
    super_batch: int = 480  # pairs scored together and selected from (published: 480)
    micro_batch: int = 128  # pairs encoded at once; it bounds memory and changes no result
    learning_rate: float = 3e-4  # peak (published: 5e-5)
    min_learning_rate: float = 1e-5  # at the end (published: 5e-6)
    ramp_steps: int = 20  # linear warm-up of the learning rate (published: 0)
    # ``hold_then_cosine`` holds the peak until the subset is known, then falls over the steps left; ``published`` falls
    # from the first step, by the length of the current loader (F10).
    schedule: str = "hold_then_cosine"
    weight_decay: float = 1e-2  # for matrices only (published: 1e-4)
    # ``bf16`` autocast, ``fp32``, or ``auto``: whichever the device runs faster (published: fp16). Any number of
    # processes selects the same pairs at fp32; bf16 rounds by how a batch is cut among them.
    precision: str = "auto"
    dropout: bool = False  # train with the encoders' own dropout (published: yes)
    # ``own`` statistics of the encoder, ``imagenet``, ``clip`` (published, F7) or ``half``
    image_normalisation: str = "own"
    drop_registers: bool = False  # load a DINOv2 with registers without them (published: yes, F8)
    decay_logit_scale: bool = False  # decay the temperature too (published: yes, F12)
    threads: int = 1  # CPU threads of one arm; part of the configuration because sums depend on them in the last bits
    # Side in pixels at which a curator scores, below ``image_size`` to save operations; 0 for ``image_size``
    # (published: full size).
    scoring_size: int = 0
    # With a ``scoring_size``, every so many super-batches are scored at full size too, and the overlap of the two
    # selections is recorded; what that costs is counted apart.
    overlap_every: int = 8
    # ``buckets`` of texts of like length, ``packed`` without any padding, or ``padded`` to the longest report of the
    # cohort (published: padded to ``max_tokens``).
    text_layout: str = "buckets"
    # Encoders that are not trained: ``image``, ``text`` or both. Their projections are, and their features are computed
    # once (published: none).
    frozen_towers: tuple[str, ...] = ()
    # train low-rank updates of this rank in place of the encoders' weights; 0 trains the weights (published: 0)
    lora_rank: int = 0
    lora_alpha: float = 16.0  # scale of these updates; they are multiplied by it and divided by their rank
    compile_blocks: bool = False  # compile the encoders' blocks; pays on a GPU
    checkpoint_minutes: float = 10.0  # time between checkpoints within an epoch; 0 for one after every step
    tracker: str = ""  # ``tensorboard`` to log the history there too; none by default
    # random streams that use seed 0 whatever the arm's seed, to tell sources of variance apart
    fixed_streams: tuple[str, ...] = ()
    curator: CuratorConfig = field(default_factory=CuratorConfig)  # constants of the curator
    self_supervision: SelfSupervisionConfig = field(default_factory=SelfSupervisionConfig)

    def __post_init__(self):
        for name, least in {**dict.fromkeys(_AT_LEAST_ONE, 1), **dict.fromkeys(_NOT_NEGATIVE, 0)}.items():
            if getattr(self, name) < least:
                raise StudyError(f"{name} must be at least {least}, not {getattr(self, name)}.")
        if self.temperature <= 0:
            raise StudyError(f"temperature must be above 0, not {self.temperature}.")
        if self.threads > _MOST_THREADS:
            raise StudyError(f"threads must be at most {_MOST_THREADS}, not {self.threads}.")
        if not 0 < self.min_learning_rate <= self.learning_rate:
            raise StudyError("learning_rate must be positive and at least min_learning_rate.")
        for name, choices in _CHOICES.items():
            given = getattr(self, name)
            for value in given if isinstance(given, tuple) else (given,):
                if value not in choices:
                    known = f"one of {', '.join(filter(None, choices))}" + ", or empty" * ("" in choices)
                    raise StudyError(f"{name} must be {known}, not {value!r}.")
        if self.objective == "self_supervised" and self.self_supervision.local_size >= self.image_size:
            raise StudyError(
                f"local_size ({self.self_supervision.local_size}) must be below image_size ({self.image_size}): local "
                "crops are the smaller ones."
            )
        if self.objective == "self_supervised" and self.curator.mismatch_filter:
            raise StudyError("mismatch_filter compares images with their reports, which self_supervised does not read.")
        if self.scoring_size > self.image_size:
            raise StudyError(
                f"scoring_size ({self.scoring_size}) must not exceed image_size ({self.image_size}): scoring is to be "
                "cheaper than training."
            )
        if "image" in self.frozen_towers and self.scoring_size:
            raise StudyError(
                "scoring_size has no effect on a frozen image tower, whose features are computed once: leave it out, "
                "or take image out of frozen_towers."
            )
        if self.lora_rank and self.lora_alpha <= 0:
            raise StudyError(f"lora_alpha must be positive, not {self.lora_alpha}.")
        if self.super_batch < self.curator.prototypes:
            raise StudyError(
                f"super_batch ({self.super_batch}) must hold at least one pair a prototype ({self.curator.prototypes})."
            )

    @property
    def total_epochs(self) -> int:
        return self.warm_up_epochs + self.curation_epochs + self.subset_epochs

    @property
    def image_spec(self) -> EncoderSpec:
        """The image encoder that training begins from."""
        return EncoderSpec(
            self.image_encoder,
            self.image_revision,
            image_size=self.image_size,
            normalisation=self.image_normalisation,
            drop_registers=self.drop_registers,
            dropout=self.dropout,
        )

    def to_dict(self) -> dict:
        """Plain JSON-serialisable values."""
        values = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: dict) -> "PretrainingConfig":
        """The inverse of `to_dict`; constants of its parts may stand beside the others."""
        values = dict(values)
        parts = {}
        for part, defaults in _PARTS.items():
            names = {constant.name for constant in fields(defaults)}
            own = values.pop(part, {}) | {name: values.pop(name) for name in list(values) if name in names}
            parts[part] = _changed(defaults(), own)
        plain = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        return _changed(cls(), plain, **parts)


def seal_model(folder: Path, config: PretrainingConfig) -> None:
    """Write beside a trained model what it was trained under, and seal the folder: it is whole then."""
    with atomic_path(folder / "pretraining.json") as temporary:
        temporary.write_text(json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n")
    seal_artifact(folder)


def read_constants(namespace: dict) -> PretrainingConfig:
    """The configuration that a notebook's ``globals()`` describe: those of its variables that are constants.

    Its list ``constants``, if there is one, holds further ones as ``name=value``.
    """
    defaults = _flatten(PretrainingConfig())
    values = {name: value for name, value in namespace.items() if name in defaults}
    for assignment in namespace.get("constants", []):
        name, _, text = (part.strip() for part in assignment.partition("="))
        if name not in defaults:
            raise StudyError(f"constants: unknown constant in {assignment!r}; known are {', '.join(defaults)}.")
        values[name] = _parse(name, text, type(defaults[name]))
    return PretrainingConfig.from_dict(values)


def list_variables(config: PretrainingConfig, names: Collection[str]) -> dict[str, object]:
    """The variables of a notebook that describe a configuration: the inverse of `read_constants`.

    The constants ``names`` are variables of their own; others that differ from their defaults go to ``constants``.
    """
    values, defaults = _flatten(config), _flatten(PretrainingConfig())
    others = {name: value for name, value in values.items() if name not in names and value != defaults[name]}
    return {name: value for name, value in values.items() if name in names} | {
        "constants": [f"{name}={_write(value)}" for name, value in others.items()]
    }


def _flatten(config: PretrainingConfig) -> dict[str, object]:
    """Every constant by its name, those of its parts beside the others."""
    values = asdict(config)
    for part in _PARTS:
        values |= values.pop(part)
    return values


def _write(value: object) -> str:
    if isinstance(value, tuple):
        return "+".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _parse(name: str, text: str, kind: type) -> object:
    if kind is tuple:
        return tuple(part.strip() for part in text.split("+") if part.strip())
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        if kind is not bool:
            return kind(text)
    except ValueError:
        pass
    raise StudyError(f"constants: {name} must be {kind.__name__}, not {text!r}.")


def _changed(defaults, values: dict, **others: object):
    known = {constant.name: type(getattr(defaults, constant.name)) for constant in fields(defaults)}
    for name, value in values.items():
        if name not in known:
            raise StudyError(f"unknown constant {name!r}; {type(defaults).__name__} has {', '.join(known)}.")
        expected: type | UnionType = known[name] if known[name] is not float else int | float
        if not isinstance(value, expected) or (isinstance(value, bool) and known[name] is not bool):
            raise StudyError(f"{name} must be {known[name].__name__}, not {value!r:.60}.")
        if isinstance(value, int | float) and not abs(value) < _BEYOND_ALL:
            raise StudyError(f"{name} must be a number that a computer can work with, not {value!r:.60}.")
        if isinstance(value, tuple) and any(type(one) is not str for one in value):
            raise StudyError(f"{name} must be a list of str, not {list(value)!r:.60}.")
    return replace(defaults, **values, **others)
