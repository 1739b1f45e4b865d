"""Mbarriers, bulk copies and proxy fences."""

from __future__ import annotations

from . import codegen_memory
from .codegen_base import Handler, Modifiers, Writer
from .codegen_memory import address_of
from .ir import Address, Immediate, Instruction, Operand, Register, Sink, TensorAddress
from .numeric import i32, u32, u64
from .site import PhaseTest
from .windows import SHARED_WINDOW

_SHARED = ("shared", "shared::cta", "shared::cluster")  # a cluster is one block here
_ARRIVALS = "mbarrier::complete_tx::bytes"


def _object(w: Writer, operand: Operand, mods: Modifiers) -> str:
    """Address expression and offset of an mbarrier, as two arguments."""
    address, offset = address_of(w, operand)
    if not mods.choice(*_SHARED):
        address = f"({address} - {w.constant(SHARED_WINDOW, u64)})"
    return f"{address}, {{lanes}}, {offset}"


def _mbarrier(w: Writer, i: Instruction, mods: Modifiers) -> None:
    action = mods.need("init", "inval", "arrive", "expect_tx")
    announces = action == "arrive" and mods.flag("expect_tx")
    relaxed = mods.choice("release", "relaxed") == "relaxed"
    mods.choice("cta", "cluster")
    mods.need("b64")
    position = int(action == "arrive")
    where = _object(w, i.operands[position], mods)
    values = [w.read(x, u32) for x in i.operands[position + 1 :]]
    needed = {"init": 1, "inval": 0, "expect_tx": 1}.get(action, int(announces))
    if not needed <= len(values) <= max(needed, position):
        raise w.unsupported("number of operands")
    lanes, site = w.lanes(), w.site(f"mbarrier.{action}")
    where = where.format(lanes=lanes)
    match action:
        case "init":
            w.emit(f"m.mbarriers.initialise({site}, {where}, {values[0]})")
        case "inval":
            w.emit(f"m.mbarriers.invalidate({site}, {where})")
        case "expect_tx":
            w.emit(f"m.mbarriers.expect({site}, {where}, {values[0]})")
        case _:
            count = values[0] if values and not announces else w.constant(1, u32)
            expected = values[0] if announces else "None"
            w.emit(f"loaded = m.mbarriers.arrive({site}, {where}, {count}, {expected}, {not relaxed})")
            if not isinstance(i.operands[0], Sink):
                w.write(i.operands[0], "loaded", u64)
            w.emit("loaded = None")


def phase_test(w: Writer, i: Instruction) -> tuple[PhaseTest, str]:
    """``mbarrier.test_wait`` and ``try_wait``, which end a block; and the expression of address and phase."""
    mods = Modifiers(i)
    suspends = mods.need("test_wait", "try_wait") == "try_wait"
    parity, relaxed = mods.flag("parity"), mods.choice("acquire", "relaxed") == "relaxed"
    mods.choice("cta", "cluster")
    mods.need("b64")
    target, where, phase, *hint = i.operands
    address, offset = address_of(w, where)
    if not mods.choice("shared", "shared::cta"):
        address = f"({address} - {w.constant(SHARED_WINDOW, u64)})"
    mods.finish()
    if not isinstance(target, Register) or len(hint) > suspends:
        raise w.unsupported()
    w.site("mbarrier.wait")
    test = PhaseTest(w.program.sites[-1], offset, parity, not relaxed, w.program.numbers[target.name])
    return test, f"{address}, {w.read(phase, u32 if parity else u64)}"


def _copy(w: Writer, i: Instruction, mods: Modifiers) -> None:
    if "bulk" not in i.modifiers:
        codegen_memory.HANDLERS["cp"](w, i, mods)
        return
    mods.need("async")
    mods.need("bulk")
    if mods.flag("commit_group"):
        w.emit(f"m.bulk.commit({w.lanes()})")
    elif mods.flag("wait_group"):
        (count,) = i.operands
        mods.flag("read")
        if not isinstance(count, Immediate):
            raise w.unsupported()
        w.emit(f"m.bulk.wait({w.lanes()}, {count.value})")
    else:
        _bulk_copy(w, i, mods)


def _bulk_copy(w: Writer, i: Instruction, mods: Modifiers) -> None:
    rank = mods.choice("1d", "2d", "3d", "4d", "5d") if mods.flag("tensor") else None
    spaces = [m.split("::")[0] for m in i.modifiers if m.split("::")[0] in ("global", "shared")]
    loads = spaces == ["shared", "global"]
    if not loads and spaces != ["global", "shared"]:
        raise w.unsupported()
    mods.need("shared::cluster", "shared::cta") if loads else mods.need("shared::cta")
    mods.need("global")
    mods.need(_ARRIVALS if loads else "bulk_group")
    operands = i.operands
    if mods.flag("L2::cache_hint"):
        operands = operands[:-1]
    if rank:
        mods.flag("tile")
    kind = f"{'tensor' if rank else 'linear'}"
    arguments = []
    for operand in operands:
        if isinstance(operand, TensorAddress):
            items = operand.coordinates.items
            if not rank or len(items) != int(rank[0]):
                raise w.unsupported("number of coordinates")
            address, offset = address_of(w, operand.map)
            arguments += [address, str(offset), "(" + "".join(f"{w.read(x, i32)}, " for x in items) + ")"]
        elif isinstance(operand, Address):
            address, offset = address_of(w, operand)
            arguments += [address, str(offset)]
        else:
            arguments.append(w.read(operand, u32))
    expected = {(True, "tensor"): 7, (False, "tensor"): 5, (True, "linear"): 7, (False, "linear"): 5}[loads, kind]
    if len(arguments) != expected:
        raise w.unsupported("number of operands")
    lanes = w.lanes()
    sites = f"{w.site('cp.async.bulk.global')}, {w.site('cp.async.bulk.shared')}"
    w.emit(f"m.bulk.{'load' if loads else 'store'}_{kind}({sites}, {lanes}, {', '.join(arguments)})")


def _fence(w: Writer, i: Instruction, mods: Modifiers) -> None:
    if mods.flag("proxy"):
        mods.need("async")
        space = mods.choice("global", "shared::cta", "shared::cluster")
        if space != "global":
            w.emit(f"m.fence_proxy({w.lanes()})")
    elif mods.flag("mbarrier_init"):
        mods.need("release")
        mods.need("cluster")
        w.emit(f"m.mbarriers.fence({w.lanes()})")
    else:
        codegen_memory.HANDLERS["fence"](w, i, mods)


def _registers(w: Writer, i: Instruction, mods: Modifiers) -> None:
    """``setmaxnreg`` moves registers between warpgroups; the emulator has enough of them."""
    mods.need("inc", "dec")
    mods.need("sync")
    mods.need("aligned")
    mods.need("u32")
    (count,) = i.operands
    if not isinstance(count, Immediate) or not 24 <= count.value <= 256 or count.value % 8:
        raise w.unsupported("registers come in multiples of 8 from 24 to 256")


HANDLERS: dict[str, Handler] = {
    "mbarrier": _mbarrier,
    "cp": _copy,
    "fence": _fence,
    "setmaxnreg": _registers,
}
