if(TARGET quire_kernels_cuda_host AND TARGET quire_sample)
  quire_test(cuda_sampling_test LABEL kernel SOURCES ${QUIRE_TEST_DIR}/cuda_sampling_test.cc
    LIBS quire_kernels_cuda_host quire_cuda_shim quire_sample)
  quire_test(cuda_logits_test LABEL kernel SOURCES ${QUIRE_TEST_DIR}/cuda_logits_test.cc
    LIBS quire_kernels_cuda_host quire_cuda_shim quire_sample)
endif()
