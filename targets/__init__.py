"""The targets: one file each; the file's name is the target's name (`ort_cpu.py` is `ort-cpu`)."""

assert __name__ == "edgeq.targets", "import this package as edgeq.targets"
