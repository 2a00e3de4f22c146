if(TARGET quire_engine_core)
  add_executable(engine_host_bench ${CMAKE_CURRENT_SOURCE_DIR}/engine_host_bench.cc)
  target_link_libraries(engine_host_bench PRIVATE quire_engine_core quire_fake_executor)
endif()
