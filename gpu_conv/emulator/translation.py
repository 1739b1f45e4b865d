"""What the generated code of one kernel refers to: registers, constants, places."""

from __future__ import annotations

from typing import Any

from .cfg import Block
from .hazards import Hazards
from .ir import Instruction, Kernel
from .site import Site


class Translation:
    """Filled while a kernel is translated.

    Attributes:
        register_types: storage dtype of each register; ``numbers``: its place in the register file.
        sites: the places that findings and counters refer to.
        namespace: the globals of the generated code.
        hazards: instructions that need a check of registers in flight.
    """

    def __init__(
        self, kernel: Kernel, blocks: list[Block], register_types: dict[str, Any], namespace: dict[str, Any]
    ) -> None:
        self.kernel = kernel
        self.register_types = register_types
        self.numbers = {name: i for i, name in enumerate(kernel.registers)}
        self.sites: list[Site] = []
        self.namespace = namespace
        self.hazards = Hazards(blocks)

    def add_site(self, instruction: Instruction, kind: str) -> str:
        """A new site; its name in generated code."""
        site = Site(len(self.sites), instruction, kind)
        self.sites.append(site)
        name = f"site_{site.index}"
        self.namespace[name] = site
        return name

    def has_symbol(self, name: str) -> bool:
        """Is it a variable or a parameter?"""
        return name in self.kernel.variables or any(p.name == name for p in self.kernel.parameters)
