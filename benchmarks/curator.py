"""The curator's step beside our plain-loop restatement of the published algorithm.

A step is selection and prototype update. On a CPU the fused form is what `select_samples` uses, and the static one is
shown for comparison; on a machine with CUDA the static form is measured there too, queued and as a captured graph,
and the host's waits are counted. Decisions are compared with those of the plain loop in float64, where its own
rounding plays no part; `plain_float32_differs` says in how many rows that rounding changes the plain loop's mask.
"""

import statistics
import warnings
from collections.abc import Callable
from types import ModuleType

import torch
from record import Goal, benchmark_parser, measure_in_turns, reach, write_record
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from chexstudy.curation.online import fused, static
from chexstudy.curation.online.configuration import CuratorConfig
from chexstudy.curation.online.decisions import Selection
from chexstudy.curation.online.prototypes import update_prototypes
from chexstudy.curation.online.selection import apply_rule, draw_chance

# The static form is for GPUs; on a CPU it is timed up to here, for comparison.
_STATIC_ROWS_ON_CPU = 480
_CPU_TARGETS = {6: 6.0, 64: 8.0, 512: 10.0}
_GPU_TARGETS = {6: 6.0, 64: 50.0, 512: 200.0}


def synthetic_batch(rows: int, prototypes: int, dim: int, seed: int) -> tuple[Tensor, Tensor]:
    """Unit-norm features ``(rows, dim)`` scattered widely around directions, and prototypes near these directions."""
    generator = torch.Generator().manual_seed(seed)
    directions = normalize(torch.randn(prototypes, dim, generator=generator), dim=1)
    scatter = normalize(torch.randn(rows, dim, generator=generator), dim=1)
    features = directions[torch.randint(prototypes, (rows,), generator=generator)] + 1.2 * scatter
    moved = directions + 0.5 * normalize(torch.randn(prototypes, dim, generator=generator), dim=1)
    return normalize(features, dim=1), normalize(moved, dim=1)


def select_plainly(features: Tensor, prototypes: Tensor, config: CuratorConfig, chance: Tensor) -> Tensor:
    """The published selection as it is told: a loop over prototypes, and in it one over the picks. The kept mask."""
    distance, prototype = torch.cdist(features, prototypes).min(dim=1)
    kept = torch.zeros(len(features), dtype=torch.bool, device=features.device)
    for k in range(len(prototypes)):
        members = (prototype == k).nonzero().squeeze(1)
        if len(members) == 0:
            continue
        own = distance[members]
        lower, upper = torch.quantile(own, config.support_quantile), torch.quantile(own, config.outlier_quantile)
        kept[members[(own > lower) & (own <= upper)]] = True
        central = members[own <= lower]
        if len(central) > config.central_cap:
            points = features[central]
            picked = [int(chance[k].item() * len(central))]
            gap = torch.full((len(central),), torch.inf, dtype=points.dtype, device=points.device)
            while len(picked) < config.central_cap:
                gap = torch.minimum(gap, torch.linalg.vector_norm(points - points[picked[-1]], dim=1))
                gap[picked[-1]] = -1
                picked.append(gap.argmax().item())
            central = central[picked]
        kept[central] = True
    return kept


def update_plainly(prototypes: Tensor, features: Tensor, config: CuratorConfig) -> Tensor:
    """The published update: Sinkhorn-Knopp on the matrix, then a one-hot matrix product."""
    scores = torch.exp(features @ normalize(prototypes, dim=1).T / config.sinkhorn_epsilon).T
    scores = scores / scores.sum()
    for _ in range(config.sinkhorn_iterations):
        scores = scores / scores.sum(dim=1, keepdim=True) / len(prototypes)
        scores = scores / scores.sum(dim=0, keepdim=True) / len(features)
    assigned = one_hot(scores.argmax(dim=0), len(prototypes)).to(features)
    means = assigned.T @ features / (assigned.sum(dim=0).unsqueeze(1) + 1e-8)
    return normalize(config.decay * normalize(prototypes, dim=1) + (1 - config.decay) * means, dim=1)


def step_plainly(features: Tensor, prototypes: Tensor, config: CuratorConfig, chance: Tensor) -> Tensor:
    """Selection and update of the plain loop; the new prototypes."""
    return update_plainly(prototypes, features[select_plainly(features, prototypes, config, chance)], config)


def step_fast(features: Tensor, prototypes: Tensor, config: CuratorConfig, chance: Tensor, form: ModuleType) -> Tensor:
    """Selection and update of the package on a CPU; the new prototypes."""
    kept = apply_rule(features, prototypes, config, chance, form).kept
    return update_prototypes(prototypes, features[kept], config)[0]


def step_statically(features: Tensor, prototypes: Tensor, config: CuratorConfig, chance: Tensor) -> Tensor:
    """Selection and update without any shape that depends on data; the new prototypes."""
    kept = apply_rule(features, prototypes, config, chance, static).kept
    return update_prototypes(prototypes, features, config, counted=kept)[0]


def count_differing(selection: Selection, kept: Tensor) -> int:
    """In how many rows a selection departs from a mask."""
    return int((selection.kept.cpu() != kept.cpu()).sum())


def measure_cell(rows: int, count: int, dim: int, rounds: int, seconds: float, seed: int, device: str) -> dict:
    """Time plain loop and fast forms on one size of batch; milliseconds, ratios and agreement."""
    features, prototypes = (part.to(device) for part in synthetic_batch(rows, count, dim, seed))
    config = CuratorConfig(prototypes=count)
    chance = draw_chance(config, rows, count, torch.Generator().manual_seed(seed)).to(device)
    cell = (features, prototypes, config, chance)
    steps = {"plain": lambda: step_plainly(*cell)}
    if device == "cpu":
        steps["fused"] = lambda: step_fast(*cell, fused)
        if rows <= _STATIC_ROWS_ON_CPU:
            steps["static"] = lambda: step_fast(*cell, static)
    else:
        steps["static"] = lambda: step_statically(*cell)
        steps["graph"] = _capture(lambda: step_statically(*cell))
    timings = measure_in_turns({name: _waiting(step, device) for name, step in steps.items()}, rounds, seconds)
    expected = select_plainly(features.double(), prototypes.double(), config, chance)
    found = {"static": apply_rule(*cell, static)}
    if device == "cpu":
        found["fused"] = apply_rule(*cell, fused)
    else:
        found["cpu"] = apply_rule(features.cpu(), prototypes.cpu(), config, chance.cpu(), fused)
    row = {"device": device, "rows": rows, "prototypes": count, "dim": dim, "rounds": timings["plain"].rounds}
    for name, timing in timings.items():
        row[f"{name}_ms"], row[f"{name}_median_ms"] = 1e3 * timing.best, 1e3 * timing.median
    for name in list(timings)[1:]:
        row[f"{name}_speedup"] = timings["plain"].best / timings[name].best
    row["kept"] = float(expected.double().mean())
    for name, selection in found.items():
        row[f"{name}_differs"] = count_differing(selection, expected)
    row["plain_float32_differs"] = int((select_plainly(*cell) != expected).sum())
    if device != "cpu":
        row["plain_waits"] = count_waits(lambda: step_plainly(*cell))
        row["static_waits"] = count_waits(lambda: step_statically(*cell))
    return row


def _waiting(step: Callable[[], object], device: str) -> Callable[[], None]:
    def run() -> None:
        step()
        if device != "cpu":
            torch.cuda.synchronize()

    return run


def _capture(step: Callable[[], object]) -> Callable[[], None]:
    """The step as a CUDA graph that is replayed."""
    aside = torch.cuda.Stream()
    with torch.cuda.stream(aside):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def count_waits(step: Callable[[], object]) -> int:
    """How often the host waits for the GPU in one step, as torch's own debug mode counts it."""
    step()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def state_goals(rows: list[dict]) -> list[Goal]:
    """The goals of the curator's step: the median ratio over the sizes of batch, with each ratio in the note."""
    goals = []
    for device, fast, targets in (("cpu", "fused", _CPU_TARGETS), ("cuda", "graph", _GPU_TARGETS)):
        for count, target in targets.items():
            ratios = {
                row["rows"]: row[f"{fast}_speedup"]
                for row in rows
                if row["device"] == device and row["prototypes"] == count
            }
            note = ", ".join(f"B={size}: {ratio:.1f}x" for size, ratio in ratios.items())
            if not ratios:
                note = "no GPU" if device == "cuda" and not torch.cuda.is_available() else "not run"
            goals.append(
                reach(
                    f"{device}: {fast} form against the plain loop, K={count}, median over batches",
                    target,
                    statistics.median(ratios.values()) if ratios else None,
                    note=note,
                )
            )
    differing = [
        row[name] for row in rows for name in ("fused_differs", "static_differs", "cpu_differs") if name in row
    ]
    goals.append(reach("rows decided otherwise than by the plain loop in float64", 0, sum(differing), at_least=False))
    waits = [row["static_waits"] for row in rows if "static_waits" in row]
    missing = "" if waits else "no GPU"
    goals.append(reach("waits of the host on a GPU", 0, max(waits) if waits else None, at_least=False, note=missing))
    return goals


def main() -> None:
    parser = benchmark_parser(__doc__, rounds=7)
    parser.add_argument("--rows", type=int, nargs="+", default=[480, 8192, 32768], help="batch sizes, B")
    parser.add_argument("--prototypes", type=int, nargs="+", default=[6, 64, 512], help="numbers of prototypes, K")
    parser.add_argument("--dim", type=int, default=1024, help="dimensions of the joint features")
    parser.add_argument("--seconds", type=float, default=20.0, help="time a candidate may take in one cell")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    measured = []
    for device in devices:
        for rows in options.rows:
            for count in options.prototypes:
                measured.append(
                    measure_cell(rows, count, options.dim, options.rounds, options.seconds, options.seed, device)
                )
                print(f"measured B={rows} K={count} on {device}", flush=True)
    write_record("curator", measured, state_goals(measured), options.out)


if __name__ == "__main__":
    main()
