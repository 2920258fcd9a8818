"""Profiles: named sets of notebook parameters, one YAML file each in ``notebooks/profiles``.

A profile holds ``title``, ``description``, ``cost`` (what it takes, in words), ``defaults`` (given to every notebook
that has such a parameter) and ``notebooks`` (values for one notebook, by its name). Values are checked as strictly as
those of the command line: a default that no notebook takes is an error, not a silent nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from chexstudy import paths
from chexstudy.errors import StudyError, suggest
from chexstudy.inputs.yaml_files import read_yaml
from chexstudy.workflow.parameters import Parameter, check_names, check_value, check_values, parse_text

_FIELDS = ("title", "description", "cost", "defaults", "notebooks")


@dataclass(frozen=True)
class Profile:
    """What a profile file says."""

    name: str
    title: str = ""
    description: str = ""
    cost: str = ""
    defaults: dict[str, object] = field(default_factory=dict)
    notebooks: dict[str, dict[str, object]] = field(default_factory=dict)

    def value(self, notebook: str, parameter: Parameter) -> object:
        """What a notebook's parameter is in this profile, its own default included."""
        own = self.notebooks.get(notebook, {})
        given = own.get(parameter.name, self.defaults.get(parameter.name, parameter.default))
        return check_value(parameter, given, f"{notebook} (profile {self.name!r})")


def list_profiles(folder: Path | None = None) -> list[str]:
    """Names of the profiles at hand."""
    return sorted(path.stem for path in (folder or paths.PROFILES).glob("*.yaml"))


def read_profile(name: str, folder: Path | None = None) -> Profile:
    """Read a profile by name, or by the path of a YAML file of your own."""
    folder = folder or paths.PROFILES
    path = paths.resolve_user_path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not path.is_file():
        known = list_profiles(folder)
        guess = suggest(name, known, "choose one, or give the path of a .yaml file")
        raise StudyError(f"there is no profile {name!r}; the profiles are {', '.join(known) or 'none'}: {guess}.")
    content = read_yaml(path, "profile") or {}
    if not isinstance(content, dict):
        raise StudyError(f"profile {path} must hold the fields {', '.join(_FIELDS)}, not a {type(content).__name__}.")
    unknown = [str(key) for key in content if key not in _FIELDS]
    if unknown:
        raise StudyError(f"profile {path} has an unknown field {unknown[0]!r}; the fields are {', '.join(_FIELDS)}.")
    defaults, notebooks = content.get("defaults") or {}, content.get("notebooks") or {}
    sets = [defaults, notebooks, *(notebooks.values() if isinstance(notebooks, dict) else [])]
    if not all(isinstance(values, dict) for values in sets):
        raise StudyError(f"profile {path}: defaults and every entry of notebooks must be `name: value` lines.")
    texts = {key: " ".join(str(content.get(key) or "").split()) for key in ("title", "description", "cost")}
    return Profile(path.stem, **texts, defaults=defaults, notebooks=notebooks)


def resolve_parameters(
    declared: Mapping[str, Mapping[str, Parameter]],
    profile: Profile,
    chosen: list[str],
    overrides: Mapping[str, object],
    study: str,
    *,
    from_text: bool = False,
) -> dict[str, dict[str, object]]:
    """The values every chosen notebook is started with: profile defaults, profile values, overrides, then the study.

    The profile is checked against all notebooks, which are ``declared``; each override must be a parameter of at least
    one chosen notebook. With ``from_text`` they were typed by a user and are converted to the declared type.
    """
    origin = f"profile {profile.name!r}"
    for notebook in profile.notebooks:
        if notebook not in declared:
            guess = suggest(str(notebook), declared, "choose one there is")
            raise StudyError(f"{origin} names a notebook {notebook!r} that does not exist: {guess}.")
    check_names(profile.defaults, _union(declared, declared), f"the study ({origin})")
    for name in overrides:
        declaring = [notebook for notebook, parameters in declared.items() if name in parameters]
        if declaring and not set(declaring) & set(chosen):
            numbers = " ".join(notebook[:2] for notebook in (declaring[0], *chosen))
            raise StudyError(
                f"{name} is a parameter of {', '.join(declaring)}: run that with it, as in `chexstudy run {numbers}`."
            )
    check_names(overrides, _union(declared, chosen), chosen[0] if len(chosen) == 1 else "the study")
    resolved = {}
    for notebook, parameters in declared.items():
        values = {name: value for name, value in profile.defaults.items() if name in parameters}
        values = check_values(parameters, values | profile.notebooks.get(notebook, {}), f"{notebook} ({origin})")
        mine = {name: value for name, value in overrides.items() if name in parameters}
        if from_text:
            mine = {name: parse_text(parameters[name], value, notebook) for name, value in mine.items()}
        own = {"study": study} if "study" in parameters else {}
        resolved[notebook] = values | check_values(parameters, mine, notebook) | own
    return {notebook: resolved[notebook] for notebook in chosen}


def _union(declared: Mapping[str, Mapping[str, Parameter]], notebooks: Iterable[str]) -> list[str]:
    return sorted({name for notebook in notebooks for name in declared[notebook]})
