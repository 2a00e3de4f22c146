quire_test(cache_unit_test LABEL unit LIBS quire_cache
  SOURCES ${QUIRE_TEST_DIR}/cache_pool_test.cc ${QUIRE_TEST_DIR}/cache_tree_test.cc
    ${QUIRE_TEST_DIR}/cache_eviction_test.cc ${QUIRE_TEST_DIR}/cache_kv_test.cc ${QUIRE_TEST_DIR}/cache_kv_leaving_test.cc
    ${QUIRE_TEST_DIR}/cache_tier_test.cc ${QUIRE_TEST_DIR}/cache_owed_test.cc)
