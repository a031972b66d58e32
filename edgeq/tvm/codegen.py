"""From TIR kernels to an object file or C source with a plain C interface.

A kernel becomes `void symbol(uint8_t *x, const int8_t *w, ...)`: TVM's own calling convention, with
its tagged arguments, checks and error strings, is never made.

TVM lets LLVM contract `a * b + c` to one fused multiply-add wherever a CPU has it, which rounds
once where the definition rounds twice. So each product of floats passes `llvm.arithmetic.fence`,
which is no instruction, and which LLVM neither looks through nor moves. C compilers are told
`-ffp-contract=off`.

TVM's own passes take floats for reals: `(x + y) - y` becomes `x`, `x * 0` becomes 0, `x == x` true.
So they see calls of unknown functions instead of the arithmetic of floats.
"""

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir import PointerType
from tvm.tirx import PrimFunc

from edgeq.tvm.program import Kernel

_LOWER = (
    s_tir.transform.CanonicalizeLoop,
    s_tir.transform.LowerInitBlock,
    s_tir.transform.PlanAndUpdateBufferAllocationLocation,
    s_tir.transform.ConvertBlocksToOpaque,
    s_tir.transform.CompactBufferAllocation,
    s_tir.transform.LowerMatchBuffer,
    s_tir.transform.StmtSimplify,
    s_tir.transform.LowerOpaqueBlock,
    tirx.transform.FlattenBuffer,
    s_tir.transform.LoopPartition,
    tirx.transform.VectorizeLoop,
    tirx.transform.StorageRewrite,
    tirx.transform.UnrollLoop,
    tirx.transform.StmtSimplify,
    tirx.transform.RemoveNoOp,
    s_tir.transform.RewriteUnsafeSelect,
    tirx.transform.CommonSubexprElim,
)
_ARITHMETIC = {
    f"edgeq.{kind.__name__}": kind
    for kind in (
        tirx.Add, tirx.Sub, tirx.Mul, tirx.Div,
        tirx.EQ, tirx.NE, tirx.LT, tirx.LE, tirx.GT, tirx.GE,
    )
}  # fmt: skip
_OF_THE_RUNTIME = re.compile(
    r"// tvm target|#include|#define TVM_EXPORTS|void\* __tvm_ffi__library|(float|double) edgeq_f"
)
_PRELUDE = """\
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

static inline float edgeq_f32(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static inline double edgeq_f64(uint64_t bits) {
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

"""


def compile_kernels(
    kernels: Sequence[Kernel], target: tvm.target.Target | Mapping[str, object]
) -> bytes:
    """Return an object file, or C source where the target's kind is `c`.

    Every symbol has C linkage and takes one pointer for each buffer.

    Args:
        kernels: What to compile; those of one symbol are one function.
        target: TVM's target, or its entries.
    """
    if isinstance(target, Mapping):
        target = tvm.target.Target(dict(target))
    functions = {}
    for kernel in kernels:
        function = kernel.function.with_attr("global_symbol", kernel.symbol)
        functions[kernel.symbol] = function.with_body(_hidden(function.body))
    module = tirx.transform.BindTarget(target)(tvm.IRModule(functions))
    module = tvm.ir.transform.Sequential([make() for make in _LOWER])(module)
    plain = {var: _with_pointers(f) for var, f in module.functions.items()}
    change = _spelled if target.kind.name == "c" else _fenced
    plain = {var: f.with_body(change(_shown(f.body))) for var, f in plain.items()}
    # Not LowerTVMBuiltin: local buffers stay on the stack.
    last = [tirx.transform.LowerIntrin()]
    module = tvm.ir.transform.Sequential(last)(tvm.IRModule(plain))
    built = tvm.get_global_func(f"target.build.{target.kind.name}")(module, target)
    if target.kind.name == "c":
        return _portable(built.inspect_source("c")).encode()
    return _object(built)


def _with_pointers(function: PrimFunc) -> PrimFunc:
    """Return the function with bare pointers for parameters, which are C's."""
    pointers = {
        p.name: tirx.Var(p.name, PointerType(p.ty.dtype, "global")) for p in function.params
    }
    body = function.body
    statements = []
    for statement in body.seq if isinstance(body, tirx.SeqStmt) else [body]:
        if isinstance(statement, tirx.DeclBuffer) and isinstance(statement.data, tvm.ir.Call):
            pointer = pointers.get(statement.data.args[0].name)  # None: local, in another's place
            if pointer is not None:
                statement = tirx.DeclBuffer(statement.buffer, data=pointer)
        statements.append(statement)
    parameters = [pointers[p.name] for p in function.params]
    return PrimFunc(parameters, tirx.SeqStmt(statements), None, function.attrs)


def _hidden(body: tirx.Stmt) -> tirx.Stmt:
    """Return `body` with the arithmetic of floats as calls of functions that TVM does not know."""

    def hide(node: tvm.ir.Expr) -> tvm.ir.Expr:
        if not str(node.a.ty.dtype).startswith("float"):
            return node
        name = f"edgeq.{type(node).__name__}"
        return tirx.call_pure_extern(str(node.ty.dtype), name, node.a, node.b)

    return tvm_ffi.structural_map(body, (tuple(_ARITHMETIC.values()), hide), order="post")


def _shown(body: tirx.Stmt) -> tirx.Stmt:
    """Return `body` with the arithmetic of floats as it was."""

    def show(node: tvm.ir.Call) -> tvm.ir.Expr:
        name = node.args[0] if node.args else None
        kind = _ARITHMETIC.get(name.value) if isinstance(name, tvm.ir.StringImm) else None
        return node if kind is None else kind(node.args[1], node.args[2])

    return tvm_ffi.structural_map(body, (tvm.ir.Call, show), order="post")


def _fenced(body: tirx.Stmt) -> tirx.Stmt:
    """Return `body` with a fence behind each product of floats.

    LLVM vectorizes no loop with a fence in it. There the bits of a product are changed by those of
    `zero`, which LLVM does not know to be 0: those of a number, and again of it, behind a fence.
    """
    zero = tirx.Var("zero", "uint32")
    is_used = False

    def fence(node: tirx.Mul) -> tvm.ir.Expr:
        nonlocal is_used
        dtype = str(node.ty.dtype)
        if not dtype.startswith("float"):
            return node
        if dtype not in ("float32", "float64"):
            return tirx.op.call_llvm_pure_intrin(dtype, "llvm.arithmetic.fence", node)
        is_used = True
        bits = dtype.replace("float", "uint")
        changed = tirx.bitwise_xor(tirx.reinterpret(bits, node), zero.astype(bits))
        return tirx.reinterpret(dtype, changed)

    changed = tvm_ffi.structural_map(body, (tirx.Mul, fence), order="post")
    if not is_used:
        return changed
    statements = list(changed.seq)
    declared = [isinstance(s, (tirx.AllocBuffer, tirx.DeclBuffer)) for s in statements]
    start = declared.index(False)
    of_arguments = (s for s in statements if isinstance(s, tirx.DeclBuffer))
    argument = next(s.buffer for s in of_arguments if isinstance(s.data, tirx.Var))
    statements.insert(start, tirx.Bind(zero, _unknown_zero(tirx.BufferLoad(argument, [0]))))
    return tirx.SeqStmt(statements)


def _unknown_zero(any_number: tvm.ir.Expr) -> tvm.ir.Expr:
    """Return 0 as LLVM cannot know it."""
    dtype = str(any_number.ty.dtype)
    if dtype.startswith("float"):
        any_number = tirx.reinterpret(dtype.replace("float", "uint"), any_number)
    bits = any_number.astype("uint32")
    number = tirx.reinterpret("float32", bits)
    fenced = tirx.op.call_llvm_pure_intrin("float32", "llvm.arithmetic.fence", number)
    return tirx.bitwise_xor(tirx.reinterpret("uint32", fenced), bits)


def _spelled(body: tirx.Stmt) -> tirx.Stmt:
    """Return `body` with floats given by their bits: TVM prints seven digits."""

    def spell(node: tirx.FloatImm) -> tvm.ir.Expr:
        dtype = str(node.ty.dtype)
        if dtype == "float32":
            bits = int(np.float32(node.value).view(np.uint32))
            return tirx.call_pure_extern(dtype, "edgeq_f32", tirx.const(bits, "uint32"))
        bits = int(np.float64(node.value).view(np.uint64))
        return tirx.call_pure_extern(dtype, "edgeq_f64", tirx.const(bits, "uint64"))

    return tvm_ffi.structural_map(body, (tirx.FloatImm, spell), order="post")


def _object(built: tvm.runtime.Module) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.o"
        built.write_to_file(str(path), "o")
        return path.read_bytes()


def _portable(source: str) -> str:
    """Return TVM's C source without the headers and symbols of its runtime."""
    lines = [
        line.replace("TVM_DLL ", "")
        for line in source.splitlines()
        if not _OF_THE_RUNTIME.match(line)
    ]
    text = re.sub(r'#ifdef __cplusplus\nextern "C"\n#endif\n', "", "\n".join(lines))
    return _PRELUDE + text.strip() + "\n"
