"""Which model types are implemented, and why the others are not."""

from __future__ import annotations

from typing import NoReturn

from qtool.checkpoint.files import shown
from qtool.errors import UnsupportedModelError

MODEL_TYPES = ("qwen2", "qwen3")

_REASONS = {
    "moe": "a mixture of experts",
    "vl": "a vision-language model",
    "omni": "a multimodal model",
    "audio": "an audio model",
    "next": "a hybrid of linear and full attention",
    "qwen35": "a hybrid of linear and full attention",
    "qwen3_5": "a hybrid of linear and full attention",
    "llama": "another architecture (Llama)",
    "mistral": "another architecture (Mistral)",
    "gemma": "another architecture (Gemma)",
    "phi": "another architecture (Phi)",
    "bert": "an encoder",
}
"""Part of a model type -> what such a model is; the first part that occurs decides."""


def check_model_type(model_type: str, field: str) -> None:
    """Refuses a model type that is not implemented, saying what it is where that is known.

    Args:
        model_type: the value, in Hugging Face's or GGUF's spelling.
        field: where it was read, such as "model_type".

    Raises:
        UnsupportedModelError: it is not one of `MODEL_TYPES`.
    """
    if model_type in MODEL_TYPES:
        return
    what = next((reason for part, reason in _REASONS.items() if part in model_type.lower()), "")
    unsupported(field, model_type, " or ".join(MODEL_TYPES), reason=what and f"this is {what}")


def unsupported(field: str, value: object, valid: str, reason: str = "") -> NoReturn:
    """Raises the error for a field whose value is understood but not implemented."""
    because = f": {reason}" if reason else ""
    raise UnsupportedModelError(
        f"{field} is {shown(value)}{because}; supported: {valid}",
        hint="qtool compiles the dense text models Qwen2, Qwen2.5 (also Coder and Math) and Qwen3",
    )
