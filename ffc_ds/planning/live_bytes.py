"""The memory of tensors, counted as they come and go, on any device and for tensors that are only pretended."""

import weakref

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """`now`: bytes of the tensors made inside this context that are still alive, each storage once; `peak`: the most
    there were. What a kernel takes for itself (cuDNN's workspace) is not seen."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self._known.update(_storages((args, kwargs)))  # views of what was there before are not new
        result = function(*args, **(kwargs or {}))
        for storage in _storages(result):
            if storage not in self._known:
                self._known.add(storage)
                self._add(storage.nbytes())
                weakref.finalize(storage, self._add, -storage.nbytes())
        return result

    def _add(self, size):
        self.now += size
        self.peak = max(self.peak, self.now)


def _storages(values):
    tensors = (value for value in tree_leaves(values) if isinstance(value, Tensor) and value.device.type != "meta")
    return [tensor.untyped_storage() for tensor in tensors]
