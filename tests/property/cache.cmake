quire_test(cache_property_test LABEL property LIBS quire_cache
  SOURCES ${QUIRE_TEST_DIR}/cache_test.cc ${QUIRE_TEST_DIR}/cache_model.cc)
