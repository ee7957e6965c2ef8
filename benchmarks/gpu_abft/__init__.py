"""Parts of `benchmarks/abft_gpu.py`: they import only torch, triton, numpy and proa_kernels."""
