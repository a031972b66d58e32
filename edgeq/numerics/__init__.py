"""The arithmetic, defined once. Numpy only; knows nothing of graphs."""
