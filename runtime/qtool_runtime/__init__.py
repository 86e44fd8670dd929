"""Run a qtool artifact: numpy, onnxruntime, tokenizers and jinja2."""
