"""torch's Muon with its iteration in fp32 on the CPU."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class Muon(torch.optim.Muon):
    """``torch.optim.Muon`` (Jordan et al., 2024) that is quick on the CPU as well.

    torch orthogonalises the updates in bf16, for which most CPUs have no instructions. Here it is
    done in fp32 on the CPU, for all matrices of one shape at once, and by torch on other devices.
    Arguments and state are those of ``torch.optim.Muon``; its ``adjust_lr_fn`` is None.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step; a closure is not supported.

        Raises:
            ValueError: a closure.
        """
        if closure is not None:
            raise ValueError("Muon takes no closure here")
        if any(p.device.type != "cpu" for group in self.param_groups for p in group["params"]):
            super().step()
            return
        for group in self.param_groups:
            updates = {p: self._update(p, group) for p in group["params"] if p.grad is not None}
            for shape in {p.shape for p in updates}:
                matrices = [p for p in updates if p.shape == shape]
                stack = torch.stack([updates[p] for p in matrices]).float()
                found = orthogonalised(
                    stack, group["ns_coefficients"], group["ns_steps"], group["eps"]
                )
                rate = group["lr"] * math.sqrt(max(1.0, shape[0] / shape[1]))
                for matrix, update in zip(matrices, found, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    matrix.add_(update, alpha=-rate)

    def _update(self, matrix: Tensor, group: dict[str, Any]) -> Tensor:
        """The gradient of a matrix with momentum."""
        gradient = matrix.grad
        assert gradient is not None
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        mean: Tensor = state["momentum_buffer"]
        mean.lerp_(gradient, 1 - group["momentum"])
        return gradient.lerp(mean, group["momentum"]) if group["nesterov"] else mean


def orthogonalised(
    matrices: Tensor, coefficients: Iterable[float], steps: int, eps: float
) -> Tensor:
    """The Newton-Schulz iteration of Muon, in the dtype of the matrices.

    Args:
        matrices: [N, A, B].
        coefficients: a, b and c of ``a X + b (X X^T) X + c (X X^T)^2 X``.
        steps: how often.
        eps: least norm that a matrix is divided by.

    Returns:
        [N, A, B], of singular values near 1.
    """
    a, b, c = coefficients
    wide = matrices.shape[1] <= matrices.shape[2]
    found = matrices if wide else matrices.mT
    found = found / torch.linalg.matrix_norm(found, keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = found @ found.mT
        update = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        found = torch.baddbmm(found, update, found, beta=a)
    return found if wide else found.mT
