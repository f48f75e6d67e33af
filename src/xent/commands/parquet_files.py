"""Parquet as an Arrow table: a file, or a folder of files with parts of one table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .console import UserError

MAGIC, SUFFIXES = b"PAR1", (".parquet", ".pq")


def is_parquet(path: Path) -> bool:
    """True if a path is a folder, or a Parquet file by its first bytes or its name."""
    if path.is_dir() or path.suffix.lower() in SUFFIXES:
        return True
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_parquet(path: Path) -> tuple[Any, list[str]]:
    """Read a table; return the table and remarks, a line each.

    If only some files of a folder have a column, its values are missing in the rows of the others.
    Columns from the names of folders (``year=2024``) come first, so that the last column stays the
    last.

    Raises:
        UserError: if a folder holds no Parquet, or files that do not belong together.
        OSError: if a file cannot be read.
    """
    import pyarrow
    from pyarrow import dataset, parquet

    if not path.is_dir():
        return parquet.ParquetFile(path).read(), []
    files = dataset.dataset(path, format="parquet", partitioning="hive")
    parts = list(files.get_fragments())
    if not parts:
        raise UserError(f"{path} is a folder without Parquet files")
    schemas = [part.physical_schema for part in parts]
    try:
        schema = pyarrow.unify_schemas(schemas, promote_options="permissive")
    except pyarrow.ArrowException as error:
        raise UserError(f"the files in {path} differ: {error}") from None
    folders = [name for name in files.schema.names if name not in schema.names]
    for name in folders:
        schema = schema.insert(folders.index(name), files.schema.field(name))
    said = []
    if folders:
        said.append(
            f"from the names of folders: {', '.join(map(repr, folders))} (--drop leaves out)"
        )
    for name in schema.names:
        has = sum(name in one.names for one in schemas)
        if name not in folders and has < len(parts):
            said.append(
                f"column {name!r} is in {has} of {len(parts)} files; it is missing in the rows of "
                "the others"
            )
    return files.replace_schema(schema).to_table(), said
