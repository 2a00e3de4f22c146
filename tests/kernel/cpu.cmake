if(TARGET quire_kernels_cpu AND TARGET quire_kernels_reference)
  foreach(area matmul rows attention pool math)
    quire_test(cpu_${area}_test LABEL kernel SOURCES ${QUIRE_TEST_DIR}/cpu_${area}_test.cc
      LIBS quire_kernels_cpu quire_kernels_reference quire_device quire_base)
  endforeach()
endif()
