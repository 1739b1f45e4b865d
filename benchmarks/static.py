"""Static gates: what the compiler and the emulator say about every kernel that the core rows ask for, and its limits.

    python benchmarks/static.py                    # recompute, compare with static.json, exit 1 on a regression
    python benchmarks/static.py --update           # and write it
    python benchmarks/static.py --all              # count again what has not changed too (the emulator has)
    python benchmarks/static.py --only "7x7 float16 nhwc sm_90a"

The rows are those of ``layers.json`` in float16 and float32, channels last and first, for three architectures, at the
batch at which ``bench.py`` measures. No figure is a time, and none needs a GPU. A row whose PTX and launch are those of
one in the file takes its counts. Regressions are figures that got worse by more than 3 %; gates are limits for all
rows, from which ``argued`` in the file excepts some, each group with its reason.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, fields
from itertools import product
from pathlib import Path
from typing import Any

from counted import Case, Compilation, Counts, compilation, counts, share_of
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rows import LAYERS

from gpu_conv.cuda import compiler

FILE = Path(__file__).with_name("static.json")
SCHEMA = "gpu_conv-static-1"
ARCHS = ("sm_80", "sm_90a", "sm_120")
TOLERANCE = 0.03
# ``slots``: issue slots of threads per output, an estimate: ``issued`` x ``shrunk``.
COLUMNS = ("kernel", "digest", "slots", *(field.name for kind in (Compilation, Counts) for field in fields(kind)))
# Figures that are worse where they are larger, and where they are smaller. Sectors and wavefronts per request are
# neither: wider accesses have more.
WORSE_UP = ("registers", "spill_bytes", "local_bytes", "slots", "ffma", "mma", "shared", "conflicts", "dram", "l2")
WORSE_DOWN = ("wide_loads",)
UNCOUNTED = ("direct",)  # the fallback has no gates of speed: a row that needs it is an exception by itself

Row = Mapping[str, Any]


def cases(archs: Iterable[str] = ARCHS, only: str = "") -> Iterator[Case]:
    """All rows, those of one layer together: architectures often share their PTX."""
    for row, dtype, last, arch in product(LAYERS, ("float16", "float32"), (True, False), archs):
        case = Case(row, dtype, last, arch)
        if only in case.name:
            yield case


def measure(case: Case, known: dict[str, Row] | None = None) -> Row:
    """The figures of a case; counts of the same PTX and launch are taken from ``known``, by digest, or added to it."""
    known = {} if known is None else known
    share = share_of(case)
    compiled = asdict(compilation(share))
    found = {"kernel": share.launch.kernel, "digest": share.digest, "slots": 0.0, **compiled}
    if share.launch.kernel in UNCOUNTED:
        return found
    if share.digest not in known:
        known[share.digest] = {name: float(f"{value:.4g}") for name, value in asdict(counts(share)).items()}
    counted = known[share.digest]
    slots = float(f"{counted['issued'] * compiled['shrunk']:.4g}")
    return found | {"slots": slots} | {field.name: counted[field.name] for field in fields(Counts)}


# ------------------------------------------------------------------------------------------------------------- verdicts


def regressions(name: str, old: Row, new: Row) -> list[str]:
    """What got worse by more than 3 %."""
    found = []
    for figure, sign in (*((f, 1) for f in WORSE_UP), *((f, -1) for f in WORSE_DOWN)):
        if figure in old and figure in new:
            before, now = old[figure], new[figure]
            if sign * (now - before) > TOLERANCE * before + 1e-9:
                found.append(f"{name} ({new['kernel']}): {figure} was {before:g}, is {now:g}")
    if new["kernel"] in UNCOUNTED and old["kernel"] not in UNCOUNTED:
        found.append(f"{name}: kernel was {old['kernel']}, is {new['kernel']}")
    return found


def gates(name: str, row: Row) -> Iterator[tuple[str, str]]:
    """The limits that a row exceeds: the gate, and how."""
    for figure in ("spill_bytes", "local_bytes"):
        if row[figure]:
            yield figure, f"{row[figure]} instead of 0"
    if row["kernel"] in UNCOUNTED:
        yield "kernel", f"runs on {row['kernel']}"
        return
    if row["conflicts"] > 1.10:
        yield "conflicts", f"{row['conflicts']:.2f} wavefronts of shared memory for one without bank conflicts"
    if row["dram"] > 1.10:
        yield "dram", f"{row['dram']:.2f} of the fewest bytes"
    if re.search(r" depthwise\S*s1(x1)*_", name):
        limit = 37 if " float16 " in name else 74
        if row["slots"] > limit:
            yield "slots", f"{row['slots']:.0f} issue slots per output, {limit} are 85 % of the copy bandwidth"


def unargued(rows: Mapping[str, Row], argued: Iterable[Mapping[str, str]]) -> list[str]:
    """Gates that are exceeded without a reason, and reasons for nothing: a pattern is matched with kernel and name."""
    found, used = [], set()
    exceptions = [(entry["gate"], re.compile(entry["rows"]), entry["why"]) for entry in argued]
    for name, row in rows.items():
        for gate, text in gates(name, row):
            reasons = [
                why for one, pattern, why in exceptions if one == gate and pattern.search(f"{row['kernel']} {name}")
            ]
            used.update(reasons)
            if not reasons:
                found.append(f"{name} ({row['kernel']}): {gate}: {text}")
    return found + [f"argued for nothing: {why}" for _, _, why in exceptions if why not in used]


# ------------------------------------------------------------------------------------------------------------- the file


def read(path: Path = FILE) -> dict[str, Any]:
    """The document, its rows by name, each a dictionary."""
    document: dict[str, Any] = json.loads(path.read_text())
    rows = document["rows"].items()
    document["rows"] = {name: dict(zip(document["columns"], row, strict=False)) for name, row in rows}
    return document


def write(document: Mapping[str, Any], path: Path = FILE) -> None:
    """One line per row; how many of an architecture are missing stands above them."""
    rows = document["rows"].items()
    missing = Counter(case.arch for case in cases() if case.name not in document["rows"])
    lines = [f"  {json.dumps(name)}: {json.dumps([row[c] for c in COLUMNS if c in row])}" for name, row in sorted(rows)]
    head = {key: value for key, value in document.items() if key not in ("rows", "columns")}
    text = json.dumps(head | {"not_counted_yet": missing, "columns": COLUMNS}, indent=1).removesuffix("\n}")
    path.write_text(text + ',\n "rows": {\n' + ",\n".join(lines) + "\n }\n}\n")


# ----------------------------------------------------------------------------------------------------------- for people


def summary(rows: Mapping[str, Row]) -> Table:
    """The worst and the middle of every kernel, dtype and architecture."""
    shown = ("registers", "slots", "ffma", "mma", "wide_loads", "load_sectors", "store_sectors", "conflicts", "dram")
    table = Table("kernel", "dtype", "arch", "rows", *shown, title="median and worst of the core rows")
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for name, row in rows.items():
        *_, dtype, _, arch = name.split()
        groups.setdefault((row["kernel"], dtype, arch), []).append(row)
    for key, members in sorted(groups.items()):
        cells = []
        for figure in shown:
            values = sorted(m[figure] for m in members if figure in m)
            worst = values[:1] if figure == "wide_loads" else values[-1:]
            cells.append(f"{values[len(values) // 2]:.3g} {worst[0]:.3g}" if values else "")
        table.add_row(*key, str(len(members)), *cells)
    return table


def main() -> None:
    """Recompute, compare, show, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--arch", nargs="*", default=ARCHS)
    arguments = parser.parse_args()
    start = {"schema": SCHEMA, "nvrtc": compiler.nvrtc_version(), "argued": [], "rows": {}}
    document = read() if FILE.exists() else start
    old, new, console = document["rows"], {}, Console(width=180)
    known = {case.name for case in cases()}
    chosen = list(cases(arguments.arch, arguments.only))
    counted = {} if arguments.all else {row["digest"]: row for row in old.values() if "issued" in row}
    for number, case in enumerate(track(chosen, console=console, disable=not console.is_terminal)):
        new[case.name] = measure(case, counted)
        if arguments.update and number % 8 == 7:  # an interrupted run keeps what it has
            write(document | {"rows": {**old, **new}})
    console.print(summary(new))
    rows = {name: row for name, row in {**old, **new}.items() if name in known}
    worse = [line for name in new if name in old for line in regressions(name, old[name], new[name])]
    missing = [f"{name}: not in {FILE.name}" for name in new if name not in old and not arguments.update]
    found = unargued(rows, document["argued"])
    for line in (*worse, *missing, *found):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if arguments.update:
        write(document | {"nvrtc": compiler.nvrtc_version(), "rows": rows})
    sys.exit(bool(found or missing or (worse and not arguments.update)))


if __name__ == "__main__":
    main()
