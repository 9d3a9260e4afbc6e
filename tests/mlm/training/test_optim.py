import copy
import math

import pytest
import torch
from torch import Tensor, nn

from mlm.training.muon import OrthogonalMomentum
from mlm.training.optim import AdamW, Muon, Optimizer, OptimizerConfig, ScheduleFreeAdamW
from tests.mlm.samples import same

EVERY = [AdamW(lr=0.01), ScheduleFreeAdamW(lr=0.01), Muon(lr=0.01, others=AdamW(lr=0.02))]
FINITE, NOT_FINITE = torch.tensor(True), torch.tensor(False)
every_optimizer = pytest.mark.parametrize("config", EVERY, ids=lambda config: config.kind)


class Tiny(nn.Module):
    """One parameter of each sort."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(5, 6)
        self.linear = nn.Linear(6, 4)
        self.norm = nn.LayerNorm(4)


def built(config: OptimizerConfig) -> tuple[Tiny, Optimizer]:
    torch.manual_seed(0)
    model = Tiny()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    return model, config.build(model)


def give_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_adamw_is_its_formula() -> None:
    """Loshchilov & Hutter 2019, algorithm 2, in double precision."""
    rate, (beta1, beta2), epsilon, decay = 0.01, (0.8, 0.9), 1e-3, 0.3
    model, _ = built(AdamW())
    optimizer = AdamW(lr=rate, betas=(beta1, beta2), epsilon=epsilon, weight_decay=decay).build(model.double())
    expected = weights(model)
    means = {name: torch.zeros_like(weight) for name, weight in expected.items()}
    squares = {name: torch.zeros_like(weight) for name, weight in expected.items()}
    for step, factor in enumerate((0.5, 1.0, 0.25), start=1):
        give_gradients(model, seed=step)
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            means[name] = beta1 * means[name] + (1 - beta1) * parameter.grad
            squares[name] = beta2 * squares[name] + (1 - beta2) * parameter.grad**2
            mean, square = means[name] / (1 - beta1**step), squares[name] / (1 - beta2**step)
            shrunk = expected[name] * (1 - factor * rate * (decay if parameter.ndim == 2 else 0.0))
            expected[name] = shrunk - factor * rate * mean / (square.sqrt() + epsilon)
        optimizer.update(factor, FINITE)
    for name, weight in weights(model).items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-13)


@every_optimizer
def test_only_matrices_and_embeddings_decay(config: OptimizerConfig) -> None:
    settings = {"weight_decay": 0.5} | ({"others": AdamW(weight_decay=0.5)} if isinstance(config, Muon) else {})
    model, optimizer = built(config.model_copy(update=settings))
    before = weights(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.update(1.0, FINITE)
    for name, parameter in model.named_parameters():
        shrunk = parameter.abs() < before[name].abs()
        assert shrunk.all() if parameter.ndim == 2 else torch.equal(parameter, before[name]), name


@every_optimizer
def test_without_decay_a_zero_gradient_changes_nothing(config: OptimizerConfig) -> None:
    settings = {"weight_decay": 0.0} | ({"others": AdamW(weight_decay=0.0)} if isinstance(config, Muon) else {})
    model, optimizer = built(config.model_copy(update=settings))
    before = weights(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.update(1.0, FINITE)
    assert same(weights(model), before)


@every_optimizer
def test_the_rate_is_the_peak_times_the_factor(config: OptimizerConfig) -> None:
    def moved(factor: float) -> dict[str, Tensor]:
        model, optimizer = built(config)
        before = weights(model)
        give_gradients(model, seed=1)
        optimizer.update(factor, FINITE)
        return {name: weight - before[name] for name, weight in weights(model).items()}

    whole, half = moved(1.0), moved(0.5)
    for name, change in whole.items():
        assert change.abs().max() > 1e-3
        torch.testing.assert_close(half[name], change / 2, rtol=0, atol=1e-6)


def test_muon_moves_hidden_matrices_along_all_directions_alike_and_the_rest_as_adamw() -> None:
    config = Muon(lr=0.01, weight_decay=0.0, others=AdamW(lr=0.02, weight_decay=0.0))
    model, optimizer = built(config)
    before = weights(model)
    give_gradients(model, seed=1)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    optimizer.update(1.0, FINITE)
    for name, weight in weights(model).items():
        change, gradient = weight - before[name], gradients[name]
        assert gradient is not None
        if name == "linear.weight":
            # Newton-Schulz brings singular values to between 0.7 and 1.2 (Jordan et al. 2024), here times 0.2 sqrt(6).
            singular = torch.linalg.svdvals(change) / (0.01 * 0.2 * math.sqrt(6))
            assert 0.65 < singular.min() <= singular.max() < 1.25
        else:
            torch.testing.assert_close(change, -0.02 * gradient.sign(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 6), (4, 10), (10, 4)])
def test_on_cpu_muon_equals_pytorchs_bit_for_bit(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(3)
    ours, theirs = (torch.nn.Parameter(torch.ones(shape)) for _ in range(2))
    mine = OrthogonalMomentum([ours], lr=0.02, weight_decay=0.1, momentum=0.9)
    reference = torch.optim.Muon([theirs], 0.02, 0.1, 0.9, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad = ours.grad.clone()
        with torch.autocast("cpu", torch.bfloat16):
            mine.step()
        reference.step()  # type: ignore[no-untyped-call]
        assert torch.equal(ours, theirs)
    assert not torch.equal(ours, torch.ones(shape))


@pytest.mark.parametrize("shape", [(6, 6), (4, 10), (10, 4)])
def test_muon_computes_in_the_matrixs_precision_where_there_is_no_autocast(shape: tuple[int, int]) -> None:
    weight = torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    left, singular, right = torch.linalg.svd(weight.grad, full_matrices=False)
    singular = singular / singular.norm()
    for _ in range(5):  # the polynomial acts on the singular values alone (Jordan et al. 2024)
        singular = 3.4445 * singular - 4.7750 * singular**3 + 2.0315 * singular**5
    OrthogonalMomentum([weight], lr=1.0, weight_decay=0.0, momentum=0.9).step()
    expected = -0.2 * math.sqrt(max(shape)) * (left * singular) @ right
    torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=1e-12)


@every_optimizer
@pytest.mark.parametrize("bad_step", [0, 1, 2])
@pytest.mark.parametrize("bad_value", [math.nan, math.inf])
def test_a_non_finite_gradient_changes_neither_weights_nor_state(
    config: OptimizerConfig, bad_step: int, bad_value: float
) -> None:
    model, optimizer = built(config)
    undisturbed, reference = built(config)
    for step in range(4):
        if step == bad_step:
            before = weights(model)
            state = copy.deepcopy([part["state"] for part in optimizer.state_dict()])
            give_gradients(model, seed=100)
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.grad.view(-1)[0] = bad_value
            optimizer.update(0.7, NOT_FINITE)
            assert same(weights(model), before)
            if step:  # before the first good step there is no state to keep
                assert same([part["state"] for part in optimizer.state_dict()], state)
        for each, its in ((model, optimizer), (undisturbed, reference)):
            give_gradients(each, seed=step)
            its.update(0.5, FINITE)
    assert same(weights(model), weights(undisturbed))
    assert same(optimizer.state_dict(), reference.state_dict())


@every_optimizer
def test_an_update_drops_the_gradients_skipped_or_not(config: OptimizerConfig) -> None:
    model, optimizer = built(config)
    for finite in (FINITE, NOT_FINITE):
        give_gradients(model, seed=0)
        optimizer.update(1.0, finite)
        assert all(parameter.grad is None for parameter in model.parameters())


def test_the_schedule_free_average_is_the_librarys_and_training_weights_are_restored_bit_for_bit() -> None:
    model, optimizer = built(ScheduleFreeAdamW(lr=0.1))
    for step in range(5):
        give_gradients(model, step)
        optimizer.update(1.0, FINITE)
    trained = weights(model)
    with optimizer.evaluation_weights():
        averaged = weights(model)
    assert same(weights(model), trained)

    optimizer.parts[0].eval()  # type: ignore[attr-defined]
    for name, expected in weights(model).items():
        torch.testing.assert_close(averaged[name], expected, rtol=0, atol=1e-6)
        assert (averaged[name] - trained[name]).abs().max() > 1e-3


def test_the_schedule_free_average_is_the_mean_of_the_fast_weights() -> None:
    """Defazio et al. 2024, equation 2: at a constant rate the average x is the plain mean of z after each step."""
    model, optimizer = built(ScheduleFreeAdamW(lr=0.1))
    fast: list[Tensor] = []
    for step in range(6):
        give_gradients(model, step)
        optimizer.update(1.0, FINITE)
        fast.append(optimizer.parts[0].state[model.linear.weight]["z"].clone())
    with optimizer.evaluation_weights():
        torch.testing.assert_close(model.linear.weight.detach(), torch.stack(fast).mean(dim=0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", [AdamW(), Muon()], ids=lambda config: config.kind)
def test_other_optimizers_evaluate_their_own_weights(config: OptimizerConfig) -> None:
    model, optimizer = built(config)
    give_gradients(model, seed=0)
    optimizer.update(1.0, FINITE)
    trained = weights(model)
    with optimizer.evaluation_weights():
        assert same(weights(model), trained)


def test_training_weights_are_restored_after_an_error() -> None:
    model, optimizer = built(ScheduleFreeAdamW(lr=0.1))
    give_gradients(model, seed=0)
    optimizer.update(1.0, FINITE)
    trained = weights(model)
    with pytest.raises(RuntimeError), optimizer.evaluation_weights():
        raise RuntimeError
    assert same(weights(model), trained)


@every_optimizer
def test_a_loaded_state_continues_identically(config: OptimizerConfig) -> None:
    model, optimizer = built(config)
    for step in range(3):
        give_gradients(model, step)
        optimizer.update(0.5, FINITE)
    other = copy.deepcopy(model)
    resumed = config.build(other)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, its in ((model, optimizer), (other, resumed)):
        give_gradients(each, seed=9)
        its.update(0.25, FINITE)
    assert same(weights(model), weights(other))
    assert same(optimizer.state_dict(), resumed.state_dict())


def test_each_learning_rate_has_a_name_that_stays_whatever_the_schedule_gives() -> None:
    model, finite = Tiny(), torch.tensor(True)
    for config, peaks in (
        (AdamW(lr=0.1), {"lr": 0.1}),
        (Muon(lr=0.02, others=AdamW(lr=0.001)), {"lr": 0.02, "lr/1": 0.001}),
    ):
        optimizer = config.build(model)
        for factor in (0.5, 0.0):
            give_gradients(model, 0)
            optimizer.update(factor, finite)
            assert optimizer.learning_rates() == {name: pytest.approx(peak * factor) for name, peak in peaks.items()}
