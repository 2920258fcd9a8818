"""Run the bench: draw, score, choose, train and judge whatever is not there yet, several trainings side by side.

In the study ``regimes``, a JSON file for each training that was done, ``jobs/<cell>/<method>/<seeds>.json``: what was
chosen, how the model does, what it took, and the code revision. A training that is there is not done again, whatever
code made it: which one is told by `read_outcomes`.
"""

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import lru_cache, partial
from multiprocessing import get_context

import numpy as np
import pandas as pd
import torch

from chexstudy.children import end_with_parent
from chexstudy.code_closure import code_revision
from chexstudy.cohort.prevalence import measure_prevalence, prevalence_tiers
from chexstudy.curation.choice import Choice
from chexstudy.devices import use_threads
from chexstudy.experiments.regimes.choices import choose, describe_choice
from chexstudy.experiments.regimes.design import BASELINE, Cell, Job
from chexstudy.experiments.regimes.pools import Pool, bank_of, draw_bank, mix_pool
from chexstudy.experiments.regimes.scorers import score_pool, train_quarter_scorer
from chexstudy.experiments.regimes.training import configure, count_step, judge, train_on
from chexstudy.pretraining.engine.random_streams import RandomStreams
from chexstudy.pretraining.training.scoring import Scores
from chexstudy.progress import progress
from chexstudy.runs import Run
from chexstudy.workflow.locks import hold_study

HOME = "regimes"
BATCH = 64
_OF_TWO_SCORERS = "learnability"  # the quarter scorer is its learner, the trained one its reference
STEPS = 530  # of every training: 17 passes over 2,000 pairs
# One core of the machine that the design was timed on, until a training of this machine is there to tell.
_SECONDS_A_JOB, _SECONDS_A_PAIR_DRAWN = 50.0, 0.006


def run_bench(jobs: Sequence[Job], methods: Mapping[str, Mapping], workers: int = 2) -> pd.DataFrame:
    """Do the trainings that are not there; gives `read_outcomes` of them all.

    Pools are drawn and scored first, then trainings run in the order given. A killed run goes on where it stopped.
    """
    run = Run(HOME)
    print(estimate(jobs, methods, workers), flush=True)
    left = _list_left(run, jobs, methods)
    with hold_study(run, "a bench of regimes"):
        banks = {bank_of(job.cell, job.seed).study: job for job in left}
        for job in progress(banks.values(), len(banks), "drawing pools"):
            draw_bank(job.cell, job.seed, workers)
        scored = _list_scored(left, methods)
        if any(cell.scorer == "quarter" for cell, _ in scored):
            train_quarter_scorer(workers)
        with ProcessPoolExecutor(
            workers, get_context("spawn"), initializer=end_with_parent, initargs=(os.getpid(),)
        ) as pool:
            for _ in progress(pool.map(_score_apart, scored), len(scored), "scoring pools"):
                pass
            work = partial(_do_job, methods=dict(methods))
            for _ in progress(pool.map(work, left), len(left), "training on what was chosen"):
                pass
    return read_outcomes(jobs, methods)


def estimate(jobs: Sequence[Job], methods: Mapping[str, Mapping], workers: int) -> str:
    """What is left to do and how long it will take, in a sentence."""
    run = Run(HOME)
    left = _list_left(run, jobs, methods)
    done = [run.read_json(_artifact(job))["seconds"] for job in jobs if job not in left]
    banks = {bank_of(job.cell, job.seed).study: job.cell.pool for job in left}
    drawn = sum(pairs for name, pairs in banks.items() if not Run(name).has("pixels/manifest.json"))
    seconds = len(left) * (float(np.median(done)) if done else _SECONDS_A_JOB) + drawn * _SECONDS_A_PAIR_DRAWN
    return (
        f"{len(left):,} of {len(jobs):,} trainings are left, {drawn:,} pairs to draw: about "
        f"{seconds / workers / 60:.0f} minutes with {workers} at a time."
    )


def _list_left(run: Run, jobs: Sequence[Job], methods: Mapping[str, Mapping]) -> list[Job]:
    return [job for job in jobs if not _is_done(run, job, methods)]


def _is_done(run: Run, job: Job, methods: Mapping[str, Mapping]) -> bool:
    """Whether a training is there, of the method as the design has it now."""
    return run.has(_artifact(job)) and run.read_json(_artifact(job))["how"] == dict(methods[job.method])


def _list_scored(jobs: Sequence[Job], methods: Mapping[str, Mapping]) -> list[tuple[Cell, int]]:
    """Pools that some method looks at, with the scorer it asks for."""
    pools = {}
    for job in jobs:
        how = methods[job.method]
        if not _is_blind(how) or "spends" in how:
            pools[_scored(job.cell), job.seed] = None
        if how.get("method") == _OF_TWO_SCORERS:
            pools[_scored(replace(job.cell, scorer="quarter")), job.seed] = None
    return list(pools)


def read_outcomes(jobs: Sequence[Job], methods: Mapping[str, Mapping]) -> pd.DataFrame:
    """A row for each training that was done: its cell, method and seeds, and what was measured."""
    run = Run(HOME)
    return pd.DataFrame([job.describe() | run.read_json(_artifact(job)) for job in jobs if _is_done(run, job, methods)])


def _artifact(job: Job) -> str:
    return f"jobs/{job.name}.json"


def _do_job(job: Job, methods: Mapping[str, Mapping]) -> None:
    with use_threads(1):
        start = time.perf_counter()
        told = _train_and_judge(job, methods)
        told |= {"how": dict(methods[job.method]), "seconds": time.perf_counter() - start, "revision": code_revision()}
        Run(HOME).write_json(_artifact(job), told)


def _train_and_judge(job: Job, methods: Mapping[str, Mapping]) -> dict:
    cell, bank = job.cell, bank_of(job.cell, job.seed)
    pool, tiers = _mix(replace(cell, start="scratch", budget=1, scorer="trained"), job.seed)
    streams = RandomStreams(job.seed)
    config, seed = configure(cell.start, cell.side, BATCH), streams.draw_seed("training", job.choice, job.training)

    def choose_pairs(name: str) -> tuple[Choice, pd.DataFrame, float]:
        how = methods[name]
        scores = _blind(pool) if _is_blind(how) else _score(_scored(cell), job.seed)
        if how.get("method") == _OF_TWO_SCORERS:
            learner = _score(_scored(replace(cell, scorer="quarter")), job.seed)
            scores = replace(scores, loss=learner.loss, reference_loss=scores.loss)
        generator = streams.generator("subset", job.choice)
        choice = choose(how, pool, scores, cell.budget, generator)
        return choice, pool.pairs.iloc[choice.rows], scores.cost["flops"]

    start = time.perf_counter()
    choice, pairs, scoring = choose_pairs(job.method)
    told = {"choosing_seconds": time.perf_counter() - start, "note": choice.note}
    told |= describe_choice(pool, choice, tiers)
    steps, partner = STEPS, methods[job.method].get("spends")
    if partner:
        _, others, charged = choose_pairs(partner)
        spent = charged + STEPS * count_step(bank, others, config, seed)
        steps = round(spent / count_step(bank, pairs, config, seed))
    model, flops = train_on(bank, pairs, choice.weights, config, steps, seed)
    return told | judge(model, pool, tiers) | {"steps": steps, "flops": flops, "scoring_flops": scoring}


@lru_cache(maxsize=2)
def _mix(cell: Cell, seed: int) -> tuple[Pool, dict[str, str]]:
    pool = mix_pool(bank_of(cell, seed), cell, seed)
    return pool, prevalence_tiers(measure_prevalence(pool.pairs)).to_dict()


def _is_blind(how: Mapping) -> bool:
    """Whether a method looks at nothing that a scorer says."""
    return how.get("method") == BASELINE or "truth" in how


def _score_apart(job: tuple[Cell, int]) -> None:
    with use_threads(1):
        _score(*job)


def _scored(cell: Cell) -> Cell:
    """The same for all cells whose pairs and scorer are."""
    return replace(cell, start="scratch", budget=1)


@lru_cache(maxsize=2)
def _score(cell: Cell, seed: int) -> Scores:
    """Scores of a pool, kept on disk."""
    run, folder = bank_of(cell, seed), f"scores/{cell.name}"
    if not run.has(f"{folder}/cost.json"):
        pool = _mix(replace(cell, scorer="trained"), seed)[0]
        scores = score_pool(pool, cell.scorer, seed)
        for name in ("image", "text", "loss"):
            run.write_array(f"{folder}/{name}.npy", getattr(scores, name))
        softmax = {"temperature": scores.temperature, "batch_size": scores.batch_size}
        run.write_json(f"{folder}/cost.json", scores.cost | softmax)
    arrays = {name: run.read_array(f"{folder}/{name}.npy") for name in ("image", "text", "loss")}
    cost = run.read_json(f"{folder}/cost.json")
    ids = _mix(replace(cell, scorer="trained"), seed)[0].pairs.image_id.to_numpy()
    softmax = {name: cost.pop(name) for name in ("temperature", "batch_size")}
    return Scores(ids, **arrays, **softmax, cost=cost)


def _blind(pool: Pool) -> Scores:
    """What a method is given that looks at nothing."""
    unit = np.zeros((len(pool.pairs), 2), dtype=np.float32)
    unit[:, 0] = 1
    nothing = torch.nan
    return Scores(pool.pairs.image_id.to_numpy(), unit, None, None, nothing, 0, {"flops": 0.0})
