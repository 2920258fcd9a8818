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
def test_sync_is_a_fixed_point_takes_the_newer_half_and_strips_outputs(tmp_path):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    shutil.copy(paths.NOTEBOOKS / "jupytext.toml", folder)
    source, twin = folder / "01_tiny.py", folder / "01_tiny.ipynb"
    source.write_text(PERCENT)

    def sync():
        done = make("sync", "STAMP=", f"BIN={Path(sys.executable).parent}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return source.read_bytes(), twin.read_bytes()

    once = sync()
    kernelspec = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    assert json.loads(twin.read_text())["metadata"] == {"kernelspec": kernelspec}
    assert source.read_text().endswith(PERCENT)
    assert sync() == once

    notebook = json.loads(twin.read_text())
    notebook["metadata"]["language_info"] = {"name": "python", "version": "3.11.7"}
    notebook["cells"][2] |= {"source": ["print(seed + 1)"], "execution_count": 3}
    notebook["cells"][2]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["1\n"]}]
    twin.write_text(json.dumps(notebook))
    newer = source.stat().st_mtime + 5
    os.utime(twin, (newer, newer))
    assert sync() == tuple(half.replace(b"print(seed)", b"print(seed + 1)") for half in once)
