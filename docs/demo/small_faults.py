"""Touches a little memory on each CPU, and prints what /proc says of it: see docs/rss-story.md. Linux, Python 3.8."""

import mmap
import os
import sys

PAGE = 4096


def look(step):
    with open("/proc/self/stat") as file:
        stat = int(file.read().rpartition(")")[2].split()[21]) * 4
    with open("/proc/self/statm") as file:
        statm = int(file.read().split()[1]) * 4
    with open("/proc/self/smaps_rollup") as file:
        rollup = int(file.read().split("\nRss:")[1].split()[0])
    print(f"{step:36} {stat:8} {statm:8} {rollup:8} {stat - rollup:+9}", flush=True)


def touch_on_each(cpus, pages, area, used):
    for cpu in cpus:
        os.sched_setaffinity(0, {cpu})
        for _ in range(pages):
            area[used * PAGE] = 1
            used += 1
    return used


def main():
    print(f"{'kB':36} {'stat':>8} {'statm':>8} {'rollup':>8} {'stat off':>9}")
    look("at start")
    look("at start, again")
    big = bytearray(b"x") * (32 << 20)
    look("bytearray of 32 MB")
    area = mmap.mmap(-1, 32 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.madvise(mmap.MADV_NOHUGEPAGE)
    look("mmap of 32 MB, not touched")
    cpus = sorted(os.sched_getaffinity(0))
    used = touch_on_each(cpus, 28, area, 0)
    look(f"28 pages touched on each of {len(cpus)} CPUs")
    touch_on_each(cpus, 30, area, used)
    look("30 more on each")
    os.sched_setaffinity(0, {cpus[0]})
    del big
    look("bytearray freed")
    if "--wait" in sys.argv:
        print("ready", os.getpid(), flush=True)
        import time
        time.sleep(100000)


if __name__ == "__main__":
    main()
