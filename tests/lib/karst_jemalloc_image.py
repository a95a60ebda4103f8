"""A heap of jemalloc 3.6 laid out in a core file, by the published layout: include/jemalloc/internal/arena.h
(arena_chunk_t, arena_chunk_map_t, arena_run_t, arena_bin_t, arena_t) and tcache.h (tcache_t, tcache_bin_t) of
jemalloc 3.6.0, x86-64, 4 KiB pages, chunks of 4 MiB. No jemalloc is needed to make it."""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

PAGE = 4096
CHUNK = 4 << 20
MAP, MAP_ENTRY, MAP_BIAS = 48, 24, 6  # arena_chunk_t.map, sizeof(arena_chunk_map_t), pages of the header
ARENA_TCACHES, ARENA_BINS, BIN_SIZE, ARENA_SIZE = 120, 288, 152, 4544
TCACHE_BINS, TCACHE_BIN_SIZE, TCACHE_CLASSES = 40, 32, 36

# arena_bin_info[]: size of a region, pages of a run, regions of a run; by class.
CLASSES = {2: (32, 1, 126), 5: (80, 1, 50), 11: (224, 4, 72), 12: (256, 4, 63)}


@dataclass
class Run:
    address: int
    class_: int
    region_size: int
    regions: int
    pages: int
    redzone: int = 0
    pad: int = 0  # behind the last region

    @property
    def stride(self) -> int:
        return self.region_size + 2 * self.redzone

    @property
    def first(self) -> int:
        return self.address + self.pages * PAGE - self.regions * self.stride - self.pad + self.redzone

    def region(self, index: int) -> int:
        return self.first + index * self.stride


@dataclass
class Module:
    """The library in memory: a page of text, which names its version, and one of data."""

    BUILD_ID: ClassVar[str] = "6b61727374" * 4

    version: str
    start: int = 0x7F57D7000000
    data: bytearray = field(default_factory=lambda: bytearray(PAGE))

    def words(self, offset: int, *values: int) -> None:
        struct.pack_into(f"<{len(values)}Q", self.data, offset, *values)

    def segments(self) -> list[Segment]:
        text = bytearray(PAGE)
        note = struct.pack("<III4s", 4, 20, 3, b"GNU") + bytes.fromhex(self.BUILD_ID)
        # kind, flags, offset in the file and from the start, size
        parts = ((1, 5, 0, PAGE), (1, 6, PAGE, PAGE), (4, 4, 512, len(note)))
        text[:64] = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 3, 62, 1, 0, 64, 0, 0, 64, 56, len(parts), 0, 0, 0)
        for index, (kind, flags, offset, size) in enumerate(parts):
            struct.pack_into("<IIQQQQQQ", text, 64 + 56 * index, kind, flags, offset, offset, 0, size, size, PAGE)
        text[512:512 + len(note)] = note
        name = f"{self.version}-0-g0000000000000000000000000000000000000000".encode()
        text[1024:1024 + len(name)] = name
        return [Segment(self.start, bytes(text), flags=5), Segment(self.start + PAGE, bytes(self.data))]

    def note(self) -> bytes:
        """NT_FILE, the files that are mapped."""
        name = b"/usr/lib/libjemalloc.so.1\0"
        ranges = struct.pack("<6Q", self.start, self.start + PAGE, 0, self.start + PAGE, self.start + 2 * PAGE, 1)
        data = struct.pack("<QQ", 2, PAGE) + ranges + name + name
        return struct.pack("<III", 5, len(data), 0x46494C45) + b"CORE\0\0\0\0" + data + bytes(-len(data) % 4)


@dataclass
class Segment:
    address: int
    data: bytes
    size: int = 0  # in memory, 0: as much as data
    flags: int = 6


@dataclass
class Image:
    entry: ClassVar[int] = MAP_ENTRY
    bias: ClassVar[int] = MAP_BIAS
    bins: ClassVar[tuple[int, int]] = (ARENA_BINS, BIN_SIZE)
    classes: ClassVar[dict[int, tuple[int, ...]]] = CLASSES

    chunk: int = 0x7F57D4C00000
    arena: int = 0x7F57D5000000
    memory: bytearray = field(default_factory=lambda: bytearray(CHUNK))
    own: bytearray = field(default_factory=lambda: bytearray(4 * PAGE))
    next_page: int = 0
    caches: dict[int, list[int]] = field(default_factory=dict)
    module: Module | None = None
    huge: list[tuple[int, int]] = field(default_factory=list)  # addresses and sizes

    def __post_init__(self) -> None:
        self.next_page = self.next_page or self.bias

    def put(self, address: int, data: bytes) -> None:
        for start, memory in ((self.chunk, self.memory), (self.arena, self.own)):
            if start <= address and address + len(data) <= start + len(memory):
                memory[address - start:address - start + len(data)] = data
                return
        raise ValueError(f"{address:#x} is in no part of the image")

    def words(self, address: int, *values: int) -> None:
        self.put(address, struct.pack(f"<{len(values)}Q", *values))

    def map_bits(self, page: int, bits: int) -> None:
        self.words(self.chunk + MAP + (page - self.bias) * self.entry + self.entry - 8, bits)

    def bin(self, class_: int) -> int:
        return self.arena + self.bins[0] + class_ * self.bins[1]

    # ---- runs, one behind the other

    def small(self, class_: int, free: set[int] | None = None) -> Run:
        """A run of regions, those in free free, the others in use."""
        free = free or set()
        size, pages, regions, *more = self.classes[class_]
        run = Run(self.chunk + self.next_page * PAGE, class_, size, regions, pages, *more)
        for page in range(pages):
            self.map_bits(self.next_page + page, page << 12 | class_ << 4 | 1)
        bitmap = sum(1 << region for region in free)
        self.header(run, self.bin(class_), regions, len(free))
        self.words(run.address + 16, *(bitmap >> 64 * word & 2**64 - 1 for word in range((regions + 63) // 64)))
        self.next_page += pages
        return run

    def header(self, run: Run, bin_: int, nextind: int, nfree: int) -> None:
        self.put(run.address, struct.pack("<QII", bin_, nextind, nfree))

    def large(self, pages: int) -> int:
        address = self.chunk + self.next_page * PAGE
        self.map_bits(self.next_page, pages << 12 | 0xFF << 4 | 3)
        for page in range(1, pages):
            self.map_bits(self.next_page + page, 0xFF << 4 | 3)
        self.next_page += pages
        return address

    def free(self, pages: int, dirty: bool) -> None:
        bits = pages << 12 | (8 if dirty else 0)
        self.map_bits(self.next_page, bits)
        self.map_bits(self.next_page + pages - 1, bits)
        self.next_page += pages

    # ---- the whole

    def write(self, path: Path) -> Path:
        if self.next_page < CHUNK // PAGE:
            self.free(CHUNK // PAGE - self.next_page, dirty=False)
        self.words(self.chunk, self.arena)
        self.put(self.arena, struct.pack("<II", 0, 1))
        tcache = self.arena + 2 * PAGE
        self.words(self.arena + ARENA_TCACHES, tcache)
        self.words(tcache, tcache, tcache, 0, self.arena)
        stack = tcache + TCACHE_BINS + TCACHE_CLASSES * TCACHE_BIN_SIZE
        for class_ in range(TCACHE_CLASSES):
            items = self.caches.get(class_, [])
            at = tcache + TCACHE_BINS + class_ * TCACHE_BIN_SIZE
            self.put(at + 16, struct.pack("<I", len(items)))
            self.words(at + 24, stack)
            if items:
                self.words(stack, *items)
            stack += 8 * 20
        return self.write_core(path)

    def write_core(self, path: Path) -> Path:
        segments = [Segment(self.chunk, bytes(self.memory)), Segment(self.arena, bytes(self.own))]
        segments += [Segment(address, b"", size) for address, size in self.huge]
        if self.module:
            segments[1].size = len(self.memory)  # the base allocator's chunk, whole
            segments += self.module.segments()
        path.write_bytes(core_file(segments, self.module.note() if self.module else b""))
        return path

    # ---- what it counts

    TABLE = 3 * PAGE  # of arenas, in the base allocator's chunk; behind it nodes of huge blocks
    NODES = TABLE + 1024

    def count_chunks(self, chunks: tuple[int, int, int], order: int = 0) -> None:
        """The module with its table of arenas, its tree of huge blocks by address (extent_tree_t and extent_node_t of
        extent.h), and chunk_stats_t (ever, at most, now) beside what chunk.c has of the chunks' size, in an order that a compiler
        may choose."""
        self.module = Module("3.6.0")
        self.words(self.arena + self.TABLE, self.arena)
        self.module.words(0x100, self.arena + self.TABLE)
        self.module.words(0x200, 7, 6, 5, CHUNK)  # other variables
        tree = self.module.start + PAGE + 0x300
        nodes = [self.arena + self.NODES + 64 * index for index in range(len(self.huge))]
        self.module.words(0x300, nodes[0] if nodes else tree + 8, 0, 0, tree + 8, tree + 8)
        for index, (address, size) in enumerate(self.huge):
            right = nodes[index + 1] if index + 1 < len(nodes) else tree + 8
            self.words(nodes[index], 0, 0, tree + 8, right | 1, 0, address, size)
        largest, mask, pages = CHUNK - self.bias * PAGE, CHUNK - 1, CHUNK // PAGE
        self.module.words(0x480, *((*chunks, 0, CHUNK, 0, mask, self.bias, pages),
                                   (CHUNK, largest, *chunks, pages, self.bias, mask),
                                   (mask, pages, *chunks, self.bias, CHUNK))[order])


class Redzones(Image):
    """The same with opt.redzone: as arena_bin_info[] of 3.6.0 has it then. Redzone and padding are told, too."""

    classes = {2: (32, 1, 63, 16, 16), 5: (80, 2, 72, 16, 0), 11: (224, 3, 47, 16, 16), 12: (256, 6, 47, 128, 128)}


class Profiling(Image):
    """The same as built with --enable-prof: a pointer more for each page, and in each arena_bin_t."""

    entry, bias = 32, 8
    bins = (304, 160)


class Patched(Image):
    """The same with two words more for each page, which no table has."""

    entry, bias = 40, 10


class Image45(Image):
    """The same of jemalloc 4.5.0: chunks of 2 MiB, whose headers have the runs' too (extent.h, extent_node_t; arena.h,
    arena_chunk_map_bits_t, arena_chunk_map_misc_t, arena_run_t); a cache's stack lies below its pointer."""

    CHUNK, MAP, BIAS, MISC, MISC_RUN = 2 << 20, 120, 13, 96, 24
    TCACHES, BINS = 224, 40
    SIZES = {14: (384, 3, 32), 11: (224, 7, 128), 2: (32, 1, 128)}

    def __init__(self) -> None:
        super().__init__(chunk=0x7F57D4C00000, arena=0x7F57D5000000, memory=bytearray(self.CHUNK), next_page=self.BIAS)

    def map_bits(self, page: int, bits: int) -> None:
        self.words(self.chunk + self.MAP + (page - self.BIAS) * 8, bits)

    def misc(self, page: int) -> int:
        pages = self.CHUNK // PAGE
        return self.chunk + self.MAP + (pages - self.BIAS) * 8 + (page - self.BIAS) * self.MISC + self.MISC_RUN

    def small(self, class_: int, free: set[int] | None = None) -> Run:
        free = free or set()
        size, pages, regions = self.SIZES[class_]
        run = Run(self.chunk + self.next_page * PAGE, class_, size, regions, pages)
        for page in range(pages):
            self.map_bits(self.next_page + page, page << 13 | class_ << 5 | 1)
        bitmap = sum(1 << region for region in free)
        self.put(self.misc(self.next_page), struct.pack("<II", class_, len(free)))
        self.words(self.misc(self.next_page) + 8, bitmap & 2**64 - 1, bitmap >> 64)
        self.next_page += pages
        return run

    def large(self, pages: int) -> int:
        address = self.chunk + self.next_page * PAGE
        self.map_bits(self.next_page, pages << 13 | 0xFF << 5 | 3)
        for page in range(1, pages):
            self.map_bits(self.next_page + page, 0xFF << 5 | 3)
        self.next_page += pages
        return address

    def free(self, pages: int, dirty: bool) -> None:
        bits = pages << 13 | (0x10 if dirty else 0)
        self.map_bits(self.next_page, bits)
        self.map_bits(self.next_page + pages - 1, bits)
        self.next_page += pages

    def write(self, path: Path) -> Path:
        if self.next_page < self.CHUNK // PAGE:
            self.free(self.CHUNK // PAGE - self.next_page, dirty=False)
        self.words(self.chunk, self.arena, self.chunk, self.CHUNK)
        self.put(self.chunk + 34, b"\1")
        self.put(self.arena, struct.pack("<II", 0, 1))
        tcache = self.arena + 2 * PAGE
        self.words(self.arena + self.TCACHES, tcache)
        self.words(tcache, tcache, tcache)
        stack = tcache + self.BINS + 41 * 32
        for class_ in range(41):
            stack += 8 * (200 if class_ == 0 else 4)
            items = self.caches.get(class_, [])
            at = tcache + self.BINS + class_ * 32
            self.put(at + 16, struct.pack("<I", len(items)))
            self.words(at + 24, stack)
            for index, item in enumerate(items):
                self.words(stack - 8 * (index + 1), item)
        return self.write_core(path)

    def count(self, base: tuple[int, int, int], **arena: int) -> None:
        """The module with its table of arenas and what the base allocator has (allocated, resident, mapped); the arena's
        own counts (arena_stats_t of stats.h, and ndirty), and its list of huge blocks."""
        offsets = {"mapped": 96, "retained": 104, "metadata_mapped": 136, "metadata_allocated": 144, "ndirty": 304}
        self.module = Module("4.5.0")
        self.words(self.arena + self.TABLE, self.arena)
        self.module.words(0x100, self.arena + self.TABLE)
        self.module.words(0x200, self.CHUNK, PAGE, 8 * PAGE)  # other variables
        self.module.words(0x400, *reversed(base))  # as gcc lays them out
        for name, value in arena.items():
            self.words(self.arena + offsets[name], value)
        nodes = [self.arena + self.NODES + 128 * index for index in range(len(self.huge))]
        self.words(self.arena + 2088, nodes[0] if nodes else 0)
        for index, (address, size) in enumerate(self.huge):
            self.words(nodes[index], self.arena, address, size)
            self.words(nodes[index] + 80, nodes[(index + 1) % len(nodes)])


def core_file(segments: list[Segment], notes: bytes = b"") -> bytes:
    """An ELF core of one thread, whose registers are zeros."""
    status = bytearray(336)  # struct elf_prstatus
    struct.pack_into("<i", status, 32, 1000)  # pr_pid
    note = struct.pack("<III", 5, len(status), 1) + b"CORE\0\0\0\0" + bytes(status) + notes
    count = 1 + len(segments)
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 4, 62, 1, 0, 64, 0, 0, 64, 56, count, 0, 0, 0)
    offset = 64 + 56 * count
    table = struct.pack("<IIQQQQQQ", 4, 0, offset, 0, 0, len(note), 0, 4)
    body = note + bytes(-(offset + len(note)) % PAGE)
    for segment in segments:
        at, size = offset + len(body), segment.size or len(segment.data)
        table += struct.pack("<IIQQQQQQ", 1, segment.flags, at, segment.address, 0, len(segment.data), size, PAGE)
        body += segment.data
    return header + table + body


def example(image: Image) -> Image:
    """Some runs of each kind, and something in a cache."""
    for class_ in image.SIZES if isinstance(image, Image45) else CLASSES:
        run = image.small(class_, free={1, 2, 20})
        image.small(class_, free=set(range(30)))
        image.large(5)
        image.free(3, dirty=class_ % 2 == 0)
        image.caches[class_] = [run.region(index) for index in (5, 9)]
    return image


if __name__ == "__main__":
    image, image45 = Image(), Image45()
    for one in (image, image45):
        one.huge = [(0x7F57D8000000, 8 << 20), (0x7F57D9000000, 4 << 20)]
        example(one)
    image.count_chunks((12, 9, 6))
    image45.count((3 * PAGE + 128, 5 * PAGE, 4 << 20), mapped=29 << 20, retained=6 << 20, ndirty=21)
    image.write(Path(sys.argv[1], "jemalloc-3.core"))
    image45.write(Path(sys.argv[1], "jemalloc-4.core"))
