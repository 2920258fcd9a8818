"""Which encoder, and how it is used; what must be known of an architecture to use it."""

from dataclasses import dataclass

from chexstudy.errors import StudyError

# Mean and standard deviation a channel, in units of full scale.
NORMALISATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
_TINY_NAMES = ("tiny-resnet", "tiny-vit", "tiny-dinov2", "tiny-bert")
IMAGE_POOLINGS = ("cls", "mean", "max", "pooler", "projection")
TEXT_POOLINGS = ("last", "first", "mean", "pooler", "projection")
# What a saved encoder adds to its config.json.
RECORD = "chexstudy"
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class EncoderSpec:
    """Which encoder, and how it is used."""

    # ``tiny-resnet``, ``tiny-vit``, ``tiny-dinov2``, ``tiny-bert``, a Hub id, a folder, or a file of DINOv2's own code
    name: str
    # commit, tag or branch on the Hub; empty for ``main``. Name a commit in anything that is published.
    revision: str = ""
    # side in pixels at which the encoder looks; None for the encoder's own size (96 for the tiny ones)
    image_size: int | None = None
    # How tokens become one vector. Images: ``cls``, ``mean`` and ``max`` (of the patch tokens), joined as in
    # ``cls+mean``, or the model's own ``pooler`` or ``projection``. Texts: ``last`` (the last token that is not
    # padding, [SEP] for BERT: CheXficient, A1.4), ``first`` ([CLS]), ``mean``, ``pooler``, ``projection``. Empty for
    # the architecture's own.
    pooling: str = ""
    pretrained: bool = True  # load weights; False starts the architecture from scratch
    max_tokens: int = 256  # texts are cut to so many tokens, special tokens included
    # ``own`` (the checkpoint's ``preprocessor_config.json``, else the architecture's usual values), ``imagenet``,
    # ``clip`` (CheXficient feeds DINOv2 so), or ``half`` (mean 0.5, standard deviation 0.5).
    normalisation: str = "own"
    drop_registers: bool = False  # load a DINOv2 with registers into the architecture without, as CheXficient does
    # keep the checkpoint's dropout and stochastic depth; without, a pass is a deterministic function
    dropout: bool = False

    def __post_init__(self):
        if not self.name:
            raise StudyError(f"an encoder needs a name: one of {', '.join(_TINY_NAMES)}, a Hub id or a folder.")
        if self.normalisation not in ("own", *NORMALISATIONS):
            raise StudyError(
                f"unknown normalisation {self.normalisation!r} for {self.name}: use own, {', '.join(NORMALISATIONS)}."
            )
        if self.image_size is not None and self.image_size < 1:
            raise StudyError(f"image_size of {self.name} is {self.image_size}: give pixels, 1 or more.")
        if self.max_tokens < 3:
            raise StudyError(f"max_tokens of {self.name} is {self.max_tokens}: a text needs 3 or more.")


def name_encoder(name: str) -> str:
    """An encoder's name in tables and files: without the slashes of a Hub id or folder."""
    return name.strip("/").replace("/", "--")


@dataclass(frozen=True)
class Architecture:
    """What must be known of a ``model_type`` to use it as an encoder; nothing is known of those not listed."""

    model_class: str = ""
    pooling: str = ""
    normalisation: str = "half"
    projection_class: str = ""
    pads_to_full_length: bool = False


IMAGE_ARCHITECTURES = {
    "resnet": Architecture("ResNetModel", "mean", "imagenet"),
    "vit": Architecture("ViTModel", "cls"),
    "dinov2": Architecture("Dinov2Model", "cls", "imagenet"),
    "dinov2_with_registers": Architecture("Dinov2WithRegistersModel", "cls", "imagenet"),
    "dinov3_vit": Architecture("DINOv3ViTModel", "cls", "imagenet"),
    "clip": Architecture("CLIPVisionModel", "projection", "clip", "CLIPVisionModelWithProjection"),
    "clip_vision_model": Architecture("CLIPVisionModel", "pooler", "clip", "CLIPVisionModelWithProjection"),
    "siglip": Architecture("SiglipVisionModel", "pooler"),
    "siglip_vision_model": Architecture("SiglipVisionModel", "pooler"),
}
TEXT_ARCHITECTURES = {
    "bert": Architecture("BertModel", "last"),
    "clip": Architecture("CLIPTextModel", "projection", projection_class="CLIPTextModelWithProjection"),
    "clip_text_model": Architecture("CLIPTextModel", "pooler", projection_class="CLIPTextModelWithProjection"),
    # SigLIP was trained on texts padded to one length without a mask: its pooler reads the last position.
    "siglip": Architecture("SiglipTextModel", "pooler", pads_to_full_length=True),
    "siglip_text_model": Architecture("SiglipTextModel", "pooler", pads_to_full_length=True),
}
