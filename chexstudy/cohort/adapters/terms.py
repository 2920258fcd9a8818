"""Labels told as terms of a vocabulary, many in a cell: what it names is present, what it does not name is absent."""

from collections.abc import Collection, Mapping

import pandas as pd


def split_terms(cells: pd.Series, separator: str) -> pd.Series:
    """The terms in cells, in small letters: one a row, under the row of its cell; missing for a cell without any."""
    return _plain(cells.str.split(separator))


def read_bracket_lists(cells: pd.Series) -> pd.Series:
    """As `split_terms`, of cells that are lists as Python writes them, commas or not."""
    return _plain(cells.str.findall(r"'[^']*'|\"[^\"]*\"").map(lambda terms: [term[1:-1] for term in terms], "ignore"))


def label_terms(
    terms: pd.Series, meant: Mapping[str, Collection[str]], saying_nothing: Collection[str] = ()
) -> pd.DataFrame:
    """One column a finding: ``1`` where one of the terms that mean it is named, else ``0``; missing where no term is.

    ``terms`` is what the readers above give, ``meant`` finding -> terms in small letters. A term that says nothing of
    what an image shows counts as none.
    """
    rows = terms.index.unique()
    labels = {finding: rows.isin(terms.index[terms.isin(list(words))]) for finding, words in meant.items()}
    table = pd.DataFrame(labels, rows).astype("int8").astype("str")
    table.loc[~rows.isin(terms.index[terms.notna() & ~terms.isin(list(saying_nothing))])] = None
    return table


def _plain(lists: pd.Series) -> pd.Series:
    terms = lists.explode().str.strip().str.lower()
    return terms.where(terms != "")
