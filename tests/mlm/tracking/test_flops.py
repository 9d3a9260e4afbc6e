import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from configs import read
from mlm.build import build
from mlm.config import PretrainConfig
from mlm.model.attention import masked_out
from mlm.model.encoder import EncoderConfig, LocalAttention
from mlm.model.heads import MaskedLanguageModel, ModelConfig
from mlm.tracking import flops
from tests.mlm.samples import CPU, rows_of, segment_mask_of


@pytest.mark.parametrize(
    ("gated", "transform", "embedding_width", "frozen"),
    [
        *itertools.product([False, True], [False, True], [None], [False]),
        (False, True, 12, False),
        (False, True, 12, True),
        (True, False, None, True),
    ],
)
def test_flops_are_those_of_the_matrix_products_that_training_runs(
    gated: bool, transform: bool, embedding_width: int | None, frozen: bool
) -> None:
    B, L, M, V = 3, 16, 4, 50
    shape = {"width": 24, "heads": 2, "feedforward_width": 40, "layers": 3, "embedding_width": embedding_width}
    config = ModelConfig(encoder=EncoderConfig.model_validate({**shape, "gated": gated}), transform=transform)
    model = MaskedLanguageModel(config, V, L)
    model.encoder.requires_grad_(not frozen)
    predicted_BM = torch.randint(L, (B, M))
    with FlopCounterMode(display=False) as counter:
        model(torch.randint(V, (B, L)), segment_mask_of([[L]] * B, L), predicted_BM).sum().backward()
    expected = flops.flops_per_token(config, V, context=L, predicted_share=M / L, frozen_encoder=frozen)
    assert counter.get_total_flops() == pytest.approx(B * L * expected, rel=1e-12)


def test_flops_follow_the_masked_share_that_is_in_force(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n".join(f"Line {number} of a short text." for number in range(300)))
    text = ["text.source.kind=files", f"text.source.paths=[{tmp_path / 'text.txt'}]", f"runs={tmp_path / 'runs'}"]
    rates = ["masking.rate=0.1", "masking.final_rate=0.3"]
    sizes = ["vocabulary.size=300", "text.heldout_share=0.2", "train.batch_rows=4"]
    made = build(read(PretrainConfig, None, [*text, *rates, *sizes]), CPU)
    context = flops.mean_context(made.corpus.train.segments_per_row)

    def needed(rate: float) -> float:
        size = made.corpus.manifest.vocabulary_size
        return flops.flops_per_token(made.config.model, size, context, rate)

    found = flops.flops_at(made.config, made.corpus)
    assert [found(0.25), found(0.5), found(0.75)] == pytest.approx([needed(0.15), needed(0.2), needed(0.25)])


@pytest.mark.parametrize("window", [2, 5, 16, 100])
def test_the_local_context_is_the_mean_number_of_tokens_in_reach(window: int) -> None:
    lengths, local = [1, 4, 30, 17], LocalAttention(window=window)
    segments = np.bincount(lengths)
    within_LL = ~masked_out(rows_of([lengths], sum(lengths))[0], None, local.reach)
    assert flops.mean_context(segments, local) == pytest.approx(within_LL.sum().item() / sum(lengths))
    assert flops.mean_context(segments) == sum(length**2 for length in lengths) / sum(lengths)
    encoder = EncoderConfig(width=8, heads=2, layers=4, local_attention=local)  # layers 1 and 2 are local

    def per_token(context: float, local_context: float) -> float:
        return flops.flops_per_token(ModelConfig(encoder=encoder), 50, context, 0.5, local_context=local_context)

    assert per_token(10.0, 3.0) - per_token(9.0, 3.0) == 6 * 2 * 8 * 1.5
    assert per_token(10.0, 3.0) - per_token(10.0, 2.0) == 6 * 2 * 8 * 2
