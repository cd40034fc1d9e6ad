"""Reading a PyTorch tensor by its own methods, without importing PyTorch.

They are the same for every type of element and on every device. Its CUDA array interface knows no
float8 (nor bfloat16, in older releases) and does not say that a conjugation is pending; its DLPack
knows no float8 before 2.10, orders streams, and refuses tensors of another GPU than the current.
"""

from __future__ import annotations

from typing import Any

from numba_swap.copies.inputs.arrays import ArrayView, refuse_sub_byte
from numba_swap.errors import UnsupportedArrayError


def is_tensor(array: Any) -> bool:
    """Whether something has a tensor's methods, and lies where these tell an address."""
    if getattr(array, "data_ptr", None) is None:
        return False
    return _kind(getattr(array, "device", None)) in ("cpu", "cuda", "meta")


def view_tensor(tensor: Any, name: str) -> ArrayView:
    """Read the layout of a tensor.

    Parameters
    ----------
    tensor : object
        Anything with the methods of a tensor: ``data_ptr``, ``stride`` and ``element_size``, and
        the attributes ``shape`` and ``device``.
    name : str
        What to call it in an error message.

    Raises
    ------
    UnsupportedArrayError
        If it has no memory of its own, or its bytes are not its values.
    """
    for attribute, obstacle in _OBSTACLES.items():
        if _holds(tensor, attribute):
            raise UnsupportedArrayError(f"{name} {obstacle}")
    layout = str(getattr(tensor, "layout", "strided")).removeprefix("torch.")
    if layout != "strided":
        raise UnsupportedArrayError(
            f"{name} has the layout {layout}: give its parts one by one, or .to_dense()"
        )
    refuse_sub_byte(str(getattr(tensor, "dtype", "")), name)
    shape, itemsize = tuple(map(int, tensor.shape)), int(tensor.element_size())
    strides = tuple([int(stride) * itemsize for stride in tensor.stride()])
    kind = _kind(tensor.device)
    address = 0 if kind == "meta" else int(tensor.data_ptr())
    if not address and 0 not in shape:
        raise UnsupportedArrayError(
            f"{name} is a {type(tensor).__name__} without memory of its own (a meta or fake "
            "tensor, or one made of others): give tensors on the CPU or a GPU"
        )
    return ArrayView(
        address, shape, strides, itemsize, readonly=False, owner=tensor, on_cuda=kind == "cuda"
    )


def tensor_state(tensor: Any) -> object:
    """Return what may change about a tensor while it stays the same object."""
    return (
        tensor.data_ptr(),
        tuple(tensor.shape),
        tuple(tensor.stride()),
        getattr(tensor, "dtype", None),
        getattr(tensor, "requires_grad", False),
        _holds(tensor, "is_conj"),
        _holds(tensor, "is_neg"),
    )


def _kind(device: Any) -> str:
    """Return the kind of a device: "cuda" for ``torch.device("cuda:0")``, or a word like it."""
    return str(getattr(device, "type", device)).partition(":")[0]


def _holds(tensor: Any, attribute: str) -> bool:
    """Return an attribute that says yes or no, or what a method of that name says."""
    state = getattr(tensor, attribute, False)
    return bool(state() if callable(state) else state)


_OBSTACLES = {
    "requires_grad": "requires gradients, which a copy knows nothing of: give .detach()",
    "is_conj": "has a conjugation pending, so its bytes are not its values: give .resolve_conj()",
    "is_neg": "has a negation pending, so its bytes are not its values: give .resolve_neg()",
    "is_quantized": "is quantized, so its bytes alone are not its values: give .int_repr()",
    "is_nested": "is a nested tensor: give the tensors in it",
}
