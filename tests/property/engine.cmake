if(TARGET quire_engine_core)
  quire_test(engine_traffic_test LABEL property SOURCES ${QUIRE_TEST_DIR}/engine_traffic_test.cc
    LIBS quire_engine_core quire_fake_executor)
endif()
