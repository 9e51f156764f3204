"""The data that chips exchange in a compiled program."""

import math
import re

# In XLA's text: `%name = (f32[16,10]{1,0}, f32[]) all-reduce(...)`. Those that run beside others
# have a start and an end; the start of an all-reduce has the shape of its result.
_COLLECTIVE = re.compile(
    r"^ *(?:ROOT )?%\S+ = (.*?) (?:all-reduce|all-gather|reduce-scatter|all-to-all|"
    r"collective-permute)(?:-start)?\(",
    re.MULTILINE,
)
_SHAPE = re.compile(r"\b(pred|[a-z]+(\d+))\[([\d,]*)\]")


def collective_bytes(program: str) -> list[int]:
    """The size in bytes of each collective operation's result on one chip.

    Args:
      program: XLA's text. The body of a loop counts once.
    """
    return [
        sum(
            math.prod(int(size) for size in sizes.split(",") if size) * int(bits or 8) // 8
            for _, bits, sizes in _SHAPE.findall(result)
        )
        for result in _COLLECTIVE.findall(program)
    ]
