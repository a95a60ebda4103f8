"""The corruption catalogue's cases, and how karst's findings are held against what they did."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from karst_command import TESTS, Finding, Target
from karst_libcs import Libc
from karst_programs import Program, core_of, started

CASES = subprocess.run([TESTS / "catalogue"], capture_output=True, text=True, check=True, timeout=10).stdout.split()

# What one damage may lead to: findings as far from it as this, or that name it in their evidence.
NEIGHBOURHOOD = 4096


@dataclass(frozen=True)
class Expected:
    code: str
    severity: str
    address: int

    def __str__(self) -> str:
        return f"{self.code} ({self.severity}) at {self.address:#x}"

    def is_met_by(self, finding: Finding) -> bool:
        return (finding.code, finding.severity, finding.address) == (self.code, self.severity, self.address)


def expectations(program: Program) -> list[Expected]:
    words = [line.split() for line in program.lines]
    return [Expected(word[1], word[2], int(word[3], 16)) for word in words if word[0] == "expect"]


def skip_if_not_for_this_libc(program: Program) -> None:
    for line in program.lines:
        if line.startswith("skip "):
            pytest.skip(line)


def read_bystanders(directory: Path) -> dict[int, int]:
    lines = (directory / "bystanders").read_text().splitlines()
    return {int(address, 16): int(usable) for address, usable in (line.split() for line in lines)}


LIST = re.compile(r"(?:tcache|fast|small|large|unsorted)(?: 0x[0-9a-f]+)? (?:thread \d+|main)")


def is_of(finding: Finding, expected: Expected, lists: set[str]) -> bool:
    """Does finding come of the damage expected? lists: those it concerns, which may lead astray from there."""
    return (
        not lists.isdisjoint(LIST.findall(finding.text))
        or abs(finding.address - expected.address) < NEIGHBOURHOOD
        or f"{expected.address:#x}" in finding.text + finding.evidence
        or f"{expected.address - 16:#x}" in finding.text + finding.evidence
    )


def assert_found(target: Target, expected: list[Expected]) -> None:
    _, findings = target.check()
    listing = "\n".join(map(str, findings)) or "no findings"
    for expectation in expected:
        if not any(map(expectation.is_met_by, findings)):
            pytest.fail(f"{expectation} is not among: {listing}", pytrace=False)
    met = [finding for finding in findings if any(item.is_met_by(finding) for item in expected)]
    lists = {name for finding in met for name in LIST.findall(finding.text)}
    strays = [
        str(finding)
        for finding in findings
        if finding.severity == "corrupt" and not any(is_of(finding, expectation, lists) for expectation in expected)
    ]
    if strays:
        pytest.fail("unrelated: " + "\n".join(strays), pytrace=False)


def assert_bystanders(target: Target, bystanders: dict[int, int]) -> None:
    live = {block.address: block.usable for block in target.blocks() if block.state == "live"}
    lost = [address for address, usable in bystanders.items() if live.get(address) != usable]
    assert not lost, f"{len(lost)} of {len(bystanders)} bystanders are lost, from {lost[0]:#x} on"


def look(program: Program, end: str) -> Target:
    """At the process itself, or, which ends it, at its core by structure alone."""
    if end == "process":
        return Target.process(program.pid)
    return Target.core(core_of(program), "--no-symbols")


def assert_case_found(libc: Libc, name: str, end: str, directory: Path) -> None:
    with started(libc.command("catalogue", name, directory), directory) as program:
        skip_if_not_for_this_libc(program)
        expected = expectations(program)
        assert expected, program.lines
        target = look(program, end)
        assert_found(target, expected)
        assert_bystanders(target, read_bystanders(directory))


def assert_twin_healthy(libc: Libc, name: str, end: str, directory: Path) -> None:
    with started(libc.command("catalogue", name, directory, "healthy"), directory) as program:
        skip_if_not_for_this_libc(program)
        assert not expectations(program)
        target = look(program, end)
        healthy, findings = target.check()
        if findings or not healthy:
            pytest.fail("\n".join(map(str, findings)), pytrace=False)
        assert_bystanders(target, read_bystanders(directory))
