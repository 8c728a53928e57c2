"""The device that computes and its memory, where there is none to test on."""

import os
import types

import keras

from keras_bond import backend
from keras_bond.backend import host


def test_a_cpu_has_the_memory_of_the_machine():
    name, num_bytes = backend.device_memory()
    pages = os.sysconf("SC_PHYS_PAGES")
    assert name.startswith("CPU (")
    assert num_bytes == pages * os.sysconf("SC_PAGE_SIZE")


def test_a_system_that_does_not_tell(monkeypatch):
    def refuse(name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "sysconf", refuse)
    assert host.host_memory()[1] is None


if keras.config.backend() == "jax":

    def test_an_accelerator_tells_what_jax_may_use(monkeypatch):
        import jax

        stats = {"bytes_limit": 123, "bytes_in_use": 5}
        device = types.SimpleNamespace(
            platform="gpu", device_kind="NVIDIA L4", memory_stats=lambda: stats
        )
        monkeypatch.setattr(jax, "local_devices", lambda: [device])
        assert backend.device_memory() == ("NVIDIA L4", 123)
        device.memory_stats = lambda: None
        assert backend.device_memory() == ("NVIDIA L4", None)


if keras.config.backend() == "tensorflow":

    def test_an_accelerator_tells_what_tensorflow_may_use(monkeypatch):
        from tensorflow.python.client import device_lib

        cpu = types.SimpleNamespace(device_type="CPU")
        gpu = types.SimpleNamespace(
            device_type="GPU",
            name="/device:GPU:0",
            memory_limit=123,
            physical_device_desc=(
                "device: 0, name: NVIDIA L4, pci bus id: 0000:00:03.0, "
                "compute capability: 8.9"
            ),
        )
        monkeypatch.setattr(
            device_lib, "list_local_devices", lambda: [cpu, gpu]
        )
        assert backend.device_memory() == ("NVIDIA L4", 123)
        gpu.physical_device_desc, gpu.memory_limit = "", 0
        assert backend.device_memory() == ("/device:GPU:0", None)


if keras.config.backend() == "torch":

    def test_an_accelerator_tells_its_whole_memory(monkeypatch):
        import torch

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA L4")
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (100, 123))
        assert backend.device_memory() == ("NVIDIA L4", 123)
