if(TARGET quire_kernels_cuda_host AND TARGET quire_kernels_reference)
  quire_test(cuda_attention_test LABEL kernel TIMEOUT 900
    SOURCES ${QUIRE_TEST_DIR}/cuda_attention_test.cc ${QUIRE_TEST_DIR}/cuda_attention_case.cc
    LIBS quire_kernels_cuda_host quire_kernels_reference quire_device quire_base)
  find_package(Python3 COMPONENTS Interpreter)
  if(Python3_FOUND AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND NOT QUIRE_SANITIZE)
    add_test(NAME cuda_planted_bugs WORKING_DIRECTORY ${CMAKE_SOURCE_DIR} COMMAND_EXPAND_LISTS
      COMMAND ${Python3_EXECUTABLE} ${QUIRE_TEST_DIR}/planted_bugs.py --keep ${CMAKE_BINARY_DIR}/planted_attention_bugs.json --link $<TARGET_OBJECTS:cuda_attention_test>
        $<TARGET_FILE:quire_kernels_cuda_host> $<TARGET_FILE:quire_kernels_cuda> $<$<TARGET_EXISTS:quire_kernels_cuda_card>:$<TARGET_FILE:quire_kernels_cuda_card>>
        $<TARGET_FILE:quire_kernels_reference> $<TARGET_FILE:quire_cuda_shim> $<TARGET_FILE:quire_device> $<TARGET_FILE:quire_base>)
    set_tests_properties(cuda_planted_bugs PROPERTIES LABELS kernel TIMEOUT 600)
  endif()
endif()
if(TARGET quire_cuda_shim)
  quire_test(cuda_shim_test LABEL kernel SOURCES ${QUIRE_TEST_DIR}/cuda_shim_test.cc LIBS quire_cuda_shim quire_base)
endif()
if(TARGET quire_kernels_cuda_card AND TARGET quire_kernels_reference)
  quire_test(cuda_attention_card_test LABEL gpu
    SOURCES ${QUIRE_TEST_DIR}/cuda_attention_card_test.cu ${QUIRE_TEST_DIR}/cuda_attention_case.cc
    LIBS quire_kernels_cuda quire_kernels_reference quire_cuda_shim quire_device quire_base)
  target_link_options(cuda_attention_card_test PRIVATE -static-libstdc++ -static-libgcc)  # carried to a card as one file
endif()
