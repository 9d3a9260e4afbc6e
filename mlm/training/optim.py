"""Optimizers: AdamW, Schedule-Free AdamW and Muon, behind one update that skips non-finite gradients."""

import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from configs import Config
from mlm.training.muon import OrthogonalMomentum

Share = Annotated[float, Field(ge=0, lt=1)]
PositiveShare = Annotated[float, Field(gt=0, lt=1)]
NamedParameters = Iterable[tuple[str, nn.Parameter]]
RateFactor = Callable[[str], float]
"""From a parameter's name to its share of the learning rate."""


def _same_rate(name: str) -> float:
    return 1.0


class AdamW(Config):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), fused."""

    kind: Literal["adamw"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    """Peak learning rate."""
    betas: tuple[Share, Share] = (0.9, 0.98)
    """Decay rates of the running means of the gradient and of its square."""
    epsilon: float = Field(1e-8, gt=0)
    """Added to the root of the mean square."""
    weight_decay: float = Field(0.01, ge=0)
    """Decay of matrices and embeddings, as a share of the learning rate; norms and biases have none."""

    def build(self, model: nn.Module, rate_factor: RateFactor = _same_rate) -> "Optimizer":
        """Return the optimizer of `model`'s trainable parameters."""
        return Optimizer([self.torch_optimizer(model.named_parameters(), rate_factor)])

    def torch_optimizer(self, named: NamedParameters, rate_factor: RateFactor = _same_rate) -> torch.optim.AdamW:
        """Return PyTorch's optimizer of the trainable ones of the parameters."""
        groups = parameter_groups(named, self.lr, self.weight_decay, rate_factor)
        return torch.optim.AdamW(groups, self.lr, self.betas, self.epsilon, fused=True)


class ScheduleFreeAdamW(Config):
    """Schedule-Free AdamW (Defazio et al. 2024): set `schedule.kind` to constant."""

    kind: Literal["schedule_free"] = "schedule_free"
    lr: float = Field(2.5e-3, gt=0)
    """Peak learning rate."""
    betas: tuple[PositiveShare, Share] = (0.9, 0.999)
    """Interpolation between the averaged and the fast weights, and decay rate of the mean squared gradient."""
    epsilon: float = Field(1e-8, gt=0)
    """Added to the root of the mean square."""
    weight_decay: float = Field(0.01, ge=0)
    """Decay of matrices and embeddings, as a share of the learning rate; norms and biases have none."""

    def build(self, model: nn.Module, rate_factor: RateFactor = _same_rate) -> "Optimizer":
        """Return the optimizer of `model`'s trainable parameters."""
        import schedulefree

        groups = parameter_groups(model.named_parameters(), self.lr, self.weight_decay, rate_factor)
        optimizer = schedulefree.AdamWScheduleFree(groups, self.lr, self.betas, self.epsilon)
        optimizer.train()
        return Optimizer([optimizer])


class Muon(Config):
    """Muon (Jordan et al. 2024) for all matrices but embeddings, the head's included, AdamW for all else."""

    kind: Literal["muon"] = "muon"
    lr: float = Field(2e-3, gt=0)
    """Peak learning rate of these matrices, scaled to match AdamW's update size (Liu et al. 2025)."""
    momentum: float = Field(0.95, ge=0, lt=1)
    """Decay rate of the running mean of the gradient."""
    weight_decay: float = Field(0.01, ge=0)
    """Decay of these matrices, as a share of the learning rate."""
    others: AdamW = AdamW()
    """The optimizer of embeddings, norms and biases."""

    def build(self, model: nn.Module) -> "Optimizer":
        """Return the optimizer of `model`'s trainable parameters."""
        embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
        embedded = {id(parameter) for module in embeddings for parameter in module.parameters()}
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        hidden = [p for _, p in named if p.ndim == 2 and id(p) not in embedded]
        others = [(name, p) for name, p in named if p.ndim != 2 or id(p) in embedded]
        # A frozen encoder under a head without a transform leaves no matrix to train.
        muon = [OrthogonalMomentum(hidden, self.lr, self.weight_decay, self.momentum)] if hidden else []
        return Optimizer([*muon, self.others.torch_optimizer(others)])


OptimizerConfig = Annotated[AdamW | ScheduleFreeAdamW | Muon, Field(discriminator="kind")]


def parameter_groups(
    named: NamedParameters, lr: float, decay: float, rate_factor: RateFactor = _same_rate
) -> list[dict[str, Any]]:
    """Group the trainable parameters by learning rate and by weight decay.

    Matrices and embeddings decay; norms and biases don't. `rate_factor` returns the share of `lr` by name.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        if parameter.requires_grad:
            groups.setdefault((parameter.ndim >= 2, rate_factor(name)), []).append(parameter)
    return [
        {"params": parameters, "lr": lr * factor, "weight_decay": decay if decays else 0.0}
        for (decays, factor), parameters in sorted(groups.items(), reverse=True, key=operator.itemgetter(0))
    ]


class Optimizer:
    """One or several torch optimizers that step together, each at its own peak rate times the schedule's factor."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = parts
        for group in self._groups():
            group["peak_lr"] = group["lr"]
        peaks = [group["peak_lr"] for group in self._groups()]
        self._logged = [number for number, peak in enumerate(peaks) if peak not in peaks[:number]]

    def _groups(self) -> Iterator[dict[str, Any]]:
        return itertools.chain.from_iterable(part.param_groups for part in self.parts)

    def update(self, factor: float, applies: Tensor) -> None:
        """Update the weights by their gradients if it `applies`; then drop the gradients.

        It does not where a loss or gradient is not finite, or a step has no targets: weights and state stay as they
        are. Fused AdamW skips on the device; the others cost the transfer of the scalar `applies` to the host. `factor`
        is the schedule's share of the peak rate.
        """
        for group in self._groups():
            group["lr"] = group["peak_lr"] * factor
        for part in self.parts:
            if part.defaults.get("fused"):
                part.grad_scale = None  # type: ignore[attr-defined]
                part.found_inf = (~applies).float()  # type: ignore[attr-defined]
                part.step()
            elif applies.item():
                part.step()
            part.zero_grad()

    def learning_rates(self) -> dict[str, float]:
        """Return the rate of the last update: `lr` of the first parameter group, `lr/<group>` of others that differ."""
        rates = [group["lr"] for group in self._groups()]
        return {f"lr/{number}" if number else "lr": rates[number] for number in self._logged}

    @contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """Return a context in which the model has its evaluation weights: Schedule-Free's average, else its own.

        The training weights are copied and restored bit for bit; the library's own switch would round them.
        """
        trained: list[tuple[Tensor, Tensor]] = []
        with torch.no_grad():
            for part in self.parts:
                for group in part.param_groups:
                    for parameter in group["params"]:
                        if "z" in part.state.get(parameter, {}):
                            trained.append((parameter, parameter.clone()))
                            parameter.lerp_(part.state[parameter]["z"], 1 - 1 / group["betas"][0])
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, before in trained:
                    parameter.copy_(before)

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the state of every part."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        """Load a state that `state_dict` returned."""
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)
