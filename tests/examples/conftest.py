"""The adapters' output over the real files, made once for all tests."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.examples.support import FILES, Conversion, Line, conversion
from tests.support import data


@pytest.fixture(scope="session")
def real_file(data_dir: Path) -> Callable[[str], Path]:
    """Find the real file that an adapter is made for."""
    return lambda name: data.require(data_dir / "real" / FILES[name])


@pytest.fixture(scope="session")
def real_conversion(real_file: Callable[[str], Path]) -> Callable[[str], Conversion]:
    """Run an adapter over its real file, the first time that a test asks."""
    return cache(lambda name: conversion(name, real_file(name)))


@pytest.fixture(scope="session")
def converted(real_conversion: Callable[[str], Conversion]) -> Callable[[str], list[Line]]:
    """Return the lines that an adapter makes of its real file."""
    return lambda name: real_conversion(name).lines


@pytest.fixture(scope="session")
def expected_counts(data_dir: Path) -> dict[str, Any]:
    """The tallies of the files that were made without the adapters."""
    file = data.require(data_dir / "real" / "expected_counts.json")
    counts: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return counts
