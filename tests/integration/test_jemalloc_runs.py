"""A run of 224-byte regions that goes on into the next run, on heaps laid out byte for byte like the one in the
mailing list's question: karst says so before it happens, after it, and from what is freed again."""

from __future__ import annotations

from pathlib import Path

import pytest
from karst_command import Finding, Target
from karst_jemalloc_image import CHUNK, MAP_BIAS, Image, Image45, Profiling, Redzones, Run

SIZE = 224
NUMBERS = [0x1D0, 0x1D1, 0x1D2, 0x1D3]


def heap(behind: int = 2) -> tuple[Image, Run, Run]:
    """The run at ...9d000: bin 11, 16,384 bytes, 72 regions from offset 256 on, nextind 72, nfree 0; and the run of
    32-byte regions (bin 2) in the page behind it."""
    image = Image()
    image.small(12, free={3, 60})
    image.large(0x9D - MAP_BIAS - 4)
    first = image.small(11)
    second = image.small(behind, free={5, 49})
    image.free(7, dirty=True)
    assert first.address & 0xFFFFF == 0x9D000 and second.address == first.address + 16384
    assert first.first == first.address + 256 and first.regions == 72
    return image, first, second


def overrun(image: Image, run: Run) -> None:
    """200-byte objects, numbered, in the last region and on behind it."""
    for index, number in enumerate(NUMBERS):
        image.put(run.region(71 + index), number.to_bytes(4, "little") * 50)


def findings_of(image: Image, directory: Path) -> tuple[Target, list[Finding]]:
    target = Target.core(image.write(directory / "core"))
    healthy, findings = target.check()
    assert healthy == (not findings)
    return target, findings


def test_healthy(directory: Path) -> None:
    image, first, second = heap()
    image.caches[11] = [first.region(7), first.region(70)]
    image.caches[2] = [second.region(0)]
    target, findings = findings_of(image, directory)
    assert not findings, "\n".join(map(str, findings))
    runs = {int(run["address"], 16): run for run in target.json("runs")["runs"]}
    row = runs[first.address]
    assert (row["size"], row["region_size"], row["regions"]) == (16384, 224, 72)
    assert (row["live"], row["cached"], row["free"]) == (70, 2, 0)
    assert int(row["first_region"], 16) == first.address + 256
    row = runs[second.address]
    assert (row["region_size"], row["regions"], row["live"], row["cached"], row["free"]) == (32, 126, 123, 1, 2)
    assert {"run", "large", "dirty", "clean", "header"} == {run["kind"] for run in runs.values()}
    states = {block.address: block.state for block in target.blocks()}
    assert [states[second.region(region)] for region in (0, 1, 5, 49)] == ["cached", "live", "free", "free"]


def test_before_it_happens(directory: Path) -> None:
    """Region 72's bit is set, and the next malloc(224) will return the neighbour's header."""
    image, first, second = heap()
    image.words(first.address + 16, 0, 1 << 8)
    _, findings = findings_of(image, directory)
    [finding] = [finding for finding in findings if finding.code == "run-overlap"]
    assert finding.address == second.address
    assert f"region 72 of the 224-byte run at {first.address:#x} (72 regions)" in finding.text
    assert f"the next malloc(224) may hand out {second.address:#x}" in finding.text
    assert f"in the 32-byte run at {second.address:#x}" in finding.text


def test_after_it_happened(directory: Path) -> None:
    image, first, second = heap()
    overrun(image, first)
    target, findings = findings_of(image, directory)
    [finding] = findings
    assert (finding.code, finding.severity, finding.address) == ("run-overlap", "corrupt", second.address)
    assert f"the header of the 32-byte run at {second.address:#x}" in finding.text
    assert f"region 72 of the 224-byte run at {first.address:#x}" in finding.text
    assert "bin 0x1d1000001d1" in finding.evidence


def test_freed_again(directory: Path) -> None:
    """The object of region 73 was freed, and is in the cache of its class: 0x380 and so on are no regions there."""
    image, first, second = heap()
    overrun(image, first)
    image.caches[11] = [first.region(70), first.region(73)]
    _, findings = findings_of(image, directory)
    assert sorted(finding.code for finding in findings) == ["run-overlap", "wrong-bin"]
    [finding] = [finding for finding in findings if finding.code == "wrong-bin"]
    assert finding.address == first.region(73) == second.address + SIZE
    assert f"of the 32-byte run at {second.address:#x}" in finding.text
    assert f"it would be region 73 of the 224-byte run at {first.address:#x} (72 regions), 2 past its last" in finding.text


@pytest.mark.parametrize("region", [73, 75])
def test_block_explains(region: int, directory: Path) -> None:
    image, first, second = heap(behind=5)
    target = Target.core(image.write(directory / "core"))
    address = first.region(region)
    answer = target.json("block", hex(address))
    assert answer["explanation"].startswith(f"offset {address - second.address:#x} of the run at {second.address:#x} "
                                            "(80-byte regions) is not a region start")
    assert (f"it would be region {region} of the 224-byte run at {first.address:#x}, {region - 71} past the last of "
            "its 72") in answer["explanation"]
    assert target.run("block", hex(address)).stdout.count("  why ") == 1


def test_block_explains_what_is_overwritten(directory: Path) -> None:
    """Each 224 bytes a region of 32 bytes begins, too: that the header is gone tells."""
    image, first, second = heap()
    overrun(image, first)
    answer = Target.core(image.write(directory / "core")).json("block", hex(first.region(73)))
    assert answer["block"]["state"] == "unknown"
    assert f"of the run at {second.address:#x} (32-byte regions) is region 5 there" in answer["explanation"]
    assert "the run's header is overwritten" in answer["explanation"]
    assert f"it would be region 73 of the 224-byte run at {first.address:#x}" in answer["explanation"]


def test_overwritten_by_somebody_else(directory: Path) -> None:
    """A header where no region of the run before it would begin: not taken for a run that goes on."""
    image = Image()
    before = image.small(12, free={3, 60})
    image.large(2)
    second = image.small(2, free={5})
    image.put(second.address - 100, b"A" * 108)
    _, findings = findings_of(image, directory)
    assert [finding.code for finding in findings] == ["overflow"]
    assert before.address != second.address and findings[0].address == second.address


def test_double_frees(directory: Path) -> None:
    image, first, second = heap()
    image.caches[11] = [first.region(7), first.region(8), first.region(7)]
    image.caches[2] = [second.region(5)]
    _, findings = findings_of(image, directory)
    assert [(finding.code, finding.address) for finding in sorted(findings, key=lambda one: one.address)] == [
        ("double-free", first.region(7)), ("double-free", second.region(5))]


def test_count_and_bitmap(directory: Path) -> None:
    """What a double free past the caches leaves: the bit set and cleared, and counted twice."""
    image, first, _ = heap()
    image.header(first, image.bin(11), 72, 2)
    _, findings = findings_of(image, directory)
    [finding] = findings
    assert finding.code == "bad-count" and "nfree says 2 free, its bitmap 0" in finding.text


def test_page_map_is_damaged(directory: Path) -> None:
    """The rest of the chunk is read all the same."""
    image, first, second = heap()
    image.map_bits(0x9E, 0x4141414141414141)
    target, findings = findings_of(image, directory)
    assert {finding.code for finding in findings} == {"bad-link"}
    assert any(finding.address & ~0xFFF == first.address for finding in findings)
    assert any(run["address"] == hex(second.address) for run in target.json("runs")["runs"])


# ---- 3.x in other configurations: opt.redzone, --enable-prof -----------------------------------------------


@pytest.mark.parametrize(("kind", "words"), [(Redzones, "; with redzones"), (Profiling, ", built with profiling")])
def test_other_configurations(kind: type[Image], words: str, directory: Path) -> None:
    image = kind()
    runs = {class_: image.small(class_, free={3, 40}) for class_ in (2, 5, 11, 12)}
    image.large(5)
    image.free(7, dirty=True)
    image.caches[11] = [runs[11].region(7), runs[11].region(46)]
    target, findings = findings_of(image, directory)
    assert not findings, "\n".join(map(str, findings))
    [allocator] = target.json("info")["allocators"]
    assert next(fact["text"] for fact in allocator["facts"] if fact["name"] == "layout").endswith(words)
    blocks = {block.address: block for block in target.blocks()}
    for run in runs.values():
        for region in range(run.regions):
            block = blocks[run.region(region)]
            cached = run.class_ == 11 and region in (7, 46)
            state = "free" if region in (3, 40) else "cached" if cached else "live"
            assert (block.state, block.size, block.usable) == (state, run.stride, run.region_size), (run, region)
    summary = target.json("summary")
    live = [block for block in blocks.values() if block.state == "live"]
    assert (summary["total"]["live"]["blocks"], summary["total"]["live"]["bytes"]) == (
        len(live), sum(block.size for block in live))
    own = summary["allocators"][0]["own"]
    assert own["small_allocated"] == sum((run.regions - 2) * run.region_size for run in runs.values())
    assert own["active"] == sum(run.pages * 4096 for run in runs.values()) + 5 * 4096


def test_redzones_are_of_no_region(directory: Path) -> None:
    """What is freed by the address of its redzone; and a bit past the last region."""
    image = Redzones()
    first = image.small(11, free={3})
    second = image.small(12, free={7})
    image.caches[11] = [first.region(9) - 16]
    image.words(first.address + 16, 1 << 3 | 1 << 47)
    target, findings = findings_of(image, directory)
    assert sorted(finding.code for finding in findings) == ["misaligned", "run-overlap"]
    [misaligned] = [finding for finding in findings if finding.code == "misaligned"]
    assert f"inside a region of the 224-byte run at {first.address:#x}" in misaligned.text
    [overlap] = [finding for finding in findings if finding.code == "run-overlap"]
    assert overlap.address == first.region(47) and f"the 256-byte run at {second.address:#x}" in overlap.text
    answer = target.json("block", hex(first.region(5) + 230))
    assert "is not a region start, but 0xe6 bytes into region 5" in answer["explanation"]


# ---- 4.x: the headers of runs are in the chunk's -----------------------------------------------------------


def heap_of_4() -> tuple[Image45, Run, Run]:
    image = Image45()
    image.large(9)
    first = image.small(14, free={1, 30})
    second = image.small(2, free={0, 127})
    image.free(5, dirty=True)
    image.small(11)
    return image, first, second


def test_healthy_4(directory: Path) -> None:
    image, first, second = heap_of_4()
    image.caches[14] = [first.region(7), first.region(8)]
    target, findings = findings_of(image, directory)
    assert not findings, "\n".join(map(str, findings))
    [allocator] = target.json("summary")["allocators"]
    assert allocator["version"].startswith("4.")
    runs = {int(run["address"], 16): run for run in target.json("runs")["runs"]}
    row = runs[first.address]
    assert (row["region_size"], row["regions"], row["live"], row["cached"], row["free"]) == (384, 32, 28, 2, 2)
    row = runs[second.address]
    assert (row["region_size"], row["regions"], row["live"], row["cached"], row["free"]) == (32, 128, 126, 0, 2)
    assert allocator["own"]["allocated"] == 8 * 4096 + 30 * 384 + 126 * 32 + 128 * 224


def test_run_extends_4(directory: Path) -> None:
    """Bit 32 of 32 regions, and a region behind the last one that was freed."""
    image, first, second = heap_of_4()
    image.words(image.misc((first.address - image.chunk) // 4096) + 8, 1 << 1 | 1 << 30 | 1 << 32)
    image.caches[14] = [first.region(33)]
    _, findings = findings_of(image, directory)
    assert sorted(finding.code for finding in findings) == ["run-overlap", "wrong-bin"]
    for finding in findings:
        assert f"the 384-byte run at {first.address:#x} (32 regions)" in finding.text
        assert f"the 32-byte run at {second.address:#x}" in finding.text


def test_counts_4(directory: Path) -> None:
    image, first, _ = heap_of_4()
    image.put(image.misc((first.address - image.chunk) // 4096) + 4, (4).to_bytes(4, "little"))
    _, findings = findings_of(image, directory)
    assert [finding.code for finding in findings] == ["bad-count"]
    assert "nfree says 4 free, its bitmap 2" in findings[0].text


# ---- what jemalloc counts in variables of its own ----------------------------------------------------------


def own_figures(target: Target) -> dict[str, int]:
    [allocator] = target.json("summary")["allocators"]
    own: dict[str, int] = allocator["own"]
    return own


HUGE = [(0x7F57D8000000, 8 << 20), (0x7F57D9000000, 4 << 20)]


@pytest.mark.parametrize("order", [0, 1, 2])
def test_mapped_3(order: int, directory: Path) -> None:
    """Of 3.x: chunks, whosever they are: one an arena's, three of huge blocks, one the base allocator's, and two that
    nothing leads to. It has no statistic of metadata."""
    image, _, _ = heap()
    image.huge = HUGE
    image.count_chunks((12, 9, 7), order)
    target, findings = findings_of(image, directory)
    assert not findings, "\n".join(map(str, findings))
    own = own_figures(target)
    assert own["mapped"] == 7 * CHUNK
    assert own["huge_allocated"] == 12 << 20
    assert own["allocated"] == own["small_allocated"] + own["large_allocated"] + own["huge_allocated"]
    assert "metadata" not in own and "retained" not in own and "resident" not in own
    assert any(block.address == HUGE[0][0] and block.usable == HUGE[0][1] for block in target.blocks())
    assert target.json("summary")["total"]["system_bytes"] == CHUNK + (12 << 20) + CHUNK


@pytest.mark.parametrize("chunks", [(12, 9, 4), (12, 5, 6), (5, 9, 6), (90, 90, 90)])
def test_mapped_3_makes_no_sense(chunks: tuple[int, int, int], directory: Path) -> None:
    """Fewer than were found, more than ever, or far more than were found: nothing is told."""
    image, _, _ = heap()
    image.huge = HUGE
    image.count_chunks(chunks)
    target, _ = findings_of(image, directory)
    assert "mapped" not in own_figures(target)
    facts = {fact["name"]: fact["text"] for fact in target.json("info")["allocators"][0]["facts"]}
    assert facts["own counts"] == "not found: how much is mapped is not told"


BASE = (3 * 4096 + 128, 5 * 4096, 4 << 20)
ARENA = {"mapped": 29 << 20, "retained": 6 << 20, "metadata_mapped": 13 * 4096, "metadata_allocated": 7168, "ndirty": 21}


def test_own_counts_4(directory: Path) -> None:
    image, _, _ = heap_of_4()
    image.huge = [(0x7F57D8000000, 6 << 20)]
    image.count(BASE, **ARENA)
    target, findings = findings_of(image, directory)
    assert not findings, "\n".join(map(str, findings))
    small = 30 * 384 + 126 * 32 + 128 * 224
    active = (9 + 3 + 1 + 7) * 4096 + (6 << 20)
    assert own_figures(target) == {
        "allocated": 8 * 4096 + small + (6 << 20),
        "small_allocated": small,
        "large_allocated": 8 * 4096,
        "huge_allocated": 6 << 20,
        "active": active,
        "metadata": BASE[0] + ARENA["metadata_mapped"] + ARENA["metadata_allocated"],
        "resident": BASE[1] + ARENA["metadata_mapped"] + active + ARENA["ndirty"] * 4096,
        "mapped": BASE[2] + ARENA["mapped"],
        "retained": ARENA["retained"],
    }


@pytest.mark.parametrize("base", [(BASE[0] + 8, *BASE[1:]), (*BASE[:2], BASE[2] + 4096), (6 * 4096, *BASE[1:])])
def test_own_counts_4_make_no_sense(base: tuple[int, int, int], directory: Path) -> None:
    """No lines of the cache; no chunks; more handed out than is resident."""
    image, _, _ = heap_of_4()
    image.count(base, **ARENA)
    own = own_figures(findings_of(image, directory)[0])
    assert own["retained"] == ARENA["retained"] and "mapped" not in own and "metadata" not in own
