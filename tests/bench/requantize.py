"""Makes a GGUF file of another type, such as Q4_0, with llama.cpp's own quantizer.

Run it with an interpreter that has llama-cpp-python:

    python tests/bench/requantize.py model-q4_k_m.gguf model-q4_0.gguf --type Q4_0

The source is dequantized first, as `qtool build` does with the same file, so both start from the same
weights. llama.cpp gives some tensors more bits than the type's name says (the LM head); `--pure` prevents
that.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

from measure import MEGABYTE, argument_parser, finish, say


def main() -> None:
    """Reads the command line and writes the file."""
    parser = argument_parser(__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--type", default="Q4_0", help="name of a llama.cpp file type (default Q4_0)")
    parser.add_argument("--pure", action="store_true", help="every matrix in that type")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    import llama_cpp

    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{arguments.type}")
    options.nthread = arguments.threads
    options.allow_requantize = True
    options.pure = arguments.pure
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    source, output = str(arguments.source).encode(), str(arguments.output).encode()
    code = llama_cpp.llama_model_quantize(source, output, ctypes.byref(options))
    if code:
        raise SystemExit(f"llama_model_quantize returned {code}")
    size = arguments.output.stat().st_size
    say(f"{arguments.output}: {size / MEGABYTE:.0f} MB")
    finish({"output": str(arguments.output), "bytes": size})


if __name__ == "__main__":
    main()
