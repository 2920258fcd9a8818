"""Public data sets, one YAML file each and, where a table needs code, a module of the same name beside it."""

from importlib import import_module
from pathlib import Path

from chexstudy.cohort.adapters.manifest import register

for _file in sorted(Path(__file__).parent.glob("*.yaml")):
    if _file.with_suffix(".py").is_file():
        import_module(f"{__name__}.{_file.stem}")
    else:
        register(str(_file))
