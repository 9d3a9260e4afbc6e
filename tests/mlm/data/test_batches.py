import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from configs import UserError
from mlm.data.batches import IGNORED, Batch, PackedRows
from mlm.data.corpus import packed_rows
from mlm.data.masking import Masking
from tests.mlm.samples import OURS, ROW_LENGTH, VOCABULARY, packed, sentences, split_of
from tests.test_malformed import Code
from tokenizer.cleaning import TextConfig
from tokenizer.shards.format import Counts, ShardManifest, Shards
from tokenizer.vocabulary import CLS, MASK, PAD, SEP, SPECIAL_TOKENS


def assembled_in_a_loop(packed: PackedRows, row: int) -> list[tuple[int, int, int, bool, bool]]:
    """Return id, segment, position, maskable and word start of each slot of a row, one token after the other."""
    slots: list[tuple[int, int, int, bool, bool]] = []
    rows, split = packed.rows, packed.splits[0]
    for number, run in enumerate(range(rows.borders[row], rows.borders[row + 1]), start=1):
        tokens = range(rows.starts[run], rows.starts[run] + rows.lengths[run])
        inside = [(int(split.tokens[i]), True, i == tokens[0] or bool(split.word_starts[i])) for i in tokens]
        if packed.special.adds_cls_sep:
            inside = [(CLS, False, False), *inside, (SEP, False, False)]
        slots += [(token, number, place, maskable, start) for place, (token, maskable, start) in enumerate(inside)]
    return slots + [(PAD, 0, 0, False, False)] * (packed.row_length - len(slots))


@given(
    st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=5), min_size=1, max_size=8),
    st.booleans(),
    st.booleans(),
    st.data(),
)
def test_rows_are_assembled_as_by_a_plain_loop(
    documents: list[list[int]], cls_sep: bool, alone: bool, data: st.DataObject
) -> None:
    rows = packed(split_of(documents), 12, cls_sep=cls_sep, alone=alone)
    rows_B = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=6)))
    whole = rows.assemble(rows_B)
    for b, row in enumerate(rows_B.tolist()):
        arrays = (whole.ids_BL, whole.segments_BL, whole.positions_BL, whole.maskable_BL, whole.word_starts_BL)
        assert list(zip(*(array[b].tolist() for array in arrays), strict=True)) == assembled_in_a_loop(rows, row)


@pytest.mark.parametrize("cls_sep", [False, True])
def test_tokens_are_the_slots_that_are_not_padding(cls_sep: bool) -> None:
    rows = packed(split_of([[5, 9], [30], [3]]), cls_sep=cls_sep)
    whole = rows.assemble(np.arange(len(rows)))
    assert rows.tokens == (whole.segments_BL > 0).sum()
    assert whole.ids_BL.shape == (len(rows), ROW_LENGTH)


@pytest.mark.parametrize("cls_sep", [False, True])
@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_the_labels_of_a_masked_batch_are_the_original_tokens(unit: str, cls_sep: bool) -> None:
    rows = packed(split_of([[7, 9, 4], [30], [3, 8]] * 4), cls_sep=cls_sep)
    masking, rows_B = Masking.model_validate({"unit": unit, "rate": 0.4}), np.arange(len(rows))[::-1].copy()
    whole = rows.assemble(rows_B)
    batch = rows.masked(rows_B, np.full_like(rows_B, 3), masking, 0.4, seed=1)
    B, slots = len(rows), masking.slots(ROW_LENGTH)
    assert batch.ids_BL.shape == batch.segments_BL.shape == batch.positions_BL.shape == (B, ROW_LENGTH)
    assert batch.predicted_BM.shape == batch.labels_BM.shape == (B, slots)
    assert torch.equal(batch.segments_BL, torch.from_numpy(whole.segments_BL))
    assert torch.equal(batch.positions_BL, torch.from_numpy(whole.positions_BL))
    assert batch.tokens == (whole.segments_BL > 0).sum()

    lines, columns = np.nonzero(batch.labels_BM.numpy() != IGNORED)
    assert batch.targets == len(lines) > 0
    predicted = batch.predicted_BM.numpy()[lines, columns] + lines * ROW_LENGTH
    assert len(set(predicted.tolist())) == len(predicted)
    assert (batch.labels_BM.numpy()[lines, columns] == whole.ids_BL.reshape(-1)[predicted]).all()
    assert whole.maskable_BL.reshape(-1)[predicted].all()
    unpredicted = np.setdiff1d(np.arange(B * ROW_LENGTH), predicted)
    seen = batch.ids_BL.numpy().reshape(-1)
    assert (seen[unpredicted] == whole.ids_BL.reshape(-1)[unpredicted]).all()
    assert np.isin(seen[predicted], [MASK, *range(len(SPECIAL_TOKENS), VOCABULARY)]).all()


def equal(one: Batch, other: Batch) -> bool:
    return all(
        torch.equal(value, vars(other)[name]) if isinstance(value, torch.Tensor) else value == vars(other)[name]
        for name, value in vars(one).items()
    )


@pytest.mark.parametrize("unit", ["token", "word", "span"])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_rows_are_masked_alike_in_every_batch(unit: str, size: int) -> None:
    rows, masking = sentences(60), Masking.model_validate({"unit": unit})
    rows_B, epochs_B = np.random.default_rng(0).permutation(len(rows))[:14], np.arange(14) % 2
    whole = rows.masked(rows_B, epochs_B, masking, 0.15, seed=5)
    for cut in (slice(start, start + size) for start in range(0, 14, size)):
        part = rows.masked(rows_B[cut], epochs_B[cut], masking, 0.15, seed=5)
        assert torch.equal(part.ids_BL, whole.ids_BL[cut])
        assert torch.equal(part.labels_BM, whole.labels_BM[cut])
        assert torch.equal(part.predicted_BM, whole.predicted_BM[cut])


def test_masks_are_new_in_each_epoch_unless_they_are_static() -> None:
    rows, rows_B = sentences(60), np.arange(8)

    def masked(epoch: int, static: bool) -> Batch:
        return rows.masked(rows_B, np.full(8, epoch), Masking(static=static), 0.15, seed=5)

    assert not equal(masked(0, static=False), masked(1, static=False))
    assert equal(masked(0, static=True), masked(1, static=True))
    assert equal(masked(0, static=True), masked(0, static=False))


@pytest.mark.parametrize("batch_rows", [1, 4, 7])
def test_each_epoch_visits_every_row_once_in_a_new_order(batch_rows: int) -> None:
    rows = sentences(60)
    steps = [rows.step_rows(3, step, batch_rows) for step in range(4 * len(rows) // batch_rows + 1)]
    visited, epochs = (np.concatenate(parts) for parts in zip(*steps, strict=True))
    assert (np.diff(epochs) >= 0).all()
    orders = [visited[epochs == epoch].tolist() for epoch in range(4)]
    assert all(sorted(order) == list(range(len(rows))) for order in orders)
    assert len({tuple(order) for order in orders}) == 4


def test_a_step_may_cross_into_the_next_epoch() -> None:
    rows = sentences(60)
    crossing = len(rows) // 4
    assert len(rows) % 4
    _, epochs_B = rows.step_rows(3, crossing, 4)
    assert epochs_B.tolist() == [0] * (len(rows) % 4) + [1] * (4 - len(rows) % 4)


def test_the_rows_of_a_step_are_a_function_of_seed_and_step() -> None:
    rows = sentences(60)
    forward = [rows.step_rows(3, step, 5)[0].tolist() for step in range(20)]
    backward = [sentences(60).step_rows(3, step, 5)[0].tolist() for step in reversed(range(20))]
    assert forward == backward[::-1]
    assert forward != [rows.step_rows(4, step, 5)[0].tolist() for step in range(20)]


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    split, text = split_of([[7, 9, 4], [3], [3, 8, 2, 2]]), TextConfig(segments="documents")
    manifest = ShardManifest(
        format=1,
        token_type="<u2",
        vocabulary_size=VOCABULARY,
        tokenizer_sha256="",
        text_fingerprint="",
        text=text,
        train=Counts(),
        heldout=Counts(),
        dropped={},
        files={},
    )
    return Shards(tmp_path, manifest, train=split, heldout=split)


def test_shards_are_packed_once_and_cached(shards: Shards) -> None:
    first = packed_rows(shards, "train", 16, OURS[False])
    kept = {path: path.stat().st_mtime_ns for path in shards.path.rglob("*.npy")}
    second = packed_rows(shards, "train", 16, OURS[False])
    assert {path: path.stat().st_mtime_ns for path in shards.path.rglob("*.npy")} == kept
    expected = packed(shards.train, 16)
    for rows in (first, second):
        for name in ("starts", "lengths", "borders"):
            assert np.array_equal(getattr(rows.rows, name), getattr(expected.rows, name))
    assert [path.name for path in shards.path.iterdir()] == ["rows-1-train-16"]


def test_a_second_packing_is_cached_beside_the_first(shards: Shards) -> None:
    for side, row_length, cls_sep in (("train", 16, False), ("train", 16, True), ("train", 24, False)):
        packed_rows(shards, side, row_length, OURS[cls_sep])  # type: ignore[arg-type]
    assert sorted(path.name for path in shards.path.iterdir()) == [
        "rows-1-train-16",
        "rows-1-train-16-cls-sep",
        "rows-1-train-24",
    ]


def test_segments_are_sentences_or_runs_of_a_documents_sentences(shards: Shards, tmp_path: Path) -> None:
    together = packed_rows(shards, "train", 24, OURS[False])
    manifest = shards.manifest.model_copy(update={"text": TextConfig(segments="sentences")})
    (tmp_path / "alone").mkdir()
    shards = Shards(tmp_path / "alone", manifest, shards.train, shards.heldout)
    alone = packed_rows(shards, "train", 24, OURS[False])
    assert sorted(together.rows.lengths.tolist()) == [3, 15, 20]
    assert sorted(alone.rows.lengths.tolist()) == [2, 2, 3, 3, 4, 7, 8, 9]


def test_a_pickle_among_the_rows_is_not_opened(shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where Code would leave its mark
    packed_rows(shards, "train", 16, OURS[False])
    path = shards.path / "rows-1-train-16" / "starts.npy"
    for content in (pickle.dumps(Code()), None):
        path.write_bytes(content) if content else np.save(path, np.array([Code()], object), allow_pickle=True)
        with pytest.raises(UserError, match=r"rows-1-train-16/starts\.npy"):
            packed_rows(shards, "train", 16, OURS[False])
    assert not Path("ran").exists()


def test_a_damaged_packing_is_named_with_its_folder(shards: Shards) -> None:
    packed_rows(shards, "train", 16, OURS[False])
    path = shards.path / "rows-1-train-16" / "starts.npy"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"rows-1-train-16/starts\.npy .*rows-1-train-16 "):
        packed_rows(shards, "train", 16, OURS[False])
