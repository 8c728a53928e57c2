"""What a processor without a memory of its own computes in."""

import os
import platform


def host_memory():
    """Returns the processor's name and the machine's memory.

    Returns:
        `(name, bytes)`: str, and int, or `None` where the system does not
        tell.
    """
    name = f"CPU ({platform.machine()})"
    try:
        pages = os.sysconf("SC_PHYS_PAGES")
        return name, pages * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return name, None
