from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from configs import UserError
from mlm.distributed.device import (
    ComputePrecision,
    autocast,
    fastest,
    measure_peak,
    precision_of,
    with_precision,
    with_recorded_precision,
)
from mlm.distributed.world import World, devices, init_world
from mlm.model.dropout import drop, seed_dropout
from tests.mlm.samples import CPU, slow_in


def drawn(seed: int = 1, step: int = 2, micro_batch: int = 3) -> list[float]:
    """Return numbers from both sources: that of this thread, and that of torch's kernels."""
    seed_dropout(seed, step, micro_batch)
    numbers: list[float] = [*drop(torch.ones(64), 0.5).tolist(), *torch.rand(4).tolist()]
    return numbers


def test_random_numbers_are_a_function_of_seed_step_and_micro_batch() -> None:
    assert drawn() == drawn()
    others = [drawn(seed=2), drawn(step=3), drawn(micro_batch=4), drawn(seed=2, step=1), drawn(seed=2**40)]
    assert len({tuple(numbers[:64]) for numbers in [drawn(), *others]}) == 6
    assert len({tuple(numbers[64:]) for numbers in [drawn(), *others]}) == 6


@pytest.mark.parametrize("count", [1, 2, 7, 12, 32])
@pytest.mark.parametrize("size", [1, 2, 3, 8, 40])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_every_item_belongs_to_one_rank_and_all_have_as_many_slices(count: int, size: int, ranks: int) -> None:
    shares = [World(CPU.device, CPU.dtype, rank, ranks).share(count, size) for rank in range(ranks)]
    turns = -(-count // (ranks * size))
    assert [len(share) for share in shares] == [turns] * ranks
    in_order = [list(range(count))[share[turn]] for turn in range(turns) for share in shares]
    assert [item for part in in_order for item in part] == list(range(count))
    largest = max(map(len, in_order))
    assert largest <= size
    assert largest * turns * ranks < count + turns * ranks  # no rank could have less to do


def test_ranks_cut_a_step_alike_where_its_rows_divide() -> None:
    def cut(ranks: int) -> list[slice]:
        shares = [World(CPU.device, CPU.dtype, rank, ranks).share(24, 2) for rank in range(ranks)]
        return [share[turn] for turn in range(len(shares[0])) for share in shares]

    assert all(cut(ranks) == cut(1) for ranks in (2, 3, 4, 6, 12))


def test_one_process_sums_nothing() -> None:
    assert CPU.sum([7, 0.5]) == [7, 0.5]


def test_autocast_is_for_low_precision_only() -> None:
    with autocast(CPU.device, torch.float32):
        assert not torch.is_autocast_enabled("cpu")
    with autocast(CPU.device, torch.bfloat16):
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16


@pytest.mark.parametrize("avx512", [True, False])
@pytest.mark.parametrize("amx", [True, False])
def test_bfloat16_is_for_processors_that_have_it(avx512: bool, amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    world = init_world()
    assert world == with_precision(world, "float32") == CPU
    if avx512 or amx:
        assert with_precision(world, "bfloat16") == World(CPU.device, torch.bfloat16)
    else:
        assert with_precision(world, "auto") == CPU
        with pytest.raises(UserError, match=r"train\.precision"):
            with_precision(world, "bfloat16")


def test_the_wanted_device_is_taken_and_an_absent_one_is_an_error_that_lists_those_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert devices() == ["cpu"]
    assert init_world() == init_world(wanted="auto") == init_world(wanted="cpu") == CPU
    for absent in ("cuda", "mps"):
        with pytest.raises(UserError, match=rf"^device={absent}: .* auto, cpu$"):
            init_world(wanted=absent)


def test_a_device_is_taken_though_there_is_a_faster_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert devices() == ["cpu", "cuda", "mps"]
    assert init_world(wanted="cpu") == CPU
    assert caplog.messages == []
    assert init_world(wanted="mps").device == torch.device("mps")
    assert "unverified" in caplog.messages[0]


@pytest.mark.parametrize(("slow", "taken"), [(torch.bfloat16, "float32"), (torch.float32, "bfloat16")])
def test_the_faster_precision_is_taken(slow: torch.dtype, taken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with slow_in(slow):
            assert fastest(CPU.device) == taken
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_a_measured_peak_is_positive() -> None:
    assert measure_peak(CPU.device, torch.float32, 16, 16, 16, seconds=0.001) > 0


def test_all_ranks_use_the_choice_of_rank_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = dist.FileStore(str(tmp_path / "store"), 2)  # type: ignore[attr-defined]
    for rank, has in enumerate((False, True)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has: has)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        world = with_precision(World(CPU.device, torch.float32, rank=rank, size=2, store=store), "auto")
        assert world.dtype == torch.float32


@pytest.mark.parametrize("found_in", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("begun_in", ["bfloat16", "float32"])
@pytest.mark.parametrize("has", [True, False])
def test_all_ranks_resume_in_the_recorded_precision_if_rank_0_has_it(
    found_in: torch.dtype,
    begun_in: ComputePrecision,
    has: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = dist.FileStore(str(tmp_path / "store"), 2)  # type: ignore[attr-defined]
    for rank, here in ((0, has), (1, not has)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda here=here: here)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda here=here: here)
        world = World(CPU.device, found_in, rank=rank, size=2, store=store)
        assert precision_of(with_recorded_precision(world, begun_in).dtype) == (begun_in if has else "float32")
    assert len(caplog.messages) == (begun_in == "bfloat16" and not has)
    assert all("bfloat16" in message for message in caplog.messages)
