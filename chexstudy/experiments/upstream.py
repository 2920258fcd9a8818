"""The pretrained start: encoders that learned from drawn patients whom no study sees.

The published systems start from encoders trained elsewhere. Here an image encoder stands in for DINOv2, a text encoder
trained by masked language modelling for Bio_ClinicalBERT, and an aligned pair for a released one. All learn from a
second drawn cohort, of a seed that no study may use. How the image encoder is best trained is not taken for granted:
images alone, reports and labels are tried side by side, and what each is worth stands in the card.
"""

import json
import platform
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
from safetensors.torch import load_file, save_file

from chexstudy.code_closure import code_revision
from chexstudy.cohort.phantom.plan import UPSTREAM_SEED
from chexstudy.cohort.pixels.store import PixelStore, open_pixel_store
from chexstudy.cohort.table import finding_columns, read_cohort
from chexstudy.devices import choose_device
from chexstudy.encoders.build import build_image_encoder, build_text_encoder
from chexstudy.encoders.checkpoint import save_encoder
from chexstudy.encoders.image import ImageEncoder
from chexstudy.encoders.spec import EncoderSpec
from chexstudy.encoders.upstream_encoders import IMAGE, PAIR, TEXT
from chexstudy.errors import StudyError
from chexstudy.evaluation.adaptation.fine_tuning import FineTuning, fine_tune
from chexstudy.evaluation.scores import MACRO
from chexstudy.experiments.pretrained_starts import PATCH_PROBE, PROBE, SECONDS, SMALL, compare_starts
from chexstudy.pretraining.arms.definitions import arm_folder, name_variant, read_costs, require_current_arm
from chexstudy.pretraining.arms.worker_pool import train_arms
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.pretraining.models.dual_encoder import load_model, save_model
from chexstudy.runs import Run, atomic_path, seal_artifact

SUPERVISED, UNTRAINED = "supervised", "untrained"
STARTS = ("contrastive", "self_supervised", SUPERVISED)
# Losses of the first steps are kept, for a test that trains them again.
_FIRST = 3
_PAIR, _LANGUAGE, _IMAGES = (name_variant("full", name) for name in ("pair", "language", "images"))
_OF_IMAGES = {
    **{"objective": "self_supervised", "image_encoder": "tiny-dinov2", "image_size": 64, "local_size": 32},
    **{"batch_size": 64, "micro_batch": 64, "weight_decay": 0.04},
}


@dataclass(frozen=True)
class Recipe:
    """How much of everything; all else is the same."""

    pairs: int = 20_000  # of the drawn cohort, about 65 % of them for training
    pair_epochs: int = 9
    text_epochs: int = 6
    image_epochs: int = 30
    supervised_epochs: int = 6

    def configure(self) -> dict[str, PretrainingConfig]:
        """The trainings by arm."""
        of_arm = {
            _PAIR: {"subset_epochs": self.pair_epochs - 1},
            _LANGUAGE: {"objective": "masked_language", "subset_epochs": self.text_epochs - 1},
            _IMAGES: _OF_IMAGES | {"subset_epochs": self.image_epochs - 1},
        }
        scratch = {"image_encoder": "tiny-resnet", "text_encoder": "tiny-bert", "learning_rate": 1e-3}
        return {arm: PretrainingConfig.from_dict(scratch | own) for arm, own in of_arm.items()}


COMMITTED = Recipe()
QUICK = Recipe(pairs=6_000, pair_epochs=6, text_epochs=6, image_epochs=6, supervised_epochs=4)


def make_upstream(run: Run, recipe: Recipe, folder: Path, start: str, device: str, workers: int, command: str) -> str:
    """Train, compare and write the encoders of a cohort that is built into a folder; returns the card, which tells the
    command.

    The image encoder is trained as the ``start`` says, one of `STARTS`; empty for the best probe of those that saw no
    label, as the published encoders have seen none.
    """
    if start not in ("", *STARTS):
        raise StudyError(f"the start must be one of {', '.join(STARTS)}, not {start!r}.")
    train_upstream(run, recipe, device, workers)
    chosen = str(choose_device(device))
    cohort, store = read_cohort(run.path("cohort.parquet")), open_pixel_store(run)
    starts = load_starts(run, cohort, store, recipe, chosen)
    measured = compare_starts(run, cohort, store, starts, chosen)
    macro = measured[(measured.measure == PROBE) & (measured.finding == MACRO) & (measured.start != UNTRAINED)]
    candidates = macro[macro.start == start] if start else macro[macro.start != SUPERVISED]
    best = candidates.loc[candidates.value.idxmax()]
    export_upstream(run, starts[best.start, best.architecture], folder)
    card = _write_card(run, recipe, measured, best, command)
    first = {
        arm: run.read_table(f"{arm_folder(arm, 0)}/history.parquet").loss[:_FIRST].tolist()
        for arm in recipe.configure()
    }
    written = {"starts.csv": measured.to_csv(index=False, float_format="%.4f"), "README.md": card}
    for name, text in (written | {"first_losses.json": json.dumps(first, indent=2) + "\n"}).items():
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text)
    return card


def train_upstream(run: Run, recipe: Recipe, device: str = "auto", workers: int = 2) -> None:
    """Train the pair, the text encoder and the self-supervised image encoder of a cohort that is built."""
    configs = recipe.configure()
    variants = {arm.partition(".")[2]: config for arm, config in configs.items()}
    # The longest first, so that the others run beside it.
    train_arms(run, [_IMAGES, _PAIR, _LANGUAGE], [0], PretrainingConfig(), device, workers, variants)


def load_starts(
    run: Run, cohort: pd.DataFrame, store: PixelStore, recipe: Recipe, device: str
) -> dict[tuple[str, str], ImageEncoder]:
    """Image encoders to begin with, by how they were trained and by architecture; the supervised one is trained."""
    pair = load_model(run.path(f"{require_current_arm(run, _PAIR, 0)}/model")).image_tower.encoder
    folder = run.path(f"{require_current_arm(run, _IMAGES, 0)}/model/image_encoder")
    alone = build_image_encoder(EncoderSpec(str(folder)))
    fresh = [build_image_encoder(EncoderSpec(one.origin["name"], image_size=one.image_size)) for one in (pair, alone)]
    settings = FineTuning(learning_rates=(1e-3,), epochs=recipe.supervised_epochs)
    train, validation = (cohort[cohort.split == split] for split in ("train", "validate"))
    findings = finding_columns(cohort)
    taught = fine_tune(fresh[0], store, train, validation, findings, settings, 0, device).encoder
    named = [*zip(STARTS, (pair, alone, taught), strict=True), *[(UNTRAINED, one) for one in fresh]]
    return {(how, encoder.origin["name"]): encoder for how, encoder in named}


def export_upstream(run: Run, start: ImageEncoder, folder: Path) -> None:
    """Write the image encoder, the text encoder and the pair, weights in 16 bits, as `upstream_encoders` has them."""
    start.origin = {"name": IMAGE, "revision": ""}
    language, pair_folder = (run.path(f"{require_current_arm(run, arm, 0)}/model") for arm in (_LANGUAGE, _PAIR))
    text = build_text_encoder(EncoderSpec(str(language / "text_encoder")))
    text.origin = {"name": TEXT, "revision": ""}
    pair = load_model(pair_folder)
    for tower, name in ((pair.image_tower, f"{PAIR}-image"), (pair.text_tower, f"{PAIR}-text")):
        tower.encoder.origin = {"name": name, "revision": ""}
    shutil.rmtree(folder / "pair", ignore_errors=True)
    save_encoder(start, folder / "image")
    save_encoder(text, folder / "text")
    config = PretrainingConfig.from_dict(json.loads((pair_folder / "pretraining.json").read_text()))
    save_model(folder / "pair", pair, config)
    for weights in folder.glob("**/*.safetensors"):
        halved = {name: value.half() for name, value in load_file(weights).items()}
        with atomic_path(weights) as temporary:
            save_file(halved, temporary, metadata={"format": "pt"})
    seal_artifact(folder / "pair")


_CARD = """\
# The pretrained start

Encoders that learned from {images:,} drawn radiographs and reports of {patients:,} patients (seed {seed}) whom no study
sees; weights are in 16 bits.

| Folder | Name | What |
|---|---|---|
| `image/` | `{image}` | {architecture}, {start}: the stand-in for DINOv2 |
| `text/` | `{text}` | a small BERT, masked language modelling: the stand-in for Bio_ClinicalBERT |
| `pair/` | `{pair}-image`, `{pair}-text` | a contrastive pair with its projections: the stand-in for a released one |

Made by `{command}`, code revision {revision}, with {recipe}.
Training took {alone:.0f} minutes (images alone), {aligned:.0f} (pair) and {language:.0f} (text) of one core each,
beside other work ({machine}).

What image encoders are worth as a start, frozen, on held-out patients of the same cohort (validation chose penalties,
{n:,} images enriched in rare findings judged; 95 % intervals draw patients). AUROC of a logistic regression on the
pooled embedding, mean over all findings and over small lesions; of one on single patches taught by the lesions'
outlines, whose highest score is the image's; milliseconds an image.

{table}
"""


def _write_card(run: Run, recipe: Recipe, measured: pd.DataFrame, best: pd.Series, command: str) -> str:
    costs = read_costs(run, list(recipe.configure()), [0]).set_index("arm")["seconds"] / 60
    training = read_cohort(run.path("cohort.parquet")).query("split == 'train'")
    return _CARD.format(
        **{"images": len(training), "patients": training.patient_id.nunique(), "seed": UPSTREAM_SEED},
        **{"image": IMAGE, "text": TEXT, "pair": PAIR, "architecture": best.architecture, "start": _say(best.start)},
        **{"command": command, "machine": platform.machine(), "alone": costs[_IMAGES], "aligned": costs[_PAIR]},
        language=costs[_LANGUAGE],
        **{"revision": code_revision(), "n": int(best.n), "table": _tabulate(measured)},
        recipe=", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in asdict(recipe).items()),
    )


def _say(start: str) -> str:
    return start.replace("_", "-")


def _tabulate(measured: pd.DataFrame) -> str:
    lines = ["| Encoder | Learned by | All findings | Small lesions, pooled | Small lesions, patches | ms an image |"]
    lines.append("|---|---|---|---|---|---|")
    for (start, architecture), rows in measured.groupby(["start", "architecture"], sort=False):
        cells = [architecture, _say(start)]
        for measure, finding in ((PROBE, MACRO), (PROBE, SMALL), (PATCH_PROBE, SMALL)):
            found = rows[(rows.measure == measure) & (rows.finding == finding)].squeeze()
            cells.append(f"{found.value:.3f} [{found.ci_low:.3f}, {found.ci_high:.3f}]" if len(found) else "")
        cells.append(f"{1000 * rows[rows.measure == SECONDS].value.item():.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
