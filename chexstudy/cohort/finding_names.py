"""Names of findings: one for each, whatever a data set calls it.

``finding_names.yaml`` holds the names and the spellings that are folded into each.
"""

import re

from chexstudy.inputs.yaml_files import read_data_beside


def canonical_name(name: str) -> str:
    """The one name of a finding that data sets spell in several ways; a name that is in no line stays as it is."""
    return _CANONICAL.get(_plain(name), name)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()


_CANONICAL = {
    _plain(spelling): name for name, others in read_data_beside(__file__).items() for spelling in (name, *others)
}
