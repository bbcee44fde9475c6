"""Reads the images inside a Parquet file: a table with a row for each image, and the bytes of the image in a column.

The column is `image`. It is binary, or a struct with the fields `bytes` and `path`, which is how Hugging Face's
`datasets` writes images. The file is read in order, a few rows at a time, so no file is opened for an image.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

import numpy as np

from serve.errors import InputError, UnreadableError
from serve.jobs.image_source import open_input_file
from serve.jobs.rooted_files import Files
from tureen.errors import ImageTooLargeError

IMAGE_COLUMN = "image"
READ_ROWS = 16  # at a time; bounds the memory
READ_BYTES = 1 << 20  # of the file at a time


class ParquetImages:
    """The column `image` of an open Parquet file. Rows count from 0.

    Reading a row before the last one, or in another row group, decompresses its row group from the start.
    """

    def __init__(self, path: PurePath, files: Files) -> None:
        """Raises InputError if the file cannot be read as Parquet, and ModuleNotFoundError without pyarrow."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._errors = (pa.ArrowException, OSError)
        self._lock = threading.Lock()
        self._file = open_input_file(files, path)
        try:
            self._table = pq.ParquetFile(self._file, buffer_size=READ_BYTES, pre_buffer=False)
            kinds = [field.type for field in self._table.schema_arrow if field.name == IMAGE_COLUMN]
        except self._errors as error:
            self._file.close()
            raise InputError(f"{path} cannot be read as Parquet: {error}") from error
        if len(kinds) > 1:
            self.close()
            raise InputError(f"{path} has {len(kinds)} columns {IMAGE_COLUMN}: remove all but one")
        kind = kinds[0] if kinds else pa.null()
        self._is_struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0  # -1: none, or several
        content = kind.field("bytes").type if self._is_struct else kind
        self.exist = pa.types.is_binary(content) or pa.types.is_large_binary(content)
        groups = self._table.metadata.num_row_groups
        self._ends = np.cumsum([self._table.metadata.row_group(n).num_rows for n in range(groups)])
        self._batches: Iterator[Any] = iter(())
        self._first, self._column = 0, None  # index of the first row of the column, and some rows of the table

    def read(self, row: int, max_bytes: int) -> bytes:
        """Returns the bytes of the image in a row. Any thread may call it.

        Raises ImageTooLargeError if the image has more than `max_bytes`, and UnreadableError if it cannot be read.
        """
        with self._lock:
            try:
                content = self._value(row).as_buffer()
            except (*self._errors, StopIteration) as error:
                self._column = None
                raise UnreadableError("the Parquet file cannot be read at this row") from error
        if content is None:
            raise UnreadableError("its row holds no image")
        if content.size > max_bytes:
            raise ImageTooLargeError("bytes", max_bytes)
        data: bytes = content.to_pybytes()
        return data

    def _value(self, row: int) -> Any:
        """Returns the Arrow value of a row. Raises an error of pyarrow, or StopIteration if there is no such row."""
        group = int(np.searchsorted(self._ends, row, side="right"))
        begin = int(self._ends[group - 1]) if group else 0
        if self._column is None or row < self._first or self._first + len(self._column) < begin:
            column = f"{IMAGE_COLUMN}.bytes" if self._is_struct else IMAGE_COLUMN
            groups = list(range(group, len(self._ends)))
            self._batches = self._table.iter_batches(READ_ROWS, row_groups=groups, columns=[column])
            self._first, self._column = begin, self._next_column()
        while row >= self._first + len(self._column):  # type: ignore[arg-type]
            self._first += len(self._column)  # type: ignore[arg-type]
            self._column = self._next_column()
        return self._column[row - self._first]  # type: ignore[index]

    def _next_column(self) -> Any:
        column = next(self._batches).column(IMAGE_COLUMN)  # not by its index: another may have the name image.bytes
        return column.field("bytes") if self._is_struct else column

    def close(self) -> None:
        self._table.close()
        self._file.close()
