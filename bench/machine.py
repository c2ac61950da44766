"""Descriptions of the machine and of the package versions of a measurement."""

from __future__ import annotations

import os
import platform
import zlib
from importlib.metadata import version
from pathlib import Path

__all__ = ["machine", "versions"]

_PACKAGES = (
    "trio-spanbatch",
    "trio",
    "httpx",
    "h11",
    "protobuf",
    "opentelemetry-sdk",
    "opentelemetry-exporter-otlp-proto-http",
    "mlflow-skinny",
)


def machine() -> str:
    """Return the processor, the cores that this process may use, and the system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_processor()}, {cores} cores, {platform.system()} {platform.release()}"


def versions() -> list[tuple[str, str]]:
    """Return the versions of Python and of the relevant packages."""
    python = (platform.python_implementation(), platform.python_version())
    return [python, ("zlib", zlib.ZLIB_RUNTIME_VERSION), *((package, version(package)) for package in _PACKAGES)]


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
