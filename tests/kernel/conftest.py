"""Guests of several kernels, booted and dumped once. KARST_KERNELS: which of the suites under build/kernel to try."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from karst_command import BUILD, TESTS  # noqa: E402
from karst_drgn import DrgnTarget  # noqa: E402

import python_guest  # noqa: E402
from guest import Truth, booted, make_initramfs  # noqa: E402

KERNELS = BUILD / "kernel"
QEMU = KERNELS / "qemu" / "qemu"
BUSYBOX = KERNELS / "busybox" / "bin" / "busybox"
FIVE_LEVELS = "bookworm"  # the guest that has page tables of five levels
SUITES = os.environ.get("KARST_KERNELS", "bullseye bookworm trixie sid").split()


@dataclass(frozen=True)
class Dump:
    """A dumped guest, and what it said of itself before."""

    suite: str
    truth: Truth
    vmcore: Path
    vmlinux: Path

    @property
    def program(self) -> list[str]:
        return ["-c", str(self.vmcore), "-s", str(self.vmlinux)]

    def kernel(self) -> DrgnTarget:
        return DrgnTarget(self.program)

    def task(self, name: str) -> DrgnTarget:
        return DrgnTarget(self.program, "--pid", str(self.truth.pid(name)))


@pytest.fixture(scope="session", params=SUITES)
def dump(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dump]:
    kernel = KERNELS / request.param
    folder = tmp_path_factory.mktemp(request.param)
    programs = [TESTS / "ledger", TESTS / "kernel" / "pages", python_guest.PYTHON]
    make_initramfs(kernel, BUSYBOX, programs, folder / "initramfs", python_guest.files(), python_guest.libraries())
    vmcore = folder / "vmcore"
    cpu = "max" if request.param == FIVE_LEVELS else "Haswell-v4"
    with booted(QEMU, kernel, folder / "initramfs", folder, cpu=cpu) as guest:
        guest.dump(vmcore)
        truth = guest.truth
    yield Dump(request.param, truth, vmcore, (kernel / "vmlinux").resolve())
    vmcore.unlink()
