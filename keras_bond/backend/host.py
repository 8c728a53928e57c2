"""Memory of the host."""

import os
import platform


def host_memory():
    """Returns the name of the processor and the memory of the machine.

    Returns:
        `(name, bytes)`: str, and int or `None` if the system does not report
        it.
    """
    name = f"CPU ({platform.machine()})"
    try:
        pages = os.sysconf("SC_PHYS_PAGES")
        return name, pages * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return name, None
