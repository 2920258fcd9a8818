"""What an image encoder is worth as a start: probes of its frozen features, and of single patches where lesions are."""

import time
from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from torch.nn import functional

from chexstudy.cohort.annotations import read_regions
from chexstudy.cohort.pixels.store import PixelStore
from chexstudy.cohort.table import finding_columns, label_matrix
from chexstudy.encoders.frozen_features import FrozenFeatures, drop_patches, freeze_features
from chexstudy.encoders.image import ImageEncoder
from chexstudy.evaluation.adaptation.logistic_path import fit_linear_probe
from chexstudy.evaluation.scores import MACRO, measure_findings
from chexstudy.progress import progress
from chexstudy.runs import Run
from chexstudy.statistics.bootstrap import RESAMPLES, bootstrap_patients

# Drawn lesions of a few pixels, which a mean over the image dilutes.
SMALL_LESIONS = ("Nodule", "Calcified Granuloma", "Rib Fracture")
# Of a cohort that no study tests on; at least 5 % of its images show each finding.
JUDGES = "test_enriched"
SMALL = "small lesions"
PROBE, PATCH_PROBE, SECONDS = "probe", "patch_probe", "seconds"
_LABELLED = 4_000  # training images of the probes
_BACKGROUND = 4  # patches of an image without the finding, of those that a patch probe learns from
_TIMED = 256  # images


def compare_starts(
    run: Run, cohort: pd.DataFrame, store: PixelStore, starts: Mapping[tuple[str, str], ImageEncoder], device: str
) -> pd.DataFrame:
    """What frozen features of each are worth on patients of the same cohort whom none has learned from.

    Gives ``start``, ``architecture``, ``measure`` (``probe``, ``patch_probe`` or ``seconds``), ``finding``, ``value``,
    ``ci_low``, ``ci_high`` and ``n``. A probe is a logistic regression on the pooled embedding; a patch probe one on
    patches, taught by the lesions' outlines, whose highest score is the image's; their values are AUROCs.
    """
    train = cohort[cohort.split == "train"].iloc[:_LABELLED]
    chooses, judges = (cohort[cohort.split == split] for split in ("validate", JUDGES))
    findings = finding_columns(cohort)
    small = [finding for finding in SMALL_LESIONS if finding in findings]
    fit = run.read_json("pixels/manifest.json")["fit"]
    parts = [(part, read_regions(run, part, small, store.size, fit).table) for part in (train, chooses)]
    weights = bootstrap_patients(judges.patient_id, RESAMPLES, np.random.default_rng(0))
    rows = []
    for (how, architecture), encoder in progress(starts.items(), len(starts), "probing starts"):
        place = {"start": how, "architecture": architecture}
        every = pd.concat([train, chooses, judges])
        name = f"starts/{how}-{architecture}"
        features = freeze_features(run, name, encoder, every.image_id, store, device=device)
        vectors = [features.pooled[features.rows(part.image_id)] for part in (train, chooses, judges)]
        labels = [label_matrix(part, findings) for part in (train, chooses, judges)]
        scores = fit_linear_probe(vectors[0], labels[0], vectors[1], labels[1]).score(vectors[2])
        scored = {(PROBE, MACRO): (findings, scores)}
        if small:
            places = [findings.index(finding) for finding in small]
            of_patches = [probe_patches(features, finding, parts, judges) for finding in small]
            scored[PROBE, SMALL] = small, scores[:, places]
            scored[PATCH_PROBE, SMALL] = small, np.stack(of_patches, axis=1)
        for (measure, mean), (names, given) in scored.items():
            found = measure_findings([given], label_matrix(judges, names), names, weights).of_seed(0)
            # What the pooled probe says of small lesions stands among all findings.
            twice = (found.finding != MACRO) & (measure == PROBE) & (mean == SMALL)
            found = found[(found.metric == "auroc") & ~twice].replace({"finding": {MACRO: mean}})
            rows.append(found.assign(measure=measure, **place))
        rows.append(pd.DataFrame([{"measure": SECONDS, "value": time_images(encoder, store, every)} | place]))
        drop_patches(run, name)
    kept = ["start", "architecture", "measure", "finding", "value", "ci_low", "ci_high", "n"]
    return pd.concat(rows, ignore_index=True)[kept]


def probe_patches(
    features: FrozenFeatures, finding: str, parts: list[tuple[pd.DataFrame, pd.DataFrame]], judges: pd.DataFrame
) -> np.ndarray:
    """The highest score of a patch ``(images,)``, by a probe that learned which patches show a finding.

    The ``parts`` are rows of the cohort to learn from and to choose the penalty by, each with the regions of its
    findings; ``judges`` are scored, NaN where a part shows the finding nowhere.
    """
    generator, sides = np.random.default_rng(0), []
    for rows, known in parts:
        shown = known[known.finding == finding]
        if shown.empty:
            return np.full(len(judges), np.nan)
        masks = torch.from_numpy(np.stack(shown["mask"])).float()[:, None]
        covered = functional.adaptive_avg_pool2d(masks, features.grid).flatten(1).numpy()
        # Half a patch or more, or the patch that is covered most.
        inside = covered >= np.minimum(0.5, covered.max(axis=1, keepdims=True))
        present = np.asarray(features.patches[features.rows(shown.image_id)], dtype=np.float32)[inside]
        without = features.rows(rows.image_id[rows[finding] == 0])
        places = generator.integers(features.grid**2, size=(len(without), _BACKGROUND))
        absent = np.asarray(features.patches[without], dtype=np.float32)[np.arange(len(without))[:, None], places]
        absent = absent.reshape(-1, absent.shape[-1])
        sides += [np.concatenate([present, absent]), np.repeat([[1.0], [0.0]], [len(present), len(absent)], axis=0)]
    probe = fit_linear_probe(*sides)
    patches = np.asarray(features.patches[features.rows(judges.image_id)], dtype=np.float32)
    return probe.score(patches.reshape(-1, patches.shape[-1])).reshape(len(judges), -1).max(axis=1)


@torch.no_grad()
def time_images(encoder: ImageEncoder, store: PixelStore, rows: pd.DataFrame) -> float:
    """Seconds an image, on one thread."""
    pixels = torch.from_numpy(store.read(rows.image_id.iloc[:_TIMED])).unsqueeze(1)
    encoder.cpu()(pixels[:8])
    start = time.perf_counter()
    encoder(pixels)
    return (time.perf_counter() - start) / len(pixels)
