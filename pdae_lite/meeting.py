"""Notebooks on a GPU: tensors on two devices meet on the accelerator.

A notebook mixes models, images and noise from many places. Moving each of them by hand would hide what a cell is about, and
forgetting one stops it. After `use_accelerator()`, an operation that fails because its tensors are on different devices is done
again with all of them on the accelerator, and arrays for NumPy and Matplotlib come from the CPU. For interactive use: programs
should say where their tensors are, which is faster.
"""
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

_meeting: "Meeting | None" = None
TO_NUMPY = (Tensor.numpy, Tensor.__array__)


class Meeting(TorchFunctionMode):
    """While it is entered, operations whose tensors are on several devices take place on `device`."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.device = device

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        try:
            return func(*args, **kwargs)
        except (RuntimeError, TypeError):  # what PyTorch raises for tensors on the wrong device
            if func in TO_NUMPY and args[0].device.type != "cpu":
                return func(args[0].detach().cpu(), *args[1:], **kwargs)
            devices = {x.device.type for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
            if len(devices) < 2:
                raise
        args, kwargs = tree_map_only(Tensor, lambda x: x.to(self.device), (args, kwargs))
        return func(*args, **kwargs)


def use_accelerator() -> torch.device:
    """Let the rest of the session compute on the accelerator (a GPU), and `pdae_lite.load` put models there. Returns its device;
    where there is none, it is the CPU, and nothing changes. MPS is left out: it has no float64, which the book's references need."""
    global _meeting
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None or device.type == "mps":
        return torch.device("cpu")
    if _meeting is None:
        _meeting = Meeting(device)
        _meeting.__enter__()
    return device


def default_device() -> torch.device:
    """Where `pdae_lite.load` puts a model unless it is told: the CPU, or the accelerator after `use_accelerator()`."""
    return torch.device("cpu") if _meeting is None else _meeting.device
