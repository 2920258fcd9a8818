"""What the bench compares: cells, methods and seeds by question, and the trainings that answer them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields

from chexstudy.errors import StudyError, suggest
from chexstudy.inputs.yaml_files import read_data_beside

SCORERS = ("trained", "quarter", "unaligned")
STARTS = ("scratch", "upstream")
BASELINE = "random"
MOST_POOLS = 16  # of a cell, where more are drawn until a contrast is known well enough


@dataclass(frozen=True)
class Cell:
    """The conditions under which methods are compared."""

    pool: int  # pairs to choose from
    budget: int  # pairs that are chosen
    wrong: float  # share of the pool with another patient's report (two thirds) or without a radiograph (one third)
    duplicates: float  # share of the pool that is a second exposure of another pair of it
    scorer: str  # one of `SCORERS`
    start: str  # what is trained, one of `STARTS`
    side: int  # of the images, in pixels

    def __post_init__(self) -> None:
        for name, known in (("scorer", SCORERS), ("start", STARTS)):
            if getattr(self, name) not in known:
                raise StudyError(f"{name} of a cell must be one of {', '.join(known)}, not {getattr(self, name)!r}.")
        if not 1 <= self.budget < self.pool:
            raise StudyError(f"a budget of {self.budget} pairs leaves no choice in a pool of {self.pool}.")

    @property
    def name(self) -> str:
        """Plain and unique: ``pool16000_budget2000_wrong4_copies4_trained_scratch_64px``."""
        shares = f"wrong{100 * self.wrong:g}_copies{100 * self.duplicates:g}"
        return f"pool{self.pool}_budget{self.budget}_{shares}_{self.scorer}_{self.start}_{self.side}px"


@dataclass(frozen=True)
class Job:
    """One training: of a cell, on what a method chose there; seeds are those of pool, choice and training."""

    cell: Cell
    method: str
    seed: int  # of the pool and its patients, those of the tests among them
    choice: int = 0  # of the sampler's draw, within the pool
    training: int = 0  # of initialisation and order, within the choice

    @property
    def name(self) -> str:
        return f"{self.cell.name}/{self.method}/seed{self.seed}_choice{self.choice}_training{self.training}"

    def describe(self) -> dict:
        """As columns of a table."""
        own = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "cell"}
        return asdict(self.cell) | own


@dataclass(frozen=True)
class Question:
    """Cells and methods that answer one question."""

    name: str
    asks: str
    cells: tuple[Cell, ...]
    methods: tuple[str, ...]
    seeds: int  # pools
    repeats: int = 1  # choices in a pool, and trainings of a choice

    def list_jobs(self, seeds: int | None = None, first: int = 0) -> list[Job]:
        """Its trainings, pool by pool; of so many ``seeds`` from the ``first`` on, in place of its own number."""
        times, chosen = range(self.repeats), range(first, first + (self.seeds if seeds is None else seeds))
        return [
            Job(cell, method, seed, choice, training)
            for seed in chosen
            for cell in self.cells
            for choice in times
            for training in times
            for method in self.methods
        ]


@dataclass(frozen=True)
class Design:
    """Everything that is compared."""

    methods: Mapping[str, Mapping]  # how each method chooses
    questions: Mapping[str, Question] = field(default_factory=dict)
    centre: Cell | None = None  # from which the others differ

    def list_jobs(
        self,
        questions: Sequence[str] = (),
        seeds: int | None = None,
        first: int = 0,
        methods: Sequence[str] = (),
    ) -> list[Job]:
        """The trainings of the named questions, or of all, each once, in their order.

        With ``methods``, of these and of random choice alone.
        """
        for what, names, known in (("question", questions, self.questions), ("method", methods, self.methods)):
            for name in names:
                if name not in known:
                    guess = suggest(name, known, "choose one of them")
                    raise StudyError(f"there is no {what} {name!r}; there are {', '.join(known)}: {guess}.")
        asked = [self.questions[name] for name in questions or self.questions]
        jobs = dict.fromkeys(job for question in asked for job in question.list_jobs(seeds, first))
        return [job for job in jobs if not methods or job.method in (BASELINE, *methods)]


def read_design() -> Design:
    """The design of the study, ``design.yaml``."""
    content = read_data_beside(__file__)
    centre, methods, questions = content["centre"], content["methods"], {}
    for name, told in content["questions"].items():
        cells = tuple(Cell(**centre | own) for own in told.pop("cells"))
        questions[name] = Question(name, cells=cells, methods=tuple(told.pop("methods")), **told)
    return Design(methods, questions, Cell(**centre))
