if(TARGET quire_engine)
  add_executable(host_tier_bench ${CMAKE_CURRENT_SOURCE_DIR}/host_tier_bench.cc)
  target_link_libraries(host_tier_bench PRIVATE quire_engine)
endif()
