"""Colours, with markers that also tell apart in grey.

The colours are those of Okabe and Ito, chosen to be told apart by people with any common colour vision.
"""

from collections.abc import Iterable
from dataclasses import dataclass

INK, GREY, PALE = "#222222", "#8A8A8A", "#D9D9D9"
ACCENT = "#D55E00"
# Dark to light as well as blue to orange, so that stacked parts keep their order in grey print.
SEQUENCE = (
    "#0B3C5D", "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#F0E442", "#CC79A7", "#D55E00", "#999999", "#D9D9D9",
)  # fmt: skip
BAND_COLOURS = {"central": "#8FB8DE", "support": "#D07C00", "outlier": "#4B1D6B", "mismatched": "#C2185B"}
BAND_MARKERS = {"central": "o", "support": "^", "outlier": "x", "mismatched": "+"}


@dataclass(frozen=True)
class ArmStyle:
    """How one arm looks in every figure."""

    name: str
    colour: str
    marker: str


ARM_STYLES = {
    "curated": ArmStyle("Curated", "#D55E00", "o"),
    "filtered": ArmStyle("Filtered", "#CC79A7", "p"),
    "random_same_data": ArmStyle("Random, same data", "#0072B2", "s"),
    "random_same_compute": ArmStyle("Random, same compute", "#56B4E9", "^"),
    "full": ArmStyle("All pairs", "#222222", "D"),
    "oracle_balanced": ArmStyle("Label-balanced (oracle)", "#009E73", "P"),
    "start": ArmStyle("Before training here", "#7A5195", "v"),
    "untrained": ArmStyle("Random weights", "#8A8A8A", "X"),
}
_OTHER_MARKERS = ("v", "X", "<", ">", "h", "p")
_OTHER_COLOURS = ("#E69F00", "#8A8A8A", "#7A5195", "#5E4B3C")


def arm_style(arm: str, arms: Iterable[str] = ()) -> ArmStyle:
    """The look of an arm; arms of one's own get a colour by their place among ``arms``."""
    if arm in ARM_STYLES:
        return ARM_STYLES[arm]
    others = [other for other in order_arms(arms) if other not in ARM_STYLES]
    place = others.index(arm) if arm in others else 0
    looks = _OTHER_COLOURS[place % len(_OTHER_COLOURS)], _OTHER_MARKERS[place % len(_OTHER_MARKERS)]
    return ArmStyle(arm.replace("_", " ").capitalize(), *looks)


def arm_styles(arms: Iterable[str]) -> dict[str, ArmStyle]:
    """The looks of arms, in the order of all figures."""
    return {arm: arm_style(arm, arms) for arm in order_arms(arms)}


def order_arms(arms: Iterable[str]) -> list[str]:
    """Arms in the order of all figures: the study's own as above, then others by name."""
    known = list(ARM_STYLES)
    return sorted(set(arms), key=lambda arm: (known.index(arm) if arm in known else len(known), arm))
