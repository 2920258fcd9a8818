"""Which function draws which finding, and which changes the form of an organ before it is drawn, if one does.

Painters take the scene, the lesion and its generator, draw into the scene and return the lesion's mask
``(pixels, pixels)`` on the board. Reshapers change the chest's numbers before it is laid out.
"""

from functools import partial
from types import MappingProxyType

import numpy as np

from chexstudy.cohort.phantom import chest_lesions, drawn_devices, lung_lesions, pleural_lesions

# Finding -> its painter and its reshaper.
LESIONS = MappingProxyType(
    {
        "Support Devices": (drawn_devices.paint_devices, None),
        # A large effusion and a pneumothorax under tension push the mediastinum to the other side.
        "Pleural Effusion": (
            pleural_lesions.paint_effusion,
            partial(pleural_lesions.push_mediastinum, over=0.65, by=0.06),
        ),
        "Lung Opacity": (lung_lesions.paint_opacity, None),
        "Atelectasis": (lung_lesions.paint_atelectasis, lung_lesions.reshape_atelectasis),
        # A large heart and a curved spine are drawn with the body: only their masks are left to tell.
        "Cardiomegaly": (lambda scene, lesion, generator: scene.body.heart > 0.5, chest_lesions.reshape_cardiomegaly),
        "Edema": (lung_lesions.paint_edema, lung_lesions.reshape_edema),
        "Consolidation": (lung_lesions.paint_consolidation, None),
        "Calcified Granuloma": (lung_lesions.paint_granuloma, None),
        "Nodule": (lung_lesions.paint_nodule, None),
        "Pneumothorax": (
            pleural_lesions.paint_pneumothorax,
            partial(pleural_lesions.push_mediastinum, over=0.6, by=0.10),
        ),
        "Emphysema": (lung_lesions.paint_emphysema, lung_lesions.reshape_emphysema),
        "Scoliosis": (
            lambda scene, lesion, generator: np.abs(scene.board.x - scene.body.spine_line) < 0.12,
            chest_lesions.reshape_scoliosis,
        ),
        "Mass": (lung_lesions.paint_mass, None),
        "Pleural Thickening": (pleural_lesions.paint_thickening, None),
        "Fibrosis": (lung_lesions.paint_fibrosis, lung_lesions.reshape_fibrosis),
        "Rib Fracture": (chest_lesions.paint_fracture, None),
        "Hilar Enlargement": (chest_lesions.paint_hilum, chest_lesions.reshape_hilum),
        "Tuberculosis": (lung_lesions.paint_tuberculosis, None),
        "Aortic Enlargement": (chest_lesions.paint_aorta, chest_lesions.reshape_aorta),
        "Cavity": (lung_lesions.paint_cavity, None),
        "Bronchiectasis": (lung_lesions.paint_bronchiectasis, None),
        "Pneumoperitoneum": (pleural_lesions.paint_pneumoperitoneum, None),
        "Hernia": (chest_lesions.paint_hernia, None),
    }
)
