"""Ahead-of-time code for devices without a runtime, by TVM: integer kernels and plain C."""
