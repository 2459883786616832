"""``cloister run --optimize``: what makes a program's models fast is above this layer, and is found by entry point.

The launcher only says the precision, in a variable that is measured; in the program's process the hooks ask for the
optimiser and let it change ``transformers`` as that is imported. A plugin cannot take the place of the built-in one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from cloister.errors import UsageError

VARIABLE: Final = "CLOISTER_OPTIMIZE"
GROUP: Final = "cloister.optimizers"
BUILT_IN: Final = EntryPoint(name="lowbit", value="cloister.inference.lowbit.hook:install", group=GROUP)
PRECISIONS: Final = ("auto", "int8", "int4", "bf16")


def install_optimizer(environment: Mapping[str, str] = os.environ) -> bool:
    """Install what the launcher asked for, if it did; whether it did. Raises :class:`~cloister.errors.UsageError`."""
    precision = environment.get(VARIABLE)
    if precision is None:
        return False
    if precision not in PRECISIONS:
        raise UsageError(
            f"{VARIABLE} names no precision", todo="start the program with `cloister run --optimize`"
        )
    for point in entry_points(group=GROUP):
        if point.name == BUILT_IN.name and point.value != BUILT_IN.value:
            raise UsageError(
                "a plugin wants to replace the optimiser of models",
                todo=f"uninstall what offers {point.value}",
            )
    install: Callable[[str], Any] = BUILT_IN.load()
    install(precision)
    return True
