"""The files around the package say the same: pyproject, lock, conda environment, Makefile, JupyterLab settings."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from traitlets.config.loader import PyFileConfigLoader

from chexstudy import __version__, paths

ROOT = paths.REPOSITORY
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]

# conda-forge's names of the packages that pip names otherwise.
CONDA_NAMES = {
    "faiss-gpu-cu12": "faiss-gpu",
    "isal": "python-isal",
    "matplotlib": "matplotlib-base",
    "pandera": "pandera",
    "python-gdcm": "gdcm",
    "seaborn": "seaborn-base",
    "torch": "pytorch-gpu",
}
# What conda needs besides: the interpreter, the tools to install the package itself, and one CUDA for all.
CONDA_ONLY = {"python", "pip", "setuptools", "cuda-version"}

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def read_lock():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def make(*arguments, cwd=ROOT):
    command = ["make", "--no-print-directory", "-f", str(ROOT / "Makefile"), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_the_conda_environment_has_the_direct_dependencies_of_pyproject():
    lines = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = {requirement.name: requirement.specifier for requirement in map(as_requirement, lines)}
    direct = map(Requirement, [*PROJECT["dependencies"], *EXTRAS["gpu"], *EXTRAS["dev"]])
    pip = {CONDA_NAMES.get(requirement.name, requirement.name): requirement.specifier for requirement in direct}
    assert {name: spec for name, spec in conda.items() if name not in CONDA_ONLY} == pip


def as_requirement(line):
    # conda writes an exact version with one sign of equality.
    return Requirement(re.sub(r"(?<![<>=!~])=(?!=)", "==", line))


def test_the_conda_environment_takes_everything_from_one_channel_for_one_cuda():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    assert sum(line.startswith("cuda-version=") for line in environment["dependencies"]) == 1
    assert all(isinstance(line, str) for line in environment["dependencies"]), "no pip section"


def test_faiss_comes_in_one_build_at_a_time():
    assert not [line for line in PROJECT["dependencies"] if line.startswith("faiss")]
    assert [Requirement(line).name for line in EXTRAS["cpu"]] == ["faiss-cpu"]
    assert [Requirement(line).name for line in EXTRAS["gpu"] if line.startswith("faiss")] == ["faiss-gpu-cu12"]
    assert [requirement.name for requirement in read_lock() if requirement.name.startswith("faiss")] == ["faiss-cpu"]


def test_the_lock_pins_everything_and_no_gpu_package():
    lock = read_lock()
    assert [str(requirement) for requirement in lock if not str(requirement.specifier).startswith("==")] == []
    gpu = re.compile(r"nvidia|cuda|triton|cupy|gpu")
    assert [requirement.name for requirement in lock if gpu.search(requirement.name)] == []


@pytest.mark.parametrize("version", ["3.11", "3.12"])
def test_the_lock_satisfies_pyproject(version):
    environment = {"python_version": version, "python_full_version": f"{version}.9", "sys_platform": "linux"}
    locked = {
        requirement.name: next(iter(requirement.specifier)).version
        for requirement in read_lock()
        if requirement.marker is None or requirement.marker.evaluate(environment)
    }
    for line in [*PROJECT["dependencies"], *EXTRAS["cpu"], *EXTRAS["dev"], "setuptools>=77", "torch==2.13.0"]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(locked[requirement.name]), requirement
    assert locked["numpy"].startswith("2.")


def test_version_and_licence_are_said_once():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PROJECT["version"] == __version__ == citation["version"]
    assert PROJECT["license"] == citation["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text().startswith("MIT License\n\nCopyright (c) 2026 The chexstudy authors\n")


@needs_make
def test_make_alone_lists_every_target():
    text = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE).group(1).split()
    shown = make().stdout
    assert {"study", "test", "lab", "figures", "help"} <= set(targets)
    assert [target for target in targets if not re.search(rf"^  {target}  +\w", shown, re.MULTILINE)] == []


@needs_make
def test_make_refuses_another_python_in_one_sentence(tmp_path):
    old = tmp_path / "python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2 || exit 1\n')
    old.chmod(0o755)
    done = make("test", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}")
    assert done.returncode != 0
    assert "chexstudy needs Python 3.11 or 3.12, not Python 3.9.2: run make with PYTHON=python3.12." in done.stderr
    assert not (tmp_path / "venv").exists()


@needs_make
@pytest.mark.parametrize("target", ["study", "test", "lab", "figures"])
def test_every_target_makes_the_environment_from_the_lock_first(target, tmp_path):
    plan = make("--dry-run", target, f"VENV={tmp_path / 'venv'}").stdout
    assert plan.index("--requirement requirements.lock") < plan.rindex(f"{tmp_path}/venv/bin/")
    assert "--no-deps --no-build-isolation --editable ." in plan


def test_ci_stops_at_the_first_failure():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in script.read_text()
    assert script.read_text().rstrip().endswith("make test")


def test_pre_commit_uses_the_tools_of_the_lock():
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repository["repo"] for repository in repositories] == ["local"]
    assert {hook["id"] for hook in repositories[0]["hooks"]} == {"ruff-check", "ruff-format", "notebooks"}


def test_jupyterlab_opens_percent_files_as_notebooks(monkeypatch):
    from jupyter_server.services.config.manager import ConfigManager

    monkeypatch.setenv("JUPYTER_CONFIG_PATH", str(ROOT / ".jupyter"))
    overrides = ConfigManager(config_dir_name="labconfig").get("default_setting_overrides")
    viewers = overrides["@jupyterlab/docmanager-extension:plugin"]["defaultViewers"]
    assert viewers == {"python": "Jupytext Notebook"}
    assert overrides["@jupyterlab/apputils-extension:notification"] == {"checkForUpdates": False, "fetchNews": "false"}
    assert json.loads((ROOT / ".jupyter/jupyter_lab_config.json").read_text())["LabApp"]["news_url"] is None


PERCENT = '# %% [markdown]\n# # Tiny\n\n# %% tags=["parameters"]\nseed = 0  # seed\n\n# %%\nprint(seed)\n'


@needs_make
def test_sync_takes_the_newer_half_and_strips_outputs(tmp_path):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    shutil.copy(paths.NOTEBOOKS / "jupytext.toml", folder)
    source, twin = folder / "01_tiny.py", folder / "01_tiny.ipynb"
    source.write_text(PERCENT)

    def sync():
        done = make("sync", "STAMP=", f"BIN={Path(sys.executable).parent}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        # The source is written last, and who opens it is not told that its pair is newer.
        assert source.stat().st_mtime >= twin.stat().st_mtime
        return source.read_bytes(), twin.read_bytes()

    once = sync()
    kernelspec = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    assert json.loads(twin.read_text())["metadata"] == {"kernelspec": kernelspec}
    assert source.read_text().endswith(PERCENT)

    notebook = json.loads(twin.read_text())
    notebook["metadata"]["language_info"] = {"name": "python", "version": "3.11.7"}
    notebook["cells"][2] |= {"source": ["print(seed + 1)"], "execution_count": 3}
    notebook["cells"][2]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["1\n"]}]
    twin.write_text(json.dumps(notebook))
    newer = source.stat().st_mtime + 5
    os.utime(twin, (newer, newer))
    assert sync() == tuple(half.replace(b"print(seed)", b"print(seed + 1)") for half in once)


def copy_pair(folder):
    """A checkout of one pair, committed."""
    notebooks = folder / "notebooks"
    notebooks.mkdir(parents=True)
    for name in ("jupytext.toml", "03_watch_prototypes.py", "03_watch_prototypes.ipynb"):
        shutil.copy(paths.NOTEBOOKS / name, notebooks)
    for name in ("Makefile", ".gitattributes"):
        shutil.copy(ROOT / name, folder)
    for command in ("init -q", "add -A", "-c user.name=t -c user.email=t@t commit -q -m pair"):
        subprocess.run(["git", *command.split()], cwd=folder, check=True)
    return notebooks / "03_watch_prototypes.py", notebooks / "03_watch_prototypes.ipynb"


@needs_make
def test_a_run_notebook_shows_git_no_picture(tmp_path):
    _, twin = copy_pair(tmp_path)
    assert make("git-filter", f"BIN={Path(sys.executable).parent}", cwd=tmp_path).returncode == 0
    # What JupyterLab writes after a run, `record timing` switched on.
    notebook = json.loads(twin.read_text())
    notebook["metadata"]["language_info"] = {"name": "python", "version": "3.11.7"}
    notebook["metadata"]["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {}}}
    for number, cell in enumerate(cell for cell in notebook["cells"] if cell["cell_type"] == "code"):
        cell["outputs"] = [{"output_type": "display_data", "data": {"image/png": "iVBORw0KGgo="}, "metadata": {}}]
        cell["execution_count"] = number + 1
        cell["metadata"]["execution"] = {"iopub.status.busy": "2026-01-01T00:00:00Z"}
    twin.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
    after_saving = PyFileConfigLoader("jupyter_lab_config.py", str(ROOT / ".jupyter")).load_config()
    after_saving.FileContentsManager.post_save_hook(os_path=str(twin), model={}, contents_manager=None).wait()
    status = subprocess.run(["git", "status", "--porcelain"], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert status.stdout == ""
    subprocess.run(["git", "add", "-A"], cwd=tmp_path, check=True)
    stored = subprocess.run(["git", "show", f":notebooks/{twin.name}"], cwd=tmp_path, check=True, capture_output=True)
    assert b"iVBOR" not in stored.stdout
    # An edited cell is seen, and a checkout leaves what is run where it is committed: without outputs.
    twin.write_text(twin.read_text().replace("What must hold", "What should hold"))
    subprocess.run(["git", "add", "-A"], cwd=tmp_path, check=True)
    changed = subprocess.run(["git", "diff", "--cached", "--numstat"], cwd=tmp_path, check=True, capture_output=True)
    assert changed.stdout.split()[:2] == [b"1", b"1"]


@needs_make
@pytest.mark.parametrize("older", ["source", "twin"])
def test_jupyterlab_opens_both_halves_whichever_git_wrote_last(tmp_path, older):
    from jupyter_server.services.contents.largefilemanager import LargeFileManager
    from jupytext.sync_contentsmanager import build_sync_jupytext_contents_manager_class

    source, twin = copy_pair(tmp_path)
    hour_ago = source.stat().st_mtime - 3600
    os.utime(source if older == "source" else twin, (hour_ago, hour_ago))
    manager = build_sync_jupytext_contents_manager_class(LargeFileManager)(root_dir=str(tmp_path))
    cells = [
        manager.get(f"notebooks/{half.name}", type="notebook")["content"]["cells"] for half in (source, twin)
    ]  # fmt: skip
    assert len(cells[0]) == len(cells[1]) > 20
