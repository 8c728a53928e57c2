"""TPUs: what a chip has, and how its compiler is reached without one."""

import dataclasses
import os

# Set before JAX is imported: libtpu would look for a machine with TPUs.
ENVIRONMENT = {
    "KERAS_BACKEND": "jax",
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    # It only compiles, so that it need not be alone on the machine.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip, from Google's pages on the TPU generations.

    Attributes:
        memory: float. Bytes.
        flops: float. In bfloat16, a second.
        bandwidth: float. Bytes a second to its memory.
    """

    memory: float
    flops: float
    bandwidth: float


CHIPS = {
    "v5e": Chip(16 * 2**30, 197e12, 819e9),
    "v6e": Chip(32 * 2**30, 918e12, 1640e9),
}


def prepare():
    """Sets what libtpu and JAX read when they are imported."""
    os.environ.update(ENVIRONMENT)


def devices(topology):
    """Devices that can be compiled for, though none is there.

    Args:
        topology: str, such as `"v5e:1x1"` or `"v5e:2x4"`.

    Returns:
        list of JAX devices.

    Raises:
        ValueError: if the chip is not known.
    """
    from jax.experimental import topologies

    if topology.partition(":")[0] not in CHIPS:
        raise ValueError(
            f"`topology` must begin with one of {sorted(CHIPS)}, followed by "
            f'the chips, such as "v5e:2x4". Received: topology={topology!r}'
        )
    description = topologies.get_topology_desc(
        platform="tpu", topology_name=topology
    )
    return list(description.devices)
