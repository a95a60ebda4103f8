"""Where jemalloc's library has debug info, its structs are read by that. The system's has none, so a debug file is made
for it here: by its build id, with the structs of 5.3.0 in it; and one for a heap of 3.6 that is laid out in a core, with
structs that no table has. Real builds with such: tests/distros/test_jemalloc_builds.py."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from karst_command import Target
from karst_heaps import start
from karst_jemalloc import HEAPS, LIBRARY, OTHERS, read_mallctl, totals_of_karst
from karst_jemalloc_image import Image, Module, Patched
from karst_ledger import compare, read_ledger
from karst_libcs import SYSTEM
from karst_symbols import build_id, debug_file

pytestmark = [
    pytest.mark.skipif(not LIBRARY.exists(), reason=f"no {LIBRARY}"),
    pytest.mark.skipif("KARST_JEMALLOC" in os.environ, reason="what is told here is told of 5.3.0"),
]

# Of each struct: its size, and offset and size of its members.
Structs = dict[str, tuple[int, dict[str, tuple[int, int]]]]
STRUCTS: Structs = {
    "rtree_s": (2097272, {"root": (120, 2097152)}),
    "edata_s": (128, {"e_addr": (8, 8), "e_size_esn": (16, 8), "heap_link": (40, 24), "e_slab_data": (64, 64)}),
    "arena_s": (78952, {"nthreads": (0, 8), "stats": (24, 10368), "tcache_ql": (10392, 8), "pa_shard": (10648, 68280),
                        "ind": (78928, 4), "base": (78936, 8)}),
    "arena_stats_s": (10368, {"internal": (32, 8)}),
    "pa_shard_s": (68280, {"pac": (24, 62240)}),
    "pac_s": (62240, {"ecache_dirty": (56, 19440), "ecache_muzzy": (19496, 19440), "ecache_retained": (38936, 19440)}),
    "ecache_s": (19440, {"mtx": (0, 112), "eset": (112, 9656)}),
    "eset_s": (9656, {"lru": (9632, 8), "npages": (9640, 8)}),
    "malloc_mutex_s": (112, {"locked": (104, 1)}),
    "base_s": (3912, {"blocks": (160, 8), "allocated": (3880, 8), "mapped": (3896, 8)}),
    "bin_s": (224, {"slabcur": (192, 8), "slabs_nonfull": (200, 16), "slabs_full": (216, 8)}),
    "tcache_slow_s": (176, {"link": (0, 16), "arena": (40, 8), "dyn_alloc": (160, 8), "tcache": (168, 8)}),
    "tcache_s": (1760, {"bins": (8, 1752)}),
    "cache_bin_s": (24, {"stack_head": (0, 8), "low_bits_empty": (20, 2)}),
}


def declared(name: str, size: int, members: dict[str, tuple[int, int]]) -> str:
    text, at = f"struct {name} {{\n", 0
    for member, (offset, bytes_) in members.items():
        text += f"    char before_{member}[{offset - at}];\n" if offset > at else ""
        text += f"    char {member}[{bytes_}];\n"
        at = offset + bytes_
    text += f"    char rest[{size - at}];\n" if size > at else ""
    return text + f"}};\nextern struct {name} *a_{name};\nstruct {name} *a_{name};\n"


def make_debug_directory(directory: Path, other: dict[str, dict[str, tuple[int, int]]] | None = None) -> Path:
    """other: members of some structs that are said to be elsewhere."""
    structs = {name: (size, {**members, **(other or {}).get(name, {})}) for name, (size, members) in STRUCTS.items()}
    return write_debug_file(directory, build_id(LIBRARY.resolve()), structs)


def write_debug_file(directory: Path, identity: str, structs: Structs) -> Path:
    source = directory / "structs.c"
    source.write_text("".join(declared(name, size, members) for name, (size, members) in structs.items()))
    target = debug_file(identity, directory / ".build-id")
    target.parent.mkdir(parents=True)
    subprocess.run(["cc", "-g", "-shared", "-fPIC", f"-Wl,--build-id=0x{identity}", source, "-o", target], check=True)
    return directory


def layout_of(target: Target) -> str:
    facts = [fact for row in target.json("info")["allocators"] for fact in row["facts"] if fact["name"] == "layout"]
    assert len(facts) == 1, facts
    text: str = facts[0]["text"]
    return text


def test_debug_info(directory: Path) -> None:
    with start(HEAPS["default"], SYSTEM, directory) as program:
        target = Target.process(program.pid, "--debug-dir", str(make_debug_directory(directory)))
        told = read_mallctl(directory)
        assert layout_of(target).startswith("debug info, 3")
        assert layout_of(Target.process(program.pid)).startswith("table, by the version the library names")
        comparison = compare(read_ledger(directory), target.blocks())
        assert not comparison.missing and not comparison.other_usable and len(comparison.extra) <= OTHERS, str(comparison)
        found = totals_of_karst(target)
        assert found.totals.items() >= told.totals.items()
        assert target.check() == (True, [])


def test_debug_info_is_what_counts(directory: Path) -> None:
    """A figure that nothing else holds against the heap: it is read where debug info says that it is."""
    other = make_debug_directory(directory, {"base_s": {"allocated": (3872, 8), "mapped": (3880, 8)}})
    with start(HEAPS["default"], SYSTEM, directory) as program:
        target = Target.process(program.pid, "--debug-dir", str(other))
        told = read_mallctl(directory).totals
        assert layout_of(target).startswith("debug info, 3")
        mapped = totals_of_karst(target).totals["mapped"]
    assert told["active"] < mapped < told["mapped"]


def test_debug_info_does_not_fit(directory: Path) -> None:
    """Of another build, say: it is held against the target, and the table fits better."""
    other = make_debug_directory(directory, {"base_s": {"blocks": (152, 8), "allocated": (3880, 8)}})
    with start(HEAPS["default"], SYSTEM, directory) as program:
        target = Target.process(program.pid, "--debug-dir", str(other))
        told = read_mallctl(directory).totals
        assert layout_of(target).endswith("; the debug info does not fit what was found")
        assert totals_of_karst(target).totals.items() >= told.items()


# ---- 3.x, in a core that is laid out by its structs ---------------------------------------------------------

STRUCTS_3: Structs = {
    "arena_chunk_s": (88, {"map": (48, 40)}),
    "arena_chunk_map_s": (40, {"bits": (32, 8)}),
    "arena_s": (4544, {"tcache_ql": (120, 8), "bins": (288, 4256)}),
    "arena_bin_s": (152, {}),
    "tcache_s": (40, {"tbins": (40, 0)}),
    "tcache_bin_s": (32, {"ncached": (16, 4), "avail": (24, 8)}),
}


def test_debug_info_3(directory: Path) -> None:
    image = Patched()
    runs = {class_: image.small(class_, free={3, 40}) for class_ in (2, 11, 12)}
    image.caches[11] = [runs[11].region(7), runs[11].region(46)]
    image.count_chunks((5, 4, 3))
    core = image.write(directory / "core")
    assert Target.core(core).run("summary").returncode == 2
    target = Target.core(core, "--debug-dir", str(write_debug_file(directory, Module.BUILD_ID, STRUCTS_3)))
    assert layout_of(target) == "debug info, 10 members, with which page maps and run headers agree"
    states = {block.address: block.state for block in target.blocks()}
    for class_, run in runs.items():
        for region in range(run.regions):
            state = "free" if region in (3, 40) else "cached" if class_ == 11 and region in (7, 46) else "live"
            assert states[run.region(region)] == state, (run, region)
    assert target.check() == (True, [])
    assert target.json("summary")["allocators"][0]["own"]["mapped"] == 3 * len(image.memory)


def test_debug_info_3_does_not_fit(directory: Path) -> None:
    """The table does: another build's debug info is left alone."""
    image = Image()
    run = image.small(2, free={3, 40})
    image.count_chunks((5, 4, 3))
    target = Target.core(image.write(directory / "core"), "--debug-dir",
                         str(write_debug_file(directory, Module.BUILD_ID, STRUCTS_3)))
    assert layout_of(target) == "the row of the table whose page maps and run headers agree"
    assert sum(block.state == "live" for block in target.blocks() if run.address <= block.address < run.address + 4096) == 124
