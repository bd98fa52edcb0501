"""Devices, precision and memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fullyconv import devices
from fullyconv.devices import autocast, computes_bf16, free_memory, pick_device

CPU = torch.device("cpu")


def has(amx: bool, avx: bool) -> Callable[[pytest.MonkeyPatch], None]:
    def pretend(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)

    return pretend


def test_auto_is_the_first_gpu_where_there_is_one() -> None:
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(("amx", "avx"), [(True, False), (False, True), (False, False)])
def test_auto_precision_is_bf16_where_the_cpu_computes_it(
    monkeypatch: pytest.MonkeyPatch, amx: bool, avx: bool
) -> None:
    has(amx, avx)(monkeypatch)
    assert computes_bf16(CPU) == (amx or avx)
    product: dict[str, torch.dtype] = {}
    for precision in ("auto", "32", "bf16"):
        with autocast(CPU, precision):
            product[precision] = (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
    assert product == {
        "auto": torch.bfloat16 if amx or avx else torch.float32,
        "32": torch.float32,
        "bf16": torch.bfloat16,
    }


def test_free_memory_of_the_cpu_is_less_than_the_limit_of_the_container(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert 0 < free_memory(CPU) < 2**50
    texts = {"/proc/meminfo": "MemAvailable:  1000 kB\n"}
    files = {**texts, "/sys/fs/cgroup/memory.max": "500000\n", "/sys/fs/cgroup/memory.current": "100000\n"}

    class FakePath:
        def __init__(self, name: str) -> None:
            self.name = name

        def exists(self) -> bool:
            return self.name in files

        def read_text(self) -> str:
            return files[self.name]

    monkeypatch.setattr(devices, "Path", FakePath)
    assert free_memory(CPU) == 400_000
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert free_memory(CPU) == 1_024_000
    files.clear()
    assert free_memory(CPU) == 4 << 30


def test_every_device_is_described_and_one_is_taken_for_auto() -> None:
    lines = devices.describe_devices()
    assert lines[0].startswith("cpu: ")
    assert len(lines) == 1 + torch.cuda.device_count()
    assert sum("taken for auto" in line for line in lines) == 1
