if(TARGET quire_bench_offline)
  find_package(nlohmann_json REQUIRED)
  quire_test(unit_offline LABEL unit SOURCES ${QUIRE_TEST_DIR}/offline_test.cc
    LIBS quire_bench_offline nlohmann_json::nlohmann_json)
endif()
