"""The processors that are emulated, and the files by which Linux describes them to programs.

Kernels for matrices of integers differ by what a processor can do: a processor without dot products computes
in floats, one with them in integers, one with i8mm in blocks of integers. So one of each kind is emulated.

onnxruntime reads the processor's make from /proc/cpuinfo and its caches and clusters from /sys; without them
it takes what the machine below has, or ends at the import.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Processor:
    """One emulated processor.

    Attributes:
        name: qemu's name of it.
        part: Arm's number of the design, as in /proc/cpuinfo.
        features: what it can do, in Linux's words.
        summary: which kernels it takes, and where it is found.
    """

    name: str
    part: int
    features: str
    summary: str


_ARMV8 = "fp asimd evtstrm aes pmull sha1 sha2 crc32"
_ARMV8_2 = f"{_ARMV8} atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"

PROCESSORS = {
    processor.name: processor
    for processor in (
        Processor("cortex-a72", 0xD08, f"{_ARMV8} cpuid", "no dot products: Raspberry Pi 4, older phones"),
        Processor("cortex-a76", 0xD0B, _ARMV8_2, "dot products: Raspberry Pi 5, phones since 2019"),
        # No processor of its own; it says that it is a Neoverse N2, which has all of these.
        Processor("max", 0xD49, f"{_ARMV8_2} sve sve2 i8mm svei8mm bf16 svebf16", "dot products, i8mm, SVE"),
    )
}


def describe_machine(folder: Path, processor: Processor, count: int) -> None:
    """Writes /proc/cpuinfo and /sys/devices/system/cpu of a machine with one kind of core.

    Args:
        folder: what the emulated program takes for "/".
        processor: the kind.
        count: cores. Programs may be told of as many as this machine has.
    """
    lines = (
        "BogoMIPS\t: 100.00",
        f"Features\t: {processor.features}",
        "CPU implementer\t: 0x41",
        "CPU architecture: 8",
        "CPU variant\t: 0x0",
        f"CPU part\t: {processor.part:#05x}",
        "CPU revision\t: 1",
    )
    every = range(count)
    text = "".join("\n".join((f"processor\t: {core}", *lines, "\n")) for core in every)
    (folder / "proc").mkdir()
    (folder / "proc" / "cpuinfo").write_text(text)
    cores = f"0-{count - 1}" if count > 1 else "0"
    files = {"possible": cores, "present": cores, "online": cores, "kernel_max": "255"}
    for core in every:
        files |= {
            f"cpu{core}/topology/physical_package_id": "0",
            f"cpu{core}/topology/cluster_cpus_list": cores,
            f"cpu{core}/topology/core_id": str(core),
            f"cpu{core}/cpufreq/cpuinfo_min_freq": "1000000",
            f"cpu{core}/cpufreq/cpuinfo_max_freq": "2000000",
            f"cpu{core}/cache/index2/level": "2",
            f"cpu{core}/cache/index2/size": "1024K",
            f"cpu{core}/cache/index2/shared_cpu_list": str(core),
        }
    for name, content in files.items():
        path = folder / "sys" / "devices" / "system" / "cpu" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
