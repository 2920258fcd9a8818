"""A look at the options of methods before anything long begins."""

import math

from chexstudy.errors import StudyError


def check_option(name: str, value: float, least: float, most: float = math.inf) -> None:
    """Raise a StudyError unless the option lies from ``least`` to ``most``."""
    if not least <= value <= most:
        span = f"at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
        raise StudyError(f"{name} must be {span}, not {value}.")
