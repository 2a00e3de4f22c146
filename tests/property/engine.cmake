quire_test(engine_traffic_test LABEL property SOURCES ${QUIRE_TEST_DIR}/engine_traffic_test.cc
  LIBS quire_engine_core quire_fake_executor)
quire_test(engine_threads_test LABEL property SOURCES ${QUIRE_TEST_DIR}/engine_threads_test.cc
  LIBS quire_engine_threads quire_fake_executor)
