"""The one error a user sees: a sentence that says what is wrong and how to mend it."""

import difflib
from collections.abc import Iterable


class StudyError(Exception):
    """A problem the user can mend. The message is one sentence: what is wrong, then what to do.

    The command line, the notebook runner and JupyterLab print the message alone, without a traceback.
    """

    def _render_traceback_(self) -> list[str]:
        """IPython asks for this: in a notebook, too, the sentence stands alone."""
        return [f"{type(self).__name__}: {self}"]


def suggest(word: str, known: Iterable[str], otherwise: str = "", cutoff: float = 0.6) -> str:
    """``did you mean 'seed'``, of the known words the closest; ``otherwise`` where none is close."""
    closest = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f"did you mean {closest[0]!r}" if closest else otherwise
