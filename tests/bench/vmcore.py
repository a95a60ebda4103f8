#!/usr/bin/python3
"""How fast a task's heap is read out of a vmcore, held against drgn's own bulk read of the same ranges.

Run by `make bench-kernel`: boots a guest with a large heap, dumps it, and asks both in turn in one drgn."""
from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "tests" / "kernel"), str(ROOT / "tests" / "lib")]
from guest import booted, make_initramfs  # noqa: E402

INSIDE = """
import sys, time
sys.path.append({folder!r})
from drgn.helpers.linux.mm import access_remote_vm
from karst_drgn import heap_json, task_of
from karst_drgn.memory import TaskTarget

PIECE = 1 << 20
task = task_of(prog, {pid})
vmas = [vma for vma in TaskTarget(task).vmas if not vma.has_file and vma.flags & 2]
def ranges():
    # What is in memory, in pieces: drgn can't read beyond.
    target = TaskTarget(task)
    for index, vma in enumerate(target.vmas):
        if vma in vmas:
            for run in target.memory.page_map(index).runs:
                if run.physical and not run.device:
                    merged = pieces and pieces[-1][1] == run.start
                    pieces.append((pieces.pop()[0] if merged else run.start, run.end))
pieces = []
ranges()
pieces = [(at, min(PIECE, end - at)) for start, end in pieces for at in range(start, end, PIECE)]
size = sum(length for _, length in pieces)
best = dict(drgn=9e9, karst=9e9, whole=9e9)
for _ in range({rounds}):
    begin = time.process_time()
    for at, length in pieces:
        access_remote_vm(task.mm, at, length)
    best["drgn"] = min(best["drgn"], time.process_time() - begin)
    target = TaskTarget(task)
    begin = time.process_time()
    read = sum(len(target.read(at, length)) for at, length in pieces)
    best["karst"] = min(best["karst"], time.process_time() - begin)
    assert read == size, (read, size)
    prog.cache.pop("karst sessions", None)
    begin = time.process_time()
    system = heap_json(task, "summary")["total"]["system_bytes"]
    best["whole"] = min(best["whole"], time.process_time() - begin)
rates = {{name: size / seconds / 1e9 for name, seconds in best.items()}}
print(f"{{size / 2**20:.0f}} MiB in {{len(pieces)}} pieces; drgn's own bulk read {{rates['drgn']:.2f}} GB/s, karst's through"
      f" page tables {{rates['karst']:.2f}} GB/s (limit 1): {{rates['karst'] / rates['drgn']:.2f}} of it (limit 0.5)")
print(f"`karst --pid N summary`: {{best['whole']:.2f}} s CPU for a heap of {{system / 2**20:.0f}} MiB,"
      f" {{system / best['whole'] / 1e9:.2f}} GB/s")
sys.exit(0 if rates["karst"] >= 0.5 * rates["drgn"] and rates["karst"] >= 1 else 1)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="how fast a vmcore's user heap is read")
    parser.add_argument("--build", type=Path, required=True)
    parser.add_argument("--suite", default="trixie")
    parser.add_argument("--slots", type=int, default=10000, help="blocks for each of the program's threads")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    build = options.build.resolve()
    kernel = build / "kernel" / options.suite
    more = f"/guest/ledger --threads=4 --slots={options.slots} /tmp >/tmp/hoard 2>&1 &\nhoard=$!\n" \
        "until $b grep -q ready /tmp/hoard; do $b usleep 200000; done\n" \
        "echo \"=== hoard\"\necho \"hoard $hoard\"\n"
    with tempfile.TemporaryDirectory(dir=build) as name:
        folder = Path(name)
        make_initramfs(kernel, build / "kernel/busybox/bin/busybox",
                       [build / "tests/ledger", build / "tests/kernel/pages"], folder / "initramfs",
                       {"stash/guest/more": more.encode(), "tmp/.keep": b""})
        with booted(build / "kernel/qemu/qemu", kernel, folder / "initramfs", folder, megabytes=1536) as guest:
            guest.dump(folder / "vmcore")
        script = folder / "inside.py"
        script.write_text(INSIDE.format(folder=str(ROOT / "drgn"), pid=guest.truth.values("hoard")["hoard"],
                                        rounds=options.rounds))
        print(f"{options.suite}:", end=" ", flush=True)
        sys.exit(subprocess.run(["drgn", "-q", "-c", folder / "vmcore", "-s", (kernel / "vmlinux").resolve(), script],
                                check=False).returncode)


if __name__ == "__main__":
    main()
