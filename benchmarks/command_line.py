"""The options of a benchmark, written as `name=value` on its command line.

    options = parse_options()   # python -m benchmarks.clip minutes=5 -> {"minutes": "5"}

The benchmark converts each value and names its default where it uses it.
"""

import sys


def parse_options() -> dict[str, str]:
    return dict(arg.split("=", 1) for arg in sys.argv[1:])
