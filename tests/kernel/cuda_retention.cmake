if(TARGET quire_kernels_cuda AND TARGET quire_policy)
  quire_test(cuda_retention_test LABEL kernel SOURCES ${QUIRE_TEST_DIR}/cuda_retention_test.cc
    LIBS quire_kernels_cuda quire_policy quire_cuda_shim quire_device quire_base)
endif()
