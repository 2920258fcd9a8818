"""The bootstrap of ranking metrics against its peers, in the same run.

The task is 2,000 resamples of patients, 30,000 images of 40 findings, AUROC and average precision with intervals.
Peers: scikit-learn's two metrics with sample weights, one finding and resample after the other, and plain numpy, which
sorts the drawn cases anew. Both would take from minutes to an hour, so they are timed on a few resamples and
extrapolated linearly; the table says from how many. All run on one core. DeLong's test of two models is timed beside
them, and the size of the default study's test set, which every evaluation of an arm resamples.
"""

import multiprocessing
import resource
from functools import partial

import numpy as np
from record import Goal, benchmark_parser, measure_in_turns, reach, write_record
from sklearn.metrics import average_precision_score, roc_auc_score
from threadpoolctl import threadpool_limits

from chexstudy.statistics.bootstrap import bootstrap_patients, count_scarcer_patients, interval
from chexstudy.statistics.delong import contrast_p_value, correlate_areas
from chexstudy.statistics.ranking import auroc, rank_metrics

DEFAULT_STUDY = {"cases": 1000, "findings": 24, "resamples": 1000}


def draw_cases(cases: int, findings: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels with prevalences from 30 to 0.2 % and 5 % not stated, scores, and patients of one to four images."""
    generator = np.random.default_rng(seed)
    labels = (generator.random((cases, findings)) < np.geomspace(0.3, 0.002, findings)).astype(np.float32)
    scores = (generator.standard_normal(labels.shape) + labels).astype(np.float32)
    labels[generator.random(labels.shape) < 0.05] = np.nan
    patients = np.repeat(np.arange(cases), generator.integers(1, 5, cases))[:cases]
    return labels, scores, patients


def measure_intervals(labels, scores, patients, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The whole task: draw patients, measure both metrics in each resample, take the intervals."""
    weights = bootstrap_patients(patients, resamples, np.random.default_rng(seed))
    replicates = np.stack(rank_metrics(labels, scores, weights), axis=1)
    return interval(replicates, patients=count_scarcer_patients(labels, weights))


def loop_over_scikit_learn(labels, scores, weights) -> np.ndarray:
    """Both metrics, ``(2, resamples, findings)``, one finding and resample after the other."""
    known = ~np.isnan(labels)
    values = np.full((2, len(weights), labels.shape[1]), np.nan)
    for resample, weight in enumerate(weights):
        for finding, rows in enumerate(known.T):
            case = labels[rows, finding], scores[rows, finding]
            for place, metric in enumerate((roc_auc_score, average_precision_score)):
                values[place, resample, finding] = metric(*case, sample_weight=weight[rows])
    return values


def loop_over_numpy(labels, scores, weights) -> np.ndarray:
    """Both metrics, ``(2, resamples, findings)``, from the drawn cases, sorted anew for each resample and finding."""
    values = np.full((2, len(weights), labels.shape[1]), np.nan)
    for resample, weight in enumerate(weights):
        drawn = np.repeat(np.arange(len(weight)), weight)
        for finding in range(labels.shape[1]):
            rows = drawn[~np.isnan(labels[drawn, finding])]
            order = np.argsort(-scores[rows, finding], kind="stable")
            ranked, present = scores[rows, finding][order], labels[rows, finding][order] == 1
            last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
            hits = np.cumsum(present)[last].astype(float)
            misses = last + 1 - hits
            won, lost = np.diff(hits, prepend=0), np.diff(misses, prepend=0)
            above = misses - lost / 2
            if hits[-1] and misses[-1]:
                values[0, resample, finding] = 1 - (won @ above) / (hits[-1] * misses[-1])
                values[1, resample, finding] = won @ (hits / (last + 1)) / hits[-1]
    return values


def compare_by_delong(labels, scores, others, patients) -> list[float]:
    """p value of each finding for two models on patients with several images."""
    pairs = (np.column_stack([scores[:, one], others[:, one]]) for one in range(labels.shape[1]))
    return [contrast_p_value(*correlate_areas(labels[:, one], pair, patients)) for one, pair in enumerate(pairs)]


def compare_speed(cases: int, findings: int, resamples: int, peer: int, seed: int, rounds: int) -> list[dict]:
    """Time the task and its peers, the peers on ``peer`` resamples."""
    labels, scores, patients = draw_cases(cases, findings, seed)
    weights = bootstrap_patients(patients, resamples, np.random.default_rng(seed))
    few = weights[:peer]
    calls = {
        "with draws and intervals": partial(measure_intervals, labels, scores, patients, resamples, seed),
        "AUROC and average precision": partial(rank_metrics, labels, scores, weights),
        "AUROC": partial(auroc, labels, scores, weights),
        "scikit-learn": partial(loop_over_scikit_learn, labels, scores, few),
        "plain numpy": partial(loop_over_numpy, labels, scores, few),
    }
    timings = measure_in_turns(calls, rounds, seconds=60.0, warm_up=False)
    ours = timings["AUROC and average precision"].best
    expected = np.stack(rank_metrics(labels, scores, few))
    peers = {"scikit-learn": loop_over_scikit_learn, "plain numpy": loop_over_numpy}
    table = []
    for name, timing in timings.items():
        timed = peer if name in peers else resamples
        seconds = timing.best * resamples / timed
        difference = np.nanmax(np.abs(peers[name](labels, scores, few) - expected)) if name in peers else 0.0
        table.append(
            {
                "task": "bootstrap",
                "method": name,
                "cases": cases,
                "findings": findings,
                "resamples": resamples,
                "seconds": seconds,
                "resamples_timed": timed,
                "extrapolated": timed < resamples,
                "times_ours": seconds / ours,
                "difference": float(difference),
            }
        )
    return table


def time_delong(cases: int, findings: int, seed: int, rounds: int) -> dict:
    labels, scores, patients = draw_cases(cases, findings, seed)
    others = scores + np.random.default_rng(seed + 1).standard_normal(scores.shape).astype(np.float32)
    timing = measure_in_turns({"delong": partial(compare_by_delong, labels, scores, others, patients)}, rounds)
    return {
        "task": "DeLong's test of two models, patients with several images",
        "cases": cases,
        "findings": findings,
        "seconds": timing["delong"].best,
    }


def _measure_alone(cases: int, findings: int, resamples: int, seed: int) -> tuple[float, float]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    measure_intervals(*draw_cases(cases, findings, seed), resamples, seed)
    return before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure_memory(cases: int, findings: int, resamples: int, seed: int) -> dict:
    """Peak memory of the task in a process of its own, and what that held before it began."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        before, peak = pool.apply(_measure_alone, (cases, findings, resamples, seed))
    sizes = {"cases": cases, "findings": findings, "resamples": resamples}
    return {"task": "memory", **sizes, "peak_gib": peak, "before_gib": before}


def judge(table: list[dict], cases: int) -> list[Goal]:
    def find(task: str, method: str, size: int) -> dict:
        return next(row for row in table if (row["task"], row.get("method"), row["cases"]) == (task, method, size))

    whole = find("bootstrap", "with draws and intervals", cases)["seconds"]
    small = find("bootstrap", "AUROC and average precision", DEFAULT_STUDY["cases"])["seconds"]
    delong = next(row["seconds"] for row in table if row["task"].startswith("DeLong"))
    differences = [row["difference"] for row in table if row["task"] == "bootstrap"]
    return [
        reach("bootstrap with draws and intervals on one core, seconds", 20, whole, at_least=False),
        reach("bootstrap, peak GiB", 1, max(row.get("peak_gib", 0) for row in table), at_least=False),
        *(
            reach(
                f"bootstrap, speed-up over {peer}",
                target,
                find("bootstrap", peer, cases)["times_ours"],
                note="peer extrapolated",
            )
            for peer, target in (("scikit-learn", 100), ("plain numpy", 30))
        ),
        reach("bootstrap of the default study's test set, seconds", 0.05, small, at_least=False),
        reach("bootstrap, largest difference from a peer", 1e-12, max(differences), at_least=False),
        reach("DeLong's test, seconds", 5, delong, at_least=False),
    ]


def main() -> None:
    parser = benchmark_parser(__doc__, rounds=3)
    parser.add_argument("--cases", type=int, default=30_000, help="images")
    parser.add_argument("--findings", type=int, default=40)
    parser.add_argument("--resamples", type=int, default=2000, help="of patients")
    parser.add_argument("--peer-resamples", type=int, default=4, help="resamples that the peers are timed on")
    options = parser.parse_args()
    sizes = {"cases": options.cases, "findings": options.findings, "resamples": options.resamples}
    shared = {"peer": options.peer_resamples, "seed": options.seed, "rounds": options.rounds}
    with threadpool_limits(1):
        # First, because a process starts with the peak of the one that started it.
        table = [measure_memory(**sizes, seed=options.seed)]
        table += compare_speed(**sizes, **shared)
        if options.cases != DEFAULT_STUDY["cases"]:
            table += compare_speed(**DEFAULT_STUDY, **shared)
        table.append(time_delong(options.cases, options.findings, options.seed, options.rounds))
    write_record("bootstrap", table, judge(table, options.cases), options.out)


if __name__ == "__main__":
    main()
