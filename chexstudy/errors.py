"""The one error a user sees: a sentence that says what is wrong and how to mend it."""


class StudyError(Exception):
    """A problem the user can mend. The message is one sentence: what is wrong, then what to do.

    The command line, the notebook runner and JupyterLab print the message alone, without a traceback.
    """

    def _render_traceback_(self) -> list[str]:
        """IPython asks for this: in a notebook, too, the sentence stands alone."""
        return [f"{type(self).__name__}: {self}"]
