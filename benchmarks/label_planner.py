"""Do the planner's intervals cover the truth? Simulated learning curves whose plateau and labels needed are known.

Each repeat draws a population of 20 findings. The first is always the same curve, 0.86 - 0.55 n^-0.45 with a standard
deviation of 0.06 sqrt(10 / n) for a draw; the others vary in plateau, start, exponent and noise. Curves are cut at 50
to 2,000 labels and measured with 1, 5 or 20 draws at each number of labels. Compared in the same run:

- ``alone`` and ``pooled``: the planner's posterior of one curve, and of all 20 together;
- ``bootstrap``: bounded least squares, percentiles over resampled draws;
- ``profile``: bounded least squares, profile likelihood;
- ``curve_fit``: scipy's bounded fit, plus and minus 1.96 standard errors.

``fixed`` rows are the first finding (target AUROC 0.80), ``population`` rows others (target: 0.05 under the plateau).
"""

import os
import time
import warnings
from collections.abc import Sequence
from itertools import product

import numpy as np
from record import Goal, benchmark_parser, reach, write_record
from scipy.optimize import OptimizeWarning, curve_fit
from scipy.stats import f as fisher
from threadpoolctl import threadpool_limits

from chexstudy.label_planning.families import CHANCE, PERFECT, POWER3, labels_for
from chexstudy.label_planning.fitting import fit_curve, fit_points
from chexstudy.label_planning.observations import LearningCurve, estimate_noise, weigh_points
from chexstudy.label_planning.planner import FARTHEST, NOT_YET, UNREACHABLE, WIDEST, plan_curve
from chexstudy.label_planning.posterior import infer_curves
from chexstudy.progress import progress

GRID = np.array([10, 20, 30, 50, 70, 100, 200, 300, 500, 1000, 2000], dtype=float)
FIXED, FIXED_TARGET, DEVIATION = np.array([0.86, 0.55, 0.45]), 0.80, 0.06
FINDINGS = 20


def draw_population(generator: np.random.Generator, findings: int) -> tuple[np.ndarray, np.ndarray]:
    """True parameters ``(findings, 3)`` and standard deviations of a draw of ten labels; the first is the fixed one."""
    plateau = 0.5 + 0.5 / (1 + np.exp(-generator.normal(0.94, 0.6, findings)))
    gamma = 0.45 * np.exp(0.25 * generator.standard_normal(findings))
    lacking = generator.uniform(0.28, 0.78, findings) * (plateau - 0.5)
    deviation = DEVIATION * np.exp(0.2 * generator.standard_normal(findings))
    parameters = np.stack([plateau, lacking * 10**gamma, gamma], axis=1)
    parameters[0], deviation[0] = FIXED, DEVIATION
    return parameters, deviation


def draw_curve(
    name: str, parameters: np.ndarray, deviation: float, most: float, draws: int, generator
) -> LearningCurve:
    """One measured curve."""
    labels = GRID[most >= GRID]
    noise = deviation * np.sqrt(10 / labels)[:, None] * generator.standard_normal((len(labels), draws))
    values = np.clip(POWER3.evaluate(labels, parameters)[:, None] + noise, 0, 1)
    return LearningCurve("simulated", name, labels, values)


def judge_plans(
    curves: Sequence[LearningCurve], parameters: np.ndarray, targets: np.ndarray, pool: bool, seed: int
) -> list[dict]:
    """What the planner says of each curve, beside the truth."""
    judged = []
    posteriors = infer_curves(curves, np.random.default_rng(seed), pool)
    for posterior, truth, target in zip(posteriors, parameters, targets, strict=True):
        plan = plan_curve(posterior, float(target))
        needed = np.ceil(labels_for(target, np.append(truth, 0.0)))
        width = plan["plateau_high"] - plan["plateau_low"]
        judged.append(
            {
                "covers_plateau": plan["plateau_low"] <= truth[0] <= plan["plateau_high"],
                "width": width,
                "error": abs(plan["plateau"] - truth[0]),
                "plateau_not_told": width > WIDEST,
                "covers_needed": plan["need_low"] <= needed <= plan["need_high"],
                "needed_not_told": plan["state"] == NOT_YET,
                "wrongly_unreachable": plan["state"] == UNREACHABLE and needed <= FARTHEST * posterior.curve.most,
            }
        )
    return judged


def fit_by_scipy(curve: LearningCurve) -> tuple[float, float, float]:
    """The plateau of scipy's bounded fit with its standard error, as estimate, low and high."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OptimizeWarning)
        try:
            found, covariance = curve_fit(
                lambda n, alpha, beta, gamma: alpha - beta * n**-gamma,
                curve.labels,
                curve.means,
                p0=(0.85, 0.5, 0.5),
                sigma=curve.labels**-0.5,
                bounds=((0.5, 0, 0.02), (1, 10, 2)),
            )
        except RuntimeError:
            return np.nan, np.nan, np.nan
    error = 1.96 * np.sqrt(covariance[0, 0])
    return found[0], found[0] - error, found[0] + error


def bootstrap_plateaus(curve: LearningCurve, generator: np.random.Generator, resamples: int = 200) -> np.ndarray:
    """Plateaus ``(resamples,)`` of bounded least squares on draws drawn again within each number of labels.

    Their spread is too small by (D - 1) / D for D draws; deviations from the mean are stretched accordingly.
    """
    drawn = np.repeat(curve.means[None], resamples, axis=0)
    for point, draws in enumerate(curve.draws):
        own = curve.values[point]
        chosen = own[generator.integers(draws, size=(resamples, draws))].mean(axis=1)
        drawn[:, point] += np.sqrt(draws / (draws - 1)) * (chosen - own.mean())
    weights = weigh_points(curve, estimate_noise([curve]))
    return fit_points(POWER3, curve.labels, drawn, weights).parameters[:, 0]


def profile_plateau(curve: LearningCurve) -> tuple[float, float, float, bool]:
    """Best plateau, the lowest and highest that the profile likelihood does not rule out, and whether that tells it.

    For each plateau the best curve is found; it is ruled out if that curve is worse than the best of all by more than
    F(1, degrees of freedom) allows. The variance is pooled from what draws differ by and what the best curve misses.
    """
    noise = estimate_noise([curve])
    fit = fit_curve(curve, noise)
    value, gamma = float(fit.parameters[0]), float(fit.parameters[2])
    precision = curve.draws / noise.relative(curve.labels)
    within = np.nansum((curve.draws - 1) * curve.variances / noise.relative(curve.labels))
    degrees = float(np.sum(curve.draws - 1)) + len(curve.labels) - POWER3.free
    if degrees <= 0:
        return value, CHANCE, PERFECT, False
    best = fit.loss * precision.mean()
    allowed = best + (within + best) / degrees * fisher.ppf(0.95, 1, degrees)
    plateaus = np.unique(np.concatenate([np.linspace(CHANCE, PERFECT, 501), [value]]))
    gammas = np.exp(np.linspace(*np.log(POWER3.shape_ranges[0]), 200))
    basis = POWER3.basis(curve.labels, gammas[:, None])
    # beta has a closed form at a given plateau and gamma.
    missing = plateaus[:, None] - curve.means
    along = np.einsum("p,ap,gp->ag", precision, missing, basis)
    beta = np.maximum(along / np.einsum("p,gp->g", precision, basis**2), 0.0)
    residual = missing[:, None] - beta[..., None] * basis
    loss = np.einsum("p,agp->ag", precision, residual**2).min(axis=1)
    kept = plateaus[(loss <= allowed) | (plateaus == value)]
    bends = gamma > 1.01 * POWER3.shape_ranges[0][0]
    told = kept[-1] < PERFECT and kept[-1] - kept[0] <= WIDEST and bends
    return value, float(kept[0]), float(kept[-1]), bool(told)


def judge_fit(estimate: float, low: float, high: float, told: bool | None) -> dict:
    """A fit of the fixed curve beside the truth."""
    return {
        "covers_plateau": low <= FIXED[0] <= high,
        "width": high - low,
        "error": abs(estimate - FIXED[0]),
        "plateau_not_told": None if told is None else not told,
        "wrongly_unreachable": high < FIXED_TARGET,
        "point_under_target": estimate < FIXED_TARGET,
        "pinned_at_one": estimate > 0.999,
    }


def judge_peers(curve: LearningCurve, generator: np.random.Generator) -> dict[str, dict]:
    """Least squares and scipy on the fixed curve."""
    judged = {"curve_fit": judge_fit(*fit_by_scipy(curve), None)}
    profile = profile_plateau(curve)
    judged["profile"] = judge_fit(*profile)
    if curve.draws.min() > 1:
        plateaus = bootstrap_plateaus(curve, generator)
        judged["bootstrap"] = judge_fit(profile[0], *np.quantile(plateaus, [0.025, 0.975]), None)
    return judged


def summarise(place: dict, repeats: list[list[dict]]) -> dict:
    """Means over repeats; the error of a coverage is that of the means of repeats, whose curves were pooled."""
    row = dict(place, repeats=len(repeats), curves=sum(map(len, repeats)))
    for name in repeats[0][0]:
        means = [np.mean([one[name] for one in own]) for own in repeats if own[0][name] is not None]
        row[name] = float(np.nanmean(means)) if means else None
    by_repeat = [np.mean([one["covers_plateau"] for one in own]) for own in repeats]
    row["coverage_error"] = float(np.std(by_repeat, ddof=1) / np.sqrt(len(by_repeat))) if len(repeats) > 1 else None
    return row


def measure_cell(most: float, draws: int, repeats: int, pooled_repeats: int, findings: int, seed: int) -> list[dict]:
    """All methods on curves of at most so many labels with so many draws."""
    found: dict[tuple[str, str], list[list[dict]]] = {}
    seconds = {"alone": 0.0, "pooled": 0.0}
    for repeat in range(repeats):
        generator = np.random.default_rng([seed, repeat, int(most), draws])
        parameters, deviation = draw_population(generator, findings)
        targets = np.round(parameters[:, 0] - 0.05, 3)
        targets[0] = FIXED_TARGET
        curves = [
            draw_curve(str(place), parameters[place], deviation[place], most, draws, generator)
            for place in range(findings)
        ]
        start = time.perf_counter()
        alone = judge_plans(curves[:2], parameters[:2], targets[:2], False, seed)
        seconds["alone"] += time.perf_counter() - start
        found.setdefault(("alone", "fixed"), []).append(alone[:1])
        found.setdefault(("alone", "population"), []).append(alone[1:])
        for name, judged in judge_peers(curves[0], generator).items():
            found.setdefault((name, "fixed"), []).append([judged])
        if repeat < pooled_repeats:
            start = time.perf_counter()
            pooled = judge_plans(curves, parameters, targets, True, seed)
            seconds["pooled"] += time.perf_counter() - start
            found.setdefault(("pooled", "fixed"), []).append(pooled[:1])
            found.setdefault(("pooled", "population"), []).append(pooled[1:])
    rows = []
    for (method, truth), judged in found.items():
        row = summarise({"at_most_n": most, "draws": draws, "method": method, "truth": truth}, judged)
        if method in seconds:
            done = 2 * repeats if method == "alone" else findings * pooled_repeats
            row["seconds_a_curve"] = seconds[method] / done
        rows.append(row)
    return rows


def judge(rows: list[dict]) -> list[Goal]:
    """The goals: coverage near 0.95 in every cell, better than the fit, and the published claim of 50 labels."""
    goals = []
    for method in ("alone", "pooled"):
        for truth in ("fixed", "population"):
            own = [row for row in rows if row["method"] == method and row["truth"] == truth]
            for what, name in (("the plateau", "covers_plateau"), ("the labels needed", "covers_needed")):
                shares = [row[name] for row in own]
                title = f"coverage of {what}, {method}, {truth}"
                goals.append(reach(f"{title}, lowest", 0.92, min(shares)))
                goals.append(
                    reach(f"{title}, highest", 0.98, max(shares), at_least=False, note="above: wider than need be")
                )
            wrong = max(row["wrongly_unreachable"] for row in own)
            goals.append(reach(f"wrongly called unreachable, {method}, {truth}, worst", 0.05, wrong, at_least=False))
    few = {(row["draws"], row["method"]): row for row in rows if row["at_most_n"] == 50 and row["truth"] == "fixed"}
    for draws in sorted({draws for draws, _ in few}):
        ratio = few[draws, "curve_fit"]["error"] / few[draws, "pooled"]["error"]
        goals.append(reach(f"50 labels, {draws} draws: error of scipy's fit over that of the planner", 1.0, ratio))
        told = 1 - few[draws, "pooled"]["plateau_not_told"]
        note = "the published claim; an answer is an interval no wider than 0.1"
        goals.append(reach(f"50 labels, {draws} draws: share of plateaus that can be told", 0.5, told, note=note))
    return goals


def main() -> None:
    parser = benchmark_parser(__doc__.splitlines()[0], rounds=200)
    parser.add_argument("--pooled-rounds", type=int, default=12, help="how many of the rounds are also pooled")
    parser.add_argument("--findings", type=int, default=FINDINGS, help="findings of a population, at least 2")
    parser.add_argument("--most", type=float, nargs="+", default=[50, 100, 200, 500, 2000], help="largest label counts")
    parser.add_argument("--draws", type=int, nargs="+", default=[1, 5, 20], help="draws at each label count")
    options = parser.parse_args()
    os.environ["CHEXSTUDY_HEADLESS"] = "1"
    with threadpool_limits(options.threads):
        rows = [
            row
            for most, draws in progress(list(product(options.most, options.draws)), label="simulating")
            for row in measure_cell(most, draws, options.rounds, options.pooled_rounds, options.findings, options.seed)
        ]
    rows.sort(key=lambda row: (row["method"], row["truth"], row["at_most_n"], row["draws"]))
    write_record("label_planner", rows, judge(rows), options.out)


if __name__ == "__main__":
    main()
