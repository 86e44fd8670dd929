"""Which phones a model fits: the longest context within the memory that an app gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qtool_runtime.manifest import MemoryPlan

APP_SHARE = 0.5
"""Part of a phone's memory that an app in the foreground is planned to get. iOS ends an app at about half of
it (later with the entitlement com.apple.developer.kernel.increased-memory-limit). Android has no such limit,
but the system and what has to stay in the background take two to three GB."""
PREFIX_MEMORY_SHARE = 16
"""Part of the device's budget that keeps keys and values of earlier prompts, unless one context is less."""
_STEP = 256
"""Contexts are told in steps of so many tokens, in which the KV cache grows."""


@dataclass(frozen=True)
class PhonePlan:
    """A model on a phone with so much memory."""

    phone_gb: int
    app_bytes: int
    """What the app gets."""
    context: int
    """Most tokens of prompt and answer together; 0 where the model does not fit at all."""


def plan_phones(
    phones_gb: Sequence[int],
    memory: MemoryPlan,
    context: int,
    most: int,
    *,
    growth: int = 0,
) -> tuple[PhonePlan, ...]:
    """Finds the longest context for each phone.

    Args:
        phones_gb: memory of the phones, in units of 2^30 bytes, as they are sold.
        memory: the plan for `context` tokens.
        context: tokens of that plan.
        most: longest context that can be asked for.
        growth: bytes that the weights grow by with each token of context.
    """
    per_token = max(1, memory.kv_cache // context + growth)
    fixed = memory.weights - context * growth + memory.activations + memory.runtime
    remembered = memory.budget // PREFIX_MEMORY_SHARE if memory.prefix_memory else 0
    plans = []
    for phone in phones_gb:
        app = int(phone * 2**30 * APP_SHARE)
        room = max(0, app - fixed)
        # What is remembered is as large as the cache, until it reaches its bound.
        tokens = max((room - remembered) // per_token, room // (2 * per_token))
        plans.append(PhonePlan(phone, app, min(most, tokens) // _STEP * _STEP))
    return tuple(plans)
