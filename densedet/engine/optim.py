"""Parameter groups of the optimizer."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from detectron2.solver.build import get_default_optimizer_params, reduce_param_groups
from torch import nn

from densedet.engine.muon import Muon
from densedet.errors import ConfigError


def get_parameters(
    model: nn.Module,
    *,
    base_lr: float | None = None,
    weight_decay_norm: float | None = None,
    weight_decay_bias: float | None = None,
    weight_decay_1d: float | None = None,
    lr_factor_func: Callable[[str], float] | None = None,
    lr_factors: Mapping[str, float] | None = None,
    weight_decays: Mapping[str, float] | None = None,
    overrides: dict[str, dict[str, float]] | None = None,
) -> list[dict[str, Any]]:
    """Return the parameters that require gradients, grouped by learning rate and weight decay.

    Detectron2's ``get_default_optimizer_params`` with more rules. The keys of ``lr_factors`` and
    ``weight_decays`` are regular expressions, searched in the full name of a parameter (as in
    ``model.named_parameters()``); the longest that is found decides, whatever their order.

    Args:
        model: Frozen parameters (``requires_grad=False``) are left out.
        base_lr: Needed with ``lr_factor_func`` or ``lr_factors``; otherwise the optimizer's.
        weight_decay_norm: Decay of normalisation layers; None: the optimizer's.
        weight_decay_bias: Decay of parameters called ``bias``; None: the optimizer's.
        weight_decay_1d: Decay of every parameter with fewer than two dimensions (biases, norms of
            any class, scalars), the usual rule for transformers and CLIP; it goes before the other
            two.
        lr_factor_func: From a parameter's name to a factor of ``base_lr``.
        lr_factors: The same by regular expression; 1 for a name in which none is found.
        weight_decays: Decay by regular expression; it goes before the other three.
        overrides: From a parameter's last name to its options, which go before the decays above but
            for ``weight_decays``.

    Raises:
        ConfigError: every parameter is frozen; a pattern is no regular expression, or is found in
            no name, frozen or not; ``lr_factors`` without ``base_lr`` or with ``lr_factor_func``.
    """
    if lr_factors:
        if base_lr is None or lr_factor_func is not None:
            raise ConfigError("lr_factors needs base_lr, and goes without lr_factor_func")
        lr_factor_func = partial(_Rules("lr_factors", lr_factors, model).find, default=1.0)
    decays = _Rules("weight_decays", weight_decays or {}, model)
    groups = get_default_optimizer_params(
        model,
        base_lr=base_lr,
        weight_decay_norm=weight_decay_norm,
        weight_decay_bias=weight_decay_bias,
        lr_factor_func=lr_factor_func,
        overrides=dict(overrides or {}),
    )
    if not groups:
        raise ConfigError("every parameter of the model is frozen: there is nothing to train")
    names = {parameter: name for name, parameter in model.named_parameters()}
    split = []
    for group in groups:
        for parameter in group["params"]:
            name = names[parameter]
            own = (overrides or {}).get(name.rpartition(".")[2], {})
            default = weight_decay_1d if parameter.ndim < 2 else None
            decay = decays.find(name, own.get("weight_decay", default))
            options = {} if decay is None else {"weight_decay": decay}
            split.append({**group, **options, "params": [parameter]})
    return reduce_param_groups(split)


class _Rules:
    """Values by regular expression, the longest first."""

    def __init__(self, option: str, rules: Mapping[str, float], model: nn.Module) -> None:
        names = [name for name, _ in model.named_parameters()]
        self._rules: list[tuple[re.Pattern[str], float]] = []
        for pattern in sorted(rules, key=len, reverse=True):
            try:
                compiled = re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"{option}: {pattern!r} is no pattern: {error}") from error
            if not any(map(compiled.search, names)):
                raise ConfigError(
                    f"{option}: {pattern!r} is found in none of the {len(names)} parameter names "
                    f"(e.g. {', '.join(names[:: max(1, len(names) // 3)][:3])}); mend it or drop it"
                )
            self._rules.append((compiled, float(rules[pattern])))

    def find(self, name: str, default: Any) -> Any:
        """The value of the first pattern that is found in ``name``, or else ``default``."""
        # Detectron2 gives the parameters of the model itself with a dot in front
        found = (value for pattern, value in self._rules if pattern.search(name.removeprefix(".")))
        return next(found, default)


def muon_parameters(model: nn.Module, blocks: str, **options: Any) -> list[dict[str, Any]]:
    """Groups for :class:`MuonAdamW`: the weight matrices of transformer blocks go to Muon.

    Args:
        model: frozen parameters are left out.
        blocks: part of the names of the parameters that belong to blocks, e.g. "resblocks".
        **options: of :func:`get_parameters`, for the other parameters.

    Raises:
        ConfigError: no trainable matrix has such a name.
    """
    matrices = [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.ndim == 2 and blocks in name
    ]
    if not matrices:
        raise ConfigError(f"muon_parameters: no trainable matrix has {blocks!r} in its name")
    chosen = {id(parameter) for parameter in matrices}
    rest = []
    for group in get_parameters(model, **options):
        others = [p for p in group["params"] if id(p) not in chosen]
        if others:
            rest.append({**group, "params": others})
    return [{"params": matrices, "muon": True}, *rest]


class MuonAdamW(torch.optim.Optimizer):
    """:class:`~densedet.engine.muon.Muon` for the matrices of blocks and ``AdamW`` for the rest.

    Args:
        params: groups; those with ``muon=True`` (:func:`muon_parameters`) are Muon's.
        lr: learning rate of AdamW.
        muon_lr: learning rate of Muon.
        weight_decay: of both, where a group has no other.
        betas: of AdamW.
        muon_momentum: of Muon.
    """

    def __init__(
        self,
        params: list[dict[str, Any]],
        lr: float = 1e-3,
        muon_lr: float = 0.02,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        muon_momentum: float = 0.95,
    ) -> None:
        matrices = [{"params": group["params"]} for group in params if group.get("muon")]
        rest = [group for group in params if not group.get("muon")]
        self._parts: list[torch.optim.Optimizer] = []
        if matrices:
            self._parts.append(Muon(matrices, muon_lr, weight_decay, momentum=muon_momentum))
        if rest:
            beta1, beta2 = betas
            self._parts.append(
                torch.optim.AdamW(rest, lr, (beta1, beta2), weight_decay=weight_decay)
            )
        super().__init__([g for part in self._parts for g in part.param_groups], {})
        self._share_groups()

    def _share_groups(self) -> None:
        """Have the groups of the parts as this optimizer's own, so that schedulers reach them."""
        self.param_groups = [group for part in self._parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step of both; a closure is not supported."""
        if closure is not None:
            raise ValueError("MuonAdamW takes no closure")
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """State of both parts."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        states = state_dict.get("parts", [])
        if len(states) != len(self._parts):
            raise ValueError(f"{len(states)} states for {len(self._parts)} optimizers")
        for part, state in zip(self._parts, states, strict=True):
            part.load_state_dict(state)
        self._share_groups()
