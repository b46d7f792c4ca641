"""Memory that the system has lent, given back while its owner keeps the addresses."""

import ctypes
import mmap
import sys

from torch import Tensor


def give_back(tensor: Tensor) -> int:
    """Give the whole pages under a contiguous tensor back to the system: its values are lost, and it takes memory again
    where it is written to. Bytes; 0 on a GPU, and where the system is not Linux.
    """
    if tensor.device.type != "cpu" or sys.platform != "linux":
        return 0
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if last <= first:
        return 0
    failed = ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)
    return 0 if failed else last - first
