"""What a study is: the profile it was begun with and every value given since, kept in ``runs/<study>/study.json``.

A notebook or command takes what it is not told from there. One that asks for another value than the study has is
stopped, since its artifacts would be compared with those of the old value; to accept the change tells what is stale
from then on. A value counts once a notebook that takes it has left something behind.
"""

import json
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from chexstudy import paths
from chexstudy.errors import StudyError
from chexstudy.runs import Run, read_record, write_record
from chexstudy.workflow.parameters import Parameter, check_names, check_value, read_parameters
from chexstudy.workflow.profiles import Profile, list_profiles, read_profile

RECORD = "study.json"
# Parameters that are no part of what a study is; they may differ from run to run.
FREE = frozenset(
    (
        # How the machine works, and what is shown.
        *("device", "workers", "arms_at_once", "micro_batch", "show_reports", "examples", "robustness_arms"),
        *("groupings", "baseline", "prevalences"),
        # What adds seeds, arms, methods, measurements or precision to those that are there.
        *("seed", "seeds", "arms", "arm", "budgets", "variants", "methods", "adapted_arms", "heads", "glori_heads"),
        *("label_shares", "tune", "detail_seeds", "horizons", "probe", "prompt_file", "encoders", "draws", "grid"),
        *("forecast_from", "resamples", "questions", "pools"),
        # What is asked of learning curves that are there.
        *("early", "target", "population", "pool_findings"),
        *("minutes_per_case", "readers", "price_per_hour", "currency"),
    )
)
# Constants of training that change how it is watched, and no result.
OBSERVATION = ("checkpoint_minutes", "tracker")
# Where a notebook is told to accept other values.
CHANGE = "change"
_NO_VALUES = ("study", CHANGE)
# Kept as absolute paths.
FOLDERS = ("data_root", "prompt_file")
# Later notebooks read what these make, and nothing of each other.
_READ_BY_LATER = ("01", "02", "03", "04")
# What trains without a notebook, under the values of the notebook that does the same.
ENGINE = "04_pretrain_curated (engine)"
# What a build of a cohort writes before there is one, and what is written of any run.
_MAKES_NOTHING = ("pixels", "images", "timings")


@dataclass
class Identity:
    """A study's profile and values."""

    profile: Profile  # as it was when the study was last run with it
    # Values that differ from the profile's, by parameter; those of a parameter that the profile gives a notebook of its
    # own are under ``NOTEBOOK.PARAMETER``.
    changed: dict[str, object] = field(default_factory=dict)
    # Of each that was started its ``values``, when (``started``, in seconds since 1970), whether it has ``made``
    # something, and the parameters that make it ``stale``.
    notebooks: dict[str, dict] = field(default_factory=dict)

    def value(self, notebook: str, parameter: Parameter) -> object:
        """The study's value of a parameter in a notebook."""
        own = self.changed.get(self._key(notebook, parameter.name), self.profile.value(notebook, parameter))
        return check_value(parameter, own, f"{notebook} (as recorded in {RECORD})")

    def _key(self, notebook: str, name: str) -> str:
        return f"{notebook}.{name}" if name in self.profile.notebooks.get(notebook, {}) else name

    def holders(self, notebook: str, name: str) -> list[str]:
        """Notebooks that have made something with the value of this notebook's parameter."""
        made = [one for one, entry in self.notebooks.items() if entry["made"] and name in entry["values"]]
        return [one for one in made if self._key(one, name) == self._key(notebook, name)]

    def set(self, notebook: str, parameter: Parameter, value: object) -> None:
        """Let a value be the study's."""
        key = self._key(notebook, parameter.name)
        if value == self.profile.value(notebook, parameter):
            self.changed.pop(key, None)
        else:
            # The next run may be started elsewhere.
            self.changed[key] = _resolve(parameter.name, value)


def read_identity(run: Run) -> Identity | None:
    """What a study is, or None if nobody has said so yet."""
    content = read_record(run.path(RECORD))
    if content is None:
        return None
    try:
        identity = Identity(Profile(**content["profile"]), content["changed"], content["notebooks"])
    except (KeyError, TypeError):
        raise StudyError(
            f"{RECORD}, which says what study {run.study!r} is, is damaged or was edited: remove it from {run.folder} "
            "and give the profile and all parameters again."
        ) from None
    if _is_of_older_version(run) and identity.profile.name in list_profiles():
        # Some of its parameters may have other names now.
        identity.profile = read_profile(identity.profile.name)
    for name, entry in identity.notebooks.items():
        entry["made"] = entry["made"] or _has_sealed(run, name, entry["started"])
    return identity


def _is_of_older_version(run: Run) -> bool:
    """Whether the pixels were stored before artifacts were keyed by the code that makes them."""
    record = run.provenance("pixels/manifest.json")
    return record is not None and "module" not in record


def write_identity(run: Run, identity: Identity) -> None:
    """Keep what a study is."""
    write_record(run.path(RECORD), asdict(identity))


def choose_profile(run: Run, given: str | None, folder: Path | None = None) -> Profile:
    """The profile a study is run with: the given one, else its own, else the one of its name, else the default."""
    identity = read_identity(run) if given is None else None
    if identity is not None:
        return identity.profile
    known = list_profiles(folder)
    if given is None and not known:
        return Profile("demo")
    return read_profile(given or (run.study if run.study in known else "demo"), folder)


def settle_values(
    run: Run,
    declared: Mapping[str, Mapping[str, Parameter]],
    asked: Mapping[str, Mapping[str, object]],
    profile: Profile,
    *,
    is_given: bool = False,
    accepted: Collection[str] | bool = (),
    how: str = "accept them with --change {names}",
) -> dict[str, dict[str, object]]:
    """All values of the notebooks that will run, by notebook, kept as the study's.

    By notebook, ``declared`` are its parameters and ``asked`` is what the user gave to those that will run. Those that
    are ``accepted`` may change, all if it is True; ``how`` tells the user how to accept.
    """
    if _is_of_older_version(run):
        print(
            f"Study {run.study!r} was made by a version of chexstudy before this one: run all its notebooks again "
            f"(`chexstudy run all --study {run.study}`), which make anew what is there and keep its values.",
            flush=True,
        )
    identity = read_identity(run) or Identity(profile)
    made = any(entry["made"] for entry in identity.notebooks.values())
    if not is_given:
        profile = identity.profile
    if not made and identity.profile.name != profile.name:
        identity = Identity(profile)
    before = identity.profile
    values: dict[str, dict[str, object]] = {}
    differences: dict[str, tuple[object, object]] = {}
    holders: dict[str, None] = {}
    if made and before.name != profile.name:
        differences["profile"] = before.name, profile.name
    for notebook, mine_asked in asked.items():
        values[notebook] = mine = {}
        for name, parameter in declared[notebook].items():
            if name in _NO_VALUES:
                continue
            recorded, from_profile = identity.value(notebook, parameter), profile.value(notebook, parameter)
            of_recorded = () if is_free(name) else identity.holders(notebook, name)
            if name in mine_asked:
                mine[name] = mine_asked[name]
            elif is_given and (not of_recorded or from_profile != before.value(notebook, parameter)):
                mine[name] = from_profile
            else:
                mine[name] = recorded
            if of_recorded and _canonical(name, mine[name]) != _canonical(name, recorded):
                differences[name] = recorded, mine[name]
                holders |= dict.fromkeys(of_recorded)
    refused = [name for name in differences if accepted is not True and name not in (accepted or ())]
    if refused:
        listed = ", ".join(_tell_difference(name, *differences[name]) for name in refused)
        raise StudyError(
            f"study {run.study!r} has other values than this run asks for: {listed}; leave them out to go on with the "
            f"study's own, name another study, or {how.format(names=','.join(refused))}."
        )
    # Another profile changes nothing for the notebooks that do not run now.
    others = {
        notebook: {name: identity.value(notebook, one) for name, one in parameters.items() if name not in _NO_VALUES}
        for notebook, parameters in declared.items()
        if notebook in identity.notebooks and notebook not in asked
    }
    identity.profile = profile
    for notebook, mine in (others | values).items():
        for name, value in mine.items():
            identity.set(notebook, declared[notebook][name], value)
    if differences:
        _mark_stale(run, identity, differences, holders, asked)
    write_identity(run, identity)
    return values


def begin_notebook(run: Run, notebook: str, values: Mapping[str, object]) -> None:
    """Record that a notebook starts with these values."""
    identity = read_identity(run)
    made = identity.notebooks.get(notebook, {}).get("made", False)
    values = {name: value for name, value in values.items() if name not in _NO_VALUES}
    identity.notebooks[notebook] = {"started": time.time(), "made": made, "values": values, "stale": []}
    write_identity(run, identity)


def add_values(run: Run, notebook: str, values: Mapping[str, object]) -> None:
    """Record that a notebook under way builds on values that another one declares."""
    identity = read_identity(run)
    identity.notebooks[notebook]["values"] |= values
    write_identity(run, identity)


def settle_store(run: Run, size: int, fit: str) -> None:
    """Let the pixels that a study was converted to be its own, and tell what is stale from then on."""
    name, identity = "01_build_cohort", read_identity(run)
    if identity is not None:
        declared = {name: read_parameters(paths.NOTEBOOKS / f"{name}.py")}
        asked = {name: {"image_size": size, "fit": fit}}
        begin_notebook(run, name, settle_values(run, declared, asked, identity.profile, accepted=True)[name])


def end_notebook(run: Run, notebook: str) -> None:
    """Record that a notebook came to its end."""
    identity = read_identity(run)
    if identity is not None and notebook in identity.notebooks:
        identity.notebooks[notebook]["made"] = True
        write_identity(run, identity)


def is_free(parameter: str) -> bool:
    """Whether a parameter may differ from run to run without changing what the study is."""
    return parameter in FREE


def check_accepted(names: Iterable[str], declared: Mapping[str, Mapping[str, Parameter]]) -> None:
    """Raise a StudyError if a name is no parameter that a study could change."""
    known = dict.fromkeys(name for parameters in declared.values() for name in parameters if name not in _NO_VALUES)
    check_names(names, ["profile", *known], "the study")


def _resolve(name: str, value: object) -> object:
    return str(paths.resolve_user_path(value)) if name in FOLDERS and value else value


def _canonical(name: str, value: object) -> object:
    if name != "constants":
        return _resolve(name, value)
    given, constants = (assignment.replace(" ", "").partition("=") for assignment in value), {}
    for constant, _, text in given:
        try:
            constants[constant] = float(text)
        except ValueError:
            constants[constant] = text.lower()
    return {constant: one for constant, one in constants.items() if constant not in OBSERVATION}


def _tell_difference(name: str, recorded: object, asked: object) -> str:
    # Notebooks keep this sentence, and folders are nobody else's business.
    return f"{name} to another place" if name in FOLDERS else f"{name} {recorded!r} -> {asked!r}"


def _mark_stale(
    run: Run, identity: Identity, names: Iterable[str], holders: Iterable[str], running: Collection[str]
) -> None:
    """Mark what was made with the old values, and tell it but for what runs now."""
    direct = sorted(holders)
    builds_on = bool(direct) and direct[0][:2] in _READ_BY_LATER
    later = [
        one
        for one, entry in sorted(identity.notebooks.items())
        if builds_on and entry["made"] and one not in direct and one > direct[0]
    ]
    for notebook in (*direct, *later):
        entry = identity.notebooks[notebook]
        entry["stale"] = sorted({*entry["stale"], *names} - {"profile"})
    text = f"Study {run.study!r} changes: {', '.join(names)}."
    for words, stale in (
        ("Made with the old values and stale until they are run again", direct),
        ("What may build on them", later),
    ):
        left = [one for one in stale if one not in running]
        text += f" {words}: {', '.join(left)}." if left else ""
    print(text, flush=True)


def _has_sealed(run: Run, notebook: str, since: float) -> bool:
    """Whether a notebook that has not come to its end has made an artifact since it was started."""
    folder = run.path("provenance")
    for path in folder.rglob("*.json"):
        place = path.relative_to(folder).parts[0]
        # A record that was damaged, or is gone by now, tells nothing.
        with suppress(OSError, ValueError, AttributeError):
            if place not in _MAKES_NOTHING and path.stat().st_mtime > since:
                record = json.loads(path.read_bytes())
                if record.get("made_by", ENGINE if place == "pretraining" else "") == notebook:
                    return True
    return False
