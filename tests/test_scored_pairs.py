import numpy as np
import pandas as pd
import pytest

from chexstudy.curation.records.ledger import ScoredPairs
from chexstudy.errors import StudyError


def test_decisions_and_features_come_in_the_order_asked_for():
    ledger = pd.DataFrame({"image_id": list("abccab"), "epoch": [0, 0, 0, 1, 1, 1], "kept": [True] * 3 + [False] * 3})
    scored = ScoredPairs(ledger, np.arange(6, dtype=np.float16)[:, None])
    assert scored.in_last_epoch().features[:, 0].tolist() == [3, 4, 5]
    ordered = scored.in_order_of(["b", "c", "a"])
    assert ordered.ledger.image_id.tolist() == ["b", "c", "a"]
    assert ordered.features[:, 0].tolist() == [5, 3, 4]
    assert not ordered.ledger.kept.any()
    for others in (["b", "c"], ["b", "c", "d"]):
        with pytest.raises(StudyError, match="train the arm again"):
            scored.in_order_of(others)
