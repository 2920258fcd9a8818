"""Small encoders of 0.3-2M parameters, made here for a CPU."""

from typing import TYPE_CHECKING

from torch import nn

from chexstudy.encoders.spec import RECORD, EncoderSpec
from chexstudy.errors import StudyError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_TINY_IMAGE_SIZE = 96
# For sequences of tens of tokens, two plain matrix products are twice as fast in bfloat16 on a CPU as fused attention.
_TINY_ATTENTION = "eager"
_CHANNELS_A_GROUP = 16


def tiny_image_config(spec: EncoderSpec) -> "PreTrainedConfig":
    from transformers import Dinov2WithRegistersConfig, ResNetConfig, ViTConfig

    if spec.name == "tiny-resnet":
        config = ResNetConfig(
            num_channels=1, embedding_size=16, hidden_sizes=[16, 32, 64, 128], depths=[1, 1, 1, 1], layer_type="basic"
        )
        record = {"pooling": "mean+max"}
    elif spec.name == "tiny-vit":
        config = ViTConfig(
            num_channels=1,
            image_size=spec.image_size or _TINY_IMAGE_SIZE,
            patch_size=12,
            hidden_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=512,
        )
        record = {"pooling": "mean", "attention": _TINY_ATTENTION}
    elif spec.name == "tiny-dinov2":
        config = Dinov2WithRegistersConfig(
            num_channels=1,
            image_size=spec.image_size or _TINY_IMAGE_SIZE,
            patch_size=8,
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            # At 0.1, images are so alike in the first hundreds of steps that self-supervision does not begin.
            layerscale_value=1.0,
        )
        # At this size patches learn before [CLS] does.
        record = {"pooling": "mean", "attention": _TINY_ATTENTION}
    else:
        raise StudyError(
            f"there is no image encoder {spec.name!r}: the small ones are tiny-resnet, tiny-vit and tiny-dinov2."
        )
    setattr(config, RECORD, record | {"name": spec.name, "image_size": _TINY_IMAGE_SIZE})
    return config


def tiny_text_config(spec: EncoderSpec, vocabulary_size: int) -> "PreTrainedConfig":
    from transformers import BertConfig

    if spec.name != "tiny-bert":
        raise StudyError(f"there is no text encoder {spec.name!r}: the small one is tiny-bert.")
    config = BertConfig(
        vocab_size=vocabulary_size,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=spec.max_tokens,
    )
    setattr(config, RECORD, {"name": spec.name, "pooling": "mean", "attention": _TINY_ATTENTION})
    return config


def replace_batch_normalisation(module: nn.Module) -> bool:
    replaced = False
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(max(child.num_features // _CHANNELS_A_GROUP, 1), child.num_features))
            replaced = True
        else:
            replaced |= replace_batch_normalisation(child)
    return replaced
