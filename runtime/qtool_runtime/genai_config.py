"""`genai_config.json`: what onnxruntime-genai needs to load the artifact as it is.

The manifest decides every byte of it. The compiler writes it; the runtime compares before it lets
onnxruntime-genai read it, for such a file can also name libraries to load.
"""

from __future__ import annotations

import json
from typing import Any

from qtool_runtime.manifest import Generation, Graph, KvCache, ModelInfo

FILE_NAME = "genai_config.json"

_PROVIDER_OPTIONS: dict[str, list[dict[str, Any]]] = {
    "cpu": [],
    "cuda": [{"cuda": {"enable_skip_layer_norm_strict_mode": "1"}}],
    "directml": [{"dml": {}}],
    "webgpu": [{"webgpu": {}}],
}


def genai_config(model: ModelInfo, graph: Graph, cache: KvCache, generation: Generation, context: int) -> str:
    """Returns the document as canonical JSON text.

    Args:
        model: sizes of the network.
        graph: names of the graph's inputs and outputs.
        cache: how keys and values are updated.
        generation: token ids and sampling defaults.
        context: longest sequence; onnxruntime-genai allocates the KV cache for `max_length` at once.
    """
    end = list(generation.eos_token_ids)
    pad = generation.pad_token_id if generation.pad_token_id is not None else (end[0] if end else 0)
    decoder = {
        "filename": graph.file,
        "head_size": model.head_dim,
        "hidden_size": model.hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "num_hidden_layers": model.num_hidden_layers,
        "num_key_value_heads": model.num_key_value_heads,
        "session_options": {
            "log_id": "onnxruntime-genai",
            "provider_options": _PROVIDER_OPTIONS.get(graph.provider, []),
        },
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            **({"position_ids": "position_ids"} if "position_ids" in graph.inputs else {}),
            "past_key_names": graph.past_key,
            "past_value_names": graph.past_value,
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": graph.present_key,
            "present_value_names": graph.present_value,
        },
    }
    document = {
        "model": {
            "type": model.architecture,
            "bos_token_id": generation.bos_token_id if generation.bos_token_id is not None else pad,
            "eos_token_id": end,
            "pad_token_id": pad,
            "context_length": context,
            "vocab_size": model.vocab_size,
            "decoder": decoder,
        },
        "search": {
            "do_sample": generation.do_sample,
            "temperature": generation.temperature,
            "top_k": generation.top_k,
            "top_p": generation.top_p,
            "repetition_penalty": generation.repetition_penalty,
            "max_length": context,
            "min_length": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": cache.update == "in_place",
        },
    }
    return json.dumps(document, indent=2, sort_keys=True) + "\n"
