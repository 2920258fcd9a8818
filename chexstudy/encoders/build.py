"""Image and text encoders behind one contract: small ones made here, others from the Hugging Face Hub or a folder.

Names are ``tiny-resnet``, ``tiny-vit``, ``tiny-dinov2`` and ``tiny-bert`` (0.3-2M parameters, for a CPU), a Hub id with
a revision, a folder, or a file that DINOv2's or CheXFound's own code has saved. All are ``transformers`` classes:
ResNet, ViT, DINOv2 without and with registers (RAD-DINO is one), DINOv3, the towers of CLIP and SigLIP pairs, BERT, and
whatever else ``AutoModel`` reads if the pooling is named.

Every encoder is a function of one sample: batch normalisation is frozen where it comes pretrained and replaced by group
normalisation where it starts from scratch. So a pass in micro-batches, or without gradient first, gives the same
embeddings as one big batch.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from chexstudy.encoders import hub
from chexstudy.encoders.image import ImageEncoder
from chexstudy.encoders.spec import (
    IMAGE_ARCHITECTURES,
    IMAGE_POOLINGS,
    NORMALISATIONS,
    RECORD,
    TEXT_ARCHITECTURES,
    TEXT_POOLINGS,
    WEIGHTS,
    Architecture,
    EncoderSpec,
)
from chexstudy.encoders.text import TextEncoder
from chexstudy.encoders.tiny import replace_batch_normalisation, tiny_image_config, tiny_text_config
from chexstudy.encoders.tokenizer import train_wordpiece
from chexstudy.errors import StudyError
from chexstudy.workflow.unforeseen import tell_mistake

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_NO_CLS = ("resnet", "siglip", "siglip_vision_model")
# Compiled versions of a block: sizes, with and without gradient, whole and last batches.
_COMPILED_VERSIONS = 64


def _refusing_odd_checkpoints(build: Callable) -> Callable:
    """Let a builder try what it has built, and tell in one sentence of a checkpoint that no code can make sense of."""

    @wraps(build)
    def build_and_try(spec: EncoderSpec, *arguments, **named):
        try:
            encoder = build(spec, *arguments, **named)
            if spec.name.startswith("tiny-"):
                return encoder
            if isinstance(encoder, TextEncoder):
                sample = encoder.tokenize(["Clear lungs."])
            else:
                size = encoder.image_size
                sample = {"pixels": torch.zeros(1, 1, size, size, dtype=torch.uint8)}
            with torch.no_grad():
                if not torch.isfinite(encoder(**sample)).all():
                    raise StudyError(
                        f"{spec.name} gives embeddings that are not numbers: its weights or its image_mean and "
                        "image_std are damaged; save it again."
                    )
        except Exception as error:
            if isinstance(error, StudyError) or tell_mistake(error) or spec.name.startswith("tiny-"):
                raise
            raise StudyError(
                f"{spec.name} is no checkpoint that can be used ({type(error).__name__}): its files are damaged or do "
                "not belong together; save or download it again."
            ) from error
        return encoder

    return build_and_try


@_refusing_odd_checkpoints
def build_image_encoder(spec: EncoderSpec, seed: int = 0) -> ImageEncoder:
    """Make or load an image encoder: on the CPU, in float32, in evaluation mode.

    The seed decides every weight that is not loaded; the global random state is left as it was.
    """
    if spec.name.startswith("tiny-"):
        config, checkpoint = tiny_image_config(spec), None
        preprocessing = {"image_mean": (0.5,), "image_std": (0.25,)}
    else:
        checkpoint = hub.find_checkpoint(spec.name, spec.revision, spec.pretrained)
        config = hub.read_config(checkpoint)
        preprocessing = hub.read_preprocessing(checkpoint)
    architecture = IMAGE_ARCHITECTURES.get(config.model_type, Architecture())
    pooling = _choose_pooling(spec, config, architecture, IMAGE_POOLINGS)
    model = _make_model(spec, config, architecture, pooling, checkpoint, seed, "vision")
    own = getattr(model.config, RECORD, {}).get("image_size") or hub.preprocessed_size(preprocessing)
    own = own or getattr(model.config, "image_size", None)
    image_size = spec.image_size or (own if isinstance(own, int) else 224)
    mean, std = _choose_normalisation(spec, preprocessing, architecture, model.config)
    encoder = ImageEncoder(model, pooling, _origin(spec, config, checkpoint), image_size, mean, std).eval()
    encoder.check_size(image_size)
    return encoder


@_refusing_odd_checkpoints
def build_text_encoder(
    spec: EncoderSpec, tokenizer: "PreTrainedTokenizerBase | Sequence[str] | None" = None, seed: int = 0
) -> TextEncoder:
    """Make or load a text encoder, as `build_image_encoder` does an image encoder.

    ``tiny-bert`` needs a tokenizer, or the training reports to train one on. A checkpoint brings its own, unless a
    tokenizer is given; reports do not change it.
    """
    if spec.name.startswith("tiny-"):
        if tokenizer is None:
            raise StudyError(f"{spec.name} has no vocabulary of its own: give the training reports or a tokenizer.")
        if not callable(tokenizer):
            tokenizer = train_wordpiece(tokenizer, max_tokens=spec.max_tokens)
        config, checkpoint = tiny_text_config(spec, len(tokenizer)), None
    else:
        checkpoint = hub.find_checkpoint(spec.name, spec.revision, spec.pretrained)
        config = hub.read_config(checkpoint)
        tokenizer = tokenizer if callable(tokenizer) else hub.read_tokenizer(checkpoint)
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    architecture = TEXT_ARCHITECTURES.get(config.model_type, Architecture())
    pooling = _choose_pooling(spec, config, architecture, TEXT_POOLINGS)
    model = _make_model(spec, config, architecture, pooling, checkpoint, seed, "text")
    if len(tokenizer) > model.config.vocab_size:
        raise StudyError(
            f"the tokenizer has {len(tokenizer)} tokens but {spec.name} knows {model.config.vocab_size}: give the "
            "tokenizer that belongs to it."
        )
    origin = _origin(spec, config, checkpoint)
    max_tokens = min(spec.max_tokens, getattr(config, RECORD, {}).get("max_tokens", spec.max_tokens))
    return TextEncoder(model, pooling, origin, tokenizer, max_tokens, architecture.pads_to_full_length).eval()


def _choose_pooling(spec: EncoderSpec, config, architecture: Architecture, known: tuple[str, ...]) -> str:
    pooling = spec.pooling or getattr(config, RECORD, {}).get("pooling") or architecture.pooling
    if not pooling:
        raise StudyError(
            f"{spec.name} is a {config.model_type}, whose tokens may mean anything: name a pooling, one of "
            f"{', '.join(known)}."
        )
    parts = pooling.split("+")
    joined = len(parts) > 1 and (known is TEXT_POOLINGS or {"pooler", "projection"} & set(parts))
    if joined or not set(parts) <= set(known):
        joinable = "; cls, mean and max may be joined with +" if known is IMAGE_POOLINGS else ""
        raise StudyError(f"unknown pooling {pooling!r} for {spec.name}: use {', '.join(known)}{joinable}.")
    if (pooling == "projection" and not architecture.projection_class) or (
        "cls" in parts and config.model_type in _NO_CLS
    ):
        raise StudyError(
            f"{spec.name} is a {config.model_type} and has no {pooling} to pool by: use {architecture.pooling}."
        )
    return pooling


def _choose_normalisation(spec: EncoderSpec, preprocessing: dict, architecture: Architecture, config) -> tuple:
    if spec.normalisation == "own":
        usual = NORMALISATIONS[architecture.normalisation]
        values = preprocessing.get("image_mean") or usual[0], preprocessing.get("image_std") or usual[1]
    else:
        values = NORMALISATIONS[spec.normalisation]
    if not all(one > 0 for one in values[1]):
        raise StudyError(f"the image_std of {spec.name} must be above 0: write its preprocessor_config.json again.")
    channels = getattr(config, "num_channels", 3)
    return tuple(tuple(v) if len(v) == channels else (sum(v) / len(v),) * channels for v in values)


def _make_model(spec, config, architecture, pooling, checkpoint, seed, tower: str) -> "PreTrainedModel":
    """The ``transformers`` model of an encoder, with loaded or seeded weights; ``tower`` is vision or text."""
    import transformers

    if hasattr(config, f"{tower}_config"):
        # A pair's own projection_dim holds for both towers, whatever theirs say.
        shared = getattr(config, "projection_dim", None)
        config = getattr(config, f"{tower}_config")
        if shared:
            config.projection_dim = shared
    # The other tower of a pair, and the way into the shared space where it is not taken.
    unused = [r"^text_" if tower == "vision" else r"^(vision|visual)_", r"^(text|visual)_projection\."]
    if spec.drop_registers:
        config = _without_registers(spec, config)
        architecture = IMAGE_ARCHITECTURES[config.model_type]
        unused.append(r"(^|\.)register_tokens$")
    if not spec.dropout:
        for name in config.to_dict():
            if name.endswith(("dropout", "dropout_prob", "dropout_rate", "drop_path_rate")):
                setattr(config, name, 0.0)
    if architecture.model_class:
        name = architecture.projection_class if pooling == "projection" else architecture.model_class
        model_class = getattr(transformers, name)
    else:
        known = transformers.MODEL_MAPPING[type(config)]
        model_class = known[0] if isinstance(known, tuple) else known
    options = {}
    if "add_pooling_layer" in inspect.signature(model_class.__init__).parameters:
        options["add_pooling_layer"] = pooling == "pooler"
    record = getattr(config, RECORD, {})
    with _seeded(seed), hub.quiet_transformers():
        if spec.pretrained and checkpoint and not record.get("group_normalisation"):
            model = hub.load_model(checkpoint, model_class, unused, config=config, **options)
        else:
            model = model_class(config, **options).float()
            if replace_batch_normalisation(model):
                setattr(model.config, RECORD, record | {"group_normalisation": True})
            if spec.pretrained and checkpoint:
                try:
                    model.load_state_dict(load_file(checkpoint.folder / WEIGHTS))
                except (OSError, RuntimeError, SafetensorError):
                    mend = "are damaged: save the encoder again"
                    raise StudyError(f"the weights in {checkpoint.folder} {mend}.") from None
    if "attention" in record:
        hub.check_attentions({"implementation": record["attention"]}, spec.name)
        model.set_attn_implementation(record["attention"])
    return model


def _without_registers(spec: EncoderSpec, config: "PreTrainedConfig") -> "PreTrainedConfig":
    from transformers import Dinov2Config

    if config.model_type != "dinov2_with_registers":
        raise StudyError(f"{spec.name} is a {config.model_type} and has no registers: leave drop_registers out.")
    other = ("num_register_tokens", "model_type", "architectures")
    return Dinov2Config(**{name: value for name, value in config.to_dict().items() if name not in other})


def _origin(spec: EncoderSpec, config: "PreTrainedConfig", checkpoint: hub.Checkpoint | None) -> dict:
    recorded = getattr(config, RECORD, {})
    commit = checkpoint.commit if checkpoint else ""
    return {"name": recorded.get("name", spec.name), "revision": recorded.get("revision", commit or spec.revision)}


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw what is drawn inside from a seed, and leave the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def compile_blocks(encoder: ImageEncoder | TextEncoder) -> int:
    """Compile each transformer block, or each stage of a ResNet, in place; the names of its weights stay. How many?

    Images have static shapes, so that each size is compiled once; texts have dynamic ones. Blocks alike share what is
    compiled. The first pass of each kind takes the time of a compilation.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    blocks = [module for module in encoder.model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not blocks and encoder.model.config.model_type == "resnet":
        blocks = list(encoder.model.encoder.stages)
    if not blocks:
        raise StudyError(
            f"{encoder.origin['name']} is a {encoder.model.config.model_type}, whose blocks are not known: train it "
            "without compile_blocks."
        )
    for block in blocks:
        block.compile(dynamic=isinstance(encoder, TextEncoder), recompile_limit=_COMPILED_VERSIONS)
    return len(blocks)
