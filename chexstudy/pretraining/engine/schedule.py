"""The learning rate of a step."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class LearningRate:
    """Linear ramp, hold, then half a cosine from ``peak`` to ``floor``."""

    peak: float  # highest rate
    floor: float  # rate at the end of the cosine
    ramp_steps: int  # steps of the linear ramp from zero
    fall_from: float  # step at which the cosine begins
    fall_to: float  # step at which it would reach ``floor``. A larger step is not clamped when ``overshoots``.
    # follow the cosine past its minimum, as the published schedule does when its loader shrinks (F10)
    overshoots: bool = False

    def at(self, step: int) -> float:
        """Rate of a step, counted from 0."""
        if step < self.ramp_steps:
            return self.peak * (step + 1) / self.ramp_steps
        if step < self.fall_from:
            return self.peak
        done = (step - self.fall_from) / max(self.fall_to - self.fall_from, 1)
        if not self.overshoots:
            done = min(done, 1.0)
        return self.floor + (self.peak - self.floor) * (1 + math.cos(math.pi * done)) / 2
