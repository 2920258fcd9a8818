"""Which function draws which finding, and which changes the form of an organ before it is drawn, if one does.

Painters take the scene, the lesion and its generator, draw into the scene and return the lesion's mask
``(pixels, pixels)`` on the board. Reshapers change the chest's numbers before it is laid out.
"""

from functools import partial
from types import MappingProxyType

import numpy as np

from chexstudy.cohort.phantom import chest_lesions as chest
from chexstudy.cohort.phantom import drawn_devices
from chexstudy.cohort.phantom import lung_lesions as lung
from chexstudy.cohort.phantom import pleural_lesions as pleural

# Finding -> its painter and its reshaper.
LESIONS = MappingProxyType(
    {
        "Support Devices": (drawn_devices.paint_devices, None),
        # A large effusion and a pneumothorax under tension push the mediastinum to the other side.
        "Pleural Effusion": (pleural.paint_effusion, partial(pleural.push_mediastinum, over=0.65, by=0.06)),
        "Lung Opacity": (lung.paint_opacity, None),
        "Atelectasis": (lung.paint_atelectasis, lung.reshape_atelectasis),
        # A large heart and a curved spine are drawn with the body: only their masks are left to tell.
        "Cardiomegaly": (lambda scene, lesion, generator: scene.body.heart > 0.5, chest.reshape_cardiomegaly),
        "Edema": (lung.paint_edema, lung.reshape_edema),
        "Consolidation": (lung.paint_consolidation, None),
        "Calcified Granuloma": (lung.paint_granuloma, None),
        "Nodule": (lung.paint_nodule, None),
        "Pneumothorax": (pleural.paint_pneumothorax, partial(pleural.push_mediastinum, over=0.6, by=0.10)),
        "Emphysema": (lung.paint_emphysema, lung.reshape_emphysema),
        "Scoliosis": (
            lambda scene, lesion, generator: np.abs(scene.board.x - scene.body.spine_line) < 0.12,
            chest.reshape_scoliosis,
        ),
        "Mass": (lung.paint_mass, None),
        "Pleural Thickening": (pleural.paint_thickening, None),
        "Fibrosis": (lung.paint_fibrosis, lung.reshape_fibrosis),
        "Rib Fracture": (chest.paint_fracture, None),
        "Hilar Enlargement": (chest.paint_hilum, chest.reshape_hilum),
        "Tuberculosis": (lung.paint_tuberculosis, None),
        "Aortic Enlargement": (chest.paint_aorta, chest.reshape_aorta),
        "Cavity": (lung.paint_cavity, None),
        "Bronchiectasis": (lung.paint_bronchiectasis, None),
        "Pneumoperitoneum": (pleural.paint_pneumoperitoneum, None),
        "Hernia": (chest.paint_hernia, None),
    }
)
