"""The passes: one file each; the file's name is the pass's (`insert_qdq.py` is `insert-qdq`)."""

assert __name__ == "edgeq.passes", "import this package as edgeq.passes"
