"""What the Python package of the kernels says of itself."""

from __future__ import annotations

import ctypes
import platform
import sys
from importlib.metadata import distribution, version
from pathlib import Path

import pytest

from kernels.nodes import qtool_kernels


def test_version() -> None:
    assert version("qtool-kernels") == qtool_kernels.__version__


def test_the_license_is_the_projects() -> None:
    license_text = Path(__file__).parents[2].joinpath("LICENSE").read_text()
    assert distribution("qtool-kernels").read_text("licenses/LICENSE") == license_text


def test_the_portable_kernels_are_there_and_come_last() -> None:
    assert qtool_kernels.instruction_sets()[-1] == "portable"
    assert len(set(qtool_kernels.instruction_sets())) == len(qtool_kernels.instruction_sets())
    if platform.machine() == "x86_64":
        assert set(qtool_kernels.instruction_sets()) <= {
            "amx",
            "avx512-vnni",
            "avx-vnni",
            "avx2",
            "portable",
        }


@pytest.mark.parametrize("name", qtool_kernels.instruction_sets())
def test_every_instruction_set_passes_its_own_test(name: str) -> None:
    qtool_kernels.self_test(name)


def test_amx_is_offered_only_where_the_processor_has_it() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        pytest.skip("only Linux tells what the processor has")
    if "amx_int8" not in cpuinfo.read_text().split():
        assert "amx" not in qtool_kernels.instruction_sets()
        with pytest.raises(ValueError, match="no instruction set 'amx' here"):
            qtool_kernels.select("amx")


@pytest.mark.parametrize("call", ["select", "self_test"])
def test_an_unknown_instruction_set_is_refused(call: str) -> None:
    with pytest.raises(ValueError, match=r"no instruction set 'sse9' here; valid: .*portable"):
        getattr(qtool_kernels, call)("sse9")


def test_the_library_is_a_file_of_the_package() -> None:
    assert qtool_kernels.library_path().is_file()
    assert qtool_kernels.library_path().parent.name == "qtool_kernels"


@pytest.mark.skipif(sys.platform != "linux", reason="only there is a C++ library linked in")
def test_the_c_plus_plus_library_inside_is_hidden() -> None:
    library = ctypes.CDLL(str(qtool_kernels.library_path()))
    shown = [name for name in ("RegisterCustomOps", "_Znwm", "__cxa_throw") if hasattr(library, name)]
    assert shown == ["RegisterCustomOps"]  # not the operator new and the exceptions of a second C++ library


def test_what_is_computed() -> None:
    assert qtool_kernels.supports("MatMulNBits", {"K": 896, "N": 4864, "bits": 4, "block_size": 32})
    assert qtool_kernels.supports("MatMulNBits", {"block_size": 128})  # bits is 4 where it is left out
    assert not qtool_kernels.supports("MatMulNBits", {"bits": 4, "block_size": 16})
    assert not qtool_kernels.supports("MatMulNBits", {"bits": 4.0, "block_size": 32})
    assert qtool_kernels.supports("GroupQueryAttention", {"num_heads": 14, "kv_num_heads": 2, "do_rotary": 1})
    assert not qtool_kernels.supports(
        "GroupQueryAttention", {"num_heads": 14, "kv_num_heads": 2, "local_window_size": 4096}
    )
    assert not qtool_kernels.supports("QMoE", {})
