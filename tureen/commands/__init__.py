"""Commands of the core library: `tureen inspect`, `tureen demo`, and reports."""
