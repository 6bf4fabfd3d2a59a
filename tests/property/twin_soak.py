"""``python -m tests.property.twin_soak --steps N --seed S``: the twins of the hot state walked for as long as you like.

Prints its seed, and on a difference that of the life in which it came: ``--steps 250 --seed <that>`` repeats it.
"""

import argparse
import asyncio
import secrets
import sys
import tempfile
import time
from pathlib import Path

from tests.support.twin_walk import STEPS_A_LIFE, walk
from tests.support.valkey import ValkeyServer


def main() -> int:
    """Exit status: 0 when the twins ended every life alike."""
    parser = argparse.ArgumentParser(description="Walks the pure hot state and the one in Lua side by side.")
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**9))
    asked = parser.parse_args()
    print(f"seed {asked.seed}: {asked.steps} steps, in lives of {STEPS_A_LIFE}", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, ValkeyServer(Path(folder)) as server:
        try:
            taken = asyncio.run(walk(server.url, asked.seed, asked.steps))
        except AssertionError as error:
            print(f"the twins differ: {error}", file=sys.stderr)
            return 1
    print(f"{taken} steps alike in {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
