if(TARGET quire_kernels_cpu AND TARGET quire_kernels_reference)
  foreach(area matmul rows attention pool math)
    quire_test(cpu_${area}_test LABEL kernel SOURCES ${QUIRE_TEST_DIR}/cpu_${area}_test.cc
      LIBS quire_kernels_cpu quire_kernels_reference quire_device quire_base)
  endforeach()
endif()
if(TARGET quire_kernels_cpu)
  find_package(Python3 COMPONENTS Interpreter REQUIRED)
  add_test(NAME cpu_isa_symbols
    COMMAND ${Python3_EXECUTABLE} ${QUIRE_TEST_DIR}/isa_symbols.py --objects "$<TARGET_OBJECTS:quire_kernels_cpu>")
  set_tests_properties(cpu_isa_symbols PROPERTIES LABELS kernel)
endif()
