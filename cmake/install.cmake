# `cmake --install build/release --component server|client|worker|cuda` (default prefix /usr/local). What the linker was told
# about LibTorch's folder holds on the building machine only, so the trainer finds its own copy beside itself.
if(LUTHIER_SERVER)
  install(TARGETS luthierd DESTINATION bin COMPONENT server)
  if(TARGET luthier-worker)
    install(TARGETS luthier-worker DESTINATION bin COMPONENT worker)
  endif()
  if(TARGET luthier)
    install(TARGETS luthier DESTINATION bin COMPONENT client)
    set(luthier_docs ${CMAKE_BINARY_DIR}/share)
    install(FILES ${luthier_docs}/luthier.1 DESTINATION share/man/man1 COMPONENT client)
    install(FILES ${luthier_docs}/luthier.bash RENAME luthier DESTINATION share/bash-completion/completions COMPONENT client)
    install(FILES ${luthier_docs}/luthier.zsh RENAME _luthier DESTINATION share/zsh/site-functions COMPONENT client)
    install(FILES ${luthier_docs}/luthier.fish DESTINATION share/fish/vendor_completions.d COMPONENT client)
  endif()
endif()

if(LUTHIER_TRAINER)
  set_target_properties(luthier-trainer PROPERTIES INSTALL_RPATH "$ORIGIN/../lib/luthier/torch/lib")
  install(TARGETS luthier-trainer DESTINATION bin COMPONENT worker)
  # As in the wheels, because LibTorch's own RPATH says ../../nvidia/cu13/lib.
  set(luthier_torch_lib ${LUTHIER_TORCH_DIR}/lib)
  set(luthier_nvidia ${LUTHIER_TORCH_DIR}/../nvidia)
  install(PROGRAMS ${luthier_torch_lib}/libtorch_cpu.so ${luthier_torch_lib}/libc10.so ${luthier_torch_lib}/libgomp.so.1
    DESTINATION lib/luthier/torch/lib COMPONENT worker)
  install(DIRECTORY ${luthier_nvidia}/cu13/lib/ DESTINATION lib/luthier/nvidia/cu13/lib COMPONENT worker
    FILES_MATCHING PATTERN "libcudart.so*" PATTERN "libcupti.so*")
  # What a node with GPUs needs besides; `scripts/deps --cuda` fetches it.
  install(DIRECTORY ${luthier_torch_lib}/ DESTINATION lib/luthier/torch/lib COMPONENT cuda
    FILES_MATCHING PATTERN "lib*cuda*.so" PATTERN "libtorch_nvshmem.so" PATTERN "libcaffe2_nvrtc.so"
    PATTERN "libshm*" EXCLUDE)
  install(DIRECTORY ${luthier_nvidia}/ DESTINATION lib/luthier/nvidia COMPONENT cuda FILES_MATCHING PATTERN "*.so*")
endif()
