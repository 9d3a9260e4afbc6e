from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="published models need the extra hub")

from mlm.benchmark import parity
from tests.mlm.interop import tiny


def test_the_table_holds_what_a_model_gives_in_both_precisions(tmp_path: Path) -> None:
    rows = list(parity.measure("tiny", str(tiny.save(tmp_path / "model", "bert"))))
    assert [row.kind for row in rows] == ["hidden states", "scores"]
    for row in rows:
        assert row.sentences > 5
        assert row.float32 < 1e-4 < row.bfloat16 < 1.5 * row.theirs_bfloat16
