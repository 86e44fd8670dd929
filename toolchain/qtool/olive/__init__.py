"""The recipes `olive` and `olive-mixed`: Microsoft Olive quantizes, everything around it is qtool's.

Olive's GPTQ reads the calibration text in a process of its own (`worker`, the only module that imports
Olive); `quantize` gives it the model and takes its integers over bit for bit; `settings` says what it is
asked for, and what an artifact will be like.
"""
