"""Pixels that an image's id decides, for tests that embed images."""

import numpy as np


class NoisePixels:
    """Counts what is read, and breaks when told to."""

    def __init__(self, breaks_at=None):
        self.read_ids, self.breaks_at = [], breaks_at

    def read(self, image_ids):
        if self.breaks_at is not None and self.breaks_at in image_ids:
            raise KeyboardInterrupt
        self.read_ids += image_ids
        seeds = [int(image_id.split("/")[1]) for image_id in image_ids]
        return np.stack([np.random.default_rng(seed).integers(0, 256, (24, 24), np.uint8) for seed in seeds])
