"""Constants that change from step to step: learning rates, and others that follow a ramp and a cosine."""

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


@dataclass(frozen=True)
class Cosine:
    """A linear ramp, then half a cosine.

    As published, the last step is not yet at the end, and the start comes twice: as the ramp's last step and as the
    cosine's first.
    """

    start: float  # value at the beginning of the cosine
    end: float  # value that step ``steps`` has, and those after it
    steps: int  # of the whole schedule
    ramp_steps: int = 0  # steps of the ramp, both its ends included
    ramp_from: float = 0.0  # where the ramp begins

    def at(self, step: int) -> float:
        """Value of a step, counted from 0."""
        if step >= self.steps:
            return self.end
        if step < self.ramp_steps:
            return self.ramp_from + (self.start - self.ramp_from) * step / max(self.ramp_steps - 1, 1)
        done = (step - self.ramp_steps) / (self.steps - self.ramp_steps)
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * done)) / 2
