"""The NumPy engine beside onnxruntime, layer by layer and for the whole MobileNetV2: ``gpu-conv bench`` in a checkout.

    python benchmarks/cpu.py [--threads 1 2] [--rounds 15] [--only TEXT] [--peers onnxruntime torch scipy]

``gpu_conv/bench/cpu.py`` says how it is timed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from gpu_conv.bench.cpu import PEERS
from gpu_conv.cli.bench import on_cpu


def main() -> None:
    """Print one table per thread count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="rows whose kind or name contains this")
    parser.add_argument("--peers", nargs="*", default=["onnxruntime"], choices=PEERS)
    arguments = parser.parse_args()
    on_cpu(arguments.threads, arguments.rounds, arguments.only, arguments.peers)


if __name__ == "__main__":
    main()
