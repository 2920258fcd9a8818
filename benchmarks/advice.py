"""Is the advice right on drawn cohorts whose seeds no outcome of the bench has seen?

Conditions are drawn at random within those measured: pools of 4,000 to 16,000 and budgets of 500 to 8,000 by their
logarithm with at least twice as many pairs as are chosen, 0 to 12 % wrong, 4 % near-duplicates, either start. Each
cohort has a pool seed of its own, from 100 on. The advice sees embeddings only (and not how many are wrong or copied).
Then its method and the candidates, those that the design trains at every condition, are trained, ``--rounds`` times
with new choices, and it is right if its mean is within 0.01 macro zero-shot AUROC of the best. That best is the largest
of noisy means, so even a perfect advice is wrong now and then. Beside it stand two rules that look at nothing: always
random, always the main method.

    python benchmarks/advice.py --estimate
    python benchmarks/advice.py --workers 2
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from record import Goal, benchmark_parser, reach, write_record

from chexstudy.experiments.regimes.advice import Advice, advise
from chexstudy.experiments.regimes.bench import estimate, run_bench
from chexstudy.experiments.regimes.cohort_measures import measure_cohort
from chexstudy.experiments.regimes.contrasts import MAIN_METHOD, MAIN_METRIC
from chexstudy.experiments.regimes.design import BASELINE, STARTS, Cell, Design, Job, read_design
from chexstudy.experiments.regimes.pools import draw_bank, mix_pool
from chexstudy.experiments.regimes.scorers import score_pool

FIRST_SEED, COPIES, SIDE = 100, 0.04, 64
POOLS, BUDGETS, MOST_WRONG, LEAST_RATIO = (4_000, 16_000), (500, 8_000), 0.12, 2
RIGHT, WANTED = 0.01, 0.8


def draw_conditions(cohorts: int, seed: int) -> list[tuple[Cell, int]]:
    """Cells and their pool seeds."""
    generator, drawn = np.random.default_rng(seed), []
    while len(drawn) < cohorts:
        pool, budget = (round(float(np.exp(generator.uniform(*np.log(span))))) for span in (POOLS, BUDGETS))
        wrong, start = round(float(generator.uniform(0, MOST_WRONG)), 3), str(generator.choice(STARTS))
        if pool >= LEAST_RATIO * budget:
            drawn.append((Cell(pool, budget, wrong, COPIES, "trained", start, SIDE), FIRST_SEED + len(drawn)))
    return drawn


def list_candidates(design: Design) -> list[str]:
    """Methods that are trained at every condition of the design."""
    asked = [set(question.methods) for question in design.questions.values() if MAIN_METHOD in question.methods]
    return [name for name in design.methods if all(name in methods for methods in asked if "bands" in methods)]


def take_advice(cell: Cell, seed: int, workers: int) -> Advice:
    """What is advised for a drawn cohort at its budget, from its embeddings."""
    pool = mix_pool(draw_bank(cell, seed, workers), cell, seed)
    scores = score_pool(pool, cell.scorer, seed)
    return advise(measure_cohort(scores.image, scores.text, pool.pairs), cell.budget, cell.start)


def list_jobs(cell: Cell, seed: int, methods: Sequence[str], trainings: int) -> list[Job]:
    return [Job(cell, method, seed, draw, draw) for draw in range(trainings) for method in dict.fromkeys(methods)]


def judge_cohort(cell: Cell, seed: int, advice: Advice, outcomes: pd.DataFrame) -> dict:
    """A row: what was advised, how far below the best it and the blind rules are, with their standard errors."""
    values = outcomes.pivot_table(MAIN_METRIC, ["choice", "training"], "method")
    best = values.mean().idxmax()
    row = {"seed": seed, "pool": cell.pool, "budget": cell.budget, "wrong": cell.wrong, "start": cell.start}
    row |= {"advised": advice.method, "covered": advice.is_covered, "best": best, "trainings": len(values)}
    row |= {"estimated_wrong": advice.measures.verdict.wrong_share, "scorer_auroc": advice.measures.verdict.area}
    for name, method in (("advised", advice.method), ("random", BASELINE), ("main", MAIN_METHOD)):
        below = values[best] - values[method]
        row |= {f"{name}_below": float(below.mean()), f"{name}_error": float(below.std(ddof=1) / len(below) ** 0.5)}
    return row | {f"auroc/{method}": float(value) for method, value in values.mean().items()}


def judge(rows: Sequence[Mapping]) -> list[Goal]:
    """How many cohorts a rule is right on; the blind ones are for comparison and have no target of their own."""
    table = pd.DataFrame(rows)
    right = {name: (table[f"{name}_below"] <= RIGHT).mean() for name in ("advised", "random", "main")}
    note = f"always random {right['random']:.0%}, always {MAIN_METHOD} {right['main']:.0%}, of {len(table)} cohorts"
    return [reach("cohorts whose advised method is within 0.01 AUROC of the best", WANTED, right["advised"], note=note)]


def validate(
    conditions: Sequence[tuple[Cell, int]],
    trainings: int,
    advise_on: Callable[[Cell, int], Advice],
    train: Callable[[Sequence[Job], Mapping], pd.DataFrame],
) -> list[dict]:
    """A row of `judge_cohort` for each cohort; ``train`` does its jobs as `run_bench` does."""
    design, rows = read_design(), []
    for cell, seed in conditions:
        advice = advise_on(cell, seed)
        jobs = list_jobs(cell, seed, [*list_candidates(design), advice.method], trainings)
        rows.append(judge_cohort(cell, seed, advice, train(jobs, design.methods)))
    return rows


def main() -> None:
    parser = benchmark_parser(__doc__.splitlines()[0], rounds=3)
    parser.add_argument("--cohorts", type=int, default=10, help="how many are drawn")
    parser.add_argument("--workers", type=int, default=2, help="trainings side by side")
    parser.add_argument("--estimate", action="store_true", help="only say how long it takes at least")
    options = parser.parse_args()
    conditions, design = draw_conditions(options.cohorts, options.seed), read_design()
    if options.estimate:
        asked = [
            job for cell, seed in conditions for job in list_jobs(cell, seed, list_candidates(design), options.rounds)
        ]
        print(estimate(asked, design.methods, options.workers))
        return
    advise_on, train = partial(take_advice, workers=options.workers), partial(run_bench, workers=options.workers)
    rows = validate(conditions, options.rounds, advise_on, train)
    write_record(Path(__file__).stem, rows, judge(rows), options.out)


if __name__ == "__main__":
    main()
