if(TARGET quire_kernels_cuda AND TARGET quire_kernels_reference)
  quire_test(cuda_matmul_test LABEL kernel TIMEOUT 900 SOURCES ${QUIRE_TEST_DIR}/cuda_matmul_test.cc
    LIBS quire_kernels_cuda quire_kernels_reference quire_cuda_shim quire_device quire_base)
  find_package(Python3 COMPONENTS Interpreter)
  if(Python3_FOUND AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND NOT QUIRE_SANITIZE)
    add_test(NAME cuda_planted_product_bugs WORKING_DIRECTORY ${CMAKE_SOURCE_DIR} COMMAND_EXPAND_LISTS
      COMMAND ${Python3_EXECUTABLE} ${QUIRE_TEST_DIR}/planted_bugs.py --products --keep ${CMAKE_BINARY_DIR}/planted_product_bugs.json --link $<TARGET_OBJECTS:cuda_matmul_test>
        $<TARGET_FILE:quire_kernels_cuda_host> $<TARGET_FILE:quire_kernels_cuda> $<$<TARGET_EXISTS:quire_kernels_cuda_card>:$<TARGET_FILE:quire_kernels_cuda_card>>
        $<TARGET_FILE:quire_kernels_reference> $<TARGET_FILE:quire_cuda_shim> $<TARGET_FILE:quire_device> $<TARGET_FILE:quire_base>
        $<$<TARGET_EXISTS:CUDA::cudart_static>:$<TARGET_FILE:CUDA::cudart_static>>)
    set_tests_properties(cuda_planted_product_bugs PROPERTIES LABELS kernel TIMEOUT 600)
  endif()
endif()
if(TARGET quire_kernels_cuda)
  foreach(area epilogue broad_plan)
    quire_test(cuda_${area}_test LABEL kernel SOURCES ${QUIRE_TEST_DIR}/cuda_${area}_test.cc
      LIBS quire_kernels_cuda quire_cuda_shim quire_device quire_base)
  endforeach()
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
if(TARGET quire_kernels_cuda AND TARGET quire_execute)
  quire_test(plan_choice_test LABEL kernel SOURCES ${QUIRE_TEST_DIR}/plan_choice_test.cc LIBS quire_kernels_cuda quire_execute)
  if(QUIRE_HAVE_CUDA)
    quire_test(cublaslt_test LABEL kernel SOURCES ${QUIRE_TEST_DIR}/cublaslt_test.cc LIBS quire_kernels_cuda quire_device quire_base)
  endif()
endif()
