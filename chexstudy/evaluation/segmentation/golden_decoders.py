"""Do our decoders give the numbers that CheXficient's public ones give?"""

from collections.abc import Mapping

import numpy as np
import torch

from chexstudy.evaluation.segmentation.decoders import PUBLISHED, LinearDecoder, UNetDecoder, split_blocks

MARK = "unet_eval_before_resize"  # an array that no other golden file has


@torch.no_grad()
def compute_decoders(golden: Mapping[str, np.ndarray]) -> dict[str, tuple[object, object]]:
    """What is found and what is expected, by array, of the U-Net and of the linear decoder with the stored weights."""
    width, classes, size, _ = (int(value) for value in golden["width_classes_size_patch"])
    features = torch.from_numpy(golden["features_oldest_to_last"])
    widths = [width] * len(features)
    blocks = split_blocks(torch.cat(list(features), dim=-1), widths)
    unet = UNetDecoder(widths, classes, **PUBLISHED).eval()
    stored = {name: f"unet_{name.replace('.', '_')}" for name in unet.state_dict()}
    unet.load_state_dict({name: torch.from_numpy(golden[array]) for name, array in stored.items()})
    linear = LinearDecoder(widths, classes)
    linear.classify.load_state_dict({part: torch.from_numpy(golden[f"linear_{part}"]) for part in ("weight", "bias")})
    found = {"linear_output": linear(blocks, size), "unet_eval_before_resize": unet.decode(blocks)}
    for name, antialias in (("antialias", True), ("plain", False)):
        unet.antialias = antialias
        found[f"unet_eval_resized_{name}"] = unet(blocks, size)
    found["unet_train_before_resize"] = unet.train().decode(blocks)
    return {name: (value.numpy(), golden[name]) for name, value in found.items()}
