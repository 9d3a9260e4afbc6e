"""Muon (Jordan et al. 2024), also for sharded matrices.

Every update is made orthogonal as a whole. A sharded matrix keeps its share of weights and momentum; only its update is
gathered, so that the result does not depend on the number of processes.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mlm.distributed.device import autocast_dtype
from mlm.distributed.parallel import is_dtensor

ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic polynomial, chosen for a steep slope at 0 (Jordan et al. 2024)."""
SMALLEST_NORM = 1e-7
UPDATE_SIZE = 0.2
"""Root mean square of an update, in learning rates: about that of AdamW's (Liu et al. 2025, section 2.2)."""


def orthogonalized(matrix: Tensor) -> Tensor:
    """Return about UV^T of the singular value decomposition USV^T, by Newton-Schulz iterations.

    They are computed in autocast's precision where it is on, else in the matrix's own.
    """
    a, b, c = COEFFICIENTS
    flipped = matrix.size(0) > matrix.size(1)  # the smaller of the two products is the cheaper one
    x = (matrix.T if flipped else matrix).to(autocast_dtype(matrix.device, matrix.dtype))
    x = x / x.norm().clamp(min=SMALLEST_NORM)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if flipped else x


class OrthogonalMomentum(torch.optim.Optimizer):
    """Nesterov momentum whose updates are orthogonalized, for matrices."""

    def __init__(self, matrices: Iterable[nn.Parameter], lr: float, weight_decay: float, momentum: float) -> None:
        """Update `matrices` at the learning rate `lr`; `weight_decay` is a share of it."""
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the matrices by their gradients."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    direction = self._direction(matrix, matrix.grad, group["momentum"])
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    matrix.add_(direction, alpha=-group["lr"] * UPDATE_SIZE * math.sqrt(max(matrix.shape)))

    def _direction(self, matrix: nn.Parameter, gradient: Tensor, momentum: float) -> Tensor:
        """Return the direction of the update: the momentum, made orthogonal as a whole."""
        state = self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        direction = gradient.lerp(state["momentum_buffer"], momentum)
        if not is_dtensor(direction):
            return orthogonalized(direction)
        from torch.distributed.tensor import DTensor, Replicate

        mesh = direction.device_mesh
        whole = orthogonalized(direction.full_tensor())
        everywhere = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
        return everywhere.redistribute(mesh, direction.placements)
