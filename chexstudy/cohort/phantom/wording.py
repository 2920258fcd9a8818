"""The words of the phantom's reports: data only, one wording for each finding, and what else a report may say.

Marks in a phrase: ``{size}`` severity (``{sizely}`` as an adverb), ``{side}`` right or left, ``{where}`` side and zone
("in the right lower lobe"), ``{place}`` the same without "in" ("both lung bases"), ``{lobe}`` as an attribute ("right
lower lobe", "bilateral lower lobe"), ``{height}`` upper, mid or lower, ``{apical}`` apical, lateral or basal,
``{devices}`` the devices on the film. ``[a]`` begins a phrase that takes an article, ``[p]`` a plural one.
"""

from dataclasses import dataclass
from types import MappingProxyType

# Names of the regions in the order in which a film is usually read.
REGIONS = ("devices", "lungs", "pleura", "heart", "mediastinum", "bones", "abdomen")


@dataclass(frozen=True)
class Wording:
    """How a finding is put into words."""

    region: str  # part of the film, for the order of the sentences
    plain: str  # its plain name, as in "the ... has resolved".
    sizes: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]  # words for mild, moderate and severe
    one: tuple[str, ...]  # phrases for one side or the midline; the first two also serve the impression
    both: tuple[str, ...] = ()  # phrases for both sides
    # signs, signs_both: full sentences for a lesion the radiologist is certain of
    signs: tuple[str, ...] = ()
    signs_both: tuple[str, ...] = ()
    incidental: bool = False  # it needs no action, so the impression may add that nothing acute is seen


GRADES = (("mild", "minimal"), ("moderate",), ("severe", "marked"))
AMOUNTS = (("small", "trace"), ("moderate", "moderate-sized"), ("large",))
SPREADS = (("small", "subtle"), ("moderate",), ("extensive", "large"))

WORDINGS = MappingProxyType(
    {
        "Support Devices": Wording(
            "devices",
            "support devices",
            (("",), ("",), ("",)),
            (
                "[p] support devices in place",
                "[p] support devices in satisfactory position",
                "[p] support devices including {devices}",
                "{devices}",
            ),
        ),
        "Pleural Effusion": Wording(
            "pleura",
            "pleural effusion",
            AMOUNTS,
            (
                "[a] {size} {side} pleural effusion",
                "[a] {size} {side}-sided pleural effusion",
                "[a] {size} layering pleural effusion on the {side}",
                "{size} {side}-sided pleural fluid",
            ),
            (
                "[p] {size} bilateral pleural effusions",
                "[p] bilateral {size} pleural effusions",
                "[p] {size} pleural effusions on both sides",
                "{size} bilateral pleural fluid",
            ),
            (
                "The {side} costophrenic angle is blunted by [a] {size} pleural effusion.",
                "Meniscus at the {side} base in keeping with [a] {size} effusion.",
            ),
            (
                "Both costophrenic angles are blunted by {size} pleural effusions.",
                "Meniscus at both bases in keeping with {size} effusions.",
            ),
        ),
        "Lung Opacity": Wording(
            "lungs",
            "opacity",
            SPREADS,
            (
                "[a] {size} opacity {where}",
                "[a] {size} ill-defined {lobe} opacity",
                "[a] {size} area of hazy opacity {where}",
                "[a] {size} patchy opacity {where}",
            ),
            (
                "[p] {size} opacities {where}",
                "[p] {size} ill-defined {lobe} opacities",
                "[p] {size} hazy opacities {where}",
                "[p] {size} patchy opacities {where}",
            ),
            ("Hazy {lobe} opacity, nonspecific.", "Nonspecific opacity projects over {place}."),
            ("Hazy {lobe} opacities, nonspecific.", "Nonspecific opacities project over {place}."),
        ),
        "Atelectasis": Wording(
            "lungs",
            "atelectasis",
            (("mild", "minor", "subsegmental"), ("moderate",), ("marked", "extensive")),
            (
                "{size} {lobe} atelectasis",
                "{size} atelectasis {where}",
                "{size} linear atelectasis {where}",
                "{size} volume loss {where} in keeping with atelectasis",
            ),
            (
                "{size} {lobe} atelectasis",
                "{size} atelectasis {where}",
                "{size} linear atelectasis {where}",
                "{size} compressive atelectasis {where}",
            ),
            ("Bandlike density {where} in keeping with atelectasis.", "Plate-like {lobe} atelectasis."),
            ("Bandlike densities {where} in keeping with atelectasis.", "Plate-like {lobe} atelectasis."),
        ),
        "Cardiomegaly": Wording(
            "heart",
            "cardiomegaly",
            (("mild",), ("moderate",), ("severe", "marked")),
            (
                "{size} cardiomegaly",
                "{size} enlargement of the heart",
                "{size} enlargement of the cardiac silhouette",
                "{size} cardiac enlargement",
            ),
            signs=(
                "The heart is {sizely} enlarged.",
                "The cardiac silhouette is {sizely} enlarged.",
                "Heart size is {sizely} increased, in keeping with cardiomegaly.",
            ),
        ),
        "Edema": Wording(
            "lungs",
            "pulmonary edema",
            (("mild", "early"), ("moderate",), ("severe", "frank")),
            (),
            (
                "{size} pulmonary edema",
                "{size} interstitial edema",
                "{size} interstitial pulmonary edema",
                "{size} edema with vascular redistribution",
            ),
            signs_both=(
                "Indistinct vessels and septal lines in keeping with {size} pulmonary edema.",
                "Vascular congestion with {size} edema.",
                "Perihilar haze and Kerley lines indicate {size} pulmonary edema.",
            ),
        ),
        "Consolidation": Wording(
            "lungs",
            "consolidation",
            (("small", "patchy"), ("moderate",), ("dense", "extensive")),
            (
                "{size} {lobe} consolidation",
                "{size} consolidation {where}",
                "[a] {size} area of consolidation {where}",
                "{size} airspace consolidation {where}",
            ),
            (
                "{size} {lobe} consolidation",
                "{size} consolidation {where}",
                "[p] {size} areas of consolidation {where}",
                "{size} multifocal consolidation {where}",
            ),
            (
                "Consolidation with air bronchograms {where}, concerning for pneumonia.",
                "{size} consolidation {where} in keeping with pneumonia.",
            ),
            (
                "Consolidation with air bronchograms {where}, concerning for multifocal pneumonia.",
                "{size} consolidation {where} in keeping with pneumonia.",
            ),
        ),
        "Calcified Granuloma": Wording(
            "lungs",
            "calcified granuloma",
            (("tiny", "punctate"), ("small",), ("coarse",)),
            (
                "[a] {size} calcified granuloma {where}",
                "[a] {size} {lobe} calcified granuloma",
                "[a] {size} calcified {lobe} granuloma",
                "[a] {size} densely calcified granuloma {where}",
            ),
            signs=("Sequela of granulomatous disease with a calcified granuloma {where}.",),
            incidental=True,
        ),
        "Nodule": Wording(
            "lungs",
            "nodule",
            (("tiny", "subcentimeter"), ("small", "rounded"), ("large", "dominant")),
            (
                "[a] {size} {lobe} nodule",
                "[a] {size} pulmonary nodule {where}",
                "[a] {size} nodule {where}",
                "[a] {size} solitary lung nodule {where}",
            ),
            signs=(
                "[a] {size} nodule projects over {place}; CT is advised.",
                "Well-circumscribed {size} nodule {where}.",
            ),
        ),
        "Pneumothorax": Wording(
            "pleura",
            "pneumothorax",
            (("small", "tiny"), ("moderate", "moderate-sized"), ("large",)),
            (
                "[a] {size} {side} pneumothorax",
                "[a] {size} {side} apical pneumothorax",
                "[a] {size} {side}-sided pneumothorax",
                "[a] {size} pneumothorax on the {side}",
            ),
            signs=(
                "A visceral pleural line is visible at the {side} apex in keeping with [a] {size} pneumothorax.",
                "Absent lung markings lateral to a pleural line on the {side}: {size} pneumothorax.",
            ),
        ),
        "Emphysema": Wording(
            "lungs",
            "emphysema",
            GRADES,
            (),
            (
                "{size} emphysema",
                "{size} emphysematous change in both lungs",
                "{size} diffuse emphysema",
                "{size} hyperinflation in keeping with emphysema",
            ),
            signs_both=(
                "The lungs are hyperinflated with flattened diaphragms, consistent with {size} emphysema.",
                "Hyperlucent upper lungs and attenuated vessels of {size} emphysema.",
                "Hyperexpanded lungs with {size} emphysema.",
            ),
        ),
        "Scoliosis": Wording(
            "bones",
            "scoliosis",
            (("mild", "slight"), ("moderate",), ("severe", "marked")),
            (
                "{size} scoliosis convex to the {side}",
                "{size} {side} convex thoracic scoliosis",
                "{size} {side}ward curvature of the spine (scoliosis)",
                "{size} scoliosis of the thoracic spine, convex {side}",
            ),
            signs=("The thoracic spine shows [a] {size} scoliosis, convex to the {side}.",),
            incidental=True,
        ),
        "Mass": Wording(
            "lungs",
            "mass",
            (("small", ""), ("rounded", "lobulated"), ("large", "bulky")),
            (
                "[a] {size} {lobe} mass",
                "[a] {size} lung mass {where}",
                "[a] {size} mass {where}",
                "[a] {size} pulmonary mass {where}",
            ),
            signs=(
                "[a] {size} mass projects over {place}, suspicious for malignancy.",
                "Dense {lobe} mass; further evaluation with CT is recommended.",
            ),
        ),
        "Pleural Thickening": Wording(
            "pleura",
            "pleural thickening",
            GRADES,
            (
                "{size} {side} pleural thickening",
                "{size} pleural thickening on the {side}",
                "{size} {side} {apical} pleural thickening",
                "{size} thickening of the {side} pleura",
            ),
            (
                "{size} bilateral pleural thickening",
                "{size} pleural thickening on both sides",
                "{size} bilateral {apical} pleural thickening",
                "{size} thickening of the pleura bilaterally",
            ),
        ),
        "Fibrosis": Wording(
            "lungs",
            "fibrosis",
            GRADES,
            (
                "{size} {lobe} fibrosis",
                "{size} fibrosis {where}",
                "{size} fibrotic change {where}",
                "{size} reticulation {where} in keeping with fibrosis",
            ),
            (
                "{size} {lobe} fibrosis",
                "{size} pulmonary fibrosis {where}",
                "{size} fibrotic change {where}",
                "{size} reticulation {where} in keeping with fibrosis",
            ),
            ("Coarse reticular markings {where} with architectural distortion of fibrosis.",),
            ("Coarse reticular markings {where} with architectural distortion of pulmonary fibrosis.",),
        ),
        "Rib Fracture": Wording(
            "bones",
            "rib fracture",
            (("nondisplaced",), ("minimally displaced",), ("displaced",)),
            (
                "[a] {size} {side} rib fracture",
                "[a] {size} fracture of a {side} rib",
                "[a] {size} fracture of a {side} {height} rib",
                "[a] {size} {side}-sided rib fracture",
            ),
            signs=("Cortical step-off of a {side} {height} rib, consistent with rib fracture.",),
        ),
        "Hilar Enlargement": Wording(
            "mediastinum",
            "hilar enlargement",
            GRADES,
            (
                "{size} {side} hilar enlargement",
                "{size} enlargement of the {side} hilum",
                "[a] {sizely} enlarged {side} hilum",
                "{size} {side} hilar prominence",
            ),
            (
                "{size} bilateral hilar enlargement",
                "{size} enlargement of both hila",
                "[p] {sizely} enlarged hila bilaterally",
                "{size} bilateral hilar prominence",
            ),
            ("The {side} hilum is {sizely} enlarged; adenopathy is a consideration.",),
            ("Both hila are {sizely} enlarged; adenopathy is a consideration.",),
        ),
        "Tuberculosis": Wording(
            "lungs",
            "tuberculosis",
            (("limited", "early"), ("moderate",), ("extensive", "advanced")),
            (
                "{size} {side} upper lobe tuberculosis",
                "[p] {size} {side} apical infiltrates of tuberculosis",
                "{size} pulmonary tuberculosis in the {side} upper lobe",
                "[p] {size} patchy changes of tuberculosis at the {side} apex",
            ),
            (
                "{size} bilateral upper lobe tuberculosis",
                "[p] {size} biapical infiltrates of tuberculosis",
                "{size} pulmonary tuberculosis in both upper lobes",
                "[p] {size} patchy changes of tuberculosis at both apices",
            ),
            ("Heterogeneous {side} apical infiltrate consistent with {size} tuberculosis.",),
            ("Heterogeneous infiltrates at both apices consistent with {size} tuberculosis.",),
        ),
        "Aortic Enlargement": Wording(
            "mediastinum",
            "aortic enlargement",
            GRADES,
            (
                "{size} aortic enlargement",
                "{size} enlargement of the thoracic aorta",
                "[a] {sizely} enlarged aortic knob",
                "{size} dilatation of the aortic arch",
            ),
            signs=("The aorta is {sizely} enlarged and tortuous.", "The aortic contour is {sizely} widened."),
            incidental=True,
        ),
        "Cavity": Wording(
            "lungs",
            "cavity",
            (("small", "thin-walled"), ("moderate-sized", ""), ("large", "thick-walled")),
            (
                "[a] {size} {lobe} cavity",
                "[a] {size} cavity {where}",
                "[a] {size} cavitary lesion {where}",
                "[a] {size} air-filled cavity {where}",
            ),
            signs=("Ring-shaped lucency {where} representing [a] {size} cavity.",),
        ),
        "Bronchiectasis": Wording(
            "lungs",
            "bronchiectasis",
            GRADES,
            (
                "{size} {lobe} bronchiectasis",
                "{size} bronchiectasis {where}",
                "{size} cylindrical bronchiectasis {where}",
                "{size} bronchiectatic change {where}",
            ),
            (
                "{size} {lobe} bronchiectasis",
                "{size} bronchiectasis {where}",
                "{size} cylindrical bronchiectasis {where}",
                "{size} bronchiectatic change {where}",
            ),
            ("Tram-track markings {where} of {size} bronchiectasis.",),
            ("Tram-track markings {where} of {size} bronchiectasis.",),
        ),
        "Pneumoperitoneum": Wording(
            "abdomen",
            "pneumoperitoneum",
            (("small-volume", "minimal"), ("moderate",), ("large-volume", "massive")),
            (
                "{size} pneumoperitoneum under the {side} hemidiaphragm",
                "{size} free intraperitoneal air beneath the {side} hemidiaphragm",
                "{size} free air below the {side} hemidiaphragm",
                "{size} pneumoperitoneum on the {side}",
            ),
            (
                "{size} pneumoperitoneum under both hemidiaphragms",
                "{size} free intraperitoneal air beneath both hemidiaphragms",
                "{size} free air below both hemidiaphragms",
                "{size} bilateral subdiaphragmatic free air",
            ),
            ("Crescent of free air under the {side} hemidiaphragm, concerning for perforation.",),
            ("Crescents of free air under both hemidiaphragms, concerning for perforation.",),
        ),
        "Hernia": Wording(
            "mediastinum",
            "hiatal hernia",
            AMOUNTS,
            (
                "[a] {size} hiatal hernia",
                "[a] {size} sliding hiatal hernia",
                "[a] {size} hiatus hernia",
                "[a] {size} retrocardiac hiatal hernia",
            ),
            signs=(
                "Retrocardiac air-fluid level compatible with [a] {size} hiatal hernia.",
                "Rounded retrocardiac lucency, typical of [a] {size} hiatal hernia.",
            ),
            incidental=True,
        ),
    }
)

# Device -> its names, and sentences about where it ends.
DEVICES = MappingProxyType(
    {
        "endotracheal tube": (
            ("[a] endotracheal tube", "[a] ET tube"),
            ("Endotracheal tube tip lies above the carina.", "The endotracheal tube is in satisfactory position."),
        ),
        "central venous catheter": (
            ("[a] central venous catheter", "[a] central line"),
            (
                "Central venous catheter terminates in the superior vena cava.",
                "The tip of the central line projects over the SVC.",
            ),
        ),
        "feeding tube": (
            ("[a] nasogastric tube", "[a] feeding tube"),
            (
                "Nasogastric tube courses below the diaphragm.",
                "The feeding tube passes into the stomach.",
            ),
        ),
        "pacemaker": (
            ("[a] pacemaker", "[a] cardiac pacemaker"),
            ("Pacemaker leads project over the heart.", "Implanted pacemaker with intact leads."),
        ),
        "electrodes": (
            ("[p] monitoring leads", "[p] ECG electrodes"),
            ("ECG leads overlie the chest.", "Monitoring electrodes project over the chest."),
        ),
        "sternal wires": (
            ("[p] median sternotomy wires", "[p] sternal wires"),
            ("Median sternotomy wires are intact.", "Status post sternotomy with intact wires."),
        ),
    }
)

# What may be said to be normal or absent, and what has to be absent from the case for that (hedged lesions included).
LUNG_FINDINGS = frozenset(name for name, wording in WORDINGS.items() if wording.region == "lungs")
OPAQUE = frozenset({"Lung Opacity", "Consolidation", "Tuberculosis", "Mass"})
MEDIASTINAL = frozenset({"Cardiomegaly", "Aortic Enlargement", "Hernia"})
NEGATIVES = (
    ("lungs", "The lungs are clear.", LUNG_FINDINGS),
    ("lungs", "Both lungs are clear and well expanded.", LUNG_FINDINGS),
    ("lungs", "Clear lungs.", LUNG_FINDINGS),
    ("lungs", "Lungs are well aerated without focal abnormality.", LUNG_FINDINGS),
    ("lungs", "No focal consolidation.", OPAQUE),
    ("lungs", "No airspace consolidation is seen.", OPAQUE),
    ("lungs", "There is no confluent consolidation or pulmonary edema.", OPAQUE | {"Edema"}),
    ("lungs", "No evidence of pulmonary edema.", frozenset({"Edema"})),
    ("lungs", "Pulmonary vascularity is normal.", frozenset({"Edema", "Emphysema"})),
    ("lungs", "No suspicious nodule or mass.", frozenset({"Nodule", "Mass", "Cavity", "Calcified Granuloma"})),
    ("pleura", "No pleural effusion or pneumothorax.", frozenset({"Pleural Effusion", "Pneumothorax"})),
    ("pleura", "There is no pneumothorax or pleural effusion.", frozenset({"Pleural Effusion", "Pneumothorax"})),
    ("pleura", "No effusion or pneumothorax is identified.", frozenset({"Pleural Effusion", "Pneumothorax"})),
    ("pleura", "No pneumothorax.", frozenset({"Pneumothorax"})),
    ("pleura", "There is no pleural effusion.", frozenset({"Pleural Effusion"})),
    ("pleura", "The costophrenic angles are sharp.", frozenset({"Pleural Effusion", "Pleural Thickening"})),
    ("heart", "Heart size is normal.", frozenset({"Cardiomegaly"})),
    ("heart", "The heart is not enlarged.", frozenset({"Cardiomegaly"})),
    ("heart", "The cardiac silhouette is normal in size.", frozenset({"Cardiomegaly"})),
    ("heart", "Cardiomediastinal silhouette is within normal limits.", MEDIASTINAL),
    ("heart", "The cardiomediastinal contours are unremarkable.", MEDIASTINAL),
    ("heart", "Normal heart and mediastinum.", MEDIASTINAL),
    ("mediastinum", "The hila are unremarkable.", frozenset({"Hilar Enlargement"})),
    ("mediastinum", "Hilar contours are normal.", frozenset({"Hilar Enlargement"})),
    ("mediastinum", "The aorta is normal in caliber.", frozenset({"Aortic Enlargement"})),
    ("bones", "No acute osseous abnormality.", frozenset({"Rib Fracture"})),
    ("bones", "The visualized bones are intact.", frozenset({"Rib Fracture"})),
    ("bones", "Bony thorax is unremarkable.", frozenset({"Rib Fracture", "Scoliosis"})),
    ("abdomen", "No free air beneath the diaphragm.", frozenset({"Pneumoperitoneum"})),
)
# How often a film's region is mentioned although nothing is wrong there: in a normal report, and beside findings.
MENTION_NORMAL = {"lungs": 0.95, "pleura": 0.9, "heart": 0.9, "mediastinum": 0.25, "bones": 0.45, "abdomen": 0.08}
MENTION_BESIDE = {"lungs": 0.25, "pleura": 0.50, "heart": 0.45, "mediastinum": 0.08, "bones": 0.15, "abdomen": 0.04}

NORMAL_IMPRESSIONS = (
    "No acute cardiopulmonary abnormality.",
    "No acute cardiopulmonary process.",
    "Normal chest radiograph.",
    "No acute disease.",
    "No radiographic evidence of acute cardiopulmonary disease.",
    "Unremarkable chest radiograph.",
    "No acute intrathoracic abnormality.",
    "Normal study.",
    "No active disease in the chest.",
    "Clear chest.",
)
NORMAL_FOLLOW_UPS = (
    "No acute abnormality and no significant interval change.",
    "Stable normal chest.",
    "Normal chest, unchanged from the prior study.",
)
NOTHING_ACUTE = (
    "No acute cardiopulmonary abnormality.",
    "Otherwise no acute process.",
    "No acute disease.",
)
CERTAIN_FRAMES = (
    "There {verb} {phrase}{change}.",
    "There {verb} {phrase}{change}.",
    "{phrase} {verb} present{change}.",
    "{phrase} {verb} seen{change}.",
    "{phrase} {verb} noted{change}.",
    "{bare}{change}.",
    "{bare}{change}.",
    "The film shows {phrase}{change}.",
)
HEDGED_FRAMES = (
    "Possible {bare}.",
    "Questionable {bare}.",
    "{phrase} cannot be excluded.",
    "Cannot exclude {phrase}.",
    "Findings may represent {phrase}.",
    "Appearances are suspicious for {phrase}.",
    "{phrase} {verb} suspected but not certain.",
    "Subtle change that could reflect {phrase}.",
)
HEDGED_IMPRESSIONS = ("Possible {bare}", "Questionable {bare}", "Suspected {bare}", "Cannot exclude {bare}")
CHANGES = MappingProxyType(
    {
        "new": (", new since the prior study", ", new from the previous film", ", new in the interval"),
        "worse": (
            ", increased since the prior study",
            ", worse than on the previous film",
            ", progressed in the interval",
        ),
        "better": (
            ", decreased since the prior study",
            ", improved from the previous film",
            ", less marked than before",
        ),
        "same": (", unchanged", ", stable since the prior study", ", similar to the previous film"),
    }
)
RESOLVED = ("The previous {plain} has resolved.", "Interval resolution of the {plain}.")
DEVICES_GONE = ("The support devices have been removed.", "Support devices were removed in the interval.")
TECHNIQUE = MappingProxyType(
    {
        "AP": ("Portable AP view of the chest.", "Single AP portable radiograph.", "AP chest."),
        "PA": ("PA view of the chest.", "Upright PA radiograph.", "Frontal view of the chest."),
    }
)
LOW_VOLUMES = ("Lung volumes are low.", "Low lung volumes.", "Shallow inspiration.")
ROTATED = ("The patient is rotated.", "Slight patient rotation.")
# Findings that do not get better or worse from one study to the next.
STRUCTURAL = frozenset(
    {
        "Support Devices",
        "Calcified Granuloma",
        "Emphysema",
        "Scoliosis",
        "Pleural Thickening",
        "Fibrosis",
        "Rib Fracture",
        "Aortic Enlargement",
        "Bronchiectasis",
        "Hernia",
    }
)
# The smallest change of severity that a reader notices.
PROGRESS = 0.10
# Zone -> names of the place in one lung, with their plurals.
ZONES = MappingProxyType(
    {
        "upper": (("upper lobe", "upper lobes"), ("upper lung", "upper lungs"), ("upper zone", "upper zones")),
        "middle": (("mid lung", "mid lungs"), ("mid zone", "mid zones"), ("mid lung zone", "mid lung zones")),
        "lower": (("lower lobe", "lower lobes"), ("lung base", "lung bases"), ("lower zone", "lower zones")),
        "diffuse": (("lung", "lungs"),),
        "": (("lung", "lungs"),),
    }
)
HEIGHTS = MappingProxyType({"upper": "upper", "middle": "mid", "lower": "lower"})
PLEURAL_HEIGHTS = MappingProxyType({"upper": "apical", "middle": "lateral", "lower": "basal"})
ADVERBS = MappingProxyType(
    {"mild": "mildly", "minimal": "minimally", "moderate": "moderately", "severe": "severely", "marked": "markedly"}
)
