"""A small guest under QEMU: a Debian kernel, an init script, the test programs; dumped from outside."""

from __future__ import annotations

import contextlib
import json
import lzma
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
BOOT_SECONDS = 300.0
# Its first processor has to be idle, in the kernel, when it is dumped: a program's page tables lack the kernel's
# addresses, and QEMU takes those of the dump from them. The init script sleeps soon after its last word.
SETTLE_SECONDS = 3.0
# Which module needs which comes first.
MODULES = ("qemu_fw_cfg", "brd")
LOADER = "/lib64/ld-linux-x86-64.so.2"


class GuestFailed(RuntimeError):
    pass


@dataclass
class Truth:
    """What the guest printed, by section: "ledger/smaps", "pids" ..."""

    sections: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Truth:
        # The last line may not have ended yet when it was met.
        pieces = re.split(r"^=== (\S+)\r?(?:\n|\Z)", text.replace("\r\n", "\n"), flags=re.MULTILINE)
        return cls(dict(zip(pieces[1::2], pieces[2::2])))

    def values(self, section: str) -> dict[str, int]:
        """Lines "name value"."""
        return {name: int(value) for name, value in (line.split() for line in self.sections[section].splitlines())}

    def pid(self, name: str) -> int:
        return self.values("pids")[name]

    def kilobytes(self, section: str, key: str) -> int:
        match = re.search(rf"^{key}:\s+(\d+) kB$", self.sections[section], re.MULTILINE)
        assert match, f"no {key} in {section}"
        return int(match[1])

    def statm_pages(self, name: str) -> int:
        return int(self.sections[f"{name}/statm"].split()[1])

    def stat_pages(self, name: str) -> int:
        return int(self.sections[f"{name}/stat"].rpartition(")")[2].split()[24 - 3])

    def threads(self, name: str) -> list[int]:
        return sorted(int(line) for line in self.sections[f"{name}/tasks"].split())

    def zombie(self) -> int:
        match = re.search(r"^zombie (\d+)$", self.sections["pages/out"], re.MULTILINE)
        assert match
        return int(match[1])

    def regions(self) -> dict[str, tuple[int, int]]:
        lines = (line.split() for line in self.sections["pages/out"].splitlines())
        return {line[1]: (int(line[2], 16), int(line[3], 16)) for line in lines if line[0] == "region"}

    def write_files(self, name: str, folder: Path) -> None:
        """The files that the program wrote in the guest."""
        for section, text in self.sections.items():
            if section.startswith(f"{name}/"):
                (folder / section.split("/", 1)[1]).write_text(text)


def libraries_of(program: Path) -> list[Path]:
    text = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    return [Path(path) for path in re.findall(r"(/\S+\.so\S*)", text)]


def _module_files(kernel: Path) -> Iterator[tuple[str, bytes]]:
    for number, name in enumerate(MODULES):
        for path in (kernel / "modules").resolve().rglob(f"{name}.ko*"):
            data = path.read_bytes()
            yield f"{number}{name}.ko" if name != "brd" else "brd.ko", \
                lzma.decompress(data) if path.suffix == ".xz" else data


def _copy_library(library: Path, root: Path) -> None:
    """The file where it lies here, and the link by which it is asked for."""
    file = library.resolve()
    link = Path("/usr/lib", *library.parts[2:]) if library.parts[1] in ("lib", "lib64") else library
    for path in (file, link):
        (root / path.relative_to("/")).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, root / file.relative_to("/"))
    if link != file and not (root / link.relative_to("/")).is_symlink():
        (root / link.relative_to("/")).symlink_to(file)


def make_initramfs(kernel: Path, busybox: Path, programs: Sequence[Path], file: Path,
                   more: dict[str, bytes] | None = None, libraries: Sequence[Path] = ()) -> None:
    """Everything that the guest has. Libraries lie there where they lie here, so that their files are found."""
    root = file.with_suffix(".root")
    shutil.rmtree(root, ignore_errors=True)
    for folder in ("bin", "proc", "sys", "dev", "modules", "guest", "usr/lib", "stash/guest", "stash/usr/lib"):
        (root / folder).mkdir(parents=True)
    shutil.copy(busybox, root / "bin/busybox")
    shutil.copy(HERE / "init", root / "init")
    (root / "init").chmod(0o755)
    for link in ("lib", "lib64"):
        (root / link).symlink_to("usr/lib")
    needed = {path for program in programs for path in libraries_of(program)}
    for library in sorted(needed | set(libraries) | {Path(LOADER)}):
        _copy_library(library, root / "stash")
    for program in programs:
        shutil.copy(program, root / "stash/guest" / program.name)
    for name, data in _module_files(kernel):
        (root / "modules" / name).write_bytes(data)
    for name, data in (more or {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    subprocess.run(f"cd '{root}' && find . | cpio -o -H newc --quiet > '{file}'", shell=True, check=True)
    shutil.rmtree(root)


class Guest:
    """A running guest. `truth` is what it printed up to READY."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self.process = process
        self.folder = folder
        self.text = ""
        self.truth = Truth()

    def wait_for(self, line: str, seconds: float = BOOT_SECONDS) -> None:
        """Reads on up to a line; fails as soon as the kernel panics."""
        assert self.process.stdout is not None
        end = time.monotonic() + seconds
        while not re.search(rf"^{re.escape(line)}\r?$", self.text, re.MULTILINE):
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                raise GuestFailed(f"the guest did not say {line!r} in {seconds:.0f} s:\n{self.text[-3000:]}")
            piece = os.read(self.process.stdout.fileno(), 1 << 16)
            self.text += piece.decode("utf-8", "replace")
            if not piece or "Kernel panic" in self.text[-1 << 16:]:
                raise GuestFailed(f"the guest died:\n{self.text[-3000:]}")

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def dump(self, file: Path) -> None:
        """All of its memory as an ELF file whose segments have virtual addresses too."""
        time.sleep(SETTLE_SECONDS)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(300)
            connection.connect(os.fspath(self.folder / "qmp"))
            stream = connection.makefile("rwb")
            stream.readline()
            for command in ({"execute": "qmp_capabilities"},
                            {"execute": "dump-guest-memory",
                             "arguments": {"paging": True, "protocol": f"file:{file}"}}):
                stream.write(json.dumps(command).encode() + b"\n")
                stream.flush()
                while "return" not in (answer := json.loads(stream.readline())):
                    if "error" in answer:
                        raise GuestFailed(str(answer))


@contextlib.contextmanager
def booted(qemu: Path, kernel: Path, initramfs: Path, folder: Path, cpus: int = 4, megabytes: int = 768,
           cpu: str = "Haswell-v4", tries: int = 3, seconds: float = BOOT_SECONDS) -> Iterator[Guest]:
    """A guest that has said READY. Emulated kernels with several CPUs die now and then: then another try."""
    for left in reversed(range(tries)):
        (folder / "qmp").unlink(missing_ok=True)
        process = subprocess.Popen(
            ["nice", "-n", "10", "setpriv", "--pdeathsig", "KILL", qemu, "-accel", "tcg,thread=multi", "-cpu", cpu, "-smp", str(cpus), "-m", str(megabytes),
             "-kernel", kernel / "vmlinuz", "-initrd", initramfs,
             "-append", "console=ttyS0 panic=-1 quiet loglevel=3 rdinit=/init", "-display", "none",
             "-serial", "stdio", "-monitor", "none", "-no-reboot", "-device", "vmcoreinfo", "-nic", "none",
             "-qmp", f"unix:{folder / 'qmp'},server=on,wait=off"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
        guest = Guest(process, folder)
        try:
            try:
                guest.wait_for("=== READY", seconds)
            except GuestFailed:
                if not left:
                    raise
                continue
            guest.truth = Truth.parse(guest.text)
            yield guest
            return
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=60)
