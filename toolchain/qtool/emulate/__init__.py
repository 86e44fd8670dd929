"""Artifacts run on an emulated 64-bit Arm processor: the real aarch64 build of onnxruntime, under qemu.

- `processors.py`: which processors, and what the system tells programs about them.
- `packages.py`, `cache.py`, `root.py`: an aarch64 Python with onnxruntime, set up once and kept.
- `emulator.py`: runs Python in it.
- `probe.py`: what is run, here and there.
- `comparison.py`: does the emulated processor say what this one says?
"""
