"""The verb that looks at this installation, for bug reports and first looks: doctor."""

import os
import platform
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from importlib import metadata

from chexstudy import paths
from chexstudy.cli.parser import verb

_PACKAGES = ("torch", "transformers", "numpy", "pandas", "scikit-learn", "umap-learn", "papermill", "jupytext")
_FAISS_BUILDS = ("faiss-cpu", "faiss-gpu-cu12", "faiss-gpu", "faiss")
_GIB = 2**30


@verb("doctor", "look at this installation")
def doctor(options: Namespace) -> int:
    """Print versions, GPU, faiss build and where things live, and name what is wrong. Put it in bug reports.

    example:
      chexstudy doctor

    writes: nothing; exit status 1 if there is a problem
    """
    from chexstudy.workflow.notebook import notebook_environment

    sections = {"Versions": _versions(), "Machine": _machine(), "Places": _places()}
    found = {title: dict(lines) for title, lines in sections.items()} | {"Environment": notebook_environment()}
    width = max(len(name) for section in found.values() for name in section)
    for title, section in found.items():
        print(title, *(f"  {name:<{width}}  {value}" for name, value in section.items()), "", sep="\n")
    problems = _find_problems()
    print(*([f"Problem: {problem}" for problem in problems] or ["No problem found."]), sep="\n")
    return 1 if problems else 0


def _find_problems() -> list[str]:
    found = []
    if not (3, 11) <= sys.version_info[:2] <= (3, 12):
        found.append(f"Python {platform.python_version()} is not supported: use 3.11 or 3.12.")
    builds = _installed_faiss()
    if len(builds) > 1 and any("gpu" in build for build in builds):
        found.append(f"{' and '.join(builds)} overwrite each other: uninstall all of them, then install one again.")
    try:
        paths.runs().mkdir(parents=True, exist_ok=True)
        writable = os.access(paths.runs(), os.W_OK)
    except OSError:
        writable = False
    if not writable:
        found.append(f"{paths.runs()} cannot be written: set CHEXSTUDY_HOME to a folder of yours.")
    if not paths.NOTEBOOKS.is_dir():
        found.append(f"there are no notebooks at {paths.NOTEBOOKS}: install from a checkout with `pip install -e .`.")
    return found


def _versions() -> Iterator[tuple[str, str]]:
    from chexstudy.code_closure import code_revision

    yield "chexstudy", f"{metadata.version('chexstudy')} ({code_revision()})"
    yield "python", f"{platform.python_version()} ({sys.executable})"
    for name in _PACKAGES:
        yield name, _version(name)
    yield "faiss", _faiss()


def _version(name: str) -> str:
    return next((found.version for found in metadata.distributions(name=name)), "not installed")


def _installed_faiss() -> list[str]:
    return [name for name in _FAISS_BUILDS if _version(name) != "not installed"]


def _faiss() -> str:
    """The faiss build, after really importing it: a wrong CUDA build fails only there."""
    from chexstudy.vectors.neighbours import count_faiss_gpus, load_faiss

    builds = ", ".join(f"{name} {_version(name)}" for name in _installed_faiss()) or "not installed by pip"
    if not load_faiss():
        return f"{builds}; cannot be imported, k-means runs on torch"
    return f"{builds}, {count_faiss_gpus()} GPU(s) for faiss"


def _machine() -> Iterator[tuple[str, str]]:
    import torch

    from chexstudy.devices import memory_of

    yield "system", platform.platform()
    yield "cpu cores", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    yield "memory", f"{memory_of('cpu') / _GIB:.1f} GiB"
    yield "torch threads", str(torch.get_num_threads())
    yield "torch built for", f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    if not torch.cuda.is_available():
        yield "GPU", "none; everything runs on the CPU"
        return
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        yield f"GPU {index}", f"{device.name}, {device.total_memory / _GIB:.0f} GiB, {bf16}"
    yield "GPU driver", _driver()


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown (nvidia-smi gave no answer)"


def _places() -> Iterator[tuple[str, str]]:
    from chexstudy.workflow.studies import list_studies

    yield "checkout", str(paths.REPOSITORY)
    yield "runs", f"{paths.runs()} ({_free(paths.home())})"
    yield "cache", str(paths.cache())
    yield "notebooks", str(paths.NOTEBOOKS)
    yield "models", os.environ.get("HF_HOME") or "~/.cache/huggingface"
    yield "studies", ", ".join(list_studies()) or "none yet"


def _free(folder: os.PathLike) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / _GIB:.0f} GiB free"
    except OSError:
        return "not there yet"
