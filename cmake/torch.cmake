# LibTorch out of the PyPI wheel: `luthier::torch` links torch_cpu and c10 only, because libtorch.so needs
# libtorch_cuda.so and with it every CUDA library. Where there is a driver,
# worker/trainer/device.cc loads libtorch_cuda.so.
if(NOT EXISTS ${LUTHIER_TORCH_DIR}/include/torch/csrc/api/include/torch/torch.h)
  message(FATAL_ERROR "LUTHIER_TORCH_DIR='${LUTHIER_TORCH_DIR}' holds no LibTorch. "
    "Run scripts/build, which fetches it, or give the folder `torch` of an unpacked torch==2.11.0 wheel.")
endif()
add_library(luthier_torch INTERFACE)
add_library(luthier::torch ALIAS luthier_torch)
target_include_directories(luthier_torch SYSTEM INTERFACE
  ${LUTHIER_TORCH_DIR}/include ${LUTHIER_TORCH_DIR}/include/torch/csrc/api/include)
# The wheel's libraries find the CUDA runtime through their own RPATH (../../nvidia/cu13/lib), which the linker ignores.
target_link_options(luthier_torch INTERFACE
  -Wl,--no-as-needed -Wl,-rpath-link,${LUTHIER_TORCH_DIR}/../nvidia/cu13/lib
  -Wl,--allow-shlib-undefined)
target_link_libraries(luthier_torch INTERFACE
  ${LUTHIER_TORCH_DIR}/lib/libtorch_cpu.so ${LUTHIER_TORCH_DIR}/lib/libc10.so
  # The OpenMP that libtorch_cpu.so runs on, so that there is one pool of threads.
  ${LUTHIER_TORCH_DIR}/lib/libgomp.so.1)
