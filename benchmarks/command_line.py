"""The options of a benchmark, written as `name=value` on its command line, and the commands that it types.

    options = parse_options()   # python -m benchmarks.clip minutes=5 -> {"minutes": "5"}
    run("training", "train", "configs/training/demo.yaml", "steps=300")

The benchmark converts each value and names its default where it uses it.
"""

import subprocess
import sys


def parse_options() -> dict[str, str]:
    return dict(arg.split("=", 1) for arg in sys.argv[1:])


def run(*args: str) -> None:
    """A verb, as a user types it; what it prints goes to stderr, as stdout is for figures."""
    print("$ python -m", *args, file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", *args], check=True, stdout=sys.stderr)
