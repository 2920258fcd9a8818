"""The phantom's findings and how often each occurs: a Zipf-like tail from 12 % to 0.2 %."""

from types import MappingProxyType

# Share of studies with the finding, before co-occurrence. About 60 % of the studies have none of them.
# The order is that of the cohort table's columns; names follow CheXpert, NIH ChestX-ray14 and VinDr-CXR.
PREVALENCE = MappingProxyType(
    {
        "Support Devices": 0.120,
        "Pleural Effusion": 0.100,
        "Lung Opacity": 0.080,
        "Atelectasis": 0.070,
        "Cardiomegaly": 0.065,
        "Edema": 0.050,
        "Consolidation": 0.040,
        "Calcified Granuloma": 0.032,
        "Nodule": 0.028,
        "Pneumothorax": 0.024,
        "Emphysema": 0.020,
        "Scoliosis": 0.017,
        "Mass": 0.014,
        "Pleural Thickening": 0.012,
        "Fibrosis": 0.010,
        "Rib Fracture": 0.009,
        "Hilar Enlargement": 0.0075,
        "Tuberculosis": 0.0065,
        "Aortic Enlargement": 0.0050,
        "Cavity": 0.0040,
        "Bronchiectasis": 0.0030,
        "Pneumoperitoneum": 0.0025,
        "Hernia": 0.0020,
    }
)
