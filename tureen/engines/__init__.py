"""The engines, which run the backbone of a bundle. `selection` opens a named engine, or the fastest one."""

from tureen.engines.selection import (
    AUTO,
    RUNTIMES,
    Runtime,
    compile_engine,
    default_options,
    open_engine,
    open_verified_engine,
)

__all__ = [
    "AUTO",
    "RUNTIMES",
    "Runtime",
    "compile_engine",
    "default_options",
    "open_engine",
    "open_verified_engine",
]
