"""Writes a GGUF file (or any source that qtool opens) as a float Hugging Face folder.

Other tools, such as the onnxruntime-genai builder and transformers, then start from exactly the weights that
qtool sees: the tensors go through qtool's own reader, one chunk of rows in memory at a time.

    python tests/bench/dequantize.py model-q4_k_m.gguf OUT

Weights are written as F32. A dequantized weight is a product of a float16 scale and small integers, which has
up to 11 + 8 significant bits and more: float16 and bfloat16 would round it once more, and a comparison would
measure that. `--dtype F16` halves the size where that does not matter.
"""

from __future__ import annotations

from pathlib import Path

from measure import MEGABYTE, argument_parser, finish, folder_bytes, say

from qtool.checkpoint import open_checkpoint
from qtool.checkpoint.folder_writer import write_folder

DTYPES = {"F32": "float32", "F16": "float16"}


def main() -> None:
    """Reads the command line and writes the folder."""
    parser = argument_parser(__doc__)
    parser.add_argument("model", help="GGUF file, safetensors folder or Hugging Face id")
    parser.add_argument("output", type=Path, help="folder to write; must not exist")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="F32")
    arguments = parser.parse_args()
    checkpoint = open_checkpoint(arguments.model)
    arguments.output.mkdir(parents=True)
    write_folder(checkpoint, arguments.output, DTYPES[arguments.dtype])
    for name, content in checkpoint.tokenizer_files().items():
        (arguments.output / name).write_bytes(content)
    size = folder_bytes(arguments.output)
    say(f"{arguments.output}: {len(checkpoint.weights)} tensors, {size / MEGABYTE:.0f} MB")
    finish({"output": str(arguments.output), "bytes": size, "tensors": len(checkpoint.weights)})


if __name__ == "__main__":
    main()
