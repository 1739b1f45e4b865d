"""Many processes on one cache, one of them vandal: python hammer.py PROCESSES SECONDS. Exit status 0 if nobody lied."""

import os
import random
import sys
import time

from gpu_conv.cachedir import cache_dir
from gpu_conv.cuda import cache

KEYS = [cache.key("hammer", str(number)) for number in range(12)]


def content(key: str) -> tuple[dict[str, object], bytes, bytes]:
    return {"lowered": key, "registers": 40}, key.encode() * 300, key.encode()[::-1] * 500


def use(deadline: float) -> int:
    """Read and write until the deadline; 1 if an entry was ever anything but absent or right, 2 if never right."""
    hits = 0
    while time.monotonic() < deadline or not hits:
        key = random.choice(KEYS)
        found = cache.read(key)
        if found is None:
            cache.write(key, *content(key))
        elif found != content(key):
            return 1
        else:
            hits += 1
        if time.monotonic() > deadline + 5:
            return 2
    return 0


def vandalise(deadline: float) -> int:
    """Truncate, scribble on and delete entries."""
    while time.monotonic() < deadline:
        path = cache_dir("kernels") / random.choice(KEYS)
        try:
            size = path.stat().st_size
            with open(path, "r+b") as file:
                if random.random() < 0.5:
                    file.truncate(random.randrange(size + 1))
                else:
                    file.seek(random.randrange(size + 1))
                    file.write(b"vandal")
            if random.random() < 0.1:
                path.unlink()
        except (OSError, ValueError):
            pass
    return 0


def main(processes: int, seconds: float) -> int:
    deadline = time.monotonic() + seconds
    children = []
    for number in range(processes):
        child = os.fork()
        if child == 0:
            random.seed(number)
            os._exit(vandalise(deadline) if number == 0 else use(deadline))
        children.append(child)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(statuses)
    return max(statuses, key=abs)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2])))
