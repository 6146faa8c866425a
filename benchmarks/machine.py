"""On what a figure was measured, for the line `machine` of every result.

machine("torch", "deepspeed")       # "x86_64, 2 cores, python 3.11.2, torch 2.13.0, deepspeed 0.19.8"
"""

import os
import platform
from importlib.metadata import version


def machine(*packages: str) -> str:
    """Architecture, cores, Python, and the versions of the packages that matter for the figure."""
    versions = [f"{package} {version(package)}" for package in packages]
    cores = f"{os.cpu_count()} cores"
    return ", ".join([platform.machine(), cores, f"python {platform.python_version()}", *versions])
