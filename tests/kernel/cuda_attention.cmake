if(TARGET quire_kernels_cuda_host AND TARGET quire_kernels_reference)
  quire_test(cuda_attention_test LABEL kernel
    SOURCES ${QUIRE_TEST_DIR}/cuda_attention_test.cc ${QUIRE_TEST_DIR}/cuda_attention_case.cc
    LIBS quire_kernels_cuda_host quire_kernels_reference quire_device quire_base)
endif()
if(TARGET quire_cuda_shim)
  quire_test(cuda_shim_test LABEL kernel SOURCES ${QUIRE_TEST_DIR}/cuda_shim_test.cc LIBS quire_cuda_shim quire_base)
endif()
if(TARGET quire_kernels_cuda_card AND TARGET quire_kernels_reference)
  quire_test(cuda_attention_card_test LABEL gpu
    SOURCES ${QUIRE_TEST_DIR}/cuda_attention_card_test.cu ${QUIRE_TEST_DIR}/cuda_attention_case.cc
    LIBS quire_kernels_cuda quire_kernels_reference quire_cuda_shim quire_device quire_base)
endif()
