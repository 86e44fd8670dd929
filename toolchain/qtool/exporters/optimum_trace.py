"""The part of the `optimum` exporter that needs torch: Hugging Face's own network, traced by Optimum.

A trace records operations, not values, so the network gets placeholders for its parameters: one zero each,
seen in the parameter's shape. No weight is read or held, and because torch stores equal parameters once, the
traced file has one matrix of each shape instead of all of them. Each parameter keeps its Hugging Face name,
by which `qtool.exporters.optimum` gives it the checkpoint's values afterwards.

What remains is torch's own: its shape inference copies every matrix, so a trace takes about as much memory as
the weights (3.4 GB and 40 s for 0.5B in float32; Optimum's command with the real weights 5.6 GB and 100 s).
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx_ir as ir
import torch
import transformers
from onnx_ir.passes import common
from optimum.exporters import onnx as optimum_onnx
from optimum.exporters.onnx import model_configs

from qtool.checkpoint import QwenConfig

_NETWORKS = {
    "qwen2": (transformers.Qwen2ForCausalLM, model_configs.Qwen2OnnxConfig),
    "qwen3": (transformers.Qwen3ForCausalLM, model_configs.Qwen3OnnxConfig),
}
"""Model type -> transformers' network, and Optimum's description of its inputs and outputs."""
_FLOATS = {ir.DataType.FLOAT: (torch.float32, "fp32"), ir.DataType.FLOAT16: (torch.float16, "fp16")}

_EXPECTED_WARNINGS = (
    # Python conditions in transformers' cache and mask code depend on lengths only in ways that hold for
    # every prompt; the tests run the graph at other lengths than the traced ones.
    (torch.jit.TracerWarning, "Converting a tensor to a Python boolean"),
    # The constant is the number that masked positions get.
    (torch.jit.TracerWarning, "torch.tensor results are registered as constants"),
    # The indices into the attention mask count from zero.
    (UserWarning, "Exporting aten::index operator of advanced indexing"),
    # Optimum calls torch's older exporter, which calls its own deprecated functions.
    (DeprecationWarning, "You are using the legacy TorchScript-based ONNX export"),
    (DeprecationWarning, "The feature will be removed. Please remove usage of this function"),
)


@cache
def trace(config: QwenConfig, dtype: ir.DataType) -> bytes:
    """Returns the graph that Optimum exports for a model, in which weights are inputs.

    The result depends on nothing else than the arguments, so several targets share one trace.

    Args:
        config: sizes of the network.
        dtype: FLOAT or FLOAT16, for activations and weights.

    Returns:
        A serialized ONNX model. Its inputs are the decoder's, then the weights by their Hugging Face names.
    """
    with TemporaryDirectory(prefix="qtool-optimum-") as folder:
        path = Path(folder) / "model.onnx"
        with _quiet(), torch.no_grad():
            _export(_network(config, _FLOATS[dtype][0]), _FLOATS[dtype][1], path)
        model = ir.load(path)
        _make_weights_inputs(model.graph)
        common.CommonSubexpressionEliminationPass()(model)
        _forget_shapes(model.graph)
        serialized: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
        return serialized


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps stdout for data, and silences the warnings that every trace gives."""
    with redirect_stdout(sys.stderr), warnings.catch_warnings():
        for category, message in _EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message, category)
        yield


def _network(config: QwenConfig, dtype: Any) -> Any:
    """Returns Hugging Face's network with placeholders for its parameters.

    Built from the configuration, so that no file or hub is asked and no code but transformers' own runs.
    """
    described = transformers.AutoConfig.for_model(
        config.model_type,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        rms_norm_eps=config.rms_norm_eps,
        rope_theta=config.rope_theta,
        max_position_embeddings=config.max_position_embeddings,
        tie_word_embeddings=config.tie_word_embeddings,
        attention_bias=config.attention_bias,
        hidden_act="silu",
        use_sliding_window=False,
        # Attention as transformers writes it out. What torch makes of the usual kind (sdpa) computes partly
        # in float32 in a float16 graph.
        attn_implementation="eager",
    )
    with torch.device("meta"):
        network = _NETWORKS[config.model_type][0](described)
    zero = torch.zeros((), dtype=dtype)
    placeholders = {name: zero.expand(parameter.shape) for name, parameter in network.named_parameters()}
    # A tied head is no parameter of its own, and missing here; tie_weights makes it the embedding again.
    network.load_state_dict(placeholders, assign=True, strict=False)
    network.tie_weights()
    # Rotary frequencies are no parameters: what was made on the meta device has to be computed for real.
    network.model.rotary_emb = type(network.model.rotary_emb)(described)
    return network.eval()


def _export(network: Any, float_dtype: str, path: Path) -> None:
    """Writes the network as ONNX, as `optimum-cli export onnx --task text-generation-with-past` does.

    Constant folding is off: it would replace weights by transposed, nameless copies. What Optimum's command
    does after this (validation, a session that looks for dynamic axes) is of no use with placeholders.
    """
    description = _NETWORKS[network.config.model_type][1](
        network.config,
        task="text-generation",
        float_dtype=float_dtype,
        use_past=True,
        use_past_in_inputs=True,
    )
    optimum_onnx.export(network, description, path, do_constant_folding=False, disable_dynamic_axes_fix=True)


def _make_weights_inputs(graph: ir.Graph) -> None:
    """Turns every initializer, and every Identity that names a copy of one, into a graph input.

    Torch stores equal tensors once and gives the others' names to Identity nodes.
    """
    weights = dict.fromkeys(graph.initializers.values())
    for node in list(graph):
        source = node.inputs[0] if node.op_type == "Identity" else None
        if source in weights:
            assert source is not None
            (value,) = node.outputs
            weight = ir.Value(name=value.name, type=source.type, shape=source.shape)
            value.replace_all_uses_with(weight)
            graph.remove(node, safe=True)
            graph.inputs.append(weight)
    graph.initializers.clear()
    graph.inputs.extend(weight for weight in weights if weight.uses())
    for weight in weights:
        weight.const_value = None


def _forget_shapes(graph: ir.Graph) -> None:
    """Drops what torch noted about intermediate values: nothing reads it, and passes change the values."""
    for node in graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.type = value.shape = None
