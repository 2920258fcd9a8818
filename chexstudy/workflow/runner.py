"""Runs notebooks without a screen: the percent-format source, converted in memory, executed by papermill.

Everything is checked before the first cell runs: notebooks, profile, names and types of parameters. The kernel is this
very interpreter, whatever kernels are registered on the machine, and talks over sockets in a folder of its own, so that
runs started side by side never meet.
"""

import ast
import contextlib
import logging
import os
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from chexstudy import paths
from chexstudy.children import fits_sockets, temporary_folder
from chexstudy.errors import StudyError, suggest
from chexstudy.runs import Run, atomic_path, remove_leftovers
from chexstudy.workflow.executed import clean_notebook, hide_names
from chexstudy.workflow.identity import (
    CHANGE,
    begin_notebook,
    check_accepted,
    choose_profile,
    end_notebook,
    is_free,
    read_identity,
    settle_values,
)
from chexstudy.workflow.locks import hold_study
from chexstudy.workflow.notebook import notebook_environment
from chexstudy.workflow.parameters import Parameter, check_values, read_parameters, split_cells
from chexstudy.workflow.profiles import Profile, read_profile, resolve_parameters
from chexstudy.workflow.timings import read_timings, record_timing
from chexstudy.workflow.warm import start_python, warm_process


class NotebookFailure(StudyError):
    """A notebook stopped. ``by_study`` tells a problem the user can mend from an unexpected exception."""

    def __init__(self, sentence: str, executed: Path, by_study: bool):
        super().__init__(f"{sentence}\nThe notebook up to there: {executed}")
        self.sentence = sentence
        self.executed = executed
        self.by_study = by_study


def list_notebooks(folder: Path | None = None) -> list[str]:
    """Names of the notebooks in the order they run, for example ``01_build_cohort``."""
    folder = folder or paths.NOTEBOOKS
    names = sorted(path.stem for path in folder.glob("[0-9][0-9]_*.py"))
    if not names:
        raise StudyError(
            f"there are no notebooks at {folder}: install chexstudy from a checkout with `pip install -e .`."
        )
    return names


def find_notebook(name: str, folder: Path | None = None) -> str:
    """The notebook meant by a full name, a file name, or a number such as ``4`` or ``04``."""
    known = list_notebooks(folder)
    wanted = Path(name).stem
    if wanted in known:
        return wanted
    numbered = [notebook for notebook in known if wanted.isdigit() and int(notebook[:2]) == int(wanted)]
    if numbered:
        return numbered[0]
    guess = suggest(wanted, known, "choose one, or all", cutoff=0.4)
    raise StudyError(f"there is no notebook {name!r}; the notebooks are {', '.join(known)}: {guess}.")


def run_notebooks(
    names: list[str] | None,
    profile: str | None = None,
    parameters: Mapping[str, object] | None = None,
    *,
    study: str | None = None,
    change: Collection[str] = (),
    from_text: bool = False,
    online: bool = False,
    quiet: bool = False,
    folder: Path | None = None,
) -> list[Path]:
    """Run notebooks one after the other into ``runs/<study>/notebooks``.

    All of them if ``names`` is None, under the study's own profile if none is given, and in the study that is called
    like the profile if none is named. ``parameters`` win over the profile's values; each is given to the notebooks that
    take it, and at least one must; ``from_text``, they are converted to the declared types. Those named in ``change``
    may differ from what the study has. ``folder`` is where the notebooks lie, with their profiles in ``profiles/``.

    Gives the paths of the executed notebooks. Where one stops, the cells up to there are kept as
    ``NN_name.failed.ipynb``.
    """
    # No process can start in a folder that was removed.
    paths.working_folder()
    folder = folder or paths.NOTEBOOKS
    known = list_notebooks(folder)
    chosen = known if names is None else [find_notebook(name, folder) for name in names]
    overrides = dict(parameters or {})
    run = Run(_choose_study(overrides, study, profile, folder))
    declared = {name: read_parameters(folder / f"{name}.py") for name in known}
    check_accepted(change, declared)
    plan = choose_profile(run, profile, folder / "profiles")
    resolve_parameters(declared, plan, chosen, overrides, run.study, from_text=from_text)
    asked = resolve_parameters(declared, Profile(plan.name), chosen, overrides, run.study, from_text=from_text)
    # What notebooks are told accepts all.
    accepted = True if any(values.get(CHANGE) for values in asked.values()) else change
    with hold_study(run, f"a run of {chosen[0]}" + f" to {chosen[-1]}" * (len(chosen) > 1)):
        values = settle_values(run, declared, asked, plan, is_given=profile is not None, accepted=accepted)
        print(f"{plan.title or plan.name}: {plan.description}".rstrip(": "))
        if plan.cost:
            print(f"Expected cost{' of all notebooks together' * (chosen != known)}: {plan.cost}")
        print(f"Study {run.study!r} is written to {run.folder}", flush=True)
        return _execute_in_order(folder, run, declared, values, plan.name, online=online, quiet=quiet)


def rerun_notebooks(study: str, *, quiet: bool = False, folder: Path | None = None) -> list[Path]:
    """Run the notebooks of a study again with its values and what else they were last run with.

    Steps whose artifacts are current are reused, so this draws the figures anew.
    """
    folder = folder or paths.NOTEBOOKS
    run = Run(study)
    declared, asked, records = {}, {}, read_timings(run)
    if not records:
        raise StudyError(f"no notebook of study {study!r} was run yet: run `chexstudy run all --study {study}` first.")
    is_known = read_identity(run) is not None
    for name in records:
        declared[name] = read_parameters(folder / f"{name}.py")
        recorded = check_values(declared[name], records[name]["parameters"], f"{name} (as it was run last)")
        # The values that make the study what it is may have changed since.
        asked[name] = {
            parameter.name: recorded.get(parameter.name, parameter.default)
            for parameter in declared[name].values()
            if is_free(parameter.name) or not is_known
        }
    plan = choose_profile(run, None, folder / "profiles")
    with hold_study(run, "`chexstudy figures`"):
        values = settle_values(run, declared, asked, plan)
        return _execute_in_order(folder, run, declared, values, plan.name, online=False, quiet=quiet)


def _execute_in_order(
    folder: Path,
    run: Run,
    declared: Mapping[str, Mapping[str, Parameter]],
    values: Mapping[str, dict[str, object]],
    profile: str,
    *,
    online: bool,
    quiet: bool,
) -> list[Path]:
    """Execute the notebooks of ``values``, say how far they are, and record what each took."""
    executed, states = [], {}
    remove_leftovers(run.folder)
    sources = [folder / f"{name}.py" for name in values]
    environment = notebook_environment(online) | {
        "CHEXSTUDY_HEADLESS": "1",
        "CHEXSTUDY_CWD": str(paths.working_folder()),
        # The warm process may import matplotlib before a kernel says this.
        "MPLBACKEND": os.environ.get("MPLBACKEND", "module://matplotlib_inline.backend_inline"),
    }
    with warm_process(["import ipykernel.kernelapp", *_list_imports(sources)], environment) as warm:
        environment |= warm
        try:
            for position, (name, settled) in enumerate(values.items(), start=1):
                # What is written into the executed notebook: the values that are not the notebook's own.
                parameters = {one: value for one, value in settled.items() if value != declared[name][one].default}
                parameters |= {"study": run.study} if "study" in declared[name] else {}
                place = f"[{position}/{len(values)}] {name}"
                print(place, flush=True)
                start, state, kernels = time.monotonic(), "failed", []
                begin_notebook(run, name, settled)
                try:
                    executed.append(_execute(sources[position - 1], run, parameters, environment, kernels, quiet=quiet))
                    state = "done"
                    end_notebook(run, name)
                except KeyboardInterrupt:
                    state = "stopped"
                    raise
                finally:
                    states[name] = state, time.monotonic() - start
                    print(f"{place} {state} after {states[name][1]:.1f} s", flush=True)
                    largest = max((getattr(one, "largest_bytes", 0) for one in kernels), default=0)
                    record_timing(run, name, *states[name], profile, parameters, largest)
        finally:
            _summarise(states, list(values), run)
    return executed


def _list_imports(sources: Iterable[Path]) -> list[str]:
    statements = []
    for source in sources:
        # Lines of IPython, which are no Python, stand in their own cells.
        for _, cell in split_cells(source):
            with contextlib.suppress(SyntaxError):
                body = ast.parse(cell).body
                statements += [ast.unparse(one) for one in body if isinstance(one, ast.Import | ast.ImportFrom)]
    return list(dict.fromkeys(statements))


def _choose_study(overrides: dict[str, object], study: str | None, profile: str | None, folder: Path) -> str:
    given = overrides.pop("study", None)
    if given is not None and study is not None and given != study:
        raise StudyError(f"the study is named twice, {study!r} and {given!r}: give it once.")
    chosen = given if given is not None else study
    return str(chosen if chosen is not None else read_profile(profile or "demo", folder / "profiles").name)


def _execute(
    source: Path, run: Run, values: dict[str, object], environment: dict[str, str], kernels: list, *, quiet: bool
) -> Path:
    """Execute one notebook into the run folder and return where it lies; its process is put into ``kernels``."""
    import jupytext
    import papermill
    from nbclient.exceptions import DeadKernelError

    # Failures are told once, below, in our own words; asyncio would tell again of a kernel that Ctrl-C ended.
    for name in ("papermill", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    notebook = jupytext.read(source, fmt="py:percent")
    notebook.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3 (ipykernel)"}
    final = run.path(f"notebooks/{source.stem}.ipynb")
    failed = final.with_suffix(".failed.ipynb")
    with temporary_folder() as sockets, atomic_path(final) as partial, _kept_on_failure(partial, failed):
        try:
            papermill.execute_notebook(
                notebook,
                # papermill fills parameters into the braces of a path.
                str(partial).replace("{", "{{").replace("}", "}}"),
                parameters=values,
                kernel_name="python3",
                language="python",
                progress_bar=False,
                stdout_file=None if quiet else _IndentedLines(),
                kernel_manager_class=_kernel_manager(sockets, os.environ | environment, kernels),
            )
        except papermill.PapermillExecutionError as error:
            by_study = error.ename == StudyError.__name__
            last_words = error.evalue if by_study else f"{error.ename}: {error.evalue}".strip().splitlines()[0]
            last_words = hide_names(run, last_words)
            sentence = last_words if by_study else f"{source.stem} stopped in cell {error.exec_count} with {last_words}"
            raise NotebookFailure(sentence, failed, by_study) from None
        except DeadKernelError:
            print((sockets / "kernel.log").read_text(errors="replace")[-4000:], file=sys.stderr, end="")
            raise NotebookFailure(
                f"{source.stem}: its Python process died, most often because memory ran out: try a smaller profile.",
                failed,
                by_study=False,
            ) from None
        finally:
            clean_notebook(partial, run)
    failed.unlink(missing_ok=True)
    return final


@contextlib.contextmanager
def _kept_on_failure(partial: Path, failed: Path) -> Iterator[None]:
    """Keep what was executed so far where the user can look at it."""
    try:
        yield
    except OSError:
        # A full disk cut the notebook itself off: half a file is of no use to anyone.
        raise
    except BaseException:
        if partial.exists():
            os.replace(partial, failed)
        raise


def _kernel_manager(sockets: Path, environment: dict[str, str], started: list) -> type:
    """A kernel manager class for one run: this interpreter, with sockets of its own; its process is put into a list."""
    import zmq
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from jupyter_client.provisioning import LocalProvisioner

    address = {"transport": "ipc", "ip": f"{sockets}/kernel"} if zmq.has("ipc") and fits_sockets(sockets) else {}

    class OwnProcess(LocalProvisioner):
        async def launch_kernel(self, cmd: list[str], **options) -> dict:
            # What notebooks print is captured; the kernel's own last words would only clutter a Ctrl-C.
            with open(sockets / "kernel.log", "wb") as log:
                self.process = start_python(cmd[0], cmd[1:], environment, log.fileno(), paths.working_folder())
            self.pid = self.pgid = self.process.pid
            started.append(self.process)
            return self.connection_info

    class OwnKernel(AsyncKernelManager):
        kernel_spec = KernelSpec(argv=["ipykernel_launcher", "-f", "{connection_file}"], language="python")

        def __init__(self, **options):
            super().__init__(**options, **address, connection_file=f"{sockets}/connection.json")
            self.provisioner = OwnProcess(kernel_id="chexstudy", kernel_spec=self.kernel_spec, parent=self)

    return OwnKernel


class _IndentedLines:
    def __init__(self):
        self._at_line_start = True

    def write(self, text: str) -> None:
        for line in text.splitlines(keepends=True):
            sys.stdout.write(("      " if self._at_line_start else "") + line)
            self._at_line_start = line.endswith("\n")

    def flush(self) -> None:
        sys.stdout.flush()


def _summarise(states: Mapping[str, tuple[str, float]], planned: list[str], run: Run) -> None:
    if len(planned) > 1:
        width = max(map(len, planned))
        print(f"\n{'notebook':<{width}}  {'state':<8}  seconds")
        for name in planned:
            state, seconds = states.get(name, ("not run", 0.0))
            print(f"{name:<{width}}  {state:<8}  {seconds:7.1f}")
        print(f"{'all':<{width}}  {'':<8}  {sum(seconds for _, seconds in states.values()):7.1f}")
    print(f"Executed notebooks and artifacts: {run.folder}", flush=True)
