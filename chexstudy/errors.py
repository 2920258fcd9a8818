"""The one error a user sees: a sentence that says what is wrong and how to mend it."""


class StudyError(Exception):
    """A problem the user can mend. The message is one sentence: what is wrong, then what to do.

    The command line and the notebook runner print the message alone, without a traceback.
    """
