"""Do forecasts from few labels come true on measured curves, and do they say anything? Protocol and judge.

Written before the untouched curves were measured, and kept.

**Curves.** Every curve is measured as notebook 11 measures it: logistic heads on a frozen encoder, 20 draws at each
label count, judged on held-out patients. The prior may be refined on the *development* curves only; what is reported
is of the *untouched* ones, measured when the prior stood.

- development: the finished study ``--study`` (cohort seed 0) with its arms, images-only arms and untrained encoder, and
  cohort seed 201 with the study's arms;
- untouched: cohort seeds 301 and 302 with findings permuted among prevalences, NIH and NLM radiographs with their own
  labels (``--data``), each with five encoders: ``upstream-image`` (images alone), ``upstream-pair-image`` (contrastive
  with texts), and random weights of ``tiny-resnet``, ``tiny-vit`` and ``tiny-dinov2``, at a seed no study uses.

**Question 1.** From at most 50, 100, 200 and 500 labels: the 95 % interval of the AUROC that was measured at the
smallest label count which is at least four times as large. Does it hold it, and is it at most 0.10 wide (called
useful)? Findings by themselves (``alone``) and with the others of their encoder (``pooled``). The interval score is
the width plus 40 times what a truth outside lies away: narrow is no merit if it is wrong.

**Question 2.** The answer of the planner to targets of 0.75, 0.80 and 0.85 from the same labels: how often is it
another than "cannot be told yet", and how often do the measured curves contradict it? They do where the number needed,
by the answer (at most what there is, if reached already; beyond 100 times that, if unreachable), is not within the
bracket of measured counts between which the target is first reached, nor beyond the last if it never is.

**Intervals** of coverages are over findings within cohorts, however many encoders saw them.

**A change of the prior is kept** if, over all untouched curves, coverage alone and pooled is between 92 and 98 % at
each start or nearer to it than before, no data set has less than 85 % at a start with ten curves or more, and the
interval score is not worse than before at 50 and 100 labels.

    python benchmarks/label_forecasts.py --part untouched --data DATA --threads 1
"""

import numpy as np
import pandas as pd
from record import Goal, benchmark_parser, reach, write_record
from threadpoolctl import threadpool_limits

from chexstudy.cohort.build import build_cohort
from chexstudy.cohort.phantom.plan import PhantomConfig
from chexstudy.cohort.pixels.store import open_pixel_store
from chexstudy.cohort.table import read_cohort
from chexstudy.encoders.build import build_image_encoder
from chexstudy.encoders.frozen_features import freeze_features, read_features
from chexstudy.encoders.image import ImageEncoder
from chexstudy.encoders.spec import EncoderSpec
from chexstudy.label_planning.curves import CurveDesign, measure_curves, plan_draws
from chexstudy.label_planning.observations import FEWEST_POINTS, list_curves
from chexstudy.label_planning.planner import FARTHEST, NOT_YET, REACHED, UNREACHABLE, infer_by_encoder, plan_curve
from chexstudy.pretraining.models.dual_encoder import load_image_encoder
from chexstudy.runs import Run
from chexstudy.statistics.proportions import measure_proportion

STARTS, TIMES, USEFUL, TARGETS = (50, 100, 200, 500), 4, 0.10, (0.75, 0.80, 0.85)
DRAWN = {"development": {"forecast-201": 201}, "untouched": {"forecast-301": 301, "forecast-302": 302}}
RELEASED = ("upstream-image", "upstream-pair-image")
UNTRAINED, UNTRAINED_SEED = ("tiny-resnet", "tiny-vit", "tiny-dinov2"), 77
ARMS = ("curated", "random_same_data", "full")
REAL_GRID = (10, 15, 20, 30, 50, 70, 100, 150, 200, 300, "all")


def collect_tables(part: str, study: str, data: str) -> dict[str, pd.DataFrame]:
    """Measured curves by cohort; what is there already is not measured again."""
    tables = {}
    if part == "development":
        finished = Run(study)
        arms = [f"{arm}{objective}" for objective in ("", ".self_supervised") for arm in ("curated", "full")]
        frozen = {f"{arm}/seed0": read_features(finished, f"{arm}/seed0") for arm in [*arms, ARMS[1], "untrained"]}
        tables["demo"] = measure(finished, frozen, CurveDesign())
        trained = {arm: load_image_encoder(finished.path(f"pretraining/{arm}/seed0/model")) for arm in ARMS}
    for name, seed in DRAWN[part].items():
        run = Run(name)
        build_cohort(run, "phantom", "", 96, "pad", seed, PhantomConfig(8000, 96, seed, seed, workers=1), 1)
        encoders = trained if part == "development" else make_encoders()
        tables[name] = measure(run, freeze(run, encoders), CurveDesign())
    for source in ("nih", "nlm_tb") if part == "untouched" else ():
        run = Run(f"forecast-{source}")
        build_cohort(run, source, f"{data}/{source}", 96, "pad", 0, PhantomConfig(), 1)
        tables[source] = measure(run, freeze(run, make_encoders()), CurveDesign(REAL_GRID))
    return tables


def make_encoders() -> dict[str, ImageEncoder]:
    """The released encoders and those with random weights, by name."""
    encoders = {name: build_image_encoder(EncoderSpec(name)) for name in RELEASED}
    return encoders | {name: build_image_encoder(EncoderSpec(name), UNTRAINED_SEED) for name in UNTRAINED}


def freeze(run: Run, encoders: dict[str, ImageEncoder]) -> dict:
    cohort, store = read_cohort(run.path("cohort.parquet")), open_pixel_store(run)
    images = cohort.image_id.tolist()
    return {
        f"{name}/seed0": freeze_features(run, f"{name}/seed0", encoder, images, store, patches=False)
        for name, encoder in encoders.items()
    }


def measure(run: Run, frozen: dict, design: CurveDesign) -> pd.DataFrame:
    cohort = read_cohort(run.path("cohort.parquet"))
    return measure_curves(run, cohort, plan_draws(cohort, design)[0], frozen, design)


def judge_table(table: pd.DataFrame, cohort: str, seed: int) -> list[dict]:
    """A row a curve, start and method."""
    curves, rows = list_curves(table), []
    for start in STARTS:
        asked = []
        for curve in curves:
            ahead = np.flatnonzero(curve.labels >= TIMES * start)
            if len(ahead) and len(curve.until(start).labels) >= FEWEST_POINTS:
                asked.append((curve, ahead[0]))
        for method in ("alone", "pooled") if asked else ():
            generator = np.random.default_rng([seed, start])
            found = infer_by_encoder([curve.until(start) for curve, _ in asked], seed, method == "pooled")
            for (curve, at), posterior in zip(asked, found, strict=True):
                foreseen = posterior.foresee(curve.labels[at], float(curve.draws[at]), generator)
                low, middle, high = np.quantile(foreseen, [0.025, 0.5, 0.975])
                truth = curve.means[at]
                missed = max(low - truth, truth - high, 0.0)
                row = {"cohort": cohort, "encoder": curve.encoder, "finding": curve.finding, "start": start}
                row |= {"method": method, "covered": missed == 0, "width": high - low, "useful": high - low <= USEFUL}
                row |= {"error": abs(middle - truth), "last_error": abs(curve.until(start).means[-1] - truth)}
                rows.append(row | {"score": high - low + 40 * missed} | judge_answers(curve, posterior))
    return rows


def judge_answers(curve, posterior) -> dict:
    """Of how many targets something was said, and how often that was contradicted."""
    said = contradicted = 0
    for target in TARGETS:
        plan = plan_curve(posterior, target)
        reached = np.flatnonzero(curve.means >= target)
        last = curve.labels[reached[0]] if len(reached) else np.inf
        before = curve.labels[reached[0] - 1] if len(reached) and reached[0] else 0.0 if len(reached) else curve.most
        low = FARTHEST * plan["have"] if plan["state"] == UNREACHABLE else plan["need_low"]
        high = plan["have"] if plan["state"] == REACHED else plan["need_high"]
        told = plan["state"] != NOT_YET
        said += told
        contradicted += told and not (low <= last and high > before)
    return {"answers": len(TARGETS), "said": said, "contradicted": contradicted}


def summarise(judged: pd.DataFrame) -> list[dict]:
    """Means over the curves of each cohort and of all, by start and method."""
    rows = []
    for (start, method), all_of in judged.groupby(["start", "method"]):
        for cohort, own in [("all", all_of), *all_of.groupby("cohort")]:
            places = pd.factorize(own.cohort + own.finding)[0]
            ends = measure_proportion(np.ones(len(own), bool), own.covered.to_numpy(bool), places)
            row = {"start": start, "method": method, "cohort": cohort, "curves": len(own)}
            row |= dict(zip(("coverage", "coverage_low", "coverage_high"), map(float, ends), strict=True))
            row |= {name: float(own[name].mean()) for name in ("width", "useful", "error", "last_error", "score")}
            said = own.said.sum()
            row |= {"answered": float(said / own.answers.sum())}
            rows.append(row | {"contradicted": float(own.contradicted.sum() / said) if said else None})
    return rows


def judge(rows: list[dict]) -> list[Goal]:
    """Coverage of 92 to 98 % over all curves, and no data set below 85 %."""
    goals = []
    for row in rows:
        title = f"coverage from {row['start']} labels, {row['method']}, {row['cohort']}"
        if row["cohort"] == "all":
            goals += [reach(f"{title}, lowest", 0.92, row["coverage"])]
            goals += [reach(f"{title}, highest", 0.98, row["coverage"], at_least=False)]
        elif row["curves"] >= 10:
            goals.append(reach(title, 0.85, row["coverage"]))
    return goals


def main() -> None:
    parser = benchmark_parser(__doc__.splitlines()[0], rounds=1)
    parser.add_argument("--part", choices=[*DRAWN], default="untouched", help="which curves")
    parser.add_argument("--study", default="demo", help="the finished study of the development curves")
    parser.add_argument("--data", default="", help="the folder with nih/ and nlm_tb/")
    options = parser.parse_args()
    with threadpool_limits(options.threads):
        tables = collect_tables(options.part, options.study, options.data)
        judged = [row for name, table in tables.items() for row in judge_table(table, name, options.seed)]
    rows = summarise(pd.DataFrame(judged))
    write_record(f"label_forecasts_{options.part}", rows, judge(rows), options.out)


if __name__ == "__main__":
    main()
