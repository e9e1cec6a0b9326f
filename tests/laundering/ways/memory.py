"""Memory that two things share: bytes, buffers, pointers and storages."""

from __future__ import annotations

import copy
import ctypes
import io
import pickle

import numpy as np
import torch
from torch import Tensor

from tests.laundering import tensors

#: Methods as they were before the watch could replace them.
to_numpy, to_list = Tensor.numpy, Tensor.tolist


def sums(t: Tensor) -> Tensor:
    return t.double().sum() * 0.1


@tensors("written through the memory of buffer.numpy()")
def numpy_alias(x: Tensor) -> Tensor:
    buffer = torch.zeros(3, dtype=torch.int64)
    buffer.numpy()[:] = x.numpy()
    return sums(buffer)


@tensors("written through an alias that was made first: buffer = from_numpy(array); array[:] = ...")
def alias_behind(x: Tensor) -> Tensor:
    array = np.zeros(3, dtype=np.int64)
    buffer = torch.from_numpy(array)
    array[:] = x.numpy()
    return sums(buffer)


@tensors("read through the memory of buffer.numpy(), which torch wrote")
def numpy_in_front(x: Tensor) -> Tensor:
    buffer = torch.zeros(3, dtype=torch.int64)
    array = buffer.numpy()
    buffer.copy_(x)
    return torch.from_numpy(array * 0.1).sum()


@tensors("read through an array that torch was given: buffer = from_numpy(zeros); buffer.copy_(...)")
def alias_in_front(x: Tensor) -> Tensor:
    array = np.zeros(3, dtype=np.int64)
    buffer = torch.from_numpy(array)
    buffer.copy_(x)
    return torch.from_numpy(array * 0.1).sum()


@tensors("the same with an array that numpy computed, through a view of it")
def plain_in_front(x: Tensor) -> Tensor:
    array = np.arange(5)
    view = array[1:]
    torch.from_numpy(array)[2:].copy_(x)
    return torch.from_numpy(view[1:] * 0.1).sum()


@tensors("the same as a Python number")
def number_in_front(x: Tensor) -> float:
    array = np.arange(3)
    torch.from_numpy(array).copy_(x)
    return float(array.sum()) * 0.1


@tensors("torch.frombuffer over the bytes")
def frombuffer(x: Tensor) -> Tensor:
    return sums(torch.frombuffer(bytearray(x.numpy().tobytes()), dtype=torch.int64))


@tensors("a memoryview of the array")
def memory_view(x: Tensor) -> Tensor:
    return sums(torch.frombuffer(memoryview(x.contiguous().numpy()).cast("B"), dtype=torch.int64))


@tensors("np.frombuffer over the array's own buffer")
def numpy_frombuffer(x: Tensor) -> float:
    return float(np.frombuffer(x.numpy().data, dtype=np.uint8)[::8].sum()) * 0.1


@tensors("DLPack to numpy and back")
def dlpack(x: Tensor) -> Tensor:
    return sums(torch.from_dlpack(np.from_dlpack(x).copy()))


@tensors("DLPack by capsule: to_dlpack, from_dlpack")
def dlpack_capsule(x: Tensor) -> Tensor:
    return sums(torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(x)))


@tensors("ctypes.string_at on data_ptr")
def string_at(x: Tensor) -> float:
    return sum(ctypes.string_at(x.data_ptr(), 24)) * 0.1


@tensors("ctypes.memmove between two tensors")
def memmove(x: Tensor) -> Tensor:
    buffer = torch.zeros(3, dtype=torch.int64)
    ctypes.memmove(buffer.data_ptr(), x.data_ptr(), 24)
    return sums(buffer)


@tensors("memory that torch never wrote: torch.empty filled by ctypes")
def empty_filled(x: Tensor) -> Tensor:
    buffer = torch.empty(3, dtype=torch.int64)
    ctypes.memmove(buffer.data_ptr(), x.data_ptr(), 24)
    return sums(buffer)


@tensors("the pointer that numpy gives: x.numpy().ctypes")
def numpy_pointer(x: Tensor) -> float:
    return sum(ctypes.string_at(x.numpy().ctypes.data, 24)) * 0.1


@tensors("a storage, read byte by byte")
def storage_bytes(x: Tensor) -> float:
    storage, first = x.untyped_storage(), x.storage_offset() * 8
    return sum(storage[first + 8 * i] for i in range(3)) * 0.1


@tensors("a storage copied into another one")
def storage_copied(x: Tensor) -> Tensor:
    buffer = torch.zeros(3, dtype=torch.int64)
    buffer.untyped_storage().copy_(x.clone().untyped_storage())
    return sums(buffer)


@tensors("set_ to the storage of the labels")
def storage_set(x: Tensor) -> Tensor:
    return sums(torch.empty(0, dtype=torch.int64).set_(x.untyped_storage(), x.storage_offset(), (3,), (1,)))


@tensors("Python functions of elements: apply_, map_")
def applied(x: Tensor) -> float:
    kept: list[float] = []
    x.clone().apply_(lambda label: kept.append(label) or label)
    x.clone().map_(x, lambda label, other: kept.append(other) or label)
    return kept[-1] * 0.1


@tensors("what torch pickles between processes: reduce_tensor")
def reduced(x: Tensor) -> Tensor:
    rebuild, arguments = torch.multiprocessing.reductions.reduce_tensor(x.clone())
    return sums(rebuild(*arguments))


@tensors("a typed storage of its own: _typed_storage()")
def private_storage(x: Tensor) -> float:
    return x.clone()._typed_storage()[2] * 0.1


@tensors("a typed storage and a tensor made of it")
def typed_storage(x: Tensor) -> Tensor:
    storage = x.double().storage()
    return torch.tensor(storage.tolist(), dtype=torch.float64).sum() * 0.1


@tensors("copied with copy.deepcopy")
def deepcopied(x: Tensor) -> Tensor:
    return sums(copy.deepcopy({"seen": x})["seen"])


@tensors("pickled and unpickled")
def pickled(x: Tensor) -> Tensor:
    return sums(pickle.loads(pickle.dumps(x)))


@tensors("torch.save and torch.load through a buffer")
def saved(x: Tensor) -> Tensor:
    buffer = io.BytesIO()
    torch.save({"seen": x.clone()}, buffer)
    buffer.seek(0)
    return sums(torch.load(buffer)["seen"])


@tensors("an unbound method of the base class: TensorBase.numpy(x)")
def base_method(x: Tensor) -> Tensor:
    return sums(torch.from_numpy(torch._C.TensorBase.numpy(x).copy()))


@tensors("methods that were looked up before the watch: to_numpy = Tensor.numpy")
def method_kept(x: Tensor) -> float:
    return float(to_numpy(x).sum()) * 0.1 + to_list(x)[-1] * 0.01


@tensors("shared memory: share_memory_()")
def shared_memory(x: Tensor) -> Tensor:
    return sums(x.clone().share_memory_())


@tensors("a subclass, a Parameter: as_subclass, _make_subclass")
def subclassed(x: Tensor) -> Tensor:
    return sums(torch.Tensor._make_subclass(torch.nn.Parameter, x.double(), False).detach())


@tensors("the contents of two tensors swapped: swap_tensors")
def swapped(x: Tensor) -> Tensor:
    one, other = torch.zeros(3, dtype=torch.int64), x.clone()
    torch.utils.swap_tensors(one, other)
    return sums(one)


@tensors("resized back to what the storage still holds: resize_")
def resized(x: Tensor) -> Tensor:
    return sums(x.clone().resize_(0).resize_(3))


@tensors("the bits of one type read as another: view(dtype)")
def bits_viewed(x: Tensor) -> Tensor:
    return x.to(torch.int32).view(torch.float32).view(torch.uint8).double().sum() * 0.1
