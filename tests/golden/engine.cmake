if(TARGET quire_engine)
  quire_test(golden_engine LABEL golden SOURCES ${QUIRE_TEST_DIR}/engine_test.cc LIBS quire_engine)
  quire_test(golden_engine_goldens LABEL golden SOURCES ${QUIRE_TEST_DIR}/engine_goldens_test.cc LIBS quire_engine)
endif()
