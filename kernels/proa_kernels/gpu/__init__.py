"""Checked products on a GPU in OpenAI's Triton language: what all operators share.

An operator gives two device functions, where its operand lies and where its results go; `call.run`
does the rest (`linear.gpu` is the example, 20 lines of kernel):

| module | |
|---|---|
| `call` | `Product`, `run(product, launch, scheme=, correct=, fault=)` -> verdict fp64 `[8]` |
| `product` | `accumulate`, `product_kernel` (`tile`, `fused`), `thin_kernel` (`fused`) |
| `settle` | `settle_kernel`: recomputes what is suspicious, repairs, writes the verdict |
| `checks` | device functions: sums, threshold T2, notes, epilogue |
| `columns` | the checksum's columns as kernels read them |
| `launch` | sizes of blocks by shape; `candidates` for a profiler |
| `workspace` | what is allocated per call |
| `faults` | the injector, which production kernels do not contain |

Nothing here is imported unless a tensor is on a GPU: this file imports no Triton.
"""
