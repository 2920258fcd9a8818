"""Words that stand where there is nothing: what programs, de-identification and people write in place of a value."""

import re

# In small letters, whatever is neither letter nor digit as a blank: N/A, n.a. and #N/A are all "n a".
_WORDS = (
    *("nan", "na", "n a", "nat", "nil", "none", "null", "void", "undefined", "unknown", "unk", "missing", "empty"),
    *("not available", "not applicable", "not known", "not given", "not stated", "not recorded", "not provided"),
    *("no report", "no report available", "report not available", "no id", "no data", "no value", "tbd"),
    *("redacted", "removed", "withheld", "anonymous", "anonymized", "anonymised", "deidentified", "de identified"),
    *("value", "ref", "name missing", "id missing"),
    *("unbekannt", "keine angabe", "inconnu", "inconnue", "aucun", "non renseigné", "desconocido", "ninguno"),
    *("desconhecido", "sconosciuto", "无", "暂无", "空", "未知"),
)
_MARK = r"x{3,}"  # how de-identified reports strike out
_BETWEEN = r"[\W_]+"
# A long text fails at its first other word.
_NOTHING = re.compile(rf"[\W_]*(?:(?:{'|'.join(_WORDS)}|{_MARK})(?: |$))*".replace(" ", _BETWEEN))
_DIGIT = re.compile(r"\d")


def is_placeholder(text: str) -> bool:
    """Whether a text is empty or made of nothing but such words and marks: ``nan``, ``N/A``, ``___``, ``XXXX``."""
    # No such word holds a digit, and most identifiers do.
    return not _DIGIT.search(text) and _NOTHING.fullmatch(text.casefold()) is not None
