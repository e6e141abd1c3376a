"""What an architecture does to logits after lm_head: scales them, caps them softly.

    hidden states @ lm_head -> raw -> logits = softcap * tanh(raw * scale / softcap)

Tensors have any shape: each logit is transformed on its own.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from trd_ray.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # Gemma; RecurrentGemma; xLSTM
_MULTIPLIERS = ("logit_scale", "lm_head_multiplier", "output_multiplier")  # Cohere; Falcon-H1; muse_glimmer
_MULTIPLIES_BY_LOGITS_SCALING = "hyperclovax"  # in Granite's families and MiniCPM3 the same entry divides


@dataclass(frozen=True)
class LogitTransform:
    """`softcap * tanh(raw * scale / softcap)`, or `raw * scale` without a softcap."""

    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, config: "PreTrainedConfig") -> "LogitTransform":
        """What a transformers causal language model with this config does.

        A config may hold an entry that its model's code does not read, and code may do what no entry says. So compare
        with the model's own logits before training. Raises UserError for an entry that is not a number.
        """
        text = config.get_text_config(decoder=True)
        names = (*_SOFTCAPS, *_MULTIPLIERS, "logits_scaling")
        # A config has the entries of its own family only.
        entries = {name: value for name in names if (value := getattr(text, name, None)) is not None}
        for name, value in entries.items():
            if not isinstance(value, int | float):
                raise UserError(f"{name} of a {text.model_type} model is {value!r}, not a number: choose another model")
        scale = math.prod(float(entries[name]) for name in _MULTIPLIERS if name in entries)
        scaling = float(entries.get("logits_scaling", 1.0))
        scale = scale * scaling if text.model_type.startswith(_MULTIPLIES_BY_LOGITS_SCALING) else scale / scaling
        return cls(scale, next((float(entries[name]) for name in _SOFTCAPS if name in entries), None))

    def __call__(self, raw: torch.Tensor) -> torch.Tensor:
        """Logits from the products with lm_head. Returns `raw` itself where there is nothing to do."""
        scaled = raw if self.scale == 1 else raw * self.scale
        return scaled if self.softcap is None else (scaled / self.softcap).tanh_().mul_(self.softcap)

    def gradient(self, grad: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """The gradient in `raw`, given the one in `logits` = self(raw)."""
        if self.softcap is not None:
            grad = grad * (1 - (logits / self.softcap).square())
        return grad if self.scale == 1 else grad * self.scale


PLAIN = LogitTransform()
