if(TARGET quire_model AND TARGET quire_kernels_reference)
  set(golden_libs quire_model quire_kernels_reference)
  set(golden_definitions "")
  if(TARGET quire_kernels_cpu)
    list(APPEND golden_libs quire_kernels_cpu)
    set(golden_definitions QUIRE_GOLDEN_CPU)
  endif()
  if(TARGET quire_kernels_cuda)
    list(APPEND golden_libs quire_kernels_cuda)
    list(APPEND golden_definitions QUIRE_GOLDEN_CUDA_HOST)
  endif()
  foreach(name families shared_goldens)
    quire_test(golden_${name} LABEL golden TIMEOUT 600 SOURCES ${QUIRE_TEST_DIR}/${name}_test.cc ${QUIRE_TEST_DIR}/model_runner.cc
      LIBS ${golden_libs})
    target_compile_definitions(golden_${name} PRIVATE ${golden_definitions})
  endforeach()
endif()

if(TARGET quire_execute)
  quire_test(golden_executor LABEL golden SOURCES ${QUIRE_TEST_DIR}/executor_test.cc ${QUIRE_TEST_DIR}/model_runner.cc
    LIBS quire_execute quire_kernels_reference)
endif()

if(TARGET quire_text AND TARGET quire_kernels_cpu)
  quire_test(golden_text_nll LABEL golden SOURCES ${QUIRE_TEST_DIR}/text_nll_test.cc ${QUIRE_TEST_DIR}/model_runner.cc
    LIBS quire_model quire_text quire_kernels_cpu quire_kernels_reference)
  target_compile_definitions(golden_text_nll PRIVATE QUIRE_GOLDEN_CPU)
endif()
