if(TARGET quire_kernels_cuda AND TARGET quire_kernels_reference)
  quire_test(cuda_matmul_test LABEL kernel SOURCES ${QUIRE_TEST_DIR}/cuda_matmul_test.cc
    LIBS quire_kernels_cuda quire_kernels_reference quire_cuda_shim quire_device quire_base)
endif()
if(TARGET quire_kernels_cuda AND TARGET quire_kernels_reference)
  foreach(area rows elementwise)
    quire_test(cuda_${area}_test LABEL kernel SOURCES ${QUIRE_TEST_DIR}/cuda_${area}_test.cc
      LIBS quire_kernels_cuda quire_kernels_reference quire_cuda_shim quire_device quire_base)
  endforeach()
endif()
if(TARGET quire_kernels_cuda_card AND TARGET quire_kernels_reference)
  quire_test(cuda_matmul_card_test LABEL gpu SOURCES ${QUIRE_TEST_DIR}/cuda_matmul_test.cc
    LIBS quire_kernels_cuda quire_kernels_reference quire_cuda_shim quire_device quire_base)
  target_compile_definitions(cuda_matmul_card_test PRIVATE QUIRE_ON_CARD)
  target_link_options(cuda_matmul_card_test PRIVATE -static-libstdc++ -static-libgcc)
endif()
