"""Published checkpoints in our layers: equal to transformers' own, or refused by name."""

from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="published models need the extra hub")

from mlm.interop import conversion, published
from tests.mlm.interop import tiny


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_hidden_states_and_scores_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    found = published.read(str(tiny.save(tmp_path / "model", kind)))
    assert found.has_head == (kind not in tiny.HEADLESS)
    converted = conversion.convert(found, found.longest)
    differences = conversion.check(converted)
    assert set(differences) == {"hidden states", *(["scores"] if found.has_head else [])}
    for difference in differences.values():
        assert difference.largest < 1e-5 * max(difference.size, 1)
        assert difference.size > 0.5
