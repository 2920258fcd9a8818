"""The numbers that make one chest. Findings that change an organ's form change these before anything is drawn."""

from dataclasses import dataclass

import numpy as np

from chexstudy.cohort.phantom.case import Case


@dataclass
class Shape:
    """One chest in numbers, in the board's coordinates; a pair is the patient's right and left."""

    apex: list[float]  # y of the lung apex, each side
    angle: list[float]  # y of the costophrenic angle, each side
    dome: list[float]  # y of the top of the hemidiaphragm, each side
    chest: list[float]  # half width of the inner chest wall, each side
    trunk: float  # soft tissue beyond the chest wall at the flanks
    heart_ratio: float  # cardiothoracic ratio
    heart_axis: float  # share of the heart's width left of the midline
    heart_top: float  # y of the base of the heart; heart_bottom: y of its lowest point
    heart_bottom: float
    shift: float  # displacement of heart and mediastinum to the image's right
    knob: float  # radius of the aortic knob; unfolding: how far the descending and ascending aorta bulge, 0 to 1
    unfolding: float
    hilum: list[float]  # size of the hila, each side
    vessel: float  # thickness of the pulmonary vessels; cephalisation: 0 (lower larger) to 1 (upper larger)
    cephalisation: float
    inflation: float  # how much of the beam in the lung is air, around 1
    # lateral deviation of the spine, a sine with amplitude, cycles over the board, phase
    curve: tuple[float, float, float]
    rib_top: float  # y of the first posterior rib at the spine; rib_pitch: distance of ribs; rib_drop: front to back
    rib_pitch: float
    rib_drop: float
    bone: float  # mineral density around 1
    thickness: float  # soft tissue along the beam around 1
    breast: float  # size of the breast shadows, 0 none; breast_fall: their y
    breast_fall: float
    clavicle: tuple[float, float]  # y of the clavicles' inner ends, and how far the outer ends lie below them
    shoulder: float  # how low the shoulders hang
    arms_down: bool  # arms beside the trunk and scapulae over the lungs, as on bedside films
    # x and radius of the gastric bubble, and a number 0..1 for how much gas there is
    bubble: tuple[float, float, float]
    trachea: float  # deviation of the trachea
    zoom: float  # magnification on the film
    jitter: list[float]  # five standard normal numbers for small asymmetries

    def pull_mediastinum(self, side: str, distance: float) -> None:
        """Move heart and mediastinum towards a side (away from it, if negative); a lesion of both sides moves none."""
        self.shift += {"right": -distance, "left": distance}.get(side, 0.0)


def make_shape(case: Case) -> Shape:
    """The chest of a patient, findings aside; studies of one differ by view and inspiration alone."""
    patient = case.patient
    draw = np.random.default_rng(patient.anatomy_seed)
    # Python numbers throughout: NumPy's double scalars would turn every float32 array they meet into double.
    spread = draw.normal(0.0, 1.0, 32).clip(-2.0, 2.0).tolist()
    female = patient.sex == "F"
    old = min(max((patient.age_years - 40) / 45, 0.0), 1.0)
    child = min(max((16 - patient.age_years) / 16, 0.0), 1.0)
    portable = case.view == "AP"
    depth = 1.0 - case.inspiration
    half = 0.735 * (0.965 if female else 1.0) * (1 + 0.03 * spread[0])
    apex = -0.74 + 0.025 * spread[1] + 0.02 * portable
    dome = 0.30 + 0.04 * spread[2] - 0.26 * depth - 0.05 * portable - 0.05 * patient.habitus - 0.03 * child
    lower = 0.055 + 0.02 * spread[3]
    angle = dome + 0.24 + 0.02 * spread[4] - 0.03 * depth
    ratio = 0.435 + 0.018 * spread[5] + 0.03 * old + 0.02 * patient.habitus + 0.03 * depth + 0.04 * child
    pitch = (dome + 0.83) / (9.6 + 0.5 * spread[6] - 0.8 * depth)
    return Shape(
        apex=[apex, apex + 0.012 * spread[7]],
        angle=[angle, angle + 0.02 + 0.01 * spread[8]],
        dome=[dome, dome + lower],
        chest=[half * (1 + 0.012 * spread[9]), half * (1 - 0.012 * spread[9])],
        trunk=0.09 + 0.16 * patient.habitus + 0.02 * abs(spread[10]),
        heart_ratio=ratio * (1.13 if portable else 1.0),
        heart_axis=0.67 + 0.03 * spread[11],
        heart_top=-0.17 + 0.02 * spread[12] - 0.05 * depth,
        heart_bottom=dome + lower + 0.11,
        shift=0.0,
        knob=0.078 + 0.006 * spread[13] + 0.022 * old - 0.02 * child,
        unfolding=0.35 * old,
        hilum=[0.085 + 0.006 * spread[14], 0.078 + 0.006 * spread[15]],
        vessel=1.0 + 0.07 * spread[16] + 0.12 * portable,
        cephalisation=0.25 * portable,
        inflation=1.0 - 0.12 * depth + 0.03 * old,
        curve=(0.008 * spread[17], 0.5 + 0.2 * draw.random(), 6.28 * draw.random()),
        rib_top=apex - 0.075 + 0.01 * spread[18],
        rib_pitch=pitch,
        rib_drop=pitch * (4.3 + 0.35 * spread[19] - 0.6 * portable),
        bone=(1.0 - 0.28 * old * (1.0 if female else 0.6)) * (1 - 0.25 * child),
        thickness=0.90 + 0.30 * patient.habitus - 0.18 * child + 0.03 * spread[20],
        breast=(0.55 + 0.45 * patient.habitus + 0.12 * spread[21]) * float(female and patient.age_years > 13),
        breast_fall=0.17 + 0.05 * old + 0.03 * spread[22],
        clavicle=(-0.55 + 0.02 * spread[23] - 0.09 * portable, -0.13 + 0.03 * spread[24] + 0.06 * portable),
        shoulder=0.03 * spread[25],
        arms_down=portable or draw.random() < 0.25,
        bubble=(0.34 + 0.05 * spread[26], 0.10 + 0.03 * abs(spread[27]), draw.random()),
        trachea=0.012 * spread[28],
        zoom=1.10 + 0.03 * spread[29] - 0.03 * patient.habitus,
        jitter=draw.normal(0.0, 1.0, 5).clip(-2.0, 2.0).tolist(),
    )
