if(TARGET quire_server)
  quire_test(server_mapping_test LABEL server SOURCES ${QUIRE_TEST_DIR}/mapping_test.cc LIBS quire_commands)
  quire_test(server_progress_bar_test LABEL server SOURCES ${QUIRE_TEST_DIR}/progress_bar_test.cc LIBS quire_commands)
  quire_test(server_generate_test LABEL server
    SOURCES ${QUIRE_TEST_DIR}/generate_test.cc ${QUIRE_TEST_DIR}/fake_engine.cc LIBS quire_server)
  quire_test(server_service_test LABEL server
    SOURCES ${QUIRE_TEST_DIR}/service_test.cc ${QUIRE_TEST_DIR}/fake_engine.cc LIBS quire_server)
  quire_test(server_lifecycle_test LABEL server
    SOURCES ${QUIRE_TEST_DIR}/lifecycle_test.cc ${QUIRE_TEST_DIR}/fake_engine.cc LIBS quire_server)
endif()
