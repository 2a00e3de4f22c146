if(TARGET quire_engine)
  quire_test(golden_engine LABEL golden SOURCES ${QUIRE_TEST_DIR}/engine_test.cc LIBS quire_engine)
  quire_test(golden_engine_goldens LABEL golden SOURCES ${QUIRE_TEST_DIR}/engine_goldens_test.cc LIBS quire_engine)
  if(TARGET quire_kernels_cuda)
    quire_test(golden_device LABEL golden SOURCES ${QUIRE_TEST_DIR}/device_test.cc LIBS quire_engine)
    target_link_options(golden_device PRIVATE -static-libstdc++ -static-libgcc)  # carried to a card as one file
  endif()
endif()
