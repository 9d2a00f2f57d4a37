"""Token ids in four bytes each."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np


class TokenIds(Sequence[int]):
    """An immutable sequence of token ids that equals a tuple of the same ids.

    A driver passes on the ids of thousands of responses a second and looks at few: here they are one block of bytes, in
    memory, between processes and on the way to a table. As Python integers they take nine times the memory, and each
    passage converts them one by one.

    Example:
        >>> ids = TokenIds([5, 6, 7])
        >>> ids == (5, 6, 7), len(ids), ids[1], ids[1:]
        (True, 3, 6, TokenIds((6, 7)))
    """

    __slots__ = ("_bytes",)

    def __init__(self, ids: Iterable[int] = ()) -> None:
        """Copy ids, or share those of another instance.

        Raises:
            OverflowError: an id has more than 32 bits.
        """
        if isinstance(ids, np.ndarray):
            assert ids.dtype == np.int32, f"token ids are int32, not {ids.dtype}"
            self._bytes: bytes = ids.tobytes()
        elif isinstance(ids, TokenIds):
            self._bytes = ids._bytes
        else:
            self._bytes = array("i", ids).tobytes()

    def __len__(self) -> int:
        return len(self._bytes) // 4

    @overload
    def __getitem__(self, index: int) -> int: ...

    @overload
    def __getitem__(self, index: slice) -> TokenIds: ...

    def __getitem__(self, index: int | slice) -> int | TokenIds:
        found = np.frombuffer(self._bytes, np.int32)[index]
        return TokenIds(found) if isinstance(index, slice) else int(found)

    def __iter__(self) -> Iterator[int]:
        return iter(memoryview(self._bytes).cast("i").tolist())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, TokenIds):
            return self._bytes == other._bytes
        return tuple(self) == other if isinstance(other, tuple) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"TokenIds({tuple(self)})"

    def __reduce__(self) -> Any:
        return _of_bytes, (self._bytes,)

    def tobytes(self) -> bytes:
        """The ids as integers of 32 bits."""
        return self._bytes

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(np.frombuffer(self._bytes, np.int32), dtype, copy=copy)


def _of_bytes(ids: bytes) -> TokenIds:
    new = TokenIds.__new__(TokenIds)
    new._bytes = ids
    return new
