"""SQL: one module per table, each query above its one function, the connection first."""
