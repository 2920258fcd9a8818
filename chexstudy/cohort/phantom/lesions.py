"""Which function draws which finding, and which findings change the form of an organ before it is drawn.

Painters take the scene, the lesion and its generator, draw into the scene and return the lesion's mask
``(pixels, pixels)`` on the board. Reshapers change the chest's numbers before it is laid out.
"""

from functools import partial
from types import MappingProxyType

import numpy as np

from chexstudy.cohort.phantom import chest_lesions, drawn_devices, lung_lesions, pleural_lesions

PAINTERS = MappingProxyType(
    {
        "Support Devices": drawn_devices.paint_devices,
        "Pleural Effusion": pleural_lesions.paint_effusion,
        "Lung Opacity": lung_lesions.paint_opacity,
        "Atelectasis": lung_lesions.paint_atelectasis,
        # A large heart and a curved spine are drawn with the body: only their masks are left to tell.
        "Cardiomegaly": lambda scene, lesion, generator: scene.body.heart > 0.5,
        "Edema": lung_lesions.paint_edema,
        "Consolidation": lung_lesions.paint_consolidation,
        "Calcified Granuloma": lung_lesions.paint_granuloma,
        "Nodule": lung_lesions.paint_nodule,
        "Pneumothorax": pleural_lesions.paint_pneumothorax,
        "Emphysema": lung_lesions.paint_emphysema,
        "Scoliosis": lambda scene, lesion, generator: np.abs(scene.board.x - scene.body.spine_line) < 0.12,
        "Mass": lung_lesions.paint_mass,
        "Pleural Thickening": pleural_lesions.paint_thickening,
        "Fibrosis": lung_lesions.paint_fibrosis,
        "Rib Fracture": chest_lesions.paint_fracture,
        "Hilar Enlargement": chest_lesions.paint_hilum,
        "Tuberculosis": lung_lesions.paint_tuberculosis,
        "Aortic Enlargement": chest_lesions.paint_aorta,
        "Cavity": lung_lesions.paint_cavity,
        "Bronchiectasis": lung_lesions.paint_bronchiectasis,
        "Pneumoperitoneum": pleural_lesions.paint_pneumoperitoneum,
        "Hernia": chest_lesions.paint_hernia,
    }
)

RESHAPERS = MappingProxyType(
    {
        # A large effusion and a pneumothorax under tension push the mediastinum to the other side.
        "Pleural Effusion": partial(pleural_lesions.push_mediastinum, from_severity=0.65, distance=0.06),
        "Atelectasis": lung_lesions.reshape_atelectasis,
        "Cardiomegaly": chest_lesions.reshape_cardiomegaly,
        "Edema": lung_lesions.reshape_edema,
        "Pneumothorax": partial(pleural_lesions.push_mediastinum, from_severity=0.6, distance=0.10),
        "Emphysema": lung_lesions.reshape_emphysema,
        "Scoliosis": chest_lesions.reshape_scoliosis,
        "Fibrosis": lung_lesions.reshape_fibrosis,
        "Hilar Enlargement": chest_lesions.reshape_hilum,
        "Aortic Enlargement": chest_lesions.reshape_aorta,
    }
)
