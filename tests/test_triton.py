"""SparseGPT's Triton kernel against the torch loop, on the CPU by Triton's interpreter."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

# The interpreter must be chosen before Triton is imported: hence a process of its own.
COMPARE = """
import json, sys
import torch
from secateur.masks import parse_pattern
from secateur.methods.columns import eliminate_in_torch
from secateur.methods.triton_columns import TILE, eliminate

found = []
for name, widths in json.loads(sys.argv[1]).items():
    pattern = parse_pattern(name)
    for width in widths:
        for outputs, ties in ((TILE + 5, False), (7, True))[: 2 if width < 24 else 1]:
            torch.manual_seed(width)
            # Rows of a wider matrix, as the method hands over, and a block of a larger factor.
            w = torch.randn(width, outputs + 3)[:, :outputs]
            upper = (torch.randn(width, width + 2) / width).triu(1)[:, :width]
            upper.diagonal().copy_(torch.rand(width) + 0.5)
            keep = torch.rand(width, outputs) > 0.5
            if ties:
                w, upper = torch.randint(-2, 3, w.shape).float(), torch.eye(width)
            expected, result = w.clone(), w.clone(memory_format=torch.preserve_format)
            masks = [keep.clone(), keep.clone()]
            errors = [torch.empty(width, outputs), torch.empty(width, outputs)]
            eliminate_in_torch(expected, upper, masks[0], pattern, errors[0])
            eliminate(result, upper, masks[1], pattern, errors[1])
            found.append({
                "case": f"{name} {width} {outputs}",
                "masks": int((masks[0] != masks[1]).sum()),
                "weights": float((expected - result).abs().max()),
                "errors": float((errors[0] - errors[1]).abs().max()),
                "zeros": bool(((result == 0) | masks[1]).all()),
                "pruned": float((~masks[1]).float().mean()),
            })
print(json.dumps(found))
"""
# The interpreter takes more than the compiler does, which needs no GPU.
COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from secateur.methods.triton_columns import TILE, _kernel

pointers = {"w": "*fp32", "upper": "*fp32", "keep": "*i1", "errors": "*fp32"}
for group, drop in ((1, 0), (4, 2)):
    constants = {"COLUMNS": 128, "OUTPUTS": TILE, "GROUP": group, "SLOTS": group, "DROP": drop}
    types = {name: pointers.get(name, "constexpr" if name in constants else "i32") for name in _kernel.arg_names}
    source = ASTSource(_kernel, types, constants)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1})
    print(len(made.asm["cubin"]))
"""
CASES = {"unstructured": [1, 2, 3, 17, 128], "2:4": [4, 20, 128], "4:8": [8, 24, 128], "1:3": [9]}


pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed here (it comes with torch on Linux only)",
)


def run(program: str, *arguments: str, **variables: str) -> str:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""} | variables
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_triton_kernel_compiles(tmp_path):
    sizes = run(COMPILE, TRITON_CACHE_DIR=str(tmp_path)).split()
    assert len(sizes) == 2
    assert all(int(size) > 1000 for size in sizes)


def test_the_triton_kernel_does_what_the_torch_loop_does():
    found = json.loads(run(COMPARE, json.dumps(CASES), TRITON_INTERPRET="1"))
    assert len(found) > 1.5 * sum(map(len, CASES.values()))
    for case in found:
        assert case["masks"] == 0, case
        assert max(case["weights"], case["errors"]) < 1e-5, case
        assert case["zeros"], case
    for case in found:
        if not case["case"].startswith("unstructured"):
            assert case["pruned"] == pytest.approx(2 / 3 if case["case"].startswith("1:3") else 0.5)
