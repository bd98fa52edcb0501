"""Which device, which precision, how much memory: what a machine offers, asked in one place."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Barrier

import torch
from torch import nn

from fullyconv.errors import ConfigError


def device_of(model: nn.Module) -> torch.device:
    """Where a model's parameters are."""
    return next(model.parameters()).device


def pick_device(name: str) -> torch.device:
    """The device of this name; "auto" is the first CUDA device where there is one, else the CPU.

    Raises:
        ConfigError: there is no such device.

    Example:
        >>> pick_device("cpu")
        device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise ConfigError(
            f"device: got {name!r}; expected auto, cpu, cuda or cuda:N of this machine", where="device"
        ) from None
    return device


def computes_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware, so that it is faster there than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # Not public, so a torch that has them no more is a machine without.
    tests = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, test, bool)() for test in tests)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """A context in which nets compute in the given precision: "auto" (bf16 where `computes_bf16`), "32" or "bf16".

    Raises:
        ConfigError: another precision.
    """
    if precision not in ("auto", "32", "bf16"):
        raise ConfigError(f"precision: got {precision!r}; expected auto, 32 or bf16", where="precision")
    enabled = precision == "bf16" or (precision == "auto" and computes_bf16(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """A context in which torch gives the same bits every time on one machine, or says that it cannot; then as before.

    Raises:
        ConfigError: something has no deterministic form on this device, or CUDA was started without what it takes.

    Example:
        >>> with deterministic(True):
        ...     torch.are_deterministic_algorithms_enabled()
        True
        >>> torch.are_deterministic_algorithms_enabled()
        False
    """
    if not wanted:
        yield
        return
    if not torch.cuda.is_initialized():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    was, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn
    cudnn_was, searched = cudnn.deterministic, cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    except RuntimeError as error:
        said = str(error)
        if "CUBLAS_WORKSPACE_CONFIG" in said:
            raise ConfigError(
                "deterministic: CUDA was started without it; set CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment",
                where="deterministic",
            ) from None
        if "does not have a deterministic implementation" in said:
            raise ConfigError(
                f"deterministic: {said.partition(' does not')[0]} has no such form on this device; take another loss, "
                "the CPU, or do without",
                where="deterministic",
            ) from None
        raise
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warned)
        cudnn.deterministic, cudnn.benchmark = cudnn_was, searched


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was no memory left, on whichever device.

    Example:
        >>> out_of_memory(MemoryError()), out_of_memory(ValueError())
        (True, False)
    """
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def free_memory(device: torch.device) -> int:
    """Bytes that a picture may still take on the device, container limits included."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    candidates = [4 << 30]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        line = next((x for x in meminfo.read_text().splitlines() if x.startswith("MemAvailable:")), None)
        if line is not None:
            candidates = [int(line.split()[1]) * 1024]
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (most := limit.read_text().strip()).isdigit():
        candidates.append(int(most) - int(used.read_text()))
    return max(min(candidates), 0)


def serial_threads() -> ThreadPoolExecutor:
    """As many threads as torch would use, in each of which torch is serial.

    Work that is cut into pieces beforehand goes through them faster than through torch's own threads, which wait for
    each other after every operation, and for long where other processes want the cores too.
    """
    return _serial_threads(torch.get_num_threads(), os.getpid())


@cache
def _serial_threads(threads: int, process: int) -> ThreadPoolExecutor:
    """For this process: a forked one would inherit a pool without its threads."""

    def be_serial() -> None:
        torch.get_num_threads()  # a thread that has never asked would take over the common number later
        torch.set_num_threads(1)

    pool = ThreadPoolExecutor(threads, "serial", initializer=be_serial)
    all_there = Barrier(threads)
    list(pool.map(lambda _: all_there.wait(), range(threads)))
    torch.set_num_threads(threads)  # the common number, which every thread set to 1
    return pool


def describe_devices() -> list[str]:
    """A line for each device: its name, free memory, precision, and whether "auto" takes it."""
    lines = []
    for name in ("cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))):
        device = pick_device(name)
        what = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
        bf16 = "bf16 in hardware" if computes_bf16(device) else "no bf16 in hardware, so float32"
        chosen = ", taken for auto" if device.type == pick_device("auto").type and not device.index else ""
        lines.append(f"{name}: {what}, {free_memory(device) / 2**30:.1f} GiB free, {bf16}{chosen}")
    return lines
