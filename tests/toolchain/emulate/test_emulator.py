"""Programs on emulated processors: what they see, and how they end."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from qtool.emulate.emulator import CrashError, Emulator, Root, find_qemu
from qtool.emulate.processors import PROCESSORS, describe_machine
from qtool.errors import EmulationError
from support.emulation import runtime_root

emulated = pytest.mark.emulated


@pytest.fixture(scope="module")
def root() -> Root:
    return runtime_root()


def test_without_qemu_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmulationError, match="qemu for 64-bit Arm programs is not installed") as caught:
        find_qemu()
    assert caught.value.hint == "Run: apt-get install qemu-user-static"


def test_on_other_systems_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(EmulationError, match="on Linux only, not on win32"):
        find_qemu()


@pytest.mark.parametrize(("count", "cores"), [(1, "0"), (3, "0-2")])
def test_a_machine_is_described_like_linux_does(tmp_path: Path, count: int, cores: str) -> None:
    describe_machine(tmp_path, PROCESSORS["cortex-a76"], count)
    blocks = (tmp_path / "proc" / "cpuinfo").read_text().strip().split("\n\n")
    fields = [dict(map(str.strip, line.split(":")) for line in block.splitlines()) for block in blocks]
    assert [field["processor"] for field in fields] == [str(number) for number in range(count)]
    assert {(field["CPU implementer"], field["CPU part"]) for field in fields} == {("0x41", "0xd0b")}
    assert "asimddp" in fields[0]["Features"].split()
    system = tmp_path / "sys" / "devices" / "system" / "cpu"
    assert (system / "possible").read_text() == f"{cores}\n"
    assert len(list(system.glob("cpu*/cache/index2/size"))) == count


FEATURES = """
import ctypes
read = ctypes.CDLL(None).getauxval
read.restype, read.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
print(bool(read(16) >> 20 & 1), bool(read(26) >> 13 & 1))  # dot products and i8mm, as the kernel tells
print(open("/proc/cpuinfo").read())
"""


@emulated
@pytest.mark.parametrize(
    ("name", "expected"), [("cortex-a72", "False False"), ("cortex-a76", "True False"), ("max", "True True")]
)
def test_programs_see_what_the_processor_can_do(root: Root, name: str, expected: str) -> None:
    """The kernel's word (qemu's) and /proc/cpuinfo (ours, or a newer qemu's) are the same."""
    first, _, described = Emulator(root, PROCESSORS[name]).run(["-c", FEATURES], timeout=120).partition("\n")
    assert first == expected
    words = described.split()
    assert f"{'asimddp' in words} {'i8mm' in words}" == expected


@emulated
def test_python_is_that_of_the_system_and_sees_nothing_of_this_ones(root: Root) -> None:
    code = "import platform, sys, numpy; print(platform.machine(), numpy.__file__, *sys.path, sep='\\n')"
    machine, numpy, *path = Emulator(root, PROCESSORS["cortex-a76"]).run(["-c", code], timeout=120).split()
    assert machine == "aarch64"
    assert numpy.startswith(str(root.wheels))
    own, *rest = path
    assert not Path(own).exists()  # of that run only
    assert all(entry.startswith((str(root.wheels), str(root.system))) for entry in rest)


@emulated
def test_files_mean_the_same_here_and_there(root: Root, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("text")
    code = (
        "import sys; one, other = map(open, sys.argv[1:], 'rw'); other.write(one.read() + sys.stdin.read())"
    )
    arguments = ["-c", code, str(tmp_path / "in"), str(tmp_path / "out")]
    Emulator(root, PROCESSORS["cortex-a76"]).run(arguments, text=" and more", timeout=120)
    assert (tmp_path / "out").read_text() == "text and more"


@emulated
def test_a_program_that_fails_shows_its_last_words(root: Root) -> None:
    with pytest.raises(CrashError, match=r"^cortex-a76 ended with exit code 3:\nlast words$"):
        code = "import sys; print('last words', file=sys.stderr); sys.exit(3)"
        Emulator(root, PROCESSORS["cortex-a76"]).run(["-c", code], timeout=120)


ILLEGAL = """
import ctypes, mmap
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(bytes.fromhex("0094824ec0035fd6"))  # sdot v0.4s, v0.16b, v2.16b; ret
ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
print("done")
"""


@emulated
def test_an_instruction_that_the_processor_lacks_ends_the_program(root: Root) -> None:
    """A dot product is there or not as on the real processor."""
    assert Emulator(root, PROCESSORS["cortex-a76"]).run(["-c", ILLEGAL], timeout=120) == "done\n"
    with pytest.raises(CrashError, match="cortex-a72 was ended by SIGILL: a library uses an instruction"):
        Emulator(root, PROCESSORS["cortex-a72"]).run(["-c", ILLEGAL], timeout=120)


@emulated
def test_the_time_is_limited(root: Root) -> None:
    with pytest.raises(EmulationError, match="cortex-a76 was not done after 2 seconds") as caught:
        Emulator(root, PROCESSORS["cortex-a76"]).run(["-c", "import time; time.sleep(600)"], timeout=2)
    assert "--timeout" in caught.value.hint
    assert not isinstance(caught.value, CrashError)


@emulated
def test_nothing_is_left_in_the_working_folder(root: Root) -> None:
    before = sorted(Path().iterdir())
    with pytest.raises(CrashError):
        Emulator(root, PROCESSORS["cortex-a76"]).run(["-c", "import os; os.abort()"], timeout=120)
    assert sorted(Path().iterdir()) == before
