"""Apache TVM on the CPU with this project's own import (graph.py, ops/) and schedules (rules/), compiled in a child process (compile.py)."""

from hw.runtime.tvm.runtime import RUNTIME

__all__ = ["RUNTIME"]
