"""Speed, memory and errors of xent beside others; run from the root of a checkout (README.md)."""
